"""What an fx node does besides computing its value: drawing random numbers, writing into a tensor.

Data flow in a graph with in-place operations is more than its edges: after ``x[0] = z`` everything that reads
``x`` depends on ``z``. :func:`dependencies` follows both, by the storages that the traced tensors share.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from sgc.graph.meta_keys import DRAWS


def is_random(node: fx.Node) -> bool:
    """Whether the node draws random numbers; such nodes are never merged, dropped or reordered."""
    if DRAWS.of(node):
        return True
    operator = functionalised_operator(node) or node.target
    return isinstance(operator, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in operator.tags


def functionalised_operator(node: fx.Node) -> torch._ops.OpOverload | None:
    """The custom operator with writes that a node of torch's functionalisation calls; None for any other node."""
    operator = node.args[0] if node.target in _FUNCTIONALISED and node.args else None
    return operator if isinstance(operator, torch._ops.OpOverload) else None


_FUNCTIONALISED = (torch.ops.higher_order.auto_functionalized, torch.ops.higher_order.auto_functionalized_v2)


def written_arguments(node: fx.Node) -> list[fx.Node]:
    """The argument nodes whose tensors this node writes into."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return []
    written: list[fx.Node] = []
    if node.target in _UNSAID and not node.args[_TRAINING]:
        return written
    for position, name in written_positions(node.target):
        value = node.args[position] if position < len(node.args) else node.kwargs.get(name)
        written += [leaf for leaf in tree_leaves(value) if isinstance(leaf, fx.Node)]
    return written


@cache
def written_positions(target: torch._ops.OpOverload) -> tuple[tuple[int, str], ...]:
    """Which arguments an operator writes into, by position and name."""
    if target in _UNSAID:
        return (3, "running_mean"), (4, "running_var")
    return tuple(
        (position, argument.name)
        for position, argument in enumerate(target._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


_UNSAID = {
    torch.ops.aten.batch_norm.default,
    torch.ops.aten.instance_norm.default,
    torch.ops.aten._batch_norm_impl_index.default,
    torch.ops.aten.native_batch_norm.default,
    torch.ops.aten.cudnn_batch_norm.default,
    torch.ops.aten.miopen_batch_norm.default,
}
"""Operators whose schemas do not say that they write: into running averages, where they are told to train."""
_TRAINING = 5


def is_effect(node: fx.Node) -> bool:
    """Whether the node must stay although nothing may use its value."""
    if node.op in ("placeholder", "output"):
        return True
    if node.target in MODES or returns_nothing(node):
        return True
    return is_random(node) or bool(written_arguments(node))


_AMP: Any = torch.amp  # as export does, make_fx records what enters and leaves an autocast region by these functions
AUTOCAST = (_AMP._enter_autocast, _AMP._exit_autocast)
MODES = {torch._C._set_grad_enabled, *AUTOCAST}
"""Switches of torch's that hold for the nodes after them."""


def switches_autocast(graph: fx.Graph) -> bool:
    """Whether some nodes are computed under another autocast than others."""
    return bool(graph.find_nodes(op="call_function", target=AUTOCAST[0]))


def returns_nothing(node: fx.Node) -> bool:
    """Whether the node is an operator without a result: an assertion, a check of values, a message."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and not target._schema.returns and target not in _OF_SHAPES


_OF_SHAPES = {torch.ops.aten._assert_tensor_metadata.default}  # what these say is known when they are traced


def storages(node: fx.Node) -> set[int]:
    """The storages of the tensors that a node's value holds; nodes that share one may write into one another."""
    values = (value for value in tree_leaves(node.meta.get("val")) if isinstance(value, Tensor))
    return {value.untyped_storage()._cdata for value in values if value.layout is torch.strided}


def written_storages(nodes: Iterable[fx.Node]) -> set[int]:
    """The storages that some nodes write into."""
    return {storage for node in nodes for argument in written_arguments(node) for storage in storages(argument)}


def written_placeholders(graph: fx.Graph) -> set[fx.Node]:
    """The inputs of a graph that are written into, by themselves or as views; not what else lies in their memory."""
    written = {_viewed(argument) for node in graph.nodes for argument in written_arguments(node)}
    return {node for node in written if node.op == "placeholder"}


def _viewed(node: fx.Node) -> fx.Node:
    """What the value of a node is a view of, as the arguments of operators say: the first one that shares memory."""
    while True:
        own = storages(node)
        base = next((argument for argument in node.all_input_nodes if not own.isdisjoint(storages(argument))), None)
        if base is None:
            return node
        node = base


class DataFlow:
    """The nodes that each node directly depends on: its arguments, and what last wrote into their storages.

    Nodes are added in the order of their graph, and taken back from its end.
    """

    def __init__(self) -> None:
        self.parents: dict[fx.Node, tuple[fx.Node, ...]] = {}
        self._writers: dict[int, list[fx.Node]] = {}
        self._written: dict[fx.Node, list[int]] = {}

    def add(self, node: fx.Node) -> None:
        direct = dict.fromkeys(node.all_input_nodes)
        for argument in list(direct):
            for storage in storages(argument):
                direct.update(dict.fromkeys(self._writers.get(storage, ())))
        self.parents[node] = tuple(direct)
        written = [storage for argument in written_arguments(node) for storage in storages(argument)]
        if written:
            self._written[node] = written
        for storage in written:
            self._writers.setdefault(storage, []).append(node)

    def take_back(self, node: fx.Node) -> None:
        """Forget the node that was added last."""
        del self.parents[node]
        for storage in self._written.pop(node, ()):
            self._writers[storage].pop()


def dependencies(graph: fx.Graph) -> dict[fx.Node, tuple[fx.Node, ...]]:
    """The nodes that each node of a graph directly depends on (:class:`DataFlow`)."""
    flow = DataFlow()
    for node in graph.nodes:
        flow.add(node)
    return flow.parents


def ancestors(targets: Iterable[fx.Node], depends: dict[fx.Node, tuple[fx.Node, ...]]) -> set[fx.Node]:
    """``targets`` and all that they depend on."""
    seen: set[fx.Node] = set()
    stack = list(targets)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack.extend(depends[node])
    return seen


def drop_dead(graph: fx.Graph, keep: Iterable[fx.Node] = ()) -> None:
    """Remove every node that nothing uses, that has no effect and that is not in ``keep``."""
    live = ancestors([*(node for node in graph.nodes if is_effect(node)), *keep], dependencies(graph))
    for node in reversed(list(graph.nodes)):
        if node not in live:
            graph.erase_node(node)
