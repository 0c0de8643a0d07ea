"""Calls a program that Inductor has compiled for the CPU from C++: any number of times for one call from Python.

Inductor's C++ wrapper (``cpp_wrapper``) leaves a shared library with one function, which takes the inputs and gives the
outputs as handles of tensors. Torch reaches it through several layers of Python, which take longer than a small
program. There is no public way around them: this module finds that function, and makes sure, from the source that it
was compiled from, that it takes what is expected.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import CellType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from sgc.emit.rewrites.outline import Kernel
from sgc.native.library import library, shared_library
from sgc.native.private_attributes import private
from sgc.native.switches import is_on

_ENTRY = "_Z19inductor_entry_implPP16AtenTensorOpaqueS1_"
"""``void inductor_entry_impl(AtenTensorHandle* inputs, AtenTensorHandle* outputs)``: uses the inputs' handles up."""

_FUNCTIONS = (
    _ENTRY,
    "aoti_torch_new_tensor_handle",
    "aoti_torch_delete_tensor_object",
    "aoti_torch_get_data_ptr",
    "aoti_torch_is_contiguous",
    "aoti_torch_grad_mode_is_enabled",
    "aoti_torch_grad_mode_set_enabled",
)
"""What is looked up in a library: the program, and functions of torch's stable C interface (aoti_torch/c/shim.h), to
copy a handle, to release it, to find the elements of its tensor, to ask how these lie in memory, and to do without
gradients."""

_AS_NUMBERS = frozenset((torch.float32, torch.float64, torch.bool))
"""The types of which C++ makes Python's numbers."""

_KINDS = {torch.float32: "f", torch.float64: "d", torch.bool: "?", torch.float16: "h", torch.bfloat16: "h"}
"""The types of the results that a caller may want, as C++ is told them: by their size, those of half precision."""

Taking = Callable[[tuple[Any, ...], dict[str, Any]], Any]
"""Takes a step with positional and named arguments. Gives its loss; None if it is not known to be for these; or, if it
has halted or raised, a tuple: its results, or the exception; its tensors; and the random state before it, or None."""

_TAKES = re.compile(r"steal_from_raw_handles_to_raii_handles\(input_handles, (\d+)\)")
_GIVES = re.compile(r"output_handles\[(\d+)\]")
_GIVES_TWICE = re.compile(r"= output_handles\[")


@dataclass(frozen=True)
class NativeProgram:
    """A compiled program on the CPU, and the kernels that run after it.

    ``plan`` says what does not change from call to call; ``dtypes`` are those of the results that the caller wants,
    0-d ones.
    """

    plan: Any
    dtypes: tuple[torch.dtype, ...]
    libraries: tuple[Any, ...]  # they must stay loaded

    def bind(self, inputs: Sequence[Tensor | None], written: Sequence[int]) -> NativeCall:
        """Calls with these inputs; None stands for one that each call brings.

        :param written: the positions of those that are written, which autograd is told about.
        """
        handles = iter(_handles([tensor for tensor in inputs if tensor is not None]))
        bound = library().bind(self.plan, [tensor if tensor is None else next(handles) for tensor in inputs])
        return NativeCall(self, bound, inputs, written)


