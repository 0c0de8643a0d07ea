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
from sgc.tracing.state.places import Place, PlaceOwner, as_tensor, placed
from sgc.tracing.state.value_parts import with_part
from sgc.tracing.symbolic_sizes import Dims
from sgc.tracing.values.reads import Reads


@dataclass(frozen=True)
class MovingInputs:
    """The places of these tensors and numbers, with what is there during the capture.

    :param sizes: dims of tensors among the arguments whose sizes differ from call to call.
    """

    values: Mapping[Place, Any] = field(default_factory=dict)
    functions: tuple[FunctionType, ...] = ()
    """The functions of the program in which numbers that it reads of tensors are recorded; empty if none are."""
    sizes: Dims = field(default_factory=dict)

    @property
    def numbers(self) -> list[Place]:
        """The places of numbers, in the order of their inputs."""
        return [place for place, value in self.values.items() if not isinstance(value, Tensor)]

    def number_tensors(self) -> list[Tensor]:
        """The numbers, each as a 0-d tensor."""
        return [as_tensor(self.values[place]) for place in self.numbers]

    def number_owners(self) -> Iterator[tuple[str, PlaceOwner]]:
        """Their names, and where each call finds them."""
        for place in self.numbers:
            yield place.label, PlaceOwner(place, type(self.values[place]))

    def owner_of(self, tensor: Tensor) -> tuple[str, Owner] | None:
        """The name of a tensor, and where each call finds it; None if it stands in none of the places."""
        place = next((place for place, value in self.values.items() if value is tensor), None)
        return None if place is None else (place.label, PlaceOwner(place))

    @contextmanager
    def traced(self, leaves: list[Any], tensors: Sequence[Tensor], reads: Reads) -> Iterator[list[Any]]:
        """Numbers that are recorded are in their places while this is entered; it gives the leaves with theirs.

        :param tensors: what stands for the numbers.
        :raises CaptureError: if one was used where nothing is recorded.
        """
        if not self.numbers and not self.functions:
            yield leaves
            return
        with numbers_in_calls(reads, self.functions) as answers:
            numbers = [answers.number(self.values[p], t) for p, t in zip(self.numbers, tensors, strict=True)]
            with self._placed(leaves, numbers) as leaves:
                yield leaves
        if answers.missed:
            raise CaptureError("a number that changes from call to call is used where a capture cannot follow")

    @contextmanager
    def _placed(self, leaves: list[Any], numbers: Sequence[Any]) -> Iterator[list[Any]]:
        given = list(zip(self.numbers, numbers, strict=True))
        leaves = list(leaves)
        for place, number in given:
            if place.is_argument:
                leaves[place.key] = with_part(leaves[place.key], place.path, number)
        with placed([(place, number) for place, number in given if not place.is_argument]):
            yield leaves


NOTHING_MOVES = MovingInputs()
