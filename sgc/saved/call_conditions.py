"""What a program of a file asks of a call: of each argument, of sizes, of values that Python read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from sgc.emit.fx.values_as_data import of_torch, value_of_data
from sgc.errors import ArgumentError
from sgc.graph.aliasing import copies
from sgc.saved.fx_as_data import module_of_data
from sgc.saved.size_conditions import check_formula, value_of_formula

_LARGEST = 2**53
_SMALLEST_SIZE = 2
"""As in :mod:`sgc.tracing.symbolic_sizes`."""


@dataclass(frozen=True)
class SavedTensor:
    """What is asked of a tensor of a call, or of a parameter. A size that may differ from call to call is None."""

    name: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool

    @classmethod
    def of(cls, data: dict[str, Any]) -> SavedTensor:
        """What a file notes."""
        shape, dtype = tuple(data["shape"]), of_torch(data["dtype"])
        if not isinstance(data["name"], str) or not all(size is None or type(size) is int for size in shape):
            raise ValueError("a tensor without a name or with sizes that are no numbers")
        return cls(data["name"], shape, dtype, torch.device(data["device"]), bool(data["requires_grad"]))

    def refuse_other(self, value: Any) -> None:
        """Refuse what the program is not for.

        :raises sgc.errors.ArgumentError: with what differs.
        """
        if not isinstance(value, Tensor):
            raise ArgumentError(f"{self.name} is a {type(value).__name__}; the program was saved for {self}")
        sizes_fit = value.dim() == len(self.shape) and all(
            size in (None, own) for size, own in zip(self.shape, value.shape, strict=True)
        )
        if not sizes_fit or value.dtype != self.dtype or value.device != self.device:
            raise ArgumentError(
                f"{self.name} is {_shown(value.dtype, value.shape, value.device)}; the program was saved for {self}",
                remedy="pass a tensor as before; a loss module that was called with several sizes before it was saved "
                "is for any size",
            )
        if value.requires_grad and not self.requires_grad and torch.is_grad_enabled():
            raise ArgumentError(
                f"{self.name} requires a gradient; where the program was saved it did not",
                remedy="detach it; or, before saving, call the loss module with one that does",
            )

    def __str__(self) -> str:
        return _shown(self.dtype, self.shape, self.device)


def _shown(dtype: torch.dtype, shape: Sequence[int | None], device: torch.device) -> str:
    sizes = ", ".join("any" if size is None else str(size) for size in shape)
    return f"{str(dtype).removeprefix('torch.')}[{sizes}]" + (f" on {device}" if device.type != "cpu" else "")


@dataclass(frozen=True)
class SavedNumber:
    """A leaf of the arguments that is a number, and an input of the program: a 0-d tensor."""

    name: str
    kind: type

    DTYPES: ClassVar[dict[type, torch.dtype]] = {float: torch.float64, int: torch.int64}

    def tensor(self, value: Any) -> Tensor:
        """The input.

        :raises sgc.errors.ArgumentError: if it is no such number.
        """
        fits = isinstance(value, (int, float)) if self.kind is float else isinstance(value, int)
        if not fits or isinstance(value, bool) or (isinstance(value, int) and abs(value) >= _LARGEST):
            raise ArgumentError(f"{self.name} is {value!r}; the program was saved for any {self.kind.__name__}")
        return torch.tensor(value, dtype=self.DTYPES[self.kind], device="cpu")

    def __str__(self) -> str:
        return self.kind.__name__


@dataclass(frozen=True)
class SavedConstant:
    """A leaf of the arguments that is the same at each call."""

    name: str
    value: Any

    def refuse_other(self, value: Any) -> None:
        """Refuse another value.

        :raises sgc.errors.ArgumentError: with both.
        """
        if type(value) is not type(self.value) or value != self.value:
            raise ArgumentError(
                f"{self.name} is {value!r}; the program was saved for {self.value!r}",
                remedy="a number that the loss module was called with several values of before it was saved is an "
                "input; for other values save a loss module for each",
            )

    def __str__(self) -> str:
        return repr(self.value)


@dataclass(frozen=True)
class SavedRead:
    """A value that Python read while the program was captured: it must be the same at each call."""

    module: fx.GraphModule
    inputs: tuple[int, ...]
    value: Tensor
    names: str
    source: str

    def holds(self, value: Tensor) -> Tensor:
        """Whether a value of this shape is the same, 0-d."""
        return (value.eq(self.value) | value.isnan() & self.value.isnan()).all()

    def refuse_other(self, inputs: Sequence[Tensor]) -> None:
        """Refuse inputs of which it is another.

        :raises sgc.errors.ArgumentError: with the line that read it.
        """
        with torch.no_grad():
            (value,) = self.module(*copies([inputs[i] for i in self.inputs]))
        if value.shape != self.value.shape or not self.holds(value):
            raise ArgumentError(
                f"a value computed from {self.names} is {value.tolist()}; the program was saved for "
                f"{self.value.tolist()}" + (f" (read at {self.source})" if self.source else ""),
                remedy="its structure depends on that value: save a loss module for each",
            )


@dataclass(frozen=True)
class SavedSizes:
    """Conditions on the sizes that differ from call to call.

    :param axes: the leaf and the dim of each, or a number where the size is the same at each call.
    :param conditions: formulas of these, each with its text.
    :param strides: of some leaves, how they must lie in memory.
    """

    axes: tuple[tuple[int, int] | int, ...]
    conditions: tuple[tuple[Any, str], ...]
    strides: tuple[tuple[int, tuple[Any, ...]], ...]

    @classmethod
    def of(cls, data: dict[str, Any], leaves: int) -> SavedSizes:
        """What a file notes, of so many leaves."""
        axes = tuple(axis if isinstance(axis, int) else (int(axis[0]), int(axis[1])) for axis in data["axes"])
        conditions = tuple((formula, str(text)) for formula, text in data["conditions"])
        strides = tuple((int(leaf), tuple(formulas)) for leaf, formulas in data["strides"])
        for formula in [*(each for each, _ in conditions), *(each for _, many in strides for each in many)]:
            check_formula(formula, len(axes))
        if not all(0 <= leaf < leaves for leaf in [*(a[0] for a in axes if isinstance(a, tuple)), *dict(strides)]):
            raise ValueError("sizes of an argument that is not there")
        return cls(axes, conditions, strides)

    def strides_of(self, leaves: Sequence[Any]) -> dict[int, tuple[int, ...]]:
        """How the tensors of a call must lie in memory.

        :raises sgc.errors.ArgumentError: if the sizes do not meet a condition.
        """
        sizes = [axis if isinstance(axis, int) else leaves[axis[0]].shape[axis[1]] for axis in self.axes]
        small = any(
            size < _SMALLEST_SIZE for size, axis in zip(sizes, self.axes, strict=True) if isinstance(axis, tuple)
        )
        broken = [text for formula, text in self.conditions if not value_of_formula(formula, sizes)]
        if small or broken:
            what = broken[0] if broken else f"each is at least {_SMALLEST_SIZE}"
            raise ArgumentError(
                f"of the sizes {sizes} it is not true that {what}",
                remedy="pass sizes that the loss module was called with before it was saved",
            )
        return {leaf: tuple(int(value_of_formula(f, sizes)) for f in formulas) for leaf, formulas in self.strides}


def leaf_of(data: dict[str, Any]) -> SavedTensor | SavedNumber | SavedConstant:
    """A leaf of the arguments, as a file notes it."""
    match data["kind"]:
        case "tensor":
            strides = data["strides"]
            if strides is not None and (
                len(strides) != len(data["shape"]) or not all(type(each) is int and each >= 0 for each in strides)
            ):
                raise ValueError("a stride that is no number")
            return SavedTensor.of(data)
        case "float" | "int":
            return SavedNumber(str(data["name"]), {"float": float, "int": int}[data["kind"]])
        case "constant":
            return SavedConstant(str(data["name"]), value_of_data(data["value"], {}))
        case _:
            raise ValueError("an argument of no kind")


def input_of(data: dict[str, Any], leaves: Sequence[Any]) -> tuple[SavedTensor, int | str]:
    """An input, and the leaf that it is or the name that it is shown under."""
    where = data["where"]
    if not isinstance(where, str):
        if type(where) is not int or where < 0 or isinstance(leaves[where], SavedConstant):
            raise ValueError("an input that is nowhere")
    return SavedTensor.of(data), where


def read_of(data: dict[str, Any], tensors: Sequence[Tensor], inputs: Sequence[tuple[SavedTensor, Any]]) -> SavedRead:
    """A value that Python read, as a file notes it."""
    positions = tuple(data["inputs"])
    if not all(type(i) is int and 0 <= i < len(inputs) for i in (*positions,)) or type(data["value"]) is not int:
        raise ValueError("a value of an input that is not there")
    names = ", ".join(inputs[i][0].name for i in positions)
    module = module_of_data(data["nodes"], tensors, len(positions), 1)
    return SavedRead(module, positions, tensors[data["value"]], names, str(data["source"]))
