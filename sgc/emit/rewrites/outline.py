"""Moves the updates of parameters and optimizer state out of a training step into C++ loops.

An optimizer does the same arithmetic for each parameter, element by element. Inductor generates and compiles it for
each, which takes longer than the whole rest of a step; here parameters that are updated alike share one function, and
the compiled rest has neither the state of the optimizer among its inputs, nor its operators.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from sgc.emit.fx.rewriting import call, copy_of, is_final_copy, lineage, results_of, value_of
from sgc.emit.rewrites.cpp_kernels import Operand, function, is_elementwise, literal_number
from sgc.emit.rewrites.outlined_update import OutlinedUpdate
from sgc.graph.effects import drop_dead
from sgc.graph.meta_keys import IS_GRADIENT


@dataclass(frozen=True)
class Kernel:
    """One call of a function: on how many elements, and of which operands.

    An operand is the position of an input of the step, or ``-1 - i`` for the result ``i`` of the rest.
    """

    function: int
    size: int
    operands: tuple[int, ...]


@dataclass(frozen=True)
class Outlined:
    """A step in two parts.

    :param rest: takes what the step takes, and gives what the step gives and then what the kernels need.
    :param functions: their bodies, C++ (:func:`sgc.emit.rewrites.cpp_kernels.function`).
    :param kernels: to be run after the rest, in any order: none reads what another writes.
    :param update: what the kernels do in a step that has not halted, as a graph (:class:`OutlinedUpdate`).
    """

    rest: fx.GraphModule
    functions: tuple[str, ...]
    kernels: tuple[Kernel, ...]
    update: fx.GraphModule | None = None


@dataclass
class _Part:
    """Inputs that are updated together, the nodes that compute their new values, and the operands of these."""

    updates: dict[fx.Node, fx.Node]  # the new value of each input
    nodes: list[fx.Node]
    leaves: list[fx.Node]

    def layout(self) -> Tensor | None:
        """A tensor of the shape that all non-scalar values share; None if they do not fit one kernel.

        Those that are inputs lie in memory in the order of their elements.
        """
        if not self.nodes:
            return None  # the rest can write what it computes
        values = [value_of(node) for node in (*self.leaves, *self.updates, *self.nodes)]
        whole = next((value for value in values if value.dim()), values[0])
        if any(value.dim() and value.shape != whole.shape for value in values):
            return None
        inputs = [value_of(node) for node in (*self.leaves, *self.updates) if node.op == "placeholder"]
        return whole if all(value.is_contiguous() for value in inputs) else None


def outline(step: fx.GraphModule, positions: Collection[int], *, with_update: bool = False) -> Outlined | None:
    """Split a functional step; None if no update can be moved out.

    :param positions: of the inputs that may be written by the kernels. Each has memory of its own.
    :param with_update: whether the result is to have an ``update``.
    """
    module = copy_of(step)
    nodes = list(module.graph.nodes)
    placeholders = [node for node in nodes if node.op == "placeholder"]
    wanted = {placeholders[i] for i in positions}
    copies = {_argument(node, 0): node for node in nodes if is_final_copy(node)}
    targets = [target for target in copies if target in wanted]
    while targets:
        parts = _parts(nodes, {target: copies[target] for target in targets})
        fit = [part for part in parts if part.layout() is not None]
        if len(fit) == len(parts):
            return _split(module, placeholders, copies, parts, with_update)
        targets = [target for part in fit for target in part.updates]
    return None


def _parts(nodes: list[fx.Node], copies: dict[fx.Node, fx.Node]) -> list[_Part]:
    """Group the updates of inputs, given as the final copies by input, into parts that are independent."""
    moved = _moved(nodes, copies.values())
    slices = {target: _slice(_argument(copy, 1), moved) for target, copy in copies.items()}
    order = {node: position for position, node in enumerate(nodes)}
    parts = []
    for targets in _connected({target: leaves & copies.keys() for target, (_, leaves) in slices.items()}):
        inside = {node for target in targets for node in slices[target][0]}
        leaves = {leaf for target in targets for leaf in slices[target][1]}
        updates = {target: _argument(copies[target], 1) for target in targets}
        parts.append(_Part(updates, sorted(inside, key=order.__getitem__), sorted(leaves, key=order.__getitem__)))
    return parts


def _moved(nodes: list[fx.Node], copies: Iterable[fx.Node]) -> set[fx.Node]:
    """The copies, and the elementwise operators after the gradients that only they use."""
    moved = set(copies)
    for node in reversed(nodes):
        if node.users and not IS_GRADIENT.of(node) and is_elementwise(node) and moved.issuperset(node.users):
            moved.add(node)
    return moved


def _connected(read: dict[fx.Node, set[fx.Node]]) -> list[list[fx.Node]]:
    """Connected groups of inputs: an update reads old values of its own group only.

    :param read: the inputs whose old values the new value of each depends on.
    """
    groups = {target: [target] for target in read}
    for target, others in read.items():
        for other in others:
            if groups[other] is not groups[target]:
                groups[target] += groups[other]
                groups.update(dict.fromkeys(groups[other], groups[target]))
    order = {target: position for position, target in enumerate(read)}
    distinct = {id(group): sorted(group, key=order.__getitem__) for group in groups.values()}
    return sorted(distinct.values(), key=lambda group: order[group[0]])


def _slice(value: fx.Node, moved: set[fx.Node]) -> tuple[set[fx.Node], set[fx.Node]]:
    """The moved nodes that a value depends on, and their operands that are not moved."""
    inside: set[fx.Node] = set()
    leaves: set[fx.Node] = set()
    ahead = [value]
    while ahead:
        node = ahead.pop()
        if node in moved and node not in inside:
            inside.add(node)
            ahead += node.all_input_nodes
        elif node not in moved and literal_number(node) is None:
            leaves.add(node)
    return inside, leaves


def _split(
    module: fx.GraphModule,
    placeholders: list[fx.Node],
    copies: dict[fx.Node, fx.Node],
    parts: list[_Part],
    with_update: bool,
) -> Outlined:
    graph, results = module.graph, results_of(module)
    out = {target for part in parts for target in part.updates}
    position = {node: i for i, node in enumerate(placeholders) if node in out or node not in copies}
    functions: dict[str, int] = {}
    kernels = []
    for part in parts:
        whole = part.layout()
        assert whole is not None
        operands, places = [], []
        for node in dict.fromkeys([*part.leaves, *part.updates]):
            operands.append(Operand(node, value_of(node).dim() > 0, part.updates.get(node)))
            if node not in position and node not in results:
                results.append(node)
            places.append(position[node] if node in position else -1 - results.index(node))
        inside = {node for node in part.nodes if value_of(node).dim()}
        number = functions.setdefault(function(part.nodes, operands, inside), len(functions))
        kernels.append(Kernel(number, whole.numel() if whole.dim() else 0, tuple(places)))
    update = _update(graph, placeholders, copies, parts, results, position) if with_update else None
    for target in out:
        graph.erase_node(copies[target])
    graph.output_node().args = (results,)
    drop_dead(graph)
    graph.lint()
    module.recompile()
    return Outlined(module, tuple(functions), tuple(kernels), update)


def _update(
    graph: fx.Graph,
    placeholders: list[fx.Node],
    copies: dict[fx.Node, fx.Node],
    parts: list[_Part],
    results: list[fx.Node],
    own: Collection[fx.Node],
) -> fx.GraphModule:
    """What the kernels do, as a graph.

    :param own: inputs that they read as they are; of the others the rest gives what they need.
    """
    order = {node: place for place, node in enumerate(graph.nodes)}
    computed = sorted((node for part in parts for node in part.nodes), key=order.__getitem__)
    new = {target: value for part in parts for target, value in part.updates.items()}
    given = {node: place for place, node in enumerate(results) if node not in own}
    halt = _argument(copies[placeholders[-1]], 1) if placeholders[-1] in copies else None
    return OutlinedUpdate(computed, new, given, halt).graph(len(results))


def settle(outlined: Outlined, own: int) -> Outlined:
    """Give what the kernels read memory of its own, in the order of its elements.

    :param own: how many results of the rest are for others.
    """
    rest = copy_of(outlined.rest)
    output, results = rest.graph.output_node(), results_of(rest)
    end = next((node for node in rest.graph.nodes if is_final_copy(node)), output)
    for position, node in enumerate(results[own:], own):
        is_held = any(origin.op in ("placeholder", "get_attr") for origin in lineage(node))
        if is_held or not value_of(node).is_contiguous():
            results[position] = call(end, torch.ops.aten.clone.default, node, memory_format=torch.contiguous_format)
    output.args = (results,)
    rest.recompile()
    return replace(outlined, rest=rest)


def _argument(node: fx.Node, position: int) -> fx.Node:
    argument = node.args[position]
    assert isinstance(argument, fx.Node)
    return argument
