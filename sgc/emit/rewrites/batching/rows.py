"""Values that are rows of larger tensors, and how the operands of a group are made of them.

The result of a group is one tensor, a *packet*, whose rows are the values of its members. A later group that uses the
values in order takes the packet as it is; one that uses some of them, or those of several packets, takes slices, a
concatenation of slices, or an ``index_select``. So a stack of unbound rows is never made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_PIECES = 4
"""The most slices of one operand that are concatenated; with more it is gathered by an index."""


@dataclass(frozen=True, eq=False)
class Packet:
    """Values of one shape and type, as the rows of one tensor; ``number`` orders the packets by their making."""

    tensor: Tensor
    number: int


@dataclass(frozen=True)
class Row:
    """The value that is row ``index`` of ``packet``."""

    packet: Packet
    index: int

    def value(self) -> Tensor:
        """The value of the row, without the packet's first dim."""
        return self.packet.tensor.select(0, self.index)


@dataclass
class _Slice:
    packet: Packet
    start: int
    step: int = 1
    length: int = 1

    def take(self, row: Row) -> bool:
        """Extend the slice by the row if it comes next; returns whether it did."""
        step = row.index - self.start - self.step * (self.length - 1)
        if row.packet is not self.packet or step < 0 or (self.length > 1 and step != self.step):
            return False
        self.step = step
        self.length += 1
        return True

    def tensor(self) -> Tensor:
        if self.length == len(self.packet.tensor) and self.step == 1:
            return self.packet.tensor
        if self.step == 0:
            row = self.packet.tensor[self.start]
            return row.expand(self.length, *row.shape)
        end = self.start + self.step * (self.length - 1) + 1
        return self.packet.tensor[self.start : end : self.step]


def gather(rows: Sequence[Row]) -> Tensor:
    """A tensor of these rows, made with as few operators as possible."""
    slices = [_Slice(rows[0].packet, rows[0].index)]
    for row in rows[1:]:
        if not slices[-1].take(row):
            slices.append(_Slice(row.packet, row.index))
    packets = list(dict.fromkeys(row.packet for row in rows))
    if len(slices) == 1:
        return slices[0].tensor()
    if len(slices) <= max(_PIECES, 2 * len(packets)):
        return torch.cat([piece.tensor() for piece in slices])
    offsets: dict[Packet, int] = {}
    total = 0
    for packet in packets:
        offsets[packet] = total
        total += len(packet.tensor)
    whole = packets[0].tensor if len(packets) == 1 else torch.cat([packet.tensor for packet in packets])
    return whole.index_select(0, torch.tensor([offsets[row.packet] + row.index for row in rows], device=whole.device))
