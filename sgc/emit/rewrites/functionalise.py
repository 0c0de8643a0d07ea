"""Makes a graph functional, except for copies into inputs at its end.

Where what is written has views, the nodes that touch it are traced once more, under torch's own functionalisation; the
others stay as they are. An in-place draw becomes a functional one at the same place, so that the random numbers stay
what they were.

``torch.func.functionalize`` is the public way to it, but it runs some operators through decompositions of its own that
round otherwise (``binary_cross_entropy_with_logits``, an observed Bernoulli). The mode used here, which AOTAutograd
uses too, changes nothing but the writes.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.fx.traceback import preserve_node_meta
from torch.utils._pytree import tree_leaves, tree_map_only

from sgc.emit.fx.lazy_modules import trace_fake
from sgc.emit.fx.rewriting import (
    attribute,
    depends_on_data,
    final_copies,
    insert,
    is_functional,
    results_of,
    tensor_of,
    value_of,
    writes,
)
from sgc.emit.rewrites.memory_order import draw_in_rows
from sgc.emit.rewrites.plain_writes import replace_plain_writes
from sgc.graph.effects import storages, written_storages
from sgc.graph.meta_keys import ORIGIN, inherit

_LEGIT = torch.ops.aten._native_batch_norm_legit.default
_CHECK = torch.ops.aten._linalg_check_errors.default


def functionalise(module: fx.GraphModule) -> bool:
    """Leave no in-place operator but ``copy_`` into inputs, after everything else. Returns whether there was any."""
    changed = replace_plain_writes(module.graph)
    if is_functional(module.graph):
        return changed
    graph = module.graph
    _declare_hidden_writes(graph)
    draw_in_rows(graph)
    part = _part_that_is_written(graph)
    origins = _remember_origins(graph)
    traced, changed_inputs = _trace(module, part)
    copies = _insert(traced.graph, part, origins)
    results = [copies[result] for result in results_of(traced)]
    read, finals = results[: len(part.read)], results[len(part.read) :]
    _hand_over(dict(zip(part.read, read, strict=True)), part)
    for node in reversed(part.nodes):
        if node.op == "call_function" and copies.get(node) is not node:
            graph.erase_node(node)
    for node in graph.nodes:
        if node.meta.get("custom", {}).pop(ORIGIN, None) is not None and not node.meta["custom"]:
            del node.meta["custom"]  # empty, it would be handed on by torch in the place of another node's
    for node, final in zip(changed_inputs, finals, strict=True):
        insert(graph.output_node(), torch.ops.aten.copy_.default, node, final)
    module.recompile()
    return True


@dataclass(frozen=True)
class _Part:
    """Some nodes of a graph, in its order: those that hold or use memory that is written.

    :param given: the nodes that they use, inputs and attributes among them; of several that read one attribute, one.
    :param read: those whose values the rest of the graph uses, each with the nodes that do.
    """

    nodes: list[fx.Node]
    given: list[fx.Node]
    read: dict[fx.Node, list[fx.Node]]


def _part_that_is_written(graph: fx.Graph) -> _Part:
    touched = _touched(graph)
    nodes = [node for node in graph.nodes if node in touched]
    own = {str(node.target): node for node in reversed(nodes) if node.op == "get_attr"}
    sources = [node for node in nodes if node.op == "placeholder"]
    used = [each for node in nodes for each in node.all_input_nodes if each not in touched]
    # Of those that read one attribute the first: to the tracer they are one tensor, which stands for its last node.
    others = {str(each.target) if each.op == "get_attr" else each: each for each in reversed(used)}
    read = {node: outside for node in nodes if (outside := [user for user in node.users if user not in touched])}
    return _Part(nodes, [*sources, *own.values(), *reversed(others.values())], read)


def _touched(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that hold or use memory that is written; all, where the values do not say what they share."""
    known = {node: storages(node) for node in graph.nodes}
    dense = all(
        value.layout is torch.strided
        for node in graph.nodes
        for value in tree_leaves(node.meta.get("val"))
        if isinstance(value, Tensor)
    )
    outside = [node for node in graph.nodes if node.op == "output" or node.target is _CHECK]
    if not dense or depends_on_data(graph):
        return set(graph.nodes).difference(outside)
    final = set(final_copies(graph))
    written = written_storages(node for node in graph.nodes if node not in final)
    touched: set[fx.Node] = set()
    for node in graph.nodes:
        used = node.all_input_nodes
        part_of_touched = node.target is operator.getitem and used[0] in touched
        writes_now = node not in final and bool(writes(node))
        if part_of_touched or writes_now or any(known[each] & written for each in (node, *used)):
            touched.add(node)
    touched.difference_update(outside)
    for node in reversed(graph.nodes):  # a list of tensors is given as what makes it
        if node not in touched and tensor_of(node) is None and not touched.isdisjoint(node.users):
            touched.add(node)
    return touched