class NativeCall:
    """A program with those of its inputs that stay the same tensors.

    The tensors that a call is given are its first inputs, of which it takes those that were not there to be bound.
    """

    def __init__(
        self, program: NativeProgram, bound: Any, inputs: Sequence[Tensor | None], written: Sequence[int]
    ) -> None:
        self._program = program
        self._bound = bound
        self._brought = [position for position, tensor in enumerate(inputs) if tensor is None]
        self._written = [tensor for position in written if (tensor := inputs[position]) is not None]
        self._brought_and_written = [position for position in self._brought if position in written]
        self.once: Callable[[list[Tensor]], tuple[Any, ...]] = self._once
        """Call it once; what it gives, as numbers. Raises what a call of many times raises."""
        self._single: tuple[Any, ...] | None = None
        if not self._brought_and_written and _AS_NUMBERS.issuperset(program.dtypes):
            self._single = (_handles, increment_version, self._written)
            self.once = partial(library().once, bound, self._single)

    def taking(
        self,
        watched: Any,
        make_call: type,
        plain: frozenset[type],
        note_state: Callable[[], Any] | None,
        token: list[object],
    ) -> Taking | None:
        """All of a training step in C++, from its arguments on; None where that cannot be.

        :param watched: what is asked whether the step is for these arguments (:func:`sgc.native.conditions.watched`).
        :param make_call: makes of the arguments the call that is asked about.
        :param plain: types of arguments that are leaves of the call; if all are, no call is made.
        :param note_state: gives the random state, if that before the step may be asked for afterwards.
        :param token: one object, which is taken out during the step; without it none is taken.
        """
        if self._single is None or self._program.dtypes[0] is torch.bool:
            return None
        return partial(library().take, (watched, make_call, plain, self._bound, self._single, note_state, token))

    def __call__(self, tensors: list[Tensor], times: int) -> list[Tensor]:
        """Call it ``times`` times; what it gives, each time's, as tensors of shape ``[times]``.

        :raises RuntimeError: if an operator raises; what the calls before that one gave is lost.
        """
        results = [torch.empty(times, dtype=dtype, device="cpu") for dtype in self._program.dtypes]
        brought = _handles([tensors[i] for i in self._brought])
        try:
            library().call(self._bound, brought, times, *(result.data_ptr() for result in results))
        finally:
            increment_version([*self._written, *(tensors[i] for i in self._brought_and_written)])
        return results

    def until_halted(
        self, tensors: list[Tensor], times: int, note_state: Callable[[], Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """Call it ``times`` times, or up to a call whose first result is NaN, or to the one before a call that raises.

        :param note_state: gives the random state.
        :return: what it gives, as tensors of shape ``[made]``, and the random state before the last call, or before the
            one that has raised.
        :raises Exception: what an operator raises in the first call.
        """
        results = [torch.empty(times, dtype=dtype, device="cpu") for dtype in self._program.dtypes]
        brought = _handles([tensors[i] for i in self._brought])
        addresses = [result.data_ptr() for result in results]
        try:
            made, before = library().call_until(self._bound, brought, times, note_state, *addresses)
        finally:
            increment_version([*self._written, *(tensors[i] for i in self._brought_and_written)])
        return [result[:made] for result in results], before

    def _once(self, tensors: list[Tensor]) -> tuple[Any, ...]:
        return tuple(result.item() for result in self(tensors, 1))


_handles: Callable[[list[Tensor]], list[Any]] = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors
"""Gives handles of tensors, for C++ to take over."""

_tensors: Callable[[list[Any]], list[Tensor]] = torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs
"""Gives the tensors of handles, which it takes over."""


def native_program(
    compiled: Callable[..., Any],
    takes: Sequence[int],
    dtypes: Sequence[torch.dtype],
    results: int,
    kernels: Sequence[Kernel] = (),
    functions: Callable[[], Any] | None = None,
    loop: tuple[NativeProgram, int, int, int] | None = None,
) -> NativeProgram | None:
    """What ``compiled``, of Inductor, calls in the end; None if it is not found, or is not what is expected.

    :param takes: which of the inputs it takes. Those that it writes must not share memory: torch would make one of
        them.
    :param dtypes: of those of its ``results`` that the caller wants, the first ones, all 0-d.
    :param functions: gives the library of what the kernels call (:func:`library_of`).
    :param loop: a program that is run before it, how many times, and the positions of the inputs ``first`` and
        ``aborted`` (:class:`sgc.emit.particle_loop.ParticleLoop`).
    """
    if not dtypes or not set(dtypes) <= _KINDS.keys():
        return None
    for module in recognised(compiled, len(takes), results):
        compiled_by_inductor = ctypes.CDLL(module.__file__)
        if all(hasattr(compiled_by_inductor, name) for name in _FUNCTIONS):
            addresses = tuple(_address(compiled_by_inductor, name) for name in _FUNCTIONS)
            kinds = "".join(_KINDS[dtype] for dtype in dtypes)
            own = functions() if functions is not None else None
            calls = tuple(
                (_address(own, f"function_{kernel.function}"), kernel.size, kernel.operands) for kernel in kernels
            )
            before = None if loop is None else (loop[0].plan, *loop[1:])
            plan = library().prepare(addresses, tuple(takes), kinds, results, calls, torch.get_num_threads(), before)
            return NativeProgram(plan, tuple(dtypes), (compiled_by_inductor, own, loop))
    return None


def direct(
    compiled: Callable[..., Any], takes: Sequence[int], attributes: list[Tensor], results: int, written: Sequence[int]
) -> Callable[..., list[Tensor]] | None:
    """What ``compiled``, of Inductor, calls in the end, for tensors; None if that is not what is expected.

    :param takes: which of its inputs, and of the attributes behind them, it takes.
    :param written: the positions of the inputs that it writes.
    """
    module = next(recognised(compiled, len(takes), results), None) if is_on("cpp_entry") else None
    if module is None:
        return None
    program = module.inductor_entry_cpp
    places = list(takes)

    def run(*inputs: Tensor) -> list[Tensor]:
        everything = (*inputs, *attributes) if attributes else inputs
        with_gradients = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)
        try:
            return call_program(program, [everything[i] for i in places])
        finally:
            torch._C._set_grad_enabled(with_gradients)
            if written:
                increment_version([inputs[i] for i in written])

    return run


def call_program(program: Callable[..., Any], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Call the function ``inductor_entry_cpp`` of a compiled program with tensors."""
    return _tensors(program(_handles(list(inputs))))


def recognised(compiled: Callable[..., Any], takes: int, results: int) -> Iterator[Any]:
    """The modules that Inductor has compiled, whose one function has this many inputs and results."""
    for module in _native_modules(compiled):
        source = Path(module.__file__).with_suffix(".cpp")
        text = source.read_text() if source.exists() else ""
        gives = {int(number) for number in _GIVES.findall(text)}
        if _TAKES.findall(text) == [str(takes)] and gives == set(range(results)) and not _GIVES_TWICE.search(text):
            yield module


def _address(library: Any, name: str) -> int:
    address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    assert address is not None
    return address


def _native_modules(compiled: Any) -> Iterator[Any]:
    """The extension modules of Inductor's that a callable leads to, by what it wraps and what it closes over."""
    ahead, seen = [compiled], set()
    while ahead:
        reached = ahead.pop()
        if reached is None or id(reached) in seen:
            continue
        seen.add(id(reached))
        if getattr(reached, "__name__", "") == "inductor_entry_cpp":
            yield reached.__self__
        cells = getattr(reached, "__closure__", None) or ()
        ahead += [cell.cell_contents for cell in cells if cell != CellType()]
        ahead += [getattr(reached, name, None) for name in ("__wrapped__", "_compiled_fn", "current_callable")]


def _vectorised() -> tuple[str, ...]:
    """Options for plain loops: Inductor's are for loops that are vectorised by hand."""
    if sys.platform == "win32":
        return ()
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        compiler = private("torch._inductor.cpp_builder:get_cpp_compiler")()
    except InvalidCxxCompiler:
        return ()  # who waits for the library is told
    # Inductor tells gcc not to vectorise; clang, which is named g++ as well on macOS, does not know the option.
    is_gcc = sys.platform != "darwin" and "clang" not in compiler
    return ("-ftree-loop-vectorize", "-fno-math-errno") if is_gcc else ("-fno-math-errno",)


def library_of(functions: Sequence[str]) -> Callable[[], Any]:
    """Start to compile a library of functions, given their bodies; what this returns waits for it and gives it."""
    texts = [f"#include <{name}>" for name in ("cmath", "cstdint", "cstring", "limits")]
    for number, body in enumerate(functions):
        name = f"function_{number}(void* const* p, int64_t begin, int64_t end, bool finish)"
        texts.append(f'extern "C" void {name} {{\n{body}\n}}')
    return shared_library("\n".join(texts), *_vectorised())
