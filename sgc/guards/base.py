"""What a specialization relies on. Each guard checks one thing, says in words what it expects, and names a miss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import TreeSpec

from sgc.guards.miss import Miss
from sgc.native import conditions
from sgc.native.conditions import Condition
from sgc.tracing.arguments import Structure, flatten

LEAVES = frozenset((Tensor, nn.Parameter, bool, int, float, complex, str, bytes, type(None)))
"""Kinds of arguments that have no parts."""


class Call:
    """The arguments of one call, flattened."""

    __slots__ = ("__weakref__", "args", "kwargs", "leaves", "spec")

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args = args
        self.kwargs = kwargs
        self.leaves: list[Any]
        self.spec: TreeSpec | Structure | tuple[Any, ...]
        if LEAVES.issuperset(map(type, args)) and (not kwargs or LEAVES.issuperset(map(type, kwargs.values()))):
            # By far the most frequent call: no tree to take apart.
            self.leaves, self.spec = [*args, *kwargs.values()], (len(args), *kwargs)
        else:
            self.leaves, self.spec = flatten((args, kwargs))


class Guard(ABC):
    """A condition on a call."""

    def conditions(self) -> list[Condition]:
        """The usual case in which it holds. Where they are not all true, :meth:`check` is asked."""
        return [conditions.NEVER]

    def check(self, call: Call) -> list[Tensor] | Miss | None:
        """What :meth:`miss` says; the inputs of the call where that is None and the guard has fetched them."""
        return self.miss(call)

    @abstractmethod
    def miss(self, call: Call) -> Miss | None:
        """None where the condition holds, else what differs."""

    @abstractmethod
    def describe(self) -> Iterator[str]:
        """The condition in words, a line each."""
