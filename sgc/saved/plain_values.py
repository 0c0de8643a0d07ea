"""Plain values with tensors among them, such as the state of an optimizer, as data and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from sgc.errors import SavedProgramError


def plain_as_data(name: str, value: Any, keep: Callable[[Tensor], int]) -> Any:
    """A value made of mappings, lists, tuples, tensors, numbers, texts and None.

    :param name: what it is, for the error.
    :param keep: takes a tensor; gives its number in the file.
    :raises sgc.errors.SavedProgramError: if it has something else.
    """
    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else ["float", str(value)]
    if isinstance(value, Tensor):
        return ["tensor", keep(value)]
    if isinstance(value, Mapping):
        pairs = [
            [plain_as_data(name, key, keep), plain_as_data(f"{name}[{key!r}]", v, keep)] for key, v in value.items()
        ]
        return ["dict", *pairs]
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return [kind, *(plain_as_data(f"{name}[{i}]", part, keep) for i, part in enumerate(value))]
    raise SavedProgramError(
        f"{name} is a {type(value).__module__}.{type(value).__qualname__}, which no file holds",
        remedy="save the loss without its optimizer, and keep optimizer.state_dict() by other means",
    )


def plain_of_data(data: Any, tensors: Sequence[Tensor]) -> Any:
    """The value of such data.

    :raises ValueError: if these are none.
    """
    if not isinstance(data, list):
        if data is None or isinstance(data, (bool, str, int, float)):
            return data
        raise ValueError(f"no plain value is a {type(data).__name__}")
    kind, *parts = data
    match kind:
        case "float":
            return float(parts[0])
        case "tensor":
            if type(parts[0]) is not int or parts[0] < 0:
                raise ValueError("a tensor without a number")
            return tensors[parts[0]]
        case "dict":
            return {plain_of_data(key, tensors): plain_of_data(value, tensors) for key, value in parts}
        case "list":
            return [plain_of_data(part, tensors) for part in parts]
        case "tuple":
            return tuple(plain_of_data(part, tensors) for part in parts)
        case _:
            raise ValueError(f"no plain value is of the kind {kind!r}")
