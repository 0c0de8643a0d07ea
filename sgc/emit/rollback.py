"""Takes back what a module has written into its inputs, where a call was not valid, or a step is to change nothing.

An input of which a call writes some rows is not copied: these are written last of all, and where nothing is to change
with the values that they have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx

from sgc.emit.fx.rewriting import copy_of, insert, results_of
from sgc.graph.effects import storages, written_arguments, written_placeholders

_aten = torch.ops.aten


class Writes:
    """What a traced function writes into some inputs from now on."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        self._inputs = inputs
        self._versions = [tensor._version for tensor in inputs]
        self._before = [tensor.clone() for tensor in inputs]

    def undo_where(self, condition: Tensor) -> None:
        """Put back what was there before, if a 0-d condition holds."""
        for tensor, version, old in zip(self._inputs, self._versions, self._before, strict=True):
            if tensor._version != version:
                tensor.copy_(torch.where(condition, old, tensor))


@dataclass(frozen=True)
class RowWrite:
    """Rows of an input that a module writes once, and does not look at afterwards.

    ``index`` has an entry for each dim of the input, None for all of it; ``values`` are what is written.
    """

    table: fx.Node
    index: tuple[fx.Node | None, ...]
    values: fx.Node

    @property
    def given(self) -> list[fx.Node]:
        """The nodes that the write needs besides the input."""
        return [self.values, *(part for part in self.index if part is not None)]

    def write_unless(self, condition: Tensor, table: Tensor, given: Sequence[Tensor]) -> None:
        """Write the rows into the input, if a 0-d condition does not hold; ``given`` are those of :attr:`given`."""
        values, *parts = given
        rest = iter(parts)
        index = [None if part is None else next(rest) for part in self.index]
        _aten.index_put_.default(table, index, torch.where(condition, _aten.index.Tensor(table, index), values))


def rolled_back_if_invalid(module: fx.GraphModule) -> fx.GraphModule:
    """A module whose last result says whether the call was valid, and that writes nothing if it was not."""
    if not written_inputs(module):
        return module
    rolled_back = copy_of(module)
    rows = take_row_writes(rolled_back)
    before, output = copies_of_written(rolled_back), rolled_back.graph.output_node()
    invalid = insert(output, _aten.bitwise_not.default, results_of(rolled_back)[-1])
    for tensor, old in before.items():
        chosen = insert(output, _aten.where.self, invalid, old, tensor)
        insert(output, _aten.copy_.default, tensor, chosen)
    for write in rows:
        old = insert(output, _aten.index.Tensor, write.table, list(write.index))
        chosen = insert(output, _aten.where.self, invalid, old, write.values)
        insert(output, _aten.index_put_.default, write.table, list(write.index), chosen)
    return rolled_back


def take_row_writes(module: fx.GraphModule) -> list[RowWrite]:
    """Take the writes of rows out of a module, for the caller to make them behind all else."""
    taken = []
    for node in module.graph.find_nodes(op="call_function", target=_aten.index_put_.default):
        write = _row_write(node)
        if write is not None:
            module.graph.erase_node(node)
            taken.append(write)
    return taken


def _row_write(node: fx.Node) -> RowWrite | None:
    table, index, values, *others = node.args
    if not isinstance(table, fx.Node) or table.op != "placeholder" or node.users or any(others) or node.kwargs:
        return None
    position = {each: place for place, each in enumerate(node.graph.nodes)}
    own = storages(table)
    for other in node.graph.nodes:
        touched = own & storages(other).union(*map(storages, other.all_input_nodes))
        if not touched or other is node or other is table:
            continue
        is_earlier = position[other] < position[node]
        if not is_earlier or own & storages(other) or written_arguments(other):
            return None
    return RowWrite(table, tuple(cast("list[fx.Node | None]", index)), cast("fx.Node", values))


def copies_of_written(module: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """Copy the inputs that a module writes into, before anything else; the copies by the inputs."""
    placeholders = module.graph.find_nodes(op="placeholder")
    first = next(node for node in module.graph.nodes if node.op != "placeholder")
    written = [placeholders[position] for position in sorted(written_inputs(module))]
    return {tensor: insert(first, _aten.clone.default, tensor) for tensor in written}


def written_inputs(module: fx.GraphModule) -> set[int]:
    """The positions of the inputs that a module writes into; batch norm's statistics show no new version."""
    written = written_placeholders(module.graph)
    placeholders = module.graph.find_nodes(op="placeholder")
    return {position for position, node in enumerate(placeholders) if node in written}
