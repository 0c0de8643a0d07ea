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
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CellType
from typing import Any

import torch
from torch import Tensor

from sgc.emit.outline import Kernel

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

_KINDS = {torch.float32: "f", torch.float64: "d", torch.bool: "?", torch.float16: "h", torch.bfloat16: "h"}
"""The types of the results that a caller may want, as C++ is told them: by their size, those of half precision."""

_TAKES = re.compile(r"steal_from_raw_handles_to_raii_handles\(input_handles, (\d+)\)")
_GIVES = re.compile(r"output_handles\[(\d+)\]")
_GIVES_TWICE = re.compile(r"= output_handles\[")

_CALLER = r"""
#include <Python.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

using Handle = void*;
using Function = void (*)(void* const* operands, int64_t begin, int64_t end, bool finish);

namespace {

// FUNCTIONS

struct Kernel {
    Function function;
    int64_t size;
    std::vector<int64_t> operands;
};

struct Plan {
    void (*program)(Handle*, Handle*);
    int32_t (*copy)(Handle, Handle*);
    int32_t (*release)(Handle);
    int32_t (*data)(Handle, void**);
    int32_t (*contiguous)(Handle, bool*);
    bool (*with_gradients)();
    void (*set_gradients)(bool);
    std::vector<int64_t> takes;  // which inputs the program takes
    std::string gives;  // the type of each result that the caller wants; the kernels want those after them
    size_t results;
    std::vector<Kernel> kernels;
};

size_t size(char type) { return type == 'd' ? 8 : type == 'f' ? 4 : type == 'h' ? 2 : 1; }

PyObject* number(char type, const void* place) {
    switch (type) {
        case 'd': return PyFloat_FromDouble(*static_cast<const double*>(place));
        case 'f': return PyFloat_FromDouble(*static_cast<const float*>(place));
        default: return PyBool_FromLong(*static_cast<const bool*>(place));
    }
}

template <typename T>
T function(PyObject* address) { return reinterpret_cast<T>(PyLong_AsVoidPtr(address)); }

std::vector<int64_t> numbers(PyObject* tuple) {
    std::vector<int64_t> found;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); ++i)
        found.push_back(PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, i)));
    return found;
}

void destroy(PyObject* capsule) { delete static_cast<Plan*>(PyCapsule_GetPointer(capsule, nullptr)); }

// prepare(addresses, takes, gives, results, kernels): what does not change from call to call.
PyObject* prepare(PyObject*, PyObject* args) {
    PyObject *addresses, *takes, *kernels;
    const char* gives;
    Py_ssize_t results;
    if (!PyArg_ParseTuple(args, "O!O!snO!", &PyTuple_Type, &addresses, &PyTuple_Type, &takes, &gives, &results,
                          &PyTuple_Type, &kernels)) return nullptr;
    auto plan = new Plan;
    plan->program = function<decltype(plan->program)>(PyTuple_GET_ITEM(addresses, 0));
    plan->copy = function<decltype(plan->copy)>(PyTuple_GET_ITEM(addresses, 1));
    plan->release = function<decltype(plan->release)>(PyTuple_GET_ITEM(addresses, 2));
    plan->data = function<decltype(plan->data)>(PyTuple_GET_ITEM(addresses, 3));
    plan->contiguous = function<decltype(plan->contiguous)>(PyTuple_GET_ITEM(addresses, 4));
    plan->with_gradients = function<decltype(plan->with_gradients)>(PyTuple_GET_ITEM(addresses, 5));
    plan->set_gradients = function<decltype(plan->set_gradients)>(PyTuple_GET_ITEM(addresses, 6));
    plan->takes = numbers(takes);
    plan->gives = gives;
    plan->results = static_cast<size_t>(results);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(kernels); ++i) {
        PyObject* kernel = PyTuple_GET_ITEM(kernels, i);
        plan->kernels.push_back({functions[PyLong_AsSize_t(PyTuple_GET_ITEM(kernel, 0))],
                                 PyLong_AsLongLong(PyTuple_GET_ITEM(kernel, 1)),
                                 numbers(PyTuple_GET_ITEM(kernel, 2))});
    }
    PyObject* capsule = PyErr_Occurred() ? nullptr : PyCapsule_New(plan, nullptr, destroy);
    if (!capsule) delete plan;
    return capsule;
}

constexpr int64_t SHARE = 1 << 15;  // elements that are worth a thread

void run(const Kernel& kernel, void* const* operands) {
    if (kernel.size <= SHARE) return kernel.function(operands, 0, kernel.size, true);
#pragma omp parallel for num_threads(THREADS)
    for (int64_t begin = 0; begin < kernel.size; begin += SHARE)
        kernel.function(operands, begin, begin + SHARE < kernel.size ? begin + SHARE : kernel.size, false);
    kernel.function(operands, 0, 0, true);
}

// call(plan, inputs, times, *addresses): calls the program so many times, each time followed by the kernels. The inputs
// are a list of capsules, whose handles are taken over. Each result that is wanted has an address: that of call t goes
// to address + t * size. Without addresses the results of the last call are returned as numbers. With the lock of
// Python held, of which the program itself lets go.
PyObject* call(PyObject*, PyObject* const* args, Py_ssize_t count) {
    auto plan = static_cast<Plan*>(PyCapsule_GetPointer(args[0], nullptr));
    if (!plan) return nullptr;
    const int64_t times = PyLong_AsLongLong(args[2]);
    std::vector<Handle> held(PyList_GET_SIZE(args[1])), given(plan->takes.size()), results(plan->results);
    std::vector<void*> bytes(held.size()), found(results.size()), operands;
    std::vector<char*> places;
    for (size_t i = 0; i < held.size(); ++i) {
        held[i] = PyCapsule_GetPointer(PyList_GET_ITEM(args[1], i), nullptr);
        plan->data(held[i], &bytes[i]);
    }
    for (Py_ssize_t i = 3; i < count; ++i) places.push_back(static_cast<char*>(PyLong_AsVoidPtr(args[i])));
    PyObject* returned = places.empty() ? PyTuple_New(plan->gives.size()) : Py_NewRef(Py_None);
    const bool with_gradients = plan->with_gradients();
    plan->set_gradients(false);
    try {
        for (int64_t time = 0; time < times; ++time) {
            for (size_t i = 0; i < given.size(); ++i) plan->copy(held[plan->takes[i]], &given[i]);
            plan->program(given.data(), results.data());
            // An operator that is called through Python has raised: the program has returned, with nothing.
            if (PyErr_Occurred()) break;
            for (size_t i = 0; i < results.size(); ++i) {
                bool contiguous = true;
                if (time == 0) plan->contiguous(results[i], &contiguous);
                if (!contiguous) throw std::runtime_error("a result does not lie in the order of its elements");
                plan->data(results[i], &found[i]);
            }
            for (size_t i = 0; i < places.size(); ++i)
                std::memcpy(places[i] + time * size(plan->gives[i]), found[i], size(plan->gives[i]));
            for (Py_ssize_t i = 0; places.empty() && time == times - 1 && i < PyTuple_GET_SIZE(returned); ++i)
                PyTuple_SET_ITEM(returned, i, number(plan->gives[i], found[i]));
            for (const Kernel& kernel : plan->kernels) {
                operands.clear();
                for (int64_t place : kernel.operands) operands.push_back(place < 0 ? found[-1 - place] : bytes[place]);
                run(kernel, operands.data());
            }
            for (Handle result : results) plan->release(result);
        }
    } catch (const std::exception& error) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    plan->set_gradients(with_gradients);
    for (Handle handle : held) plan->release(handle);
    if (PyErr_Occurred()) Py_CLEAR(returned);
    return returned;
}

PyMethodDef methods[] = {
    {"prepare", prepare, METH_VARARGS, nullptr},
    {"call", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call)), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr}};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "sgc_caller", nullptr, -1, methods};

}  // namespace

PyMODINIT_FUNC PyInit_sgc_caller() { return PyModule_Create(&module); }
"""