def _trace(module: fx.GraphModule, part: _Part) -> tuple[fx.GraphModule, list[fx.Node]]:
    """The part without writes, as a graph of what is given to it; and which inputs and attributes it changes.

    It returns what is read of it, and then the last values of those inputs and attributes.
    """
    changed: list[fx.Node] = []

    def run(*inputs: Tensor) -> list[Any]:
        with FunctionalTensorMode():
            wrapped = [FunctionalTensor.to_functional(tensor) for tensor in inputs]
            replay = _Replay(module, part, dict(zip(part.given, wrapped, strict=True)))
            results: list[Any] = tree_map_only(FunctionalTensor, FunctionalTensor.from_functional, replay.results())
            finals = [FunctionalTensor.from_functional(tensor) for tensor in wrapped]
        moved = [final is not tensor for tensor, final in zip(inputs, finals, strict=True)]
        changed[:] = [node for node, is_changed in zip(part.given, moved, strict=True) if is_changed]
        return results + [final for final, is_changed in zip(finals, moved, strict=True) if is_changed]

    mode = detect_fake_mode([node.meta["val"] for node in part.nodes if "val" in node.meta])
    examples = [
        mode.from_tensor(attribute(node), static_shapes=True) if node.op == "get_attr" and mode else value_of(node)
        for node in part.given
    ]
    with preserve_node_meta(), torch.no_grad():
        return trace_fake(run, examples), changed


class _Replay(fx.Interpreter):
    """Runs a part of a graph on what is given to it."""

    def __init__(self, module: fx.GraphModule, part: _Part, given: dict[fx.Node, Tensor]) -> None:
        super().__init__(module, garbage_collect_values=False)
        self._part = part
        self._touched = set(part.nodes)
        self._given = given
        self._attributes = {str(node.target): value for node, value in given.items() if node.op == "get_attr"}

    def results(self) -> list[Any]:
        """The values that are read of it, after its last node."""
        self.run(enable_io_processing=False)
        return [self.env[node] for node in self._part.read]

    def run_node(self, n: fx.Node) -> Any:
        if n in self._given:
            return self._given[n]
        if n.op == "get_attr" and str(n.target) in self._attributes:
            return self._attributes[str(n.target)]
        return super().run_node(n) if n in self._touched else None

    def fetch_attr(self, target: str) -> Tensor:
        return self._attributes[target]


def _insert(traced: fx.Graph, part: _Part, origins: dict[str, fx.Node]) -> dict[fx.Node, fx.Node]:
    """Put the nodes of the traced graph into the graph of the part, each in front of the node it was traced from.

    A node that has become one of the same operator is that one from now on.

    :return: the nodes by those of the traced graph, and the nodes that have stayed by themselves.
    """
    graph = part.nodes[0].graph
    copies = dict(zip(traced.find_nodes(op="placeholder"), part.given, strict=True))
    places = _places(traced, part, origins)
    last = {place: node for node, place in places.items()}
    final = final_copies(graph)
    for node, place in places.items():
        args, kwargs = fx.map_arg((node.args, node.kwargs), copies.__getitem__)
        stands_for = last[place] is node
        if stands_for and place.target is node.target:
            place.args, place.kwargs = args, kwargs
            copies[node] = copies[place] = place
        else:
            with graph.inserting_before(final[0] if place in final else place):
                name = place.name.rstrip("_") if stands_for else node.name
                copies[node] = graph.create_node("call_function", node.target, args, kwargs, name=name)
            inherit(copies[node], place)
        if "val" in node.meta:
            copies[node].meta["val"] = node.meta["val"]
    return copies


def _places(traced: fx.Graph, part: _Part, origins: dict[str, fx.Node]) -> dict[fx.Node, fx.Node]:
    """The node that each one was traced from: a view that functionalisation has made anew, from where that was."""
    order = {node: position for position, node in enumerate(part.nodes)}
    place = next(node for node in part.nodes if node.op == "call_function")
    places: dict[fx.Node, fx.Node] = {}
    for node in traced.nodes:
        if node.op == "call_function":
            origin = origins.get(_origin(node), place)
            place = origin if order[origin] > order[place] else place
            places[node] = place
    return places


def _hand_over(values: dict[fx.Node, fx.Node], part: _Part) -> None:
    """Let the rest of the graph use these values of the part.

    What raises for a factor that could not be computed has stayed out of it, for functionalisation would order it by
    tokens; it comes directly after the factor.
    """
    for node, value in values.items():
        for user in part.read[node] if value is not node else ():
            user.replace_input_with(node, value)
            if user.target is _CHECK:
                value.append(user)


def _declare_hidden_writes(graph: fx.Graph) -> None:
    """Replace the batch norm whose schema conceals that it writes into the running statistics."""
    for node in graph.nodes:
        if node.target is torch.ops.aten.native_batch_norm.default and writes(node):
            node.target = _LEGIT


def _remember_origins(graph: fx.Graph) -> dict[str, fx.Node]:
    """Note each node's name where tracing passes it on: in ``meta["custom"]``. Returns the nodes by name."""
    for node in graph.nodes:
        node.meta["custom"] = {**node.meta.get("custom", {}), ORIGIN: node.name}
    return {node.name: node for node in graph.nodes}


def _origin(node: fx.Node) -> str:
    """The name of the node that this one was traced from; empty if there is none."""
    return str(node.meta.get("custom", {}).get(ORIGIN, ""))
