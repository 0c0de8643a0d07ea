"""The tensors and numbers that a capture takes as inputs because they are bound anew from call to call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

from torch import Tensor

from sgc.errors import CaptureError
from sgc.tracing.python.numbers_in_calls import numbers_in_calls
from sgc.tracing.state.owners import Owner
from sgc.tracing.state.places import Place, PlaceOwner, placed
from sgc.tracing.state.value_parts import with_part
from sgc.tracing.symbolic_sizes import Dims
from sgc.tracing.values.reads import Reads


@dataclass(frozen=True)
class MovingInputs:
    """The places of these tensors and numbers, with what is there during the capture.

    :param sizes: dims whose sizes differ from call to call, of tensors in these places and among the arguments.
    """

    values: Mapping[Place, Any] = field(default_factory=dict)
    functions: tuple[FunctionType, ...] = ()
    """The functions of the program in which numbers that it reads of tensors are recorded; empty if none are."""
    sizes: Dims = field(default_factory=dict)

    @property
    def numbers(self) -> list[Place]:
        """The places of numbers, in the order of their inputs."""
        return [place for place, value in self.values.items() if not isinstance(value, Tensor)]

    @property
    def places(self) -> list[Place]:
        """The places of what is traced from the start: numbers, and tensors whose sizes differ."""
        return [*self.numbers, *(place for place in self.sizes if isinstance(place, Place))]

    def tensors(self, leaves: Sequence[Any]) -> list[Tensor]:
        """What is in these places, a number as a 0-d tensor.

        :param leaves: of the arguments of the call.
        """
        owned = [owner.fetch_of(leaves) for _, owner in self.owners()]
        assert all(tensor is not None for tensor in owned)
        return [tensor for tensor in owned if tensor is not None]

    def owners(self) -> Iterator[tuple[str, PlaceOwner]]:
        """Their names, and where each call finds them."""
        for place in self.places:
            value = self.values[place]
            yield place.label, PlaceOwner(place, None if isinstance(value, Tensor) else type(value))

    def owner_of(self, tensor: Tensor) -> tuple[str, Owner] | None:
        """The name of a tensor, and where each call finds it; None if it stands in none of the places."""
        place = next((place for place, value in self.values.items() if value is tensor), None)
        return None if place is None else (place.label, PlaceOwner(place))

    @contextmanager
    def traced(self, leaves: list[Any], tensors: Sequence[Tensor], reads: Reads) -> Iterator[list[Any]]:
        """What is traced from the start is in its places while this is entered; it gives the leaves with theirs.

        :param tensors: what stands for it.
        :raises CaptureError: if one was used where nothing is recorded.
        """
        numbers, sized = self.numbers, tensors[len(self.numbers) :]
        if not numbers and not self.functions:
            with self._placed(leaves, sized) as leaves:
                yield leaves
            return
        with numbers_in_calls(reads, self.functions) as answers:
            traced = [answers.number(self.values[p], t) for p, t in zip(numbers, tensors, strict=False)]
            with self._placed(leaves, [*traced, *sized]) as leaves:
                yield leaves
        if answers.missed:
            raise CaptureError("a number that changes from call to call is used where a capture cannot follow")

    @contextmanager
    def _placed(self, leaves: list[Any], values: Sequence[Any]) -> Iterator[list[Any]]:
        given = list(zip(self.places, values, strict=True))
        leaves = list(leaves)
        for place, value in given:
            if place.is_argument:
                leaves[place.key] = with_part(leaves[place.key], place.path, value)
        with placed([(place, value) for place, value in given if not place.is_argument]):
            yield leaves


NOTHING_MOVES = MovingInputs()
