"""Takes over what another process has compiled: its shared libraries are loaded, past Inductor and its caches."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from sgc.config import Rng
from sgc.emit.inductor.background.compile_request import Answer
from sgc.emit.inductor.compile_graph import Runner, compile_graph
from sgc.emit.inductor.cpp_entry import call_program, library_of
from sgc.native import library

_ENTRY = "inductor_entry_cpp"
"""The function of a program that Inductor has compiled with its C++ wrapper, and so the name of its module."""


class LoadedProgram:
    """A program of Inductor's for the CPU, of a shared library: called with tensors, it gives tensors."""

    def __init__(self, path: str) -> None:
        self.__wrapped__ = getattr(_module(path), _ENTRY)  # by which cpp_entry finds it

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        return call_program(self.__wrapped__, inputs)


def _module(path: str) -> Any:
    """The extension module in a library, loaded as ``CppPythonBindingsCodeCache`` of torch (2.11 to 2.13) does it."""
    guards: Any = torch._C._dynamo.guards
    os.environ["_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"] = str(guards._torchinductor_pyobject_tensor_data_ptr)
    name = f"sgc_{os.path.basename(path).partition('.')[0]}.{_ENTRY}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]


class Precompiled:
    """Stands for Inductor where another process has compiled: gives its programs, in their order.

    What that process could not compile so that it is recognised, this one compiles.
    """

    def __init__(self, answer: Answer) -> None:
        self._programs: Iterator[str | None] = iter(answer.programs)
        self._functions = answer.functions
        library.take_over(answer.native)

    def compile_graph(
        self, module: fx.GraphModule, examples: list[Any], rng: Rng, *, in_one_piece: bool = False
    ) -> Runner:
        """The next program, for a graph of which it was made."""
        path = next(self._programs, None)
        if path is None:
            return compile_graph(module, examples, rng, in_one_piece=in_one_piece, ordered=True)
        return LoadedProgram(path)

    def library_of(self, functions: Sequence[str]) -> Callable[[], Any]:
        """The library of the functions (:func:`sgc.emit.inductor.cpp_entry.library_of`)."""
        path = self._functions
        return library_of(functions) if path is None else lambda: ctypes.CDLL(path)
