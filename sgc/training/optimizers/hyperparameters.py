"""The numbers of an optimizer's parameter groups that change from step to step, as inputs of a compiled step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


class Hyperparameters:
    """The numbers in parameter groups that may change from step to step, learning rates above all.

    Groups that have the same number share one 0-d float64 tensor, as long as they go on having the same.
    """

    def __init__(self, groups: list[dict[str, Any]], keys: frozenset[str], device: torch.device) -> None:
        self._groups = groups
        self._places = [
            (position, key, index)
            for position, group in enumerate(groups)
            for key in sorted(keys)
            for index in indices(group.get(key))
        ]
        keyed = [(key, value) for (_, key, _), value in zip(self._places, self._values(), strict=True)]
        distinct = list(dict.fromkeys(keyed))
        self._distinct = [value for _, value in distinct]
        self.sharing = tuple(distinct.index(pair) for pair in keyed)
        self.tensors = [torch.tensor(value, dtype=torch.float64, device=device) for value in self._distinct]
        self._may_be_asked = [key != "lr" for key, _ in distinct]

    def _values(self) -> list[float]:
        values = []
        for position, key, index in self._places:
            value = self._groups[position][key]
            values.append(value if index is None else value[index])
        return values

    def refresh(self) -> bool:
        """Bring the tensors up to date; False if groups no longer share their numbers as they did."""
        values = self._values()
        distinct: dict[int, float] = {}
        for value, shared in zip(values, self.sharing, strict=True):
            if distinct.setdefault(shared, value) != value:
                return False
        for shared, value in distinct.items():
            if value != self._distinct[shared]:
                self._distinct[shared] = value
                self.tensors[shared].fill_(value)
        return True

    def nonzero(self, tensors: Sequence[Tensor]) -> dict[int, bool]:
        """Whether each tensor's number is other than 0, by the tensor's identity: optimizers ask this in Python.

        The answer is part of what a compiled step relies on (see :func:`without_numbers`), save for learning rates.
        """
        asked = zip(tensors, self._distinct, self._may_be_asked, strict=True)
        return {id(tensor): value != 0 for tensor, value, may_be_asked in asked if may_be_asked}

    def put(self, groups: list[dict[str, Any]], tensors: Sequence[Tensor]) -> None:
        """Write tensors in the place of the numbers, into copies of the groups."""
        for (position, key, index), shared in zip(self._places, self.sharing, strict=True):
            group = groups[position]
            if index is None:
                group[key] = tensors[shared]
            else:
                group[key] = tuple(tensors[shared] if i == index else value for i, value in enumerate(group[key]))


def indices(value: Any) -> Iterator[int | None]:
    """Where an option holds numbers: None for the option itself, positions for a tuple (``betas``)."""
    if is_number(value):
        yield None
    elif isinstance(value, tuple):
        yield from (i for i, part in enumerate(value) if is_number(part))


def without_numbers(key: str, value: Any) -> Any:
    """An option with its numbers left out, which inputs of the compiled step take the place of; but for zeros."""
    if isinstance(value, tuple):
        return tuple(without_numbers(key, part) for part in value)
    if not is_number(value):
        return value
    return "a number" if key == "lr" or value != 0 else "zero"


def is_number(value: Any) -> bool:
    """Whether a value is a Python number; ``True`` is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
