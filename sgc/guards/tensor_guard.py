"""The tensors that a program uses besides its arguments: their metadata, and where each call fetches them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from sgc.graph.program import Input
from sgc.guards.base import Call, Guard
from sgc.guards.identity import twins
from sgc.guards.metadata import Alike, Meta, meta, meta_difference, meta_shown, other_sizes
from sgc.guards.miss import Miss
from sgc.native import conditions
from sgc.native.conditions import Condition
from sgc.tracing.state.owners import ArgumentOwner, Owner, StoreOwner
from sgc.tracing.state.param_store import PYROS
from sgc.tracing.state.places import PlaceOwner
from sgc.tracing.symbolic_sizes import NO_DIMS, Dims, Sized


class TensorGuard(Guard):
    """The metadata of parameters, buffers, constants and what stands in places, which it fetches from their owners.

    :param others: tensors of which the program uses no more than their metadata, by their names.
    :param sizes: dims that may have any size here; another guard says which.
    """

    def __init__(
        self,
        inputs: Sequence[Input],
        owners: dict[str, Owner],
        call: Call,
        others: Mapping[str, Owner],
        sizes: Dims = NO_DIMS,
    ) -> None:
        self._names = [*(declared.name for declared in inputs), *others]
        self._owners = [*(owners[declared.name] for declared in inputs), *others.values()]
        self._inputs = len(inputs)
        self._positions = [o.position if isinstance(o, ArgumentOwner) else None for o in self._owners]
        tensors = [_fetched(owner, call) for owner in self._owners]
        places = [owner.place if isinstance(owner, PlaceOwner) else None for owner in self._owners]
        self._dims = [frozenset[int]() if place is None else sizes.get(place, frozenset()) for place in places]
        self._expected: list[Meta | None] = [
            meta(tensor, dims) if tensor is not None else None for tensor, dims in zip(tensors, self._dims, strict=True)
        ]
        in_store = [i for i, owner in enumerate(self._owners) if isinstance(owner, StoreOwner)]
        elsewhere = [i for i, p in enumerate(self._positions) if p is None and i not in in_store]
        self._fetched = in_store + elsewhere  # in this order; the call's own are there already
        self._store = next((owner.store for owner in self._owners if isinstance(owner, StoreOwner)), PYROS)
        names = (owner.name for owner in self._owners if isinstance(owner, StoreOwner))
        self._constraints = {name: self._store.constraint(name) for name in names}
        self._twins = twins([tensors[i] for i in self._fetched])
        known = [(tensor, self._dims[i]) for i in self._fetched if (tensor := tensors[i]) is not None]
        self._alike = Alike([tensor for tensor, _ in known], [dims for _, dims in known])

    def conditions(self) -> list[Condition]:
        if any(self._expected[i] is None for i in self._fetched) or len({*self._twins}) < len(self._twins):
            return [conditions.NEVER]  # different tensors would be alike
        positions = self._positions[: self._inputs]
        gives = [self._fetched.index(i) if p is None else -1 - p for i, p in enumerate(positions)]
        reads = [self._owners[i].read() for i in self._fetched]
        return [*self._store.constrained(self._constraints), conditions.alike(reads, self._alike.check, gives)]

    def miss(self, call: Call) -> Miss | None:
        answer = self.check(call)
        return answer if isinstance(answer, Miss) else None

    def check(self, call: Call) -> list[Tensor] | Miss:
        """The inputs of the call where all are as expected, else what differs."""
        fetched: list[Tensor] = []
        for name, owner, position, expected, dims in zip(
            self._names, self._owners, self._positions, self._expected, self._dims, strict=True
        ):
            tensor = _fetched(owner, call)
            if tensor is None:
                gone = isinstance(owner, PlaceOwner)
                return Miss(f"{name} is of another kind" if gone else f"the parameter {name} is gone")
            if position is None and (actual := meta(tensor, dims)) != expected:
                assert expected is not None
                return meta_difference(name, expected, actual)
            fetched.append(tensor)
        for name, constraint in self._constraints.items():
            current = self._store.constraint(name)
            if current is not constraint and repr(current) != repr(constraint):
                return Miss(
                    f"the constraint of parameter {name} was {constraint}, is {current}", f"constraint of {name}"
                )
        if twins([fetched[i] for i in self._fetched]) != self._twins:
            return Miss("other parameters or buffers than before are one and the same tensor")
        return fetched[: self._inputs]

    def fetch(self, call: Call, position: int) -> Tensor:
        """The input at a position, of a call for which this guard holds."""
        tensor = _fetched(self._owners[position], call)
        assert tensor is not None
        return tensor

    def resized(self, call: Call) -> Dims:
        """The dims of tensors in places of which nothing but sizes differs, or may differ, from those of a call."""
        found: dict[Sized, frozenset[int]] = {}
        for owner, expected in zip(self._owners, self._expected, strict=True):
            if isinstance(owner, PlaceOwner) and owner.kind is None and expected is not None:
                tensor = _fetched(owner, call)
                dims = frozenset[int]() if tensor is None else other_sizes(expected, tensor)
                if dims:
                    found[owner.place] = dims
        return found

    def gone(self) -> bool:
        """Whether a tensor has no owner any more (``clear_param_store()`` was called, say)."""
        return any(
            owner.fetch() is None for owner in self._owners if not isinstance(owner, (ArgumentOwner, PlaceOwner))
        )

    def describe(self) -> Iterator[str]:
        for name, position, expected in zip(self._names, self._positions, self._expected, strict=True):
            if position is None and expected is not None:
                shape, dtype, device, requires_grad, _ = expected
                yield f"{name}: {dtype}{meta_shown(shape)} on {device}" + (", requires grad" if requires_grad else "")


def _fetched(owner: Owner, call: Call) -> Tensor | None:
    """The tensor of an input in a call."""
    if isinstance(owner, ArgumentOwner):
        tensor: Tensor = call.leaves[owner.position]
        return tensor
    return owner.fetch_of(call.leaves) if isinstance(owner, PlaceOwner) else owner.fetch()
