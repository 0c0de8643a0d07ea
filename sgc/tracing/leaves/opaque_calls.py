"""Calls that cannot be traced: a sampler that loops on its data, a density that branches on it.

VonMises, ProjectedNormal, Wishart, rejection samplers and Stable's density are such. Each becomes a custom operator
that runs the distribution's own code on the tensors it was built from; the rest of the program is compiled.
"""

from __future__ import annotations

import itertools
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from pyro.distributions import MaskedDistribution, Rejector
from torch import Tensor
from torch.autograd import Function
from torch.distributions import Distribution, Independent

from sgc.errors import CaptureError, SourceLine
from sgc.graph.meta_keys import KEEPS
from sgc.tracing import tracer
from sgc.tracing.leaves.substitution import Hole, Substitution
from sgc.tracing.source import current_line
from sgc.tracing.threads import replaced_here


class OpaqueCall:
    """A call ``(method, args, kwargs)`` as a function of the tensors that it reaches.

    :param line: where it is asked for; the line being executed, if nothing is said.
    """

    def __init__(self, call: Any, shape: tuple[int, ...], dtype: torch.dtype, line: SourceLine | None = None) -> None:
        self.tensors: list[Tensor] = []
        with_holes = Substitution(self._hole)
        self._template = with_holes(call)
        for part in with_holes.copies.values():
            # The checks of what the call reaches are nodes of the program, and are not made within the call.
            if isinstance(part, Distribution) and not isinstance(type(part)._validate_args, property):
                part._validate_args = False
        self.needs_gradient = [tensor.requires_grad for tensor in self.tensors]
        self.shape = shape
        self.dtype = dtype
        self.number = numbered(self)
        self._line = line or current_line()

    def _hole(self, tensor: Tensor) -> Any:
        for position, known in enumerate(self.tensors):
            if known is tensor:
                return Hole(position)
        self.tensors.append(tensor)
        return Hole(len(self.tensors) - 1)

    def __call__(self, tensors: list[Tensor]) -> Tensor:
        method, args, kwargs = Substitution(lambda hole: tensors[hole.position])(self._template)
        counted = [(tensor, tensor._version) for tensor in tensors if not tensor.is_inference()]
        value: Tensor = method(*args, **kwargs)
        if any(tensor._version != before for tensor, before in counted):
            raise self._error(
                "writes in place into a tensor that it was made of, and the write would be lost",
                "let it write into a copy, or keep such state in a buffer that the program writes outside of it",
            )
        return value

    def refuse_others(self, value: Tensor, leaves: list[Tensor]) -> None:
        """Refuse a result that depends on a tensor with a gradient that is no argument; each call has its own branches.

        :raises CaptureError: that this gradient would be lost.
        """
        known, seen, ahead = {id(leaf) for leaf in leaves}, set(), [value.grad_fn]
        while ahead:
            node = ahead.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            leaf = getattr(node, "variable", None)  # of a node that accumulates a gradient
            if leaf is not None and id(leaf) not in known:
                raise self._error(
                    f"depends on a tensor {list(leaf.shape)} that requires a gradient and is not among its attributes, "
                    "so that the gradient would be lost",
                    "keep the tensor, or the module that has it, as an attribute of the distribution; parameters that "
                    "Pyro constrains are computed outside and passed to it",
                )
            ahead.extend(following for following, _ in node.next_functions)

    def _error(self, problem: str, remedy: str) -> CaptureError:
        """For what only the call itself shows."""
        what = "what branches on values in a distribution's sampler or density runs as Python, and this one"
        return CaptureError(f"{what} {problem}", source=self._line, remedy=remedy)


_CALLS: weakref.WeakValueDictionary[int, Callable[[list[Tensor]], Tensor]] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()


def numbered(call: Callable[[list[Tensor]], Tensor]) -> int:
    """A number by which the custom operators find the call for as long as somebody keeps it."""
    number = next(_NUMBERS)
    _CALLS[number] = call
    return number


