"""Gives values memory of their own where Inductor would write into memory that something else needs.

Inductor (torch 2.11 to 2.14) errs in five ways, in plain ``torch.compile`` too.

Operators that write into a copy of an operand: Inductor makes that copy with the strides of the operand; of an expanded
one, whose elements share memory, it makes a copy whose elements do, and a sum into one of them is a sum into all. Where
nobody reads the operand afterwards it makes no copy, although another operand of the same operator may be a view of it
(``v.index_add(0, index, v)``), which is then read while it is written; although it may be a piece of a concatenation,
and lie in the whole; and although it may be an input into which something is copied at the end, while the outcome is a
result: which is the input, then, and what is copied into it.

Inputs that are copied into others: Inductor drops every copy on the way, and reads what another copy at the end has
written already. A choice between a value and itself is none to it, but a kernel of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx

from sgc.emit.fx.rewriting import call, is_final_copy, is_static, lineage, writes
from sgc.emit.inductor.workarounds.workaround import MinimalProgram, Workaround
from sgc.emit.rewrites.batching.operations import leaves

STACKS = {torch.ops.aten.cat.default, torch.ops.aten.stack.default}


def own_memory(module: fx.GraphModule) -> None:
    """Let each value that needs memory of its own get it, in place."""
    graph = module.graph
    finals = [node for node in graph.nodes if is_final_copy(node)]
    _keep_what_is_written_first(finals)
    updated, leaving = {node.args[0] for node in finals}, _leaving(graph)
    _keep_out_of_stacks(graph)
    pieces = {_origin(piece) for node in graph.nodes if node.target in STACKS for piece in node.all_input_nodes}
    for node in graph.nodes:
        if not _writes_into_copy(node):
            continue
        written = node.all_input_nodes[0]
        if _shares_memory(written.meta["val"]):
            clone = torch.ops.aten.clone.default
            node.update_arg(0, call(node, clone, written, memory_format=torch.contiguous_format))
        elif (
            _reads_what_it_writes(node)
            or (node in leaving and _written_over(written) in updated)
            or _origin(written) in pieces
        ):
            node.update_arg(0, _chosen(written, node))
    module.recompile()


def _reads_what_it_writes(node: fx.Node) -> bool:
    """Whether another operand is the written one, or a copy or a view of the same."""
    written, *others = node.all_input_nodes
    return leaves(node).count(written) > 1 or any(_origin(other) is _origin(written) for other in others)


def _keep_what_is_written_first(finals: list[fx.Node]) -> None:
    """Copies between inputs at the end: one whose value another copy writes over takes the value before them all."""
    for node in finals:
        value = node.all_input_nodes[-1]
        source = next((step for step in _copied(value) if step.op == "placeholder"), node.args[0])
        if source is not node.args[0] and any(other.args[0] is source for other in finals):
            node.update_arg(1, _chosen(value, finals[0]))


def _keep_out_of_stacks(graph: fx.Graph) -> None:
    """Copy a piece of a stack that an operator writes into later (a custom one, for which Inductor makes no copy)."""
    stacks: list[fx.Node] = []
    for node in graph.nodes:
        if node.target in STACKS:
            stacks.append(node)
        written = set() if is_final_copy(node) else {_origin(argument) for argument in _may_write(node)}
        for stack in stacks if written else ():
            for piece in stack.all_input_nodes:
                if _origin(piece) in written:
                    stack.replace_input_with(piece, _chosen(piece, stack))


def _may_write(node: fx.Node) -> list[fx.Node]:
    """What an operator writes into, now or when Inductor has written it in place (``auto_functionalized``)."""
    return node.all_input_nodes if isinstance(node.target, torch._ops.HigherOrderOperator) else writes(node)


def _chosen(value: fx.Node, before: fx.Node) -> fx.Node:
    """The value in memory of its own, which Inductor does not see through."""
    with before.graph.inserting_before(before):
        same = before.graph.call_function(torch.ops.aten.eq.Tensor, (value, value))
        chosen = before.graph.call_function(torch.ops.aten.where.self, (same, value, value))
    chosen.meta["val"] = value.meta["val"].clone()
    return chosen


def _origin(node: fx.Node) -> fx.Node:
    """What the node is a copy or a view of, at the far end; itself, if of nothing."""
    *_, origin = _copied(node)
    return origin


def _written_over(node: fx.Node) -> fx.Node:
    """In whose memory the node is, if no operator makes a copy of what it writes into."""
    while True:
        *_, node = lineage(node)
        if not node.all_input_nodes or not (_writes_into_copy(node) or node.target in _COPIES):
            return node
        node = node.all_input_nodes[0 if _writes_into_copy(node) else -1]


def _leaving(graph: fx.Graph) -> set[fx.Node]:
    """What may share memory with a result, or with what is copied into an input that it has not come from."""
    copied = ((node.args[0], node.all_input_nodes[-1]) for node in graph.nodes if is_final_copy(node))
    values = [value for target, value in copied if _written_over(value) is not target]
    return {step for node in (*graph.output_node().all_input_nodes, *values) for step in _copied(node)}


def _writes_into_copy(node: fx.Node) -> bool:
    return getattr(node.target, "_overloadpacket", None) in _WRITES_INTO_COPY


def _copied(node: fx.Node) -> Iterator[fx.Node]:
    """The node, and the nodes that it may be a copy or a view of."""
    while True:
        for step in lineage(node):
            yield step
        if step.target not in _COPIES or not step.all_input_nodes:
            return
        node = step.all_input_nodes[-1]


_COPIES = {
    *(torch.ops.aten.clone.default, torch.ops.aten.copy.default, torch.ops.aten._to_copy.default),
    *(torch.ops.aten.cat.default, torch.ops.aten.slice_scatter.default, torch.ops.aten.repeat.default),
    torch.ops.aten.constant_pad_nd.default,
}
"""Operators that may give their last tensor as it is, and that Inductor drops where they do."""


_WRITES_INTO_COPY = {
    getattr(torch.ops.aten, name)
    for name in (
        *("index_put", "_unsafe_index_put", "index_add", "index_copy", "index_fill", "masked_scatter", "masked_fill"),
        *("scatter", "scatter_add", "scatter_reduce", "select_scatter", "slice_scatter", "diagonal_scatter"),
    )
}


def _shares_memory(tensor: Tensor) -> bool:
    if not is_static(tensor):
        return True  # it may
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


_ROWS = torch.tensor([1, 2, 3])
_AGAIN = torch.tensor([1, 2, 3, 1])


def _expanded(x: Tensor, y: Tensor) -> list[Tensor]:
    return [(x[:1] * 2).expand(4, 4).index_add(0, _AGAIN, y)]


def _from_itself(x: Tensor, y: Tensor) -> list[Tensor]:
    product = x @ y
    return [product.index_add(0, _AGAIN, product)]


def _a_piece(x: Tensor, y: Tensor) -> list[Tensor]:
    piece = x.sum(1)
    return [torch.cat([piece, *x, *x, *x]), piece.index_put((_ROWS,), y[0, :3])]


def _a_result(x: Tensor, y: Tensor) -> list[Tensor]:
    changed = torch.slice_scatter(x, y[1:3] * 2, 0, 1, 3)
    x.copy_(torch.zeros_like(x))
    return [changed]


def _swapped(x: Tensor, y: Tensor) -> list[Tensor]:
    before = x.clone()
    x.copy_(y)
    y.copy_(before)
    return []


def _squares() -> list[Tensor]:
    x = torch.arange(16.0).reshape(4, 4)
    return [x, 10 - x]


WORKAROUND = Workaround(
    name="own_memory",
    defect="what is written into a copy is written into memory that something else reads, and copies are left out",
    reported="https://github.com/pytorch/pytorch/issues/183986, https://github.com/pytorch/pytorch/issues/174074, "
    "https://github.com/pytorch/pytorch/issues/198094, https://github.com/pytorch/pytorch/issues/198131, "
    "docs/upstream.md#a-piece-of-a-concatenation-that-is-written-into",
    seen=("2.11", "2.12", "2.13", "2.14"),
    programs=[
        MinimalProgram(_expanded, _squares, right_on=("2.14",)),
        *(MinimalProgram(each, _squares) for each in (_from_itself, _a_piece, _a_result, _swapped)),
    ],
    rewrite=own_memory,
)
