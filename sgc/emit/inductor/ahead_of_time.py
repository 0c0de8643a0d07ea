"""Compiles an exported program by AOTInductor, for a package that torch loads without sgc."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch.export import ExportedProgram

from sgc.emit.inductor.compilation import Compilation
from sgc.emit.inductor.compile_graph import without_advice
from sgc.emit.inductor.workarounds.applying import patched, rewritten
from sgc.native.inductor_cache import compiled


def compile_ahead_of_time(exported: ExportedProgram, directory: Path) -> list[str]:
    """Compile a program for the CPU, which draws from torch's generator in the order of its graph.

    :param exported: of functional aten operators, as :func:`sgc.emit.rewrites.functionalise.functionalise` leaves them.
    :param directory: an absolute path; the files are written there.
    :return: the files, as ``torch._inductor.package.package_aoti`` takes them.
    :raises sgc.errors.BackendError: if Inductor cannot work on this machine; the text says what to install.
    """
    compile_it = partial(_compile, exported, directory)
    return compiled(compile_it, compile_it)


def _compile(exported: ExportedProgram, directory: Path) -> list[str]:
    from torch._inductor import aot_compile

    # Sizes and kinds of the arguments are for the program that loads it to ask: AOTI_RUNTIME_CHECK_INPUTS=1.
    module = exported.module(check_guards=False)
    assert isinstance(module, torch.fx.GraphModule) and exported.example_inputs is not None
    compilation = Compilation(module, "torch", True, False, "ordered")
    options: dict[str, Any] = {
        **rewritten(compilation),
        "fallback_random": True,
        # Without it a 0-d parameter is a number in the generated program, which ``load_constants`` cannot replace.
        "always_keep_tensor_constants": True,
        "aot_inductor.package": True,
        # torch notes the machine in this dict: in its own one it would stay, and be taken for an option of the user's.
        "aot_inductor.metadata": {},
        "aot_inductor.output_path": str(directory),
    }
    with torch.no_grad(), warnings.catch_warnings(), without_advice(), patched(compilation):
        # torch copies its options, with a class of its own that it has deprecated
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        # The public entry (``aoti_compile_and_package``) puts one program into a package; this one leaves that to
        # ``package_aoti``, as its documentation says.
        args, kwargs = exported.example_inputs
        return cast("list[str]", aot_compile(module, args, kwargs, options=options))
