"""The C++ around Inductor's kernels, made lean: addresses for buffers.

Inductor's C++ wrapper (torch 2.11 to 2.13) makes a tensor of each buffer and of each view of one, 80 ns each, although
most of them are passed to its own kernels, which take addresses: in a program of many small kernels that is a fifth of
the time. Here a buffer that is taken from a pool is an address, and a tensor only where an operator asks for one.

Operators with a generator of random numbers it calls through Python, 5 us each, also where none is given. Those that
have nothing to complain of are called by torch's dispatcher here, whose errors say less.

Of some operators that write into a buffer (``bernoulli_``, ``scatter_reduce``) it does not look at whether they failed.

There is no option for any of this. Methods of the wrapper are replaced while a program is generated: those that write
the lines by which a pool and a buffer are made, those that write any line, the one that writes what stands before the
program, and the one that says whether the dispatcher may call an operator.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

import torch

_HEADER = """
#if defined(__GNUC__)
#define SGC_INLINED __attribute__((always_inline)) inline
#define SGC_NOT_INLINED __attribute__((noinline))
#else
#define SGC_INLINED inline
#define SGC_NOT_INLINED
#endif
namespace {
// The memory of a pool, and the tensors that operators have asked for of stretches of it. The pool outlives it.
class PoolMemory {
 public:
    explicit PoolMemory(AtenTensorHandle pool) : pool_(pool) {
        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(pool, &start_));
    }
    PoolMemory(const PoolMemory&) = delete;
    PoolMemory& operator=(const PoolMemory&) = delete;
    char* start() const { return static_cast<char*>(start_); }
    SGC_NOT_INLINED AtenTensorHandle make_tensor(int64_t offset, int32_t dtype, int64_t dims, const int64_t* sizes,
                                                 const int64_t* strides) const {
        AtenTensorHandle made;
        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch__alloc_from_pool(pool_, offset, dtype, dims, sizes, strides, &made));
        return made;
    }
    SGC_NOT_INLINED AtenTensorHandle keep(AtenTensorHandle made) {
        tensors_.emplace_back(made);
        return made;
    }

 private:
    AtenTensorHandle pool_;
    void* start_ = nullptr;
    std::vector<torch::aot_inductor::RAIIAtenTensorHandle> tensors_;
};
// A stretch of a pool, as the kernels and operators of this program use it. Its memory and tensor are PoolMemory's.
class Pooled {
 public:
    Pooled(PoolMemory& memory, int64_t offset, int64_t element_size, int32_t dtype, int64_t dims, const int64_t* sizes,
           const int64_t* strides)
        : memory_(&memory),
          offset_(offset),
          element_size_(element_size),
          dtype_(dtype),
          dims_(dims),
          sizes_(sizes),
          strides_(strides) {}
    SGC_INLINED Pooled view(int64_t dims, const int64_t* sizes, const int64_t* strides, int64_t elements) const {
        return Pooled(*memory_, offset_ + elements * element_size_, element_size_, dtype_, dims, sizes, strides);
    }
    void* data_ptr() const { return memory_->start() + offset_; }
    AtenTensorHandle get() const {
        if (!tensor_) {
            tensor_ = memory_->keep(make_tensor());
        }
        return tensor_;
    }
    operator AtenTensorHandle() const { return get(); }
    AtenTensorHandle release() const { return make_tensor(); }
    void reset() {}

 private:
    AtenTensorHandle make_tensor() const { return memory_->make_tensor(offset_, dtype_, dims_, sizes_, strides_); }
    PoolMemory* memory_;
    int64_t offset_;
    int64_t element_size_;
    int32_t dtype_;
    int64_t dims_;
    const int64_t* sizes_;
    const int64_t* strides_;
    mutable AtenTensorHandle tensor_ = nullptr;
};
// Elsewhere these make a tensor that shares memory with another, and take ownership of one.
[[maybe_unused]] SGC_INLINED Pooled reinterpret_tensor_wrapper(
    const Pooled& buffer, int64_t dims, const int64_t* sizes, const int64_t* strides, int64_t elements) {
    return buffer.view(dims, sizes, strides, elements);
}
[[maybe_unused]] SGC_INLINED Pooled wrap_with_raii_handle_if_needed(Pooled&& view) { return std::move(view); }
[[maybe_unused]] AtenTensorHandle wrap_with_raii_handle_if_needed(const Pooled& buffer) { return buffer.get(); }
}  // namespace
"""


_DRAWS = frozenset(("aten::_sample_dirichlet", "aten::_standard_gamma"))
"""Operators with a generator that raise nothing, whatever their parameters. In a traced graph none is given."""

_POOL = re.compile(r"pool\d+")
"""What Inductor calls its pools."""

_UNCHECKED = re.compile(r"(aoti_torch_(?:cpu|cuda|xpu|mps)_\w+\(.*\));")
"""A call of an operator whose outcome is not looked at."""


def _checked(line: Any) -> Any:
    """A line of a program, which raises if it calls an operator that fails."""
    operator = _UNCHECKED.fullmatch(line) if isinstance(line, str) else None
    return f"AOTI_TORCH_ERROR_CODE_CHECK({operator[1]});" if operator else line


@contextmanager
def lean_wrapper() -> Iterator[None]:
    """While this is entered, C++ wrappers are generated in this way."""
    from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu

    methods: Any = CppWrapperCpu
    make_allocation, alloc_from_pool = methods.make_allocation, methods.codegen_alloc_from_pool
    write_header = methods.write_header
    write_line, set_writeline = methods.writeline, methods.set_writeline
    by_dispatcher = methods._compatible_with_stableivalue

    def make_pool(self: Any, name: str, *arguments: Any, **options: Any) -> Any:
        line = make_allocation(self, name, *arguments, **options)
        return f"{line} PoolMemory {name}_memory({name});" if _POOL.fullmatch(name) else line

    def take_address(self: Any, pool: str, offset: Any, dtype: torch.dtype, *layout: Any) -> tuple[str, list[str]]:
        _, (declaration, call) = alloc_from_pool(self, pool, offset, dtype, *layout)
        name = declaration.removeprefix("AtenTensorHandle ").removesuffix(";")
        inside = call.partition(f"aoti_torch__alloc_from_pool({pool}, ")[2].rpartition(f", &{name}")[0]
        kind = self.codegen_dtype(dtype)
        place, _, sizes = inside.partition(f", {kind}, ")
        # The text of each is another: Inductor takes equal texts for one buffer.
        return f"Pooled({pool}_memory, {place}, {dtype.itemsize}, {kind}, {sizes}) /* {name} */", []

    def write_checked(self: Any, line: Any) -> None:
        write_line(self, _checked(line))

    def set_checked(self: Any, *target: Any) -> AbstractContextManager[Any]:
        *before, write = target  # one more in torch 2.13 than in torch 2.11
        return set_writeline(self, *before, lambda line: write(_checked(line)))

    def write_more(self: Any) -> None:
        write_header(self)
        self.header.splice(_HEADER)

    def may_be_dispatched(operator: Any) -> bool:
        return operator._schema.name in _DRAWS or bool(by_dispatcher(operator))

    with mock.patch.multiple(
        methods,
        make_allocation=make_pool,
        codegen_alloc_from_pool=take_address,
        writeline=write_checked,
        set_writeline=set_checked,
        write_header=write_more,
        _compatible_with_stableivalue=staticmethod(may_be_dispatched),
    ):
        yield
