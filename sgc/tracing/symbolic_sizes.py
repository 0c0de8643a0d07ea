"""Sizes of arguments that a capture takes for symbols, and under which conditions what it captured holds for others.

Torch's ``ShapeEnv`` records what Python asked of a symbol: each answer is a condition. A symbol of which Python had the
number itself (``range(len(x))``) stands for that number alone from then on.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pyro.distributions.util
import sympy
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from sgc.errors import SourceLine
from sgc.graph.sizes import condition_shown, is_symbolic, name_symbols, shown
from sgc.native import meta_kernels
from sgc.tracing.source import current_line
from sgc.tracing.state.places import Place, PlaceOwner
from sgc.tracing.threads import here
from sgc.tracing.tracer import is_capturing

Sized = int | Place
"""Where a tensor is that has them: the position of a leaf of the arguments, or a place."""

Dims = Mapping[Sized, frozenset[int]]
"""Dims of tensors, by where these are."""

NO_DIMS: Dims = {}

SMALLEST = 2
"""The smallest size that a symbol stands for: torch takes 0 and 1 for what they are, as broadcasting asks for it."""

_NAMES = "nmkl"


class Environment(ShapeEnv):
    """Symbols for sizes, and the lines of the program that have asked of them what is a condition now."""

    def __init__(self) -> None:
        self.lines: dict[int, SourceLine | None] = {}
        """By the number of the condition."""
        super().__init__(duck_shape=False)

    def evaluate_expr(self, *args: Any, **kwargs: Any) -> Any:
        known = _LENGTH(self.guards)
        answer = super().evaluate_expr(*args, **kwargs)
        if _LENGTH(self.guards) > known and is_capturing():
            self.lines.setdefault(known, current_line())
        return answer


@dataclass
class SymbolicSizes:
    """The symbols of one capture.

    :param axes: the tensor and the dim of each, in an order of their own.
    :param examples: the traced tensors, by where they are.
    """

    environment: Environment
    axes: tuple[tuple[Sized, int], ...]
    symbols: tuple[Any, ...]
    examples: dict[Sized, Tensor]
    _known: dict[tuple[int, tuple[int, ...]], tuple[str | None, list[tuple[int, ...]]]] = field(default_factory=dict)

    @classmethod
    def of(cls, leaves: Sequence[Any], dims: Dims) -> SymbolicSizes:
        """Symbols for these dims of tensors, in a call with these leaves of its arguments."""
        import torch._functorch.config as functorch_config

        meta_kernels.register()
        environment = Environment()
        with functorch_config.patch(fake_tensor_allow_unsafe_data_ptr_access=False):
            mode = FakeTensorMode(shape_env=environment, allow_non_fake_inputs=True)
        axes: list[tuple[Sized, int]] = []
        symbols: list[Any] = []
        examples: dict[Sized, Tensor] = {}
        known: dict[int, Tensor] = {}
        for where, of_tensor in dims.items():
            tensor = tensor_at(where, leaves)
            if id(tensor) not in known:
                known[id(tensor)] = _example(mode, tensor, of_tensor, len(known))
            examples[where] = known[id(tensor)]
            for dim in sorted(of_tensor):
                axes.append((where, dim))
                symbols.append(_symbol(examples[where].shape[dim]))
        mode.static_shapes = True  # what else the program meets is of the size that it has
        name_symbols(environment, {s: _named(s, number) for number, s in enumerate(dict.fromkeys(symbols))})
        return cls(environment, tuple(axes), tuple(symbols), examples)

    def formula(self, axis: int) -> Any:
        """What the symbol of an axis stands for by now: itself, another one, or a number."""
        return self.environment.replace(self.symbols[axis])

    @property
    def dims(self) -> Dims:
        """The dims whose symbols are still no numbers."""
        free: dict[Sized, frozenset[int]] = {}
        for axis, (where, dim) in enumerate(self.axes):
            if self.formula(axis).free_symbols:
                free[where] = free.get(where, frozenset()) | {dim}
        return free

    def line_of(self, where: Sized, dim: int) -> SourceLine | None:
        """The line that has made a number of a symbol."""
        symbol = self.symbols[self.axes.index((where, dim))]
        for number, guard in enumerate(self.environment.guards):
            if symbol in guard.expr.free_symbols and self.environment.lines.get(number) is not None:
                if isinstance(guard.expr, sympy.Eq) and any(side.is_number for side in guard.expr.args):
                    return self.environment.lines[number]
        return None

    def of_call(self, leaves: Sequence[Any]) -> tuple[int, ...]:
        """The sizes in a call with these leaves of its arguments, in the order of the axes."""
        return tuple(tensor_at(where, leaves).shape[dim] for where, dim in self.axes)

    def broken(self, sizes: tuple[int, ...], leaves: Sequence[Any]) -> str | None:
        """The first condition that the arguments of a call do not meet; they have as many dims as those captured.

        :param sizes: those of the call.
        """
        key = len(self.environment.guards), sizes
        if key not in self._known:  # formulas take their time, and come anew at each call
            self._known[key] = self._answer(dict(zip(self.symbols, sizes, strict=True)))
        reason, strides = self._known[key]
        return reason or self._unlike_in_memory(strides, leaves)

    def _answer(self, sizes: dict[Any, int]) -> tuple[str | None, list[tuple[int, ...]]]:
        """The first condition that sizes do not meet, and how the tensors must lie in memory."""
        return self._unmet(sizes), [tuple(_number(s, sizes) for s in each.stride()) for each in self.examples.values()]

    def _unmet(self, sizes: dict[Any, int]) -> str | None:
        for symbol, size in sizes.items():
            if size < SMALLEST:
                return f"{shown(symbol, self.environment)} is {size}"
        for number, guard in enumerate(self.environment.guards):
            if guard.expr.xreplace(sizes) != True:  # noqa: E712 (sympy's own truth)
                return f"{self._asked(number)} is not true"
        return None

    def _unlike_in_memory(self, expected: list[tuple[int, ...]], leaves: Sequence[Any]) -> str | None:
        for where, strides in zip(self.examples, expected, strict=True):
            now = tensor_at(where, leaves).stride()
            if now != strides:
                return f"the strides of a tensor are {list(now)}, not {list(strides)}"
        return None

    def conditions(self) -> Iterator[str]:
        """What is asked of the sizes, in words."""
        yield from map(self._asked, range(_LENGTH(self.environment.guards)))

    def _asked(self, number: int) -> str:
        line = self.environment.lines.get(number)
        where = f" (asked at {line})" if line is not None else ""
        return f"{condition_shown(self.environment.guards[number].expr, self.environment)}{where}"


def _symbol(size: Any) -> Any:
    return size.node.expr


def _number(value: Any, sizes: dict[Any, int]) -> int:
    return int(value.node.expr.xreplace(sizes)) if isinstance(value, torch.SymInt) else int(value)


def _named(symbol: Any, number: int) -> Any:
    name = _NAMES[number] if number < len(_NAMES) else f"n{number}"
    return type(symbol)(name, **symbol.assumptions0)


def tensor_at(where: Sized, leaves: Sequence[Any]) -> Tensor:
    """The tensor that is there, in a call with these leaves of its arguments."""
    tensor = leaves[where] if isinstance(where, int) else PlaceOwner(where).fetch_of(leaves)
    assert isinstance(tensor, Tensor)
    return tensor


def _example(mode: FakeTensorMode, tensor: Tensor, dims: frozenset[int], number: int) -> Tensor:
    """A traced tensor like another one, with symbols for some of its sizes."""
    from torch._dynamo.source import ConstantSource

    like = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    like.requires_grad_(tensor.requires_grad)
    kinds = [DimDynamic.DYNAMIC if dim in dims else DimDynamic.STATIC for dim in range(tensor.dim())]
    context: Any = StatelessSymbolicContext(kinds)
    example = mode.from_tensor(like, source=ConstantSource(f"sized_{number}"), symbolic_context=context)
    _fix_other_strides(example)
    return example


def _fix_other_strides(example: Tensor) -> None:
    """Take a stride that does not follow from sizes, as those of ``data[:, :20]``, for the number that it is.

    Torch makes a symbol of it. No condition is left of that: the strides of each call are compared as they are.
    """
    sizes = {symbol for size in example.shape if is_symbolic(size) for symbol in _symbol(size).free_symbols}
    for stride in example.stride():
        if is_symbolic(stride) and not _symbol(stride).free_symbols <= sizes:
            environment = stride.node.shape_env  # type: ignore[attr-defined]
            known = _LENGTH(environment.guards)
            int(stride)
            del environment.guards[known:]


@contextmanager
def symbols_in_python() -> Iterator[None]:
    """``len(x)`` of a traced tensor is a symbol while this is entered: Python's own makes a number of it.

    Pyro, which spares itself a product with a scale that is 1, asks of a symbol too whether it is.
    """

    def length(value: Any, /) -> Any:
        return value.shape[0] if isinstance(value, FakeTensor) and value.dim() else _LENGTH(value)

    def is_one(value: Any) -> bool:
        return bool(value == 1) if is_symbolic(value) else _IS_ONE(value)

    with (
        mock.patch.object(builtins, "len", here(length, _LENGTH)),
        mock.patch.object(pyro.distributions.util, _IS_ONE.__name__, here(is_one, _IS_ONE)),
    ):
        yield


_LENGTH = len
_IS_ONE = pyro.distributions.util.is_identically_one
