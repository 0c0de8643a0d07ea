"""The arguments of a call: their structure, the metadata of their tensors, the values of all else."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from sgc.errors import ArgumentError
from sgc.guards.base import Call, Guard
from sgc.guards.identity import twins
from sgc.guards.metadata import Alike, Meta, meta, meta_difference, meta_shown, other_sizes
from sgc.guards.miss import ARRAY_AS_TENSOR, AS_TENSORS, NO_REASONS, SAME_EACH_TIME, Miss, with_reasons
from sgc.guards.snapshots import Free, difference, is_as_noted, labelled, loosened, moved, note, shown
from sgc.native import conditions
from sgc.native.conditions import Condition
from sgc.tracing.python.partials import CallRecord
from sgc.tracing.state.places import Place, is_number
from sgc.tracing.state.value_parts import PLAIN
from sgc.tracing.symbolic_sizes import NO_DIMS, Dims, Sized

NOTHING_NEEDED: Mapping[tuple[Sized, int], str] = {}


class ArgumentGuard(Guard):
    """The structure of the arguments, the metadata of their tensors and which of these are one, and the values of
    everything else.

    Of a partial with a record of its calls, their results.

    :param moving: places among the arguments whose tensors and numbers are inputs.
    :param sizes: dims of tensors that may have any size here; another guard says which.
    :param needed: why the size of a dim is the same at each call.
    :param by_value: why numbers in some places are the same at each call.
    """

    def __init__(
        self,
        call: Call,
        names: Sequence[str],
        moving: Collection[Place] = (),
        sizes: Dims = NO_DIMS,
        needed: Mapping[tuple[Sized, int], str] = NOTHING_NEEDED,
        by_value: Mapping[Place, str] = NO_REASONS,
    ) -> None:
        self._sizes = sizes
        self._needed = needed
        self._by_value = by_value
        self._records: dict[int, CallRecord] = {}
        self._spec = call.spec
        self._names = tuple(names)
        self._expected: list[Meta | None] = []
        self._constants: list[Any] = []
        self._notes: list[Any] = []
        self.free: dict[Place, Any] = {}
        """The places of inputs, with what was there."""
        for position, leaf in enumerate(call.leaves):
            self._expected.append(meta(leaf, sizes.get(position, ())) if isinstance(leaf, Tensor) else None)
            # What has become of the very same object is the environment guard's affair, of an array this one's.
            self._constants.append(leaf.copy() if isinstance(leaf, np.ndarray) else leaf)
            noted = None if isinstance(leaf, Tensor) else note(leaf)
            for place in (place for place in moving if place.is_argument and place.key == position):
                part = place.of(leaf)
                if is_number(part) or (isinstance(part, Tensor) and place.path):
                    noted = loosened(noted, place.path, Tensor if isinstance(part, Tensor) else type(part))
                    self.free[place] = part
            self._notes.append(noted)
        tensors = [leaf for leaf in call.leaves if isinstance(leaf, Tensor)]
        self._twins = twins(tensors)
        positions = [i for i, leaf in enumerate(call.leaves) if isinstance(leaf, Tensor)]
        self._alike = Alike(tensors, [sizes.get(i, ()) for i in positions])

    def refuse_unguarded(self) -> None:
        """Refuse arguments of which nobody can say whether they have changed.

        :raises ArgumentError: with the name.
        """
        for name, expected, leaf in zip(self._names, self._expected, self._constants, strict=True):
            if expected is None:
                _check(name, leaf)

    def note_calls(self, records: Mapping[int, CallRecord]) -> None:
        """Of some partials, by their positions, the results of their calls are what counts."""
        self._records = {i: record for i, record in records.items() if record.complete}

    def conditions(self) -> list[Condition]:
        if len({*self._twins}) < len(self._twins):
            return [conditions.NEVER]  # different tensors would be alike
        tensors = [conditions.leaf(i) for i, expected in enumerate(self._expected) if expected is not None]
        own = [conditions.equals(conditions.spec(), self._spec), conditions.alike(tensors, self._alike.check)]
        for i, (constant, noted) in enumerate(zip(self._constants, self._notes, strict=True)):
            if isinstance(noted, Free):
                own.append(conditions.like(conditions.leaf(i), noted, noted.fits))
            elif self._expected[i] is None:
                own.append(conditions.like(conditions.leaf(i), constant, functools.partial(is_as_noted, noted)))
        return own

    def miss(self, call: Call) -> Miss | None:
        if call.spec != self._spec:
            return Miss("the structure of the arguments changed", remedy="pass as many arguments, under the same names")
        for i, (leaf, expected) in enumerate(zip(call.leaves, self._expected, strict=True)):
            if expected is not None:
                if not isinstance(leaf, Tensor):
                    return Miss(f"{self._names[i]} was a tensor, is {type(leaf).__name__}", self._names[i], AS_TENSORS)
                actual = meta(leaf, self._sizes.get(i, ()))
                if actual != expected:
                    return self._with_reason(i, leaf, meta_difference(self._names[i], expected, actual))
            elif isinstance(leaf, Tensor):
                return Miss(
                    f"{self._names[i]} was {shown(self._constants[i])}, is a tensor", self._names[i], AS_TENSORS
                )
            elif leaf is not self._constants[i] or isinstance(self._notes[i], Free):
                changed = difference(self._names[i], leaf, self._notes[i])
                if changed is not None and i in self._records and self._is_like(i, leaf):
                    changed = self._records[i].miss(leaf, lambda one, other: difference("", one, other) is None)
                if changed is not None:
                    return Miss(changed, self._names[i], self._remedy(i, leaf))
        if twins([leaf for leaf in call.leaves if isinstance(leaf, Tensor)]) != self._twins:
            return Miss("other arguments than before are one and the same tensor")
        return None

    def _remedy(self, position: int, leaf: Any) -> str:
        if hasattr(type(leaf), "__array__"):  # numpy's arrays, pandas' tables
            return ARRAY_AS_TENSOR
        remedy = AS_TENSORS if is_number(leaf) or position in self._records else SAME_EACH_TIME
        return with_reasons(remedy, self._by_value, None, position)

    def _with_reason(self, position: int, leaf: Tensor, miss: Miss) -> Miss:
        """A miss of a tensor, with the reason why its size is not left open."""
        reasons = dict.fromkeys(self._needed[position, d] for d in range(leaf.dim()) if (position, d) in self._needed)
        return Miss(miss, miss.about, "; ".join((miss.remedy, *reasons)))

    def moved(self, call: Call) -> Iterator[Place]:
        """The places of another tensor or number than there was, those of inputs among them."""
        yield from self.free
        if call.spec == self._spec:
            for i, (leaf, noted) in enumerate(zip(call.leaves, self._notes, strict=True)):
                if not isinstance(leaf, Tensor):
                    for path in moved(leaf, noted):
                        yield Place(None, i, path, labelled(self._names[i], leaf, path))

    def resized(self, call: Call) -> Dims:
        """The dims of tensors of which nothing but sizes differs, or may differ, from those of a call."""
        if call.spec != self._spec:
            return {}
        leaves = enumerate(zip(call.leaves, self._expected, strict=True))
        sizes = {i: other_sizes(was, leaf) for i, (leaf, was) in leaves if was is not None and isinstance(leaf, Tensor)}
        return {position: dims for position, dims in sizes.items() if dims}

    def varying(self, call: Call) -> Iterator[int]:
        """The positions of partials that have the function they had here, and other arguments."""
        if call.spec == self._spec:
            for i, leaf in enumerate(call.leaves):
                if self._is_like(i, leaf) and difference("", leaf, self._notes[i]) is not None:
                    yield i

    def _is_like(self, position: int, leaf: Any) -> bool:
        """Whether both are partials of one function that hold as many arguments, under the same names."""
        noted = self._constants[position]
        return (
            type(leaf) is functools.partial is type(noted)
            and len(leaf.args) == len(noted.args)
            and list(leaf.keywords) == list(noted.keywords)
            and not leaf.__dict__
            and difference("", leaf.func, self._notes[position].parts[0]) is None
        )

    @property
    def structure(self) -> Any:
        """How the arguments are put together (:class:`~sgc.guards.base.Call`)."""
        return self._spec

    def leaves(self) -> Iterator[tuple[str, Meta | None, Any]]:
        """Of each leaf its name, the metadata of a tensor, and its value; of any number of one kind, that type."""
        for name, expected, constant, noted in zip(
            self._names, self._expected, self._constants, self._notes, strict=True
        ):
            yield name, expected, noted.kind if isinstance(noted, Free) else constant

    def describe(self) -> Iterator[str]:
        for name, expected, constant, noted in zip(
            self._names, self._expected, self._constants, self._notes, strict=True
        ):
            if isinstance(noted, Free):
                yield f"{name}: any {noted.kind.__name__}"
            elif expected is None:
                yield f"{name} == {constant!r}"
            else:
                shape, dtype, device, requires_grad, strides = expected
                laid_out = f", strides {meta_shown(strides)}" if strides or not shape else ""
                yield f"{name}: {dtype}{meta_shown(shape)} on {device}{laid_out}" + (
                    ", requires grad" if requires_grad else ""
                )


def _check(name: str, leaf: Any) -> None:
    known = (*PLAIN, np.ndarray, np.generic, nn.Module)
    if not isinstance(leaf, known) and not callable(leaf) and not hasattr(leaf, "__dict__"):
        raise ArgumentError(
            f"{name} is a {type(leaf).__module__}.{type(leaf).__qualname__}, whose contents cannot be guarded",
            remedy="pass tensors, numbers, strings, None, or containers of them "
            "(torch.utils._pytree.register_pytree_node and register_dataclass make a class a container)",
        )
