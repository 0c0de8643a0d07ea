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

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from sgc.graph.sizes import name_symbols
from sgc.tracing.threads import here

Dims = Mapping[int, frozenset[int]]
"""Dims of tensors among the arguments, by the positions of these."""

NO_DIMS: Dims = {}

SMALLEST = 2
"""The smallest size that a symbol stands for: torch takes 0 and 1 for what they are, as broadcasting asks for it."""

_NAMES = "nmkl"


@dataclass
class SymbolicSizes:
    """The symbols of one capture.

    :param axes: the position and dim of each, in an order of their own.
    :param examples: the traced tensors, by position.
    """

    environment: ShapeEnv
    axes: tuple[tuple[int, int], ...]
    symbols: tuple[Any, ...]
    examples: dict[int, Tensor]
    _known: dict[tuple[int, tuple[int, ...]], str | None] = field(default_factory=dict)

    @classmethod
    def of(cls, leaves: Sequence[Any], dims: Dims) -> SymbolicSizes:
        """Symbols for these dims of the leaves of a call's arguments."""
        import torch._functorch.config as functorch_config

        environment = ShapeEnv(duck_shape=False)
        with functorch_config.patch(fake_tensor_allow_unsafe_data_ptr_access=False):
            mode = FakeTensorMode(shape_env=environment, allow_non_fake_inputs=True)
        axes, symbols, examples, known = [], [], {}, {}
        for position in sorted(dims):
            leaf = leaves[position]
            if id(leaf) not in known:
                known[id(leaf)] = _example(mode, leaf, dims[position], position)
            examples[position] = known[id(leaf)]
            for dim in sorted(dims[position]):
                axes.append((position, dim))
                symbols.append(examples[position].shape[dim].node.expr)
        mode.static_shapes = True  # what else the program meets is of the size that it has
        names = {s: _named(s, number) for number, s in enumerate(dict.fromkeys(symbols))}
        name_symbols(environment, names)
        return cls(environment, tuple(axes), tuple(symbols), examples)

    def formula(self, axis: int) -> Any:
        """What the symbol of an axis stands for by now: itself, another one, or a number."""
        return self.environment.replace(self.symbols[axis])

    @property
    def dims(self) -> Dims:
        """The dims whose symbols are still no numbers."""
        free: dict[int, frozenset[int]] = {}
        for axis, (position, dim) in enumerate(self.axes):
            if self.formula(axis).free_symbols:
                free[position] = free.get(position, frozenset()) | {dim}
        return free

    def broken(self, leaves: Sequence[Any]) -> str | None:
        """The first condition that the arguments of a call do not meet; they have as many dims as those captured."""
        sizes = tuple(leaves[position].shape[dim] for position, dim in self.axes)
        key = len(self.environment.guards), sizes
        if key not in self._known:
            self._known[key] = self._broken(dict(zip(self.symbols, sizes, strict=True)))
        return self._known[key] or self._unlike_in_memory(leaves, dict(zip(self.symbols, sizes, strict=True)))

    def _broken(self, sizes: dict[Any, int]) -> str | None:
        for symbol, size in sizes.items():
            if size < SMALLEST:
                return f"{self._shown(symbol)} is {size}"
        for guard in self.environment.guards:
            if guard.expr.xreplace(sizes) != True:  # noqa: E712 (sympy's own truth)
                return f"{self._shown(guard.expr)} is not true"
        return None

    def _unlike_in_memory(self, leaves: Sequence[Any], sizes: dict[Any, int]) -> str | None:
        for position, example in self.examples.items():
            strides = tuple(_number(stride, sizes) for stride in example.stride())
            if leaves[position].stride() != strides:
                return f"the strides of a tensor are {list(leaves[position].stride())}, not {list(strides)}"
        return None

    def _shown(self, expression: Any) -> str:
        return str(expression.xreplace({s: _named(s, i) for i, s in enumerate(dict.fromkeys(self.symbols))}))

    def conditions(self) -> Iterator[str]:
        """What is asked of the sizes, in words."""
        for guard in self.environment.guards:
            yield self._shown(guard.expr)


def _number(value: Any, sizes: dict[Any, int]) -> int:
    return int(value.node.expr.xreplace(sizes)) if isinstance(value, torch.SymInt) else int(value)


def _named(symbol: Any, number: int) -> Any:
    name = _NAMES[number] if number < len(_NAMES) else f"n{number}"
    return type(symbol)(name, **symbol.assumptions0)


def _example(mode: FakeTensorMode, tensor: Tensor, dims: frozenset[int], position: int) -> Tensor:
    """A traced tensor like one of the arguments, with symbols for some of its sizes."""
    from torch._dynamo.source import ConstantSource

    like = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    like.requires_grad_(tensor.requires_grad)
    kinds = [DimDynamic.DYNAMIC if dim in dims else DimDynamic.STATIC for dim in range(tensor.dim())]
    context: Any = StatelessSymbolicContext(kinds)
    return mode.from_tensor(like, source=ConstantSource(f"argument_{position}"), symbolic_context=context)


@contextmanager
def lengths_as_symbols() -> Iterator[None]:
    """``len(x)`` of a traced tensor is a symbol while this is entered: Python's own makes a number of it."""

    def length(value: Any, /) -> Any:
        return value.shape[0] if isinstance(value, FakeTensor) and value.dim() else _LENGTH(value)

    with mock.patch.object(builtins, "len", here(length, _LENGTH)):
        yield


_LENGTH = len