@dataclass(frozen=True)
class NativeProgram:
    """A compiled program on the CPU, and the kernels that run after it.

    ``plan`` says what does not change from call to call; ``dtypes`` are those of the results that the caller wants,
    0-d ones.
    """

    caller: Any
    plan: Any
    dtypes: tuple[torch.dtype, ...]
    library: Any  # it must stay loaded
    as_numbers: bool  # whether C++ can make Python's numbers of them

    def __call__(self, inputs: list[Tensor], times: int) -> list[Tensor]:
        """Call it ``times`` times; what it gives, each time's, as tensors of shape ``[times]``.

        What is written into its inputs stays unnoticed by autograd: that is for the caller to announce.

        :raises RuntimeError: if an operator raises; what the calls before that one gave is lost.
        """
        results = [torch.empty(times, dtype=dtype, device="cpu") for dtype in self.dtypes]
        handles = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(inputs)
        self.caller.call(self.plan, handles, times, *(result.data_ptr() for result in results))
        return results

    def once(self, inputs: list[Tensor]) -> tuple[Any, ...]:
        """Call it once; what it gives, as numbers.

        :raises RuntimeError: if an operator raises.
        """
        if not self.as_numbers:
            return tuple(result.item() for result in self(inputs, 1))
        handles = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(inputs)
        found: tuple[Any, ...] = self.caller.call(self.plan, handles, 1)
        return found


