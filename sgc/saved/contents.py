"""What a file holds, between the program and the bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

FORMAT = 1
"""The number of the format that is written. It grows with each change that an older sgc could not read."""

KINDS = ("parameter", "buffer", "constant")


@dataclass
class Contents:
    """Tensors, the names under which some are shown, programs as data, and the state of an optimizer.

    :param names: for each dotted name the number of its tensor and its kind, one of :data:`KINDS`.
    :param programs: each as :class:`~sgc.saved.saved_program.SavedProgram` takes it; the one called last is the last.
    """

    tensors: list[Tensor] = field(default_factory=list)
    names: dict[str, tuple[int, str]] = field(default_factory=dict)
    programs: list[dict[str, Any]] = field(default_factory=list)
    optimizer: Any = None

    def __post_init__(self) -> None:
        self._numbers = {id(tensor): number for number, tensor in enumerate(self.tensors)}

    def keep(self, tensor: Tensor) -> int:
        """The number of a tensor, which is added if it is not there."""
        number = self._numbers.setdefault(id(tensor), len(self.tensors))
        if number == len(self.tensors):
            self.tensors.append(tensor)
        return number

    def show(self, name: str, tensor: Tensor, kind: str) -> None:
        """Show a tensor under a name."""
        self.names[name] = self.keep(tensor), kind

    def name_of(self, tensor: Tensor) -> str | None:
        """The first name under which a tensor is shown."""
        number = self._numbers.get(id(tensor))
        return next((name for name, (each, _) in self.names.items() if each == number), None)
