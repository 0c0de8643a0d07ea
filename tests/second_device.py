"""A second device, for machines that have only a CPU: ``torch.device("other")``, in Python.

torch reserves a place for a device that is defined outside of torch (``PrivateUse1``). Here it is given memory (CPU
memory, which only this file can reach) and one kernel for every operator: view the memory as CPU tensors, let the CPU
compute, and hand the results back as tensors of the device. As on CUDA, the device has a random generator of its own,
and an operator that meets tensors of both devices raises: a tensor that was made on the CPU by mistake is found.

The interface of torch for this is private. Everything that touches it is in this file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _device
from torch.utils._device import DeviceContext, _device_constructors

import sgc
from sgc.tracing.values import torch_functions

NAME = "other"
_KEY = "PrivateUse1"

_BRIDGES = frozenset({"aten::_copy_from", "aten::_copy_from_and_resize"})
"""Operators that copy from one device to another."""

_INDEXING = frozenset({"aten::index.Tensor", "aten::index_put_", "aten::_index_put_impl_"})
"""Operators whose indices may be on the CPU, as on CUDA."""

foreign_scalars: list[str] = []
"""The operators that took a 0-d CPU tensor, which CUDA allows too."""


class _Event:
    """What marks a point in the work of the device; there is none to wait for."""

    waited = 0

    def record(self, stream: Any) -> None:
        pass

    def synchronize(self) -> None:
        _Event.waited += 1


class _Module:
    """What ``torch.other`` is."""

    def __init__(self) -> None:
        self.generator = torch.Generator()
        self.default_generators = (self.generator,)

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        """False, so that ``torch.tensor(0.5)`` among fake tensors does not run a kernel (in Python) for real."""
        return False

    Event = _Event

    def current_stream(self, device: Any = None) -> None:
        return None

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return 1

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def manual_seed_all(self, seed: int) -> None:
        self.generator.manual_seed(seed)

    def get_rng_state(self, device: Any = None) -> Tensor:
        return self.generator.get_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        self.generator.set_state(state)


module = _Module()


def unavailable() -> str | None:
    """Why there can be no such device, or None: the one place that looks whether this torch has the interface."""
    if torch.cuda.is_available():
        return "torch has an accelerator of its own"
    needed = (
        (torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
        (torch._C, "_construct_storage_from_data_pointer"),
        (torch.library.Library, "fallback"),
    )
    missing = [name for owner, name in needed if not hasattr(owner, name)]
    return f"torch {torch.__version__} has no {', '.join(missing)}" if missing else None


def setup() -> None:
    """Register the device, once in a process."""
    if torch._C._get_privateuse1_backend_name() == NAME:
        return
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME, backend_module=module)
    _LIBRARY.fallback(_kernel, _KEY)
    _ATEN.impl("_to_copy", _to_copy, _KEY)
    for operator in _STAND_INS:
        _ATEN.impl(operator, partial(_kernel, operator), _KEY)  # torch has a kernel that raises, or none
    clone = torch.UntypedStorage.clone
    torch.UntypedStorage.clone = lambda self: (  # type: ignore[method-assign]  # what deepcopy uses
        _storage_over(self.memory.clone()) if self.device.type == NAME else clone(self)
    )


def device() -> torch.device:
    """The device."""
    setup()
    return torch.device(NAME, 0)


_LIBRARY = torch.library.Library("_", "IMPL")
_ATEN = torch.library.Library("aten", "IMPL")


def _memory(tensor: Tensor) -> torch.UntypedStorage:
    """The CPU memory behind a tensor of the device."""
    return tensor.untyped_storage().memory  # type: ignore[attr-defined]


def _on_cpu(tensor: Tensor) -> Tensor:
    """A CPU tensor that shares the memory of one of the device."""
    view = torch.empty(0, dtype=tensor.dtype)
    view.set_(_memory(tensor), tensor.storage_offset(), tensor.shape, tensor.stride())
    return view


def _on_device(tensor: Tensor, operands: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The tensor of the device that shares the memory of a CPU tensor; a view of an operand if they share theirs."""
    for original, seen in operands:
        if tensor is seen:
            return original
    result = torch._C._acc.create_empty_tensor((0,), tensor.dtype)
    return _lay_over(result, tensor, operands)


