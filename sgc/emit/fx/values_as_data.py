"""The arguments of fx nodes as plain data, and back. What is made of data are values alone, whatever the data say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx


class NotPlain(Exception):
    """A graph has something that another process would not know; the text says what."""


_OF_TORCH = (torch.dtype, torch.layout, torch.memory_format)


def value_as_data(value: Any) -> Any:
    """An argument as what JSON holds.

    :raises NotPlain: if it is none that an operator of torch's takes.
    """
    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else ["float", str(value)]
    if isinstance(value, fx.Node):
        return ["node", value.name]
    if isinstance(value, (list, tuple)):
        return ["tuple" if isinstance(value, tuple) else "list", *map(value_as_data, value)]
    if isinstance(value, complex):
        return ["complex", str(value)]
    if isinstance(value, slice):
        return ["slice", *map(value_as_data, (value.start, value.stop, value.step))]
    if isinstance(value, torch.device):
        return ["device", str(value)]
    if isinstance(value, _OF_TORCH):
        return ["torch", str(value).removeprefix("torch.")]
    raise NotPlain(f"an argument that is a {type(value).__name__}")


def value_of_data(data: Any, known: Mapping[str, fx.Node]) -> Any:
    """The argument of such data.

    :param known: the nodes by their names.
    :raises ValueError: if these are no such data.
    """
    if not isinstance(data, list):
        if data is None or isinstance(data, (bool, str, int, float)):
            return data
        raise ValueError(f"no argument is a {type(data).__name__}")
    kind, *parts = data
    match kind:
        case "node":
            return known[parts[0]]
        case "list":
            return [value_of_data(part, known) for part in parts]
        case "tuple":
            return tuple(value_of_data(part, known) for part in parts)
        case "slice":
            return slice(*(value_of_data(part, known) for part in parts))
        case "float":
            return float(parts[0])
        case "complex":
            return complex(parts[0])
        case "device":
            return torch.device(parts[0])
        case "torch":
            return of_torch(parts[0])
        case _:
            raise ValueError(f"no argument is of the kind {kind!r}")


def of_torch(name: Any) -> Any:
    """A dtype, layout or memory format by its name.

    :raises ValueError: if torch has none of this name.
    """
    value = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(value, _OF_TORCH):
        raise ValueError(f"torch has no dtype, layout or memory format {name!r}")
    return value