def _own(tensor: Tensor) -> Tensor:
    """A copy that lies in memory as the (fake) results below do, by which what follows is compiled: row by row."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


@torch.library.custom_op("sgc::opaque", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _opaque(tensors: list[Tensor], number: int, shape: list[int], dtype: torch.dtype) -> Tensor:
    """Make an opaque call; no gradient."""
    with torch.no_grad():
        return _own(_CALLS[number](tensors))


@_opaque.register_fake
def _(tensors: list[Tensor], number: int, shape: list[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=_device(tensors))


@torch.library.custom_op("sgc::opaque_taped", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _opaque_taped(tensors: list[Tensor], number: int, shape: list[int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Make an opaque call, keeping its autograd graph; the token finds it again."""
    # A custom operator runs below autograd; the call's own graph is built above it.
    above = torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False)
    with above, torch.enable_grad():
        call = cast(OpaqueCall, _CALLS[number])
        leaves = [t.detach().requires_grad_(needed) for t, needed in zip(tensors, call.needs_gradient, strict=True)]
        # The memory of an argument is the program's. What Inductor lays out for this call alone (a copy, of an expanded
        # tensor say) it gives to other values afterwards; the graph keeps what it needs for the gradient until then.
        value = call([leaf.clone() for leaf in leaves])
        call.refuse_others(value, leaves)
    token = next(_TOKENS)
    _TAPES[token] = (value, leaves)
    while len(_TAPES) > 256:
        _TAPES.popitem(last=False)
    return _own(value), torch.tensor(token, device="cpu")


