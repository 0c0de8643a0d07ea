"""The C++ around Inductor's kernels, made lean: addresses for buffers.

Inductor's C++ wrapper (torch 2.11 to 2.13) makes a tensor of each buffer and of each view of one, 80 ns each, although
most of them are passed to its own kernels, which take addresses: in a program of many small kernels that is a fifth of
the time. Here a buffer that is taken from a pool is an address, and a tensor only where an operator asks for one.

Operators with a generator of random numbers it calls through Python, 5 us each, also where none is given. Those that
have nothing to complain of are called by torch's dispatcher here, whose errors say less.

Of some operators that write into a buffer (``bernoulli_``, ``scatter_reduce``) it does not look at whether they failed.

There is no option for any of this. Methods of the wrapper are replaced while a program is generated: the one that
writes the line by which a buffer is made, those that write any line, the one that writes what stands before the
program, and the one that says whether the dispatcher may call an operator.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

_HEADER = """
#if defined(__GNUC__)
#define SGC_NOT_INLINED __attribute__((noinline))
#else
#define SGC_NOT_INLINED
#endif
namespace {
// A stretch of a pool, as the kernels and operators of this program use it. The pool outlives it.
class Pooled {
 public:
    SGC_NOT_INLINED Pooled(AtenTensorHandle pool, int64_t offset, int32_t dtype, int64_t dims, const int64_t* sizes,
                           const int64_t* strides)
        : pool_(pool), offset_(offset), dtype_(dtype), dims_(dims), sizes_(sizes), strides_(strides) {
        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(pool, &start_));
    }
    Pooled(Pooled&&) = default;
    Pooled& operator=(Pooled&&) = default;
    SGC_NOT_INLINED ~Pooled() {}
    SGC_NOT_INLINED Pooled view(int64_t dims, const int64_t* sizes, const int64_t* strides, int64_t elements) const {
        const int64_t bytes = elements * static_cast<int64_t>(aoti_torch_dtype_element_size(dtype_));
        return Pooled(pool_, offset_ + bytes, dtype_, dims, sizes, strides);
    }
    void* data_ptr() const { return static_cast<char*>(start_) + offset_; }
    SGC_NOT_INLINED AtenTensorHandle get() const {
        if (!tensor_.get()) {
            AtenTensorHandle made;
            AOTI_TORCH_ERROR_CODE_CHECK(
                aoti_torch__alloc_from_pool(pool_, offset_, dtype_, dims_, sizes_, strides_, &made));
            tensor_ = torch::aot_inductor::RAIIAtenTensorHandle(made);
        }
        return tensor_.get();
    }
    operator AtenTensorHandle() const { return get(); }
    AtenTensorHandle release() {
        get();
        return tensor_.release();
    }
    SGC_NOT_INLINED void reset() { tensor_.reset(); }

 private:
    AtenTensorHandle pool_;
    int64_t offset_;
    int32_t dtype_;
    int64_t dims_;
    const int64_t* sizes_;
    const int64_t* strides_;
    void* start_ = nullptr;
    mutable torch::aot_inductor::RAIIAtenTensorHandle tensor_;
};
// Elsewhere these make a tensor that shares memory with another, and take ownership of one.
[[maybe_unused]] Pooled reinterpret_tensor_wrapper(
    const Pooled& buffer, int64_t dims, const int64_t* sizes, const int64_t* strides, int64_t elements) {
    return buffer.view(dims, sizes, strides, elements);
}
[[maybe_unused]] Pooled wrap_with_raii_handle_if_needed(Pooled&& view) { return std::move(view); }
[[maybe_unused]] AtenTensorHandle wrap_with_raii_handle_if_needed(const Pooled& buffer) { return buffer.get(); }
}  // namespace
"""


_DRAWS = frozenset(("aten::_sample_dirichlet", "aten::_standard_gamma"))
"""Operators with a generator that raise nothing, whatever their parameters. In a traced graph none is given."""

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
    allocate, write_header = methods.codegen_alloc_from_pool, methods.write_header
    write_line, set_writeline = methods.writeline, methods.set_writeline
    by_dispatcher = methods._compatible_with_stableivalue

    def allocate_address(self: Any, *arguments: Any) -> tuple[str, list[str]]:
        _, (declaration, call) = allocate(self, *arguments)
        name = declaration.removeprefix("AtenTensorHandle ").removesuffix(";")
        inside = call.partition("aoti_torch__alloc_from_pool(")[2].rpartition(f", &{name}")[0]
        # The text of each is another: Inductor takes equal texts for one buffer.
        return f"Pooled({inside}) /* {name} */", []

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
        codegen_alloc_from_pool=allocate_address,
        writeline=write_checked,
        set_writeline=set_checked,
        write_header=write_more,
        _compatible_with_stableivalue=staticmethod(may_be_dispatched),
    ):
        yield