def _lay_over(result: Tensor, tensor: Tensor, operands: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Let a tensor of the device be the memory of a CPU tensor, in its layout."""
    memory = tensor.untyped_storage()
    known = (original.untyped_storage() for original, seen in operands if seen is not tensor)
    storage = next((s for s in known if s.memory._cdata == memory._cdata and s.nbytes() == memory.nbytes()), None)
    if storage is None:
        storage = _storage_over(memory)
    return _set(result, storage, tensor.storage_offset(), tensor.shape, tensor.stride())


def _storage_over(memory: torch.UntypedStorage) -> torch.UntypedStorage:
    storage = torch._C._construct_storage_from_data_pointer(memory.data_ptr(), torch.device(NAME, 0), memory.nbytes())
    storage.memory = memory  # the storage of the device does not own its memory: this keeps it
    return storage


def _set(*args: Any) -> Tensor:
    """``Tensor.set_`` with a storage of the device, by the CPU's kernel, which looks at no memory."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    return torch.ops.aten.set_.source_Storage_storage_offset.redispatch(keys, *args)


def _kernel(operator: Any, *args: Any, **kwargs: Any) -> Any:
    """Every operator of the device."""
    name = operator._schema.name + (f".{operator._schema.overload_name}" if operator._schema.overload_name else "")
    if name == "aten::set_.source_Storage_storage_offset":
        return _set(*args)
    foreign = [t for t in _tensors((args, kwargs)) if t.device.type != NAME and name not in _BRIDGES]
    if name in _INDEXING:
        foreign = [t for t in foreign if t is args[0]]
    for tensor in foreign:
        if tensor.device.type != "cpu" or tensor.dim():
            raise RuntimeError(f"{name} expects all tensors on one device, found {NAME} and {tensor.device}")
        foreign_scalars.append(name)
    operands: list[tuple[Tensor, Tensor]] = []

    def inward(value: Any) -> Any:
        if isinstance(value, Tensor):
            known = next((seen for original, seen in operands if original is value), None)
            if known is not None or value.device.type != NAME:
                return value if known is None else known
            operands.append((value, _on_cpu(value)))
            return operands[-1][1]
        if isinstance(value, torch.device):
            return torch.device("cpu") if value.type == NAME else value
        if isinstance(value, (list, tuple)):
            return type(value)(map(inward, value))
        return value

    def outward(value: Any) -> Any:
        if isinstance(value, Tensor):
            return _on_device(value, operands)
        return type(value)(map(outward, value)) if isinstance(value, (list, tuple)) else value

    if name in _BRIDGES:
        source, target = inward(args[0]), inward(args[1])
        target.copy_(source)
        return args[1]
    given = [inward(value) for value in args]
    for position, (value, argument) in enumerate(zip(given, operator._schema.arguments, strict=False)):
        if isinstance(argument.type, torch.TensorType) and isinstance(value, (bool, int, float)):
            given[position] = torch.tensor(value)  # a number in the place of a tensor reaches Python as a number
    options = {key: inward(value) for key, value in kwargs.items()}
    if any(argument.name == "generator" for argument in operator._schema.arguments):
        options.setdefault("generator", None)
        if options["generator"] is None:
            options["generator"] = module.generator
    results = _STAND_INS.get(operator, operator)(*given, **options)
    for original, seen in operands:
        if seen.shape != original.shape or seen.stride() != original.stride():
            _lay_over(original, seen, [])  # an output that was resized, or an operand that was transposed in place
    return outward(results)


def _to_copy(
    tensor: Tensor, *, device: torch.device | None = None, non_blocking: bool = False, **kwargs: Any
) -> Tensor:
    """The CPU's. Torch's own would ask for pinned memory if it were not to block, and calls operators of the device,
    of which those in ``torch.tensor`` cannot fall back on :func:`_kernel` where a mode of dispatch is in force.
    """
    target = device or tensor.device
    copy = torch.ops.aten._to_copy.default(_on_cpu(tensor) if tensor.device.type == NAME else tensor, **kwargs)
    return _on_device(copy, []) if target.type == NAME else copy


def _convolution(*args: Any) -> Any:
    return torch.ops.aten.convolution.default(*args)


def _convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, *options: Any) -> Any:
    bias_sizes = [gradient.shape[1]]
    *options, mask = options
    return torch.ops.aten.convolution_backward.default(gradient, x, weight, bias_sizes, *options, mask)


_STAND_INS: dict[torch._ops.OpOverload, Callable[..., Any]] = {
    torch.ops.aten.convolution_overrideable.default: _convolution,
    torch.ops.aten.convolution_backward_overrideable.default: _convolution_backward,
    torch.ops.aten._local_scalar_dense.default: torch.ops.aten._local_scalar_dense.default,
}
"""What the CPU runs for operators that exist for other devices only, or that ``torch.tensor`` calls."""


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


class MadeOnDevice(DeviceContext):
    """Within it a program's and Pyro's ``torch.zeros(3)`` is on the device; one of sgc's is on the CPU all the same."""

    def __init__(self) -> None:
        super().__init__(device())  # with its index: torch asks for that of another by making a tensor
        self._depth = 0

    def __enter__(self) -> Any:
        # torch enters modes a second time within torch.func, and this class of torch's does not count.
        if not self._depth:
            self._outside = _device.CURRENT_DEVICE
        self._depth += 1
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._depth -= 1
        if not self._depth:
            _device.CURRENT_DEVICE = self._outside

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _device_constructors() and _caller().startswith(_SGC):
            return func(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)


_SGC = os.path.dirname(sgc.__file__) + os.sep
_TORCH = os.path.dirname(torch.__file__) + os.sep
_ANSWERS = str(torch_functions.__file__)


def _caller() -> str:
    """The file of the innermost call that is neither torch's nor a mode's that torch calls, nor of what a mode does."""
    frame = sys._getframe(1)
    while frame.f_code.co_name == "__torch_function__" or frame.f_code.co_filename.startswith((_TORCH, _ANSWERS)):
        assert frame.f_back is not None
        frame = frame.f_back
    return frame.f_code.co_filename
