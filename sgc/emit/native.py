"""Calls a program that Inductor has compiled for the CPU from C++: any number of times for one call from Python.

Inductor's C++ wrapper (``cpp_wrapper``) leaves a shared library with one function, which takes the inputs and gives the
outputs as handles of tensors. Torch reaches it through several layers of Python, which take longer than a small
program. There is no public way around them: this module finds that function, and makes sure, from the source that it
was compiled from, that it takes what is expected.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CellType
from typing import Any

import torch
from torch import Tensor

_ENTRY = "_Z19inductor_entry_implPP16AtenTensorOpaqueS1_"
"""``void inductor_entry_impl(AtenTensorHandle* inputs, AtenTensorHandle* outputs)``: uses the inputs' handles up."""

_FUNCTIONS = (_ENTRY, "aoti_torch_new_tensor_handle", "aoti_torch_delete_tensor_object", "aoti_torch_get_data_ptr")
"""What is looked up in a library; :attr:`NativeProgram.addresses` has them in this order."""

_TAKES = re.compile(r"steal_from_raw_handles_to_raii_handles\(input_handles, (\d+)\)")
_GIVES = re.compile(r"output_handles\[(\d+)\]")
_GIVES_TWICE = re.compile(r"= output_handles\[")

_CALLER = r"""
#include <Python.h>

#include <cstdint>
#include <cstring>
#include <exception>
#include <vector>

using Handle = void*;

template <typename Function>
static Function function(PyObject* address) { return reinterpret_cast<Function>(PyLong_AsVoidPtr(address)); }

// call(program, copy, release, data, inputs, times, *outputs): calls the program so many times. The inputs are a list
// of capsules, whose handles are taken over. Each output is an address and a size: the bytes of call t go to
// address + t * size. With the lock of Python held, of which the program itself lets go.
static PyObject* call(PyObject*, PyObject* const* args, Py_ssize_t count) {
    auto program = function<void (*)(Handle*, Handle*)>(args[0]);
    auto copy = function<int32_t (*)(Handle, Handle*)>(args[1]);
    auto release = function<int32_t (*)(Handle)>(args[2]);
    auto data = function<int32_t (*)(Handle, void**)>(args[3]);
    const Py_ssize_t takes = PyList_GET_SIZE(args[4]), gives = (count - 6) / 2;
    const int64_t times = PyLong_AsLongLong(args[5]);
    std::vector<Handle> held(takes), given(takes), results(gives);
    std::vector<char*> places(gives);
    std::vector<size_t> sizes(gives);
    for (Py_ssize_t i = 0; i < takes; ++i) held[i] = PyCapsule_GetPointer(PyList_GET_ITEM(args[4], i), nullptr);
    for (Py_ssize_t i = 0; i < gives; ++i) {
        places[i] = static_cast<char*>(PyLong_AsVoidPtr(args[6 + 2 * i]));
        sizes[i] = PyLong_AsSize_t(args[7 + 2 * i]);
    }
    try {
        for (int64_t time = 0; time < times; ++time) {
            for (Py_ssize_t i = 0; i < takes; ++i) copy(held[i], &given[i]);
            program(given.data(), results.data());
            // An operator that is called through Python has raised: the program has returned, with nothing.
            if (PyErr_Occurred()) break;
            for (Py_ssize_t i = 0; i < gives; ++i) {
                void* bytes = nullptr;
                data(results[i], &bytes);
                std::memcpy(places[i] + time * sizes[i], bytes, sizes[i]);
                release(results[i]);
            }
        }
    } catch (const std::exception& error) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    for (Handle handle : held) release(handle);
    return PyErr_Occurred() ? nullptr : Py_NewRef(Py_None);
}

static PyMethodDef methods[] = {
    {"call", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call)), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "sgc_caller", nullptr, -1, methods};
PyMODINIT_FUNC PyInit_sgc_caller() { return PyModule_Create(&module); }
"""


@dataclass(frozen=True)
class NativeProgram:
    """A compiled program that takes so many tensors on the CPU, and gives 0-d ones of the given ``dtypes``.

    ``call`` is the loop in C++. ``addresses`` are those of the program and of three functions of torch's stable C
    interface (``aoti_torch/c/shim.h``): to copy a handle, to release it, to find the elements of its tensor.
    """

    call: Callable[..., None]
    addresses: tuple[int, ...]
    takes: int
    dtypes: tuple[torch.dtype, ...]
    library: Any  # it must stay loaded

    def __call__(self, inputs: list[Tensor], times: int) -> list[Tensor]:
        """Call it ``times`` times; what it gives, each time's, as tensors of shape ``[times]``.

        What it writes into its inputs stays unnoticed by autograd: that is for the caller to announce.

        :raises RuntimeError: if an operator raises; what the calls before that one gave is lost.
        """
        assert len(inputs) == self.takes
        results = [torch.empty(times, dtype=dtype, device="cpu") for dtype in self.dtypes]
        outputs = [number for result in results for number in (result.data_ptr(), result.itemsize)]
        with torch.no_grad():
            handles = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(inputs)
            self.call(*self.addresses, handles, times, *outputs)
        return results


def native_program(compiled: Callable[..., Any], takes: int, dtypes: Sequence[torch.dtype]) -> NativeProgram | None:
    """What ``compiled``, of Inductor, calls in the end; None if it is not found, or is not what is expected.

    :param takes: how many tensors it takes. Those that it writes must not share memory: torch would make one of them.
    :param dtypes: of the tensors that it gives.
    """
    for module in _native_modules(compiled):
        source = Path(module.__file__).with_suffix(".cpp")
        text = source.read_text() if source.exists() else ""
        gives = {int(found) for found in _GIVES.findall(text)}
        if _TAKES.findall(text) != [str(takes)] or gives != set(range(len(dtypes))) or _GIVES_TWICE.search(text):
            continue
        library = ctypes.CDLL(module.__file__)
        if all(hasattr(library, name) for name in _FUNCTIONS):
            addresses = tuple(_address(library, name) for name in _FUNCTIONS)
            return NativeProgram(_caller(), addresses, takes, tuple(dtypes), library)
    return None


def _address(library: Any, name: str) -> int:
    address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    assert address is not None
    return address


def _native_modules(compiled: Any) -> Iterator[Any]:
    """The extension modules of Inductor's that a callable leads to, by what it wraps and what it closes over."""
    ahead, seen = [compiled], set()
    while ahead:
        found = ahead.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        if getattr(found, "__name__", "") == "inductor_entry_cpp":
            yield found.__self__
        cells = getattr(found, "__closure__", None) or ()
        ahead += [cell.cell_contents for cell in cells if cell != CellType()]
        ahead += [getattr(found, name, None) for name in ("__wrapped__", "_compiled_fn", "current_callable")]


@cache
def _caller() -> Callable[..., None]:
    """The loop in C++, compiled once on a machine and kept by Inductor beside the programs."""
    from torch._inductor.codecache import CppCodeCache

    path = CppCodeCache.load(_CALLER)._name
    spec = importlib.util.spec_from_file_location("sgc_caller", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    call: Callable[..., None] = module.call
    return call
