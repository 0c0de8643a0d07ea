"""Makes a graph functional, except for copies into inputs at its end.

The graph is traced once more, under torch's own functionalisation. An in-place draw becomes a functional one at the
same place, so that the random numbers stay what they were.

``torch.func.functionalize`` is the public way to it, but it runs some operators through decompositions of its own that
round otherwise (``binary_cross_entropy_with_logits``, an observed Bernoulli). The mode used here, which AOTAutograd
uses too, changes nothing but the writes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.fx.traceback import preserve_node_meta
from torch.utils._pytree import tree_map_only

from sgc.emit.fx.lazy_modules import trace_fake
from sgc.emit.fx.purity import is_view
from sgc.emit.fx.rewriting import attribute, call, is_functional, replace, same_kind, value_of, writes
from sgc.emit.rewrites.memory_order import draw_in_rows
from sgc.graph.meta_keys import ORIGIN, inherit

_LEGIT = torch.ops.aten._native_batch_norm_legit.default
_CHECK = torch.ops.aten._linalg_check_errors.default


def functionalise(module: fx.GraphModule) -> bool:
    """Leave no in-place operator but ``copy_`` into inputs, after everything else. Returns whether there was any."""
    changed = _replace_unread_writes(module.graph)
    if is_functional(module.graph):
        return changed
    before = module.graph
    _declare_hidden_writes(before)
    draw_in_rows(before)
    placeholders = [node for node in before.nodes if node.op == "placeholder"]
    # Functionalisation handles inputs only, so tensors of the module are passed as inputs while tracing.
    owned: dict[str, fx.Node] = {}
    for node in before.nodes:
        if node.op == "get_attr":
            owned.setdefault(str(node.target), node)

    def run(*inputs: Tensor) -> Any:
        with FunctionalTensorMode():
            wrapped = [FunctionalTensor.to_functional(tensor) for tensor in inputs]
            attributes: dict[str, Tensor] = dict(zip(owned, wrapped[len(placeholders) :], strict=True))
            replay = _Replay(module, attributes)
            results = [*replay.run(*wrapped[: len(placeholders)]), *replay.checked]
            results = tree_map_only(FunctionalTensor, FunctionalTensor.from_functional, results)
            finals = [FunctionalTensor.from_functional(tensor) for tensor in wrapped]
        for tensor, final in zip(inputs, finals, strict=True):
            if final is not tensor:
                tensor.copy_(final)
        return results

    origins = _remember_origins(before)
    examples = [node.meta["val"] for node in placeholders]
    mode = detect_fake_mode([node.meta["val"] for node in before.nodes if "val" in node.meta])
    for node in owned.values():
        examples.append(mode.from_tensor(attribute(node), static_shapes=True) if mode is not None else attribute(node))
    with preserve_node_meta(), torch.no_grad():
        traced = trace_fake(run, examples)
    module.graph = _adopt(traced.graph, before, list(owned), origins)
    return True


def _replace_unread_writes(graph: fx.Graph) -> bool:
    """Make in-place operators functional where nothing else reads the memory; that needs no new trace.

    Recurrent cells add into the product that they have just made, and ``torch.normal`` draws into empty memory.
    """
    changed = False
    for node in graph.nodes:
        functional = _functional_form(node.target)
        if functional is None or not isinstance(node.args[0], fx.Node) or list(node.args[0].users) != [node]:
            continue
        if node.args[0].target in _EMPTY if functional is _DRAW else _is_fresh(node.args[0]):
            computed = call(node, functional, *node.args, **node.kwargs)
            if same_kind(value_of(computed), value_of(node)):
                replace(node, computed)
                changed = True
            else:  # it would be of another type: what is written takes on that of the memory
                graph.erase_node(computed)
    return changed


_DRAW = torch.ops.aten.normal_functional.default
_EMPTY = {torch.ops.aten.empty.memory_format, torch.ops.aten.empty_like.default, torch.ops.aten.new_empty.default}
_PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default}


@cache
def _functional_form(target: Any) -> torch._ops.OpOverload | None:
    if target is torch.ops.aten.normal_.default:
        return _DRAW
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return None
    name = target._schema.name.partition("::")[2]
    if not name.endswith("_") or name.endswith("__") or torch.Tag.pointwise not in target.tags:
        return None
    packet = getattr(torch.ops.aten, name[:-1], None)
    for overload in packet.overloads() if packet is not None else ():
        functional = getattr(packet, overload)
        if not functional._schema.is_mutable and _takes(functional) == _takes(target):
            return functional  # not always of the same name: pow_.Scalar is pow.Tensor_Scalar
    return None


def _takes(target: torch._ops.OpOverload) -> list[tuple[str, str]]:
    return [(argument.name, str(argument.type)) for argument in target._schema.arguments]


def _is_fresh(node: fx.Node) -> bool:
    """Whether the memory of a node is its own, and new."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or is_view(node) or writes(node):
        return False
    return torch.Tag.pointwise in target.tags or target in _PRODUCTS


