"""The C++ around Inductor's kernels, made lean: addresses for buffers.

Inductor's C++ wrapper (torch 2.11 to 2.13) makes a tensor of each buffer and of each view of one, 80 ns each, although
most of them are passed to its own kernels, which take addresses: in a program of many small kernels that is a fifth of
the time. Here a buffer that is taken from a pool is an address, and a tensor only where an operator asks for one.

There is no option for it. Three methods are replaced while a program is generated: those that write the lines by which
a pool and a buffer are made, and the one that writes what stands before the program. No line that Inductor has written
is read or changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sgc.emit.inductor.tuning.tuning import Tuning
from sgc.native.private_attributes import private, replaced

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
// Precompiled these make a tensor that shares memory with another, and take ownership of one.
[[maybe_unused]] SGC_INLINED Pooled reinterpret_tensor_wrapper(
    const Pooled& buffer, int64_t dims, const int64_t* sizes, const int64_t* strides, int64_t elements) {
    return buffer.view(dims, sizes, strides, elements);
}
[[maybe_unused]] SGC_INLINED Pooled wrap_with_raii_handle_if_needed(Pooled&& view) { return std::move(view); }
[[maybe_unused]] AtenTensorHandle wrap_with_raii_handle_if_needed(const Pooled& buffer) { return buffer.get(); }
}  // namespace
"""


@contextmanager
def lean_wrapper() -> Iterator[None]:
    """While this is entered, C++ wrappers are generated in this way."""
    expression = private("torch._inductor.codegen.cpp_utils:cexpr")

    def with_memory(create_pool: Callable[..., None]) -> Callable[..., None]:
        def create_pool_and_memory(self: Any, wrapper: Any, code: Any) -> None:
            create_pool(self, wrapper, code)
            code.writeline(f"PoolMemory {self.name}_memory({self.name});")

        return create_pool_and_memory

    def by_address(_: Callable[..., Any]) -> Callable[..., Any]:
        def take_address(
            self: Any, pool: str, offset: Any, dtype: torch.dtype, shape: Any, stride: Any
        ) -> tuple[str, list[str]]:
            sizes, strides = (
                self.codegen_int_array_var(
                    self.codegen_shape_tuple(each), self.wrapper_call.writeline, graph=self.get_codegened_graph()
                )
                for each in (shape, stride)
            )
            place = f"{pool}_memory, {expression(offset)}, {dtype.itemsize}, {self.codegen_dtype(dtype)}"
            # The text of each is another: Inductor takes equal texts for one buffer.
            number = next(self.tmp_tensor_id)
            return f"Pooled({place}, {len(shape)}, {sizes}, {strides}) /* {number} */", []

        return take_address

    def with_classes(write_header: Callable[..., None]) -> Callable[..., None]:
        def write_more(self: Any) -> None:
            write_header(self)
            self.header.splice(_HEADER)

        return write_more

    wrapper = "torch._inductor.codegen.cpp_wrapper_cpu:CppWrapperCpu"
    with replaced(
        {
            "torch._inductor.codegen.memory_planning:AllocationPool.codegen_create": with_memory,
            f"{wrapper}.codegen_alloc_from_pool": by_address,
            f"{wrapper}.write_header": with_classes,
        }
    ):
        yield


TUNING = Tuning(
    name="lean_wrapper",
    what="buffers are addresses, and tensors only where an operator asks for one",
    faster="steps",
    patch=lean_wrapper,
)