@_opaque_taped.register_fake
def _(tensors: list[Tensor], number: int, shape: list[int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return (
        torch.empty(shape, dtype=dtype, device=_device(tensors)),
        torch.empty((), dtype=torch.int64, device="cpu"),
    )


def _device(tensors: list[Tensor]) -> torch.device | None:
    """Where the result of some tensors is: 0-d tensors on the CPU may be among those of an accelerator."""
    devices = [tensor.device for tensor in tensors]
    return next((device for device in devices if device.type != "cpu"), devices[0] if devices else None)


@torch.library.custom_op("sgc::opaque_vjp", mutates_args=())
def _opaque_vjp(gradient: Tensor, token: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """The gradient of an opaque call's result in the tensors it reaches; a token serves once, but :func:`retained`."""
    value, leaves = _TAPES[int(token.item())] if _RETAINED else _TAPES.pop(int(token.item()))
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    gradients: dict[int, Tensor | None] = {}
    if value.requires_grad:
        computed = torch.autograd.grad(value, wanted, gradient, allow_unused=True, retain_graph=bool(_RETAINED))
        gradients = {id(leaf): part for leaf, part in zip(wanted, computed, strict=True)}
    parts = (gradients.get(id(leaf)) for leaf in leaves)
    return [_own(torch.zeros_like(leaf) if part is None else part) for leaf, part in zip(leaves, parts, strict=True)]


@_opaque_vjp.register_fake
def _(gradient: Tensor, token: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    return [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in tensors]


_TOKENS = itertools.count()
_TAPES: OrderedDict[int, tuple[Tensor, list[Tensor]]] = OrderedDict()
_RETAINED: list[None] = []


@contextmanager
def retained() -> Iterator[None]:
    """Inside, the graph of an opaque call serves several gradients, as after torch's ``retain_graph=True``."""
    before = {*_TAPES}
    _RETAINED.append(None)
    try:
        yield
    finally:
        _RETAINED.pop()
        for token in _TAPES.keys() - before:
            del _TAPES[token]


class OpaqueFunction(Function):
    """A differentiable opaque call: its gradient is the one that the called code defines."""

    @staticmethod
    def forward(ctx: Any, call: OpaqueCall, *tensors: Tensor) -> Tensor:
        arguments = (list(tensors), call.number, list(call.shape), call.dtype)
        if not any(ctx.needs_input_grad):
            return torch.ops.sgc.opaque(*arguments)
        value, token = torch.ops.sgc.opaque_taped(*arguments)
        ctx.save_for_backward(token, *tensors)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        token, *tensors = ctx.saved_tensors
        gradients = torch.ops.sgc.opaque_vjp(gradient, token, list(tensors))
        needed = ctx.needs_input_grad[1:]
        return (None, *(g if need else None for g, need in zip(gradients, needed, strict=True)))


def opaque_sample(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Record the draw ``fn(*args, **kwargs)`` of a distribution as one node and return its (fake) value."""
    shape, drawn = tuple(fn.shape(*args, **kwargs)), _drawn_from(fn)
    if fn.has_rsample:
        return _differentiable(OpaqueCall((drawn.rsample, args, kwargs), shape, _dtype(drawn)))
    call = OpaqueCall((drawn.sample, args, kwargs), shape, _dtype(drawn))
    value = torch.ops.sgc.opaque([t.detach() for t in call.tensors], call.number, list(shape), call.dtype)
    KEEPS.put(tracer.node_of(value), call)
    return value


def _drawn_from(fn: Any) -> Any:
    """The distribution that draws: a sample does not depend on the mask that its density has."""
    while isinstance(fn, (MaskedDistribution, Independent)):
        fn = fn.base_dist
    return fn


@contextmanager
def rejection_as_leaves() -> Iterator[None]:
    """Record each draw of a Pyro ``Rejector``, which loops until all is accepted, as one node."""
    original = Rejector.rsample

    def rsample(self: Any, sample_shape: torch.Size = _NO_SHAPE, **kwargs: Any) -> Tensor:
        shape = (*sample_shape, *self.batch_shape, *self.event_shape)
        method = types.MethodType(original, self)
        return _differentiable(OpaqueCall((method, (sample_shape,), kwargs), shape, _dtype(self)))

    with replaced_here(Rejector, "rsample", rsample):
        yield


_NO_SHAPE = torch.Size()


def opaque_log_prob(
    fn: Any, value: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], line: SourceLine | None = None
) -> Tensor:
    """Record ``fn.log_prob(value, *args, **kwargs)`` as one node.

    :param line: the sample statement; the line being executed, if nothing is said.
    """
    batch = value.shape[: value.dim() - fn.event_dim]
    shape = tuple(torch.broadcast_shapes(fn.batch_shape, batch))
    return _differentiable(OpaqueCall((fn.log_prob, (value, *args), kwargs), shape, _dtype(fn), line))


def _differentiable(call: OpaqueCall) -> Tensor:
    return OpaqueFunction.apply(call, *call.tensors)


@torch.library.custom_op("sgc::opaque_check", mutates_args=())
def _opaque_check(tensors: list[Tensor], number: int) -> Tensor:
    """Whether a constraint holds; one that fails to say so does not. Pyro, asked then, shows its error."""
    try:
        with torch.no_grad():
            holds = bool(_CALLS[number](tensors).all())
    except Exception:
        holds = False
    return torch.tensor(holds, device=tensors[0].device)


@_opaque_check.register_fake
def _(tensors: list[Tensor], number: int) -> Tensor:
    return torch.empty((), dtype=torch.bool, device=tensors[0].device)


def opaque_check(constraint: Any, value: Tensor) -> Tensor:
    """Record ``constraint.check(value)``, which branches on data, as one node."""
    call = OpaqueCall((constraint.check, (value,), {}), (), torch.bool)
    valid: Tensor = torch.ops.sgc.opaque_check([t.detach() for t in call.tensors], call.number)
    KEEPS.put(tracer.node_of(valid), call)
    return valid


class Attempt:
    """A try to trace code that may turn out not to be traceable; :meth:`undo` takes it back.

    ``untouched`` is a copy of the objects involved, sharing their tensors: it has none of what the failed try
    cached in them. The tensors stand again for the nodes that they stood for before.
    """

    def __init__(self, *objects: Any) -> None:
        tensors: list[Tensor] = []
        self.untouched: tuple[Any, ...] = Substitution(_noting(tensors))(objects)
        self._bindings = tracer.bindings(tensors)
        self._start = tracer.last_node()

    def undo(self) -> tuple[Any, ...]:
        """Erase what was recorded since, and return the untouched objects."""
        tracer.erase_after(self._start)
        tracer.rebind(self._bindings)
        return self.untouched


def _dtype(fn: Any) -> torch.dtype:
    tensors: list[Tensor] = []
    Substitution(_noting(tensors))(fn)
    dtypes = (tensor.dtype for tensor in tensors)
    return next((dtype for dtype in dtypes if dtype.is_floating_point), torch.get_default_dtype())


def _noting(tensors: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """Leaves tensors where they are, and adds them to a list."""

    def note(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    return note