def native_program(
    compiled: Callable[..., Any],
    takes: Sequence[int],
    dtypes: Sequence[torch.dtype],
    results: int,
    functions: Sequence[str] = (),
    kernels: Sequence[Kernel] = (),
) -> NativeProgram | None:
    """What ``compiled``, of Inductor, calls in the end; None if it is not found, or is not what is expected.

    :param takes: which of the inputs it takes. Those that it writes must not share memory: torch would make one of
        them.
    :param dtypes: of those of its ``results`` that the caller wants, the first ones, all 0-d.
    :param functions: the bodies of what the kernels call.
    """
    if not dtypes or not set(dtypes) <= _KINDS.keys():
        return None
    for module in _native_modules(compiled):
        source = Path(module.__file__).with_suffix(".cpp")
        text = source.read_text() if source.exists() else ""
        gives = {int(found) for found in _GIVES.findall(text)}
        if _TAKES.findall(text) != [str(len(takes))] or gives != set(range(results)) or _GIVES_TWICE.search(text):
            continue
        library = ctypes.CDLL(module.__file__)
        if all(hasattr(library, name) for name in _FUNCTIONS):
            addresses = tuple(_address(library, name) for name in _FUNCTIONS)
            kinds = "".join(_KINDS[dtype] for dtype in dtypes)
            calls = tuple((kernel.function, kernel.size, kernel.operands) for kernel in kernels)
            caller = _caller(tuple(functions), torch.get_num_threads())
            plan = caller.prepare(addresses, tuple(takes), kinds, results, calls)
            return NativeProgram(caller, plan, tuple(dtypes), library, "h" not in kinds)
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


_VECTORISED = () if sys.platform == "win32" else ("-ftree-loop-vectorize", "-fno-math-errno")
"""Inductor's options are for loops that are vectorised by hand."""


@cache
def _caller(functions: tuple[str, ...], threads: int) -> Any:
    """The loop in C++, compiled once on a machine for these functions, and kept by Inductor beside the programs."""
    from torch._inductor.codecache import CppCodeCache

    texts = [
        f"void function_{number}(void* const* p, int64_t begin, int64_t end, bool finish) {{\n{body}\n}}\n"
        for number, body in enumerate(functions)
    ]
    # An array has at least one element.
    names = ", ".join([*(f"function_{number}" for number in range(len(functions))), "nullptr"])
    texts.append(f"const Function functions[] = {{{names}}};")
    source = _CALLER.replace("// FUNCTIONS", "\n".join(texts)).replace("THREADS", str(threads))
    path = CppCodeCache.load(source, extra_flags=_VECTORISED)._name
    spec = importlib.util.spec_from_file_location("sgc_caller", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
