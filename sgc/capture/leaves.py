"""What must stay one node of the captured graph.

An ``autograd.Function`` has its own backward, which a trace above autograd would lose: its ``apply`` is recorded
as one call. A sampler that loops on its data (VonMises, rejection samplers) cannot be traced: it becomes a
custom operator that runs the distribution's own code on the tensors it was built from.
"""

from __future__ import annotations

import copy
import itertools
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from sgc.capture import tracer


class _SeesRandomness(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen = self.seen or torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


class FunctionLeaf:
    """``cls.apply`` as the target of an fx node: its tensor arguments are the node's, the rest is kept here."""

    def __init__(self, cls: type[Function], spec: TreeSpec, static: tuple[Any, ...]) -> None:
        self.cls = cls
        self._spec = spec
        self._static = static
        self.__name__ = cls.__name__
        self.__module__ = cls.__module__

    def __call__(self, *tensors: Tensor) -> Any:
        remaining = iter(tensors)
        leaves = [next(remaining) if leaf is Tensor else leaf for leaf in self._static]
        return _original_apply(self.cls, *tree_unflatten(leaves, self._spec))


def _original_apply(cls: type[Function], *args: Any) -> Any:
    return _APPLY(cls, *args)


_APPLY: Callable[..., Any] = Function.apply.__func__  # type: ignore[attr-defined]


@contextmanager
def functions_as_leaves() -> Iterator[None]:
    """Record each ``autograd.Function`` that is applied to traced tensors as one node."""

    def apply(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
        flat, spec = tree_flatten(args)
        tensors = [leaf for leaf in flat if isinstance(leaf, Tensor)]
        if kwargs or not tensors:
            return _APPLY(cls, *args, **kwargs)
        with tracer.untraced(), _SeesRandomness() as randomness:
            result = _APPLY(cls, *args)
        leaf = FunctionLeaf(cls, spec, tuple(Tensor if isinstance(x, Tensor) else x for x in flat))
        active = tracer.current_tracer()
        node = active.create_node("call_function", leaf, tuple(tracer.node_of(t) for t in tensors), {})
        node.meta["val"] = result
        node.meta["sgc_random"] = randomness.seen or cls is OpaqueRsample
        if isinstance(result, Tensor):
            tracer.bind(result, node)
            return result
        for position, part in enumerate(result):
            if isinstance(part, Tensor):
                item = active.create_node("call_function", _getitem, (node, position), {})
                tracer.bind(part, item)
        return result

    Function.apply = classmethod(apply)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        Function.apply = classmethod(_APPLY)  # type: ignore[assignment, method-assign]


def _getitem(values: Any, position: int) -> Any:
    return values[position]


# ---------------------------------------------------------------------------------------------------------------
# Opaque samplers


class OpaqueSampler:
    """The sampling call of one site, as a function of the tensors that its distribution holds."""

    _numbers = itertools.count()

    def __init__(self, call: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.tensors: list[Tensor] = []
        self._template = _substitute(call, self._hole, {})
        self.shape = shape
        self.dtype = dtype
        self.number = next(self._numbers)
        _SAMPLERS[self.number] = self

    def _hole(self, tensor: Tensor) -> Any:
        for position, known in enumerate(self.tensors):
            if known is tensor:
                return _Hole(position)
        self.tensors.append(tensor)
        return _Hole(len(self.tensors) - 1)

    def __call__(self, tensors: list[Tensor]) -> Tensor:
        fn, args, kwargs = _substitute(self._template, None, {}, tensors)
        return fn(*args, **kwargs)


class _Hole:
    def __init__(self, position: int) -> None:
        self.position = position


_SAMPLERS: weakref.WeakValueDictionary[int, OpaqueSampler] = weakref.WeakValueDictionary()
_PLAIN = (str, bytes, int, float, complex, bool, type(None), type, torch.Size, torch.dtype, torch.device)


def _substitute(
    value: Any,
    hole: Callable[[Tensor], Any] | None,
    memo: dict[int, Any],
    tensors: list[Tensor] | None = None,
) -> Any:
    """A copy of an object tree with its tensors replaced by holes, or its holes by tensors."""
    if isinstance(value, Tensor):
        return value if hole is None else hole(value)
    if isinstance(value, _Hole):
        assert tensors is not None
        return tensors[value.position]
    if isinstance(value, _PLAIN) or isinstance(value, (types.ModuleType, types.BuiltinFunctionType)):
        return value
    if id(value) in memo:
        return memo[id(value)]

    def inner(part: Any) -> Any:
        return _substitute(part, hole, memo, tensors)

    if isinstance(value, (list, tuple)):
        parts = [inner(part) for part in value]
        result = type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)  # type: ignore[call-arg]
        memo[id(value)] = result
        return result
    if isinstance(value, dict):
        memo[id(value)] = result = type(value)()
        result.update({key: inner(part) for key, part in value.items()})
        return result
    if isinstance(value, types.MethodType):
        return types.MethodType(value.__func__, inner(value.__self__))
    if isinstance(value, types.FunctionType):
        if not value.__closure__:
            return value
        memo[id(value)] = result = types.FunctionType(
            value.__code__,
            value.__globals__,
            value.__name__,
            value.__defaults__,
            tuple(types.CellType() for _ in value.__closure__),
        )
        result.__kwdefaults__ = value.__kwdefaults__
        for old, new in zip(value.__closure__, result.__closure__ or (), strict=True):
            new.cell_contents = inner(old.cell_contents)
        return result
    if isinstance(value, weakref.ref):
        # Pyro's weakmethod: the copy must point at the copy of its owner, which the memo keeps alive.
        owner = value()
        return weakref.ref(inner(owner)) if owner is not None else value
    if hasattr(value, "__dict__") and not isinstance(value, torch.nn.Module):
        memo[id(value)] = result = copy.copy(value)
        for name, part in list(vars(result).items()):
            result.__dict__[name] = inner(part)
        return result
    return value


@torch.library.custom_op("sgc::opaque_sample", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _opaque_sample(tensors: list[Tensor], number: int, shape: list[int], dtype: torch.dtype) -> Tensor:
    """Draw from an opaque sampler; no gradient."""
    with torch.no_grad():
        return _SAMPLERS[number](tensors).clone()


@_opaque_sample.register_fake
def _(tensors: list[Tensor], number: int, shape: list[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=tensors[0].device if tensors else None)


@torch.library.custom_op("sgc::opaque_rsample", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _opaque_rsample(
    tensors: list[Tensor], number: int, shape: list[int], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Draw from an opaque reparameterised sampler, keeping its autograd graph; the token finds it again."""
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in tensors]
        value = _SAMPLERS[number](leaves)
    token = next(_TOKENS)
    _TAPES[token] = (value, leaves)
    while len(_TAPES) > 256:
        _TAPES.popitem(last=False)
    return value.detach().clone(), torch.tensor(token)


@_opaque_rsample.register_fake
def _(
    tensors: list[Tensor], number: int, shape: list[int], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    device = tensors[0].device if tensors else None
    return torch.empty(shape, dtype=dtype, device=device), torch.empty((), dtype=torch.int64)


@torch.library.custom_op("sgc::opaque_vjp", mutates_args=())
def _opaque_vjp(gradient: Tensor, token: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """The gradient of an opaque sample in the tensors it was drawn from; each token serves once."""
    value, leaves = _TAPES.pop(int(token))
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    found = iter(torch.autograd.grad(value, wanted, gradient, allow_unused=True)) if value.requires_grad else None
    result = []
    for leaf in leaves:
        part = next(found) if found is not None and leaf.requires_grad else None
        result.append(torch.zeros_like(leaf) if part is None else part.contiguous().clone())
    return result


@_opaque_vjp.register_fake
def _(gradient: Tensor, token: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    return [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in tensors]


_TOKENS = itertools.count()
_TAPES: OrderedDict[int, tuple[Tensor, list[Tensor]]] = OrderedDict()


class OpaqueRsample(Function):
    """A reparameterised opaque sample: its gradient is the one that the distribution's own code defines."""

    @staticmethod
    def forward(ctx: Any, sampler: OpaqueSampler, *tensors: Tensor) -> Tensor:
        arguments = (list(tensors), sampler.number, list(sampler.shape), sampler.dtype)
        if not any(ctx.needs_input_grad):
            return torch.ops.sgc.opaque_sample(*arguments)
        value, token = torch.ops.sgc.opaque_rsample(*arguments)
        ctx.save_for_backward(token, *tensors)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        token, *tensors = ctx.saved_tensors
        found = torch.ops.sgc.opaque_vjp(gradient, token, list(tensors))
        needed = ctx.needs_input_grad[1:]
        return (None, *(g if need else None for g, need in zip(found, needed, strict=True)))


def opaque_call(call: tuple[Any, tuple[Any, ...], dict[str, Any]], *, reparameterized: bool) -> Tensor:
    """Record the sampling call ``(fn, args, kwargs)`` as one node and return its (fake) value."""
    fn, args, kwargs = call
    shape, dtype = _result_of(fn, args, kwargs)
    method = fn.rsample if reparameterized else getattr(fn, "sample", fn)
    sampler = OpaqueSampler((method, args, kwargs), shape, dtype)
    if reparameterized:
        return OpaqueRsample.apply(sampler, *sampler.tensors)
    value = torch.ops.sgc.opaque_sample(sampler.tensors, sampler.number, list(shape), dtype)
    tracer.node_of(value).meta["sgc_keeps"] = sampler
    return value


def _result_of(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of one draw, found by drawing on concrete stand-ins (ones) with the random state kept."""
    sample_shape = args[0] if args else kwargs.get("sample_shape", torch.Size())
    shape = tuple(fn.shape(sample_shape))
    floating = [t.dtype for t in _tensors_of(fn) if t.is_floating_point()]
    return shape, floating[0] if floating else torch.get_default_dtype()


def _tensors_of(fn: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _substitute(fn, lambda tensor: found.append(tensor) or tensor, {})  # type: ignore[func-returns-value]
    return found