class _Replay(fx.Interpreter):
    """Runs a graph, reading the module's tensors from a dict.

    What raises for a factor that could not be computed is left out, for functionalisation would order it by tokens:
    ``checked`` are the arguments of the graph's checks of factors, in their order.
    """

    def __init__(self, module: fx.GraphModule, attributes: dict[str, Tensor]) -> None:
        super().__init__(module)
        self._attributes = attributes
        self.checked: list[Tensor] = []

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is not _CHECK:
            return super().call_function(target, args, kwargs)
        self.checked.append(args[0])
        return None

    def fetch_attr(self, target: str) -> Tensor:
        return self._attributes[target]


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


def _adopt(traced: fx.Graph, before: fx.Graph, owned: list[str], origins: dict[str, fx.Node]) -> fx.Graph:
    """The traced graph, with the module's tensors as ``get_attr`` again, and names and notes as they were.

    :param owned: the attributes that the last inputs of the traced graph stand for.
    """
    graph = fx.Graph()
    copies = _inputs_of(graph, traced, before, owned)
    names = _names(traced)
    for node in traced.nodes:
        if node.op == "output":
            checks = [other for other in before.nodes if other.target is _CHECK]
            graph.output(_restore_checks(graph, list(fx.map_arg(node.args[0], copies.__getitem__)), checks))
            continue
        if node not in copies:
            args, kwargs = fx.map_arg((node.args, node.kwargs), copies.__getitem__)
            copies[node] = graph.create_node(node.op, node.target, args, kwargs, name=names.get(node, node.name))
        if "val" in node.meta:
            copies[node].meta["val"] = node.meta["val"]
        if (origin := _origin(node)) in origins:
            inherit(copies[node], origins[origin])
    for node in [*before.nodes, *graph.nodes]:
        node.meta.get("custom", {}).pop(ORIGIN, None)
    return graph


def _inputs_of(graph: fx.Graph, traced: fx.Graph, before: fx.Graph, owned: list[str]) -> dict[fx.Node, fx.Node]:
    """The original inputs and attributes, by the inputs of the traced graph that stand for them."""
    inputs = []
    for original in before.find_nodes(op="placeholder"):
        node = graph.create_node("placeholder", original.target, original.args, name=original.name)
        node.meta.update(original.meta)
        inputs.append(node)
    inputs += [graph.get_attr(name) for name in owned]
    return dict(zip(traced.find_nodes(op="placeholder"), inputs, strict=True))


def _origin(node: fx.Node) -> str:
    """The name of the node that this one was traced from; empty if there is none."""
    return str(node.meta.get("custom", {}).get(ORIGIN, ""))


def _names(traced: fx.Graph) -> dict[fx.Node, str]:
    """Names: the last node traced from an original takes its name, without the ``_`` of in-place operators."""
    last = {origin: node for node in traced.nodes if node.op == "call_function" and (origin := _origin(node))}
    return {node: origin.rstrip("_") for origin, node in last.items()}


def _restore_checks(graph: fx.Graph, results: list[Any], checks: list[fx.Node]) -> list[Any]:
    """Put the checks of factors back, directly after the factors, and return the results without these."""
    others = results[: len(results) - len(checks)]
    for check, info in reversed(list(zip(checks, results[len(others) :], strict=True))):
        with graph.inserting_after(info):
            graph.call_function(_CHECK, (info, *check.args[1:]), check.kwargs).meta.update(check.meta)
    return others
