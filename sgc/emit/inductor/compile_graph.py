"""Compiles an emitted module by Inductor, which is imported when it is first needed: that takes a second."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch._guards import TracingContext, detect_fake_mode

from sgc.config import Rng
from sgc.emit.fx.module_laws import devices
from sgc.emit.fx.rewriting import copy_of, depends_on_data, takes_any_size
from sgc.emit.inductor.compilation import Compilation
from sgc.emit.inductor.tuning.all_tunings import TUNINGS
from sgc.emit.inductor.workarounds.applying import patched, rewritten
from sgc.emit.inductor.workarounds.order_of_draws import WORKAROUND as ORDER_OF_DRAWS
from sgc.emit.inductor.workarounds.order_of_draws import DrawsInOtherOrder, draws_in_order, number_draws
from sgc.emit.rewrites.singular_matrices import failures_are_nan
from sgc.errors import BackendError
from sgc.native.inductor_cache import compiled, log_filtered
from sgc.native.private_attributes import entered

Runner = Callable[..., Sequence[Tensor]]
"""Computes a list of tensors from tensors."""


def compile_graph(
    module: fx.GraphModule, examples: list[Any], rng: Rng, *, in_one_piece: bool = False, ordered: bool = False
) -> Runner:
    """A callable that computes what ``module`` computes on tensors like ``examples``.

    :param module: a graph of aten operators, without in-place ones but copies into inputs, that returns a list.
    :param in_one_piece: whether its results may lie in one piece of memory, with all that is computed on the way: for a
        caller that does not keep them.
    :param ordered: whether draws are taken in the order of the graph, as they always are with ``rng="torch"``.
    :raises BackendError: if Inductor cannot work on this machine; the text says what to install.
    """
    on_cpu = devices(module) <= {torch.device("cpu")}
    if ordered and rng != "torch":
        with suppress(DrawsInOtherOrder):
            # Nothing is slower then; to keep an order, Inductor is given less to choose.
            return _compiled(Compilation(copy_of(module), rng, on_cpu, in_one_piece, "checked"), examples)
    kept = ordered or rng == "torch"
    return _compiled(Compilation(copy_of(module), rng, on_cpu, in_one_piece, "ordered" if kept else "free"), examples)


def _compiled(compilation: Compilation, examples: list[Any]) -> Runner:
    options = _options(compilation)
    failures_are_nan(compilation.module, validates=False)
    own_options = rewritten(compilation)
    if compilation.draws == "checked":
        number_draws(compilation.module)
    sized = takes_any_size(compilation.module)
    if depends_on_data(compilation.module.graph) and not sized:
        _forget_values(compilation.module.graph)
    if sized:
        examples = [node.meta["val"] for node in compilation.module.graph.find_nodes(op="placeholder")]
    compile_it = partial(_compile, compilation, examples, options, own_options)
    return compiled(compile_it, compile_it)


def _compile(
    compilation: Compilation, examples: list[Any], options: dict[str, Any], own_options: dict[str, Any]
) -> Runner:
    import torch._inductor
    import torch._inductor.config as inductor_config

    sizes: Literal["from_example_inputs", "from_tracing_context"] = "from_example_inputs"
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(inductor_config.patch(options))
        stack.enter_context(without_advice())
        stack.enter_context(_tuned(compilation))
        mode = detect_fake_mode(examples)
        if mode is not None:
            # The formulas for sizes are of the environment in which the module was traced: what Inductor asks of them
            # is guarded there.
            stack.enter_context(torch._guards.tracing(TracingContext(mode)))
            sizes = "from_tracing_context"
        # Inductor has a public entry for modules (torch.compile) and this one for graphs; only this one
        # takes a graph as it is, without tracing it anew and without guards of its own at each call.
        program = torch._inductor.standalone_compile(
            compilation.module,
            examples,
            dynamic_shapes=sizes,
            # Where it would set some of them itself, it sets them first.
            options={"config_patches": own_options} if own_options else None,
        )
    if program is None:
        raise BackendError("Inductor returned nothing", remedy='please report it, or use backend="eager"')
    return program


@contextmanager
def _tuned(compilation: Compilation) -> Iterator[None]:
    """Replace private attributes of torch, as workarounds and tunings do."""
    with ExitStack() as stack:
        for tuning in TUNINGS:
            if tuning.patch is not None and tuning.concerns(compilation):
                stack.enter_context(entered(tuning.name, tuning.patch(), right_without=True))
        stack.enter_context(patched(compilation))
        if compilation.draws == "checked":
            looked_at = draws_in_order(compilation.module, kept=False)
            stack.enter_context(entered(ORDER_OF_DRAWS.name, looked_at, right_without=False))
        yield


def _forget_values(graph: fx.Graph) -> None:
    """Take the (fake) values from a graph: Inductor has symbols of its own for sizes that depend on data."""
    for node in graph.nodes:
        for name in ("val", "unbacked_bindings"):
            node.meta.pop(name, None)


def _options(compilation: Compilation) -> dict[str, Any]:
    from sgc.emit.inductor.cache_key import Generator

    # On a GPU Inductor's own random numbers fuse with their use; on a CPU torch's are drawn faster.
    options: dict[str, Any] = {"fallback_random": compilation.rng == "torch" or compilation.on_cpu}
    options |= {"post_grad_custom_pre_pass": Generator(draws=compilation.draws), "cpp_wrapper": compilation.on_cpu}
    for tuning in TUNINGS:
        if tuning.options is not None and tuning.concerns(compilation):
            options |= tuning.options(compilation)
    return options


_ADVICE = {
    "torch._inductor.ir": "missing a c-shim",  # an operator that the C++ wrapper calls through Python
    "torch._inductor.standalone_compile": "artifact generation failed",  # nobody saves it
}
"""What Inductor logs, by logger, for its authors and not for those who use it."""


@contextmanager
def without_advice() -> Iterator[None]:
    """While this is entered, Inductor logs nothing that is for its authors alone."""

    def wanted(record: logging.LogRecord) -> bool:
        return _ADVICE[record.name] not in record.msg

    with ExitStack() as stack:
        for name in _ADVICE:
            stack.enter_context(log_filtered(name, wanted))
        yield
