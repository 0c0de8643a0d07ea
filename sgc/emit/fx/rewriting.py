"""What the passes share: values of nodes, literals, new nodes, and which nodes a caller can see."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode
from torch.utils._pytree import tree_leaves, tree_map_only

from sgc.emit.fx.lazy_modules import graph_module
from sgc.emit.fx.purity import is_view
from sgc.graph.effects import written_arguments
from sgc.graph.meta_keys import inherit
from sgc.graph.sizes import is_sized_by_call

_LITERAL = "_sgc_literal"


# -- literals


def mark_literal(tensor: Tensor) -> None:
    """Say of a tensor in a module that nobody else holds it: it was written in the program (``torch.tensor(0.5)``).

    A tensor without this mark may be the user's own, and may change between two calls.
    """
    setattr(tensor, _LITERAL, True)


def attribute(node: fx.Node) -> Any:
    """The object that a ``get_attr`` node reads."""
    value: Any = node.graph.owning_module
    for name in str(node.target).split("."):
        value = getattr(value, name)
    return value


def literal(node: fx.Node) -> Tensor | None:
    """The tensor of a ``get_attr`` node that can be relied on never to change; None for any other node."""
    if node.op != "get_attr":
        return None
    tensor = attribute(node)
    return tensor if isinstance(tensor, Tensor) and getattr(tensor, _LITERAL, False) else None


def add_literal(before: fx.Node, tensor: Tensor) -> fx.Node:
    """A new ``get_attr`` node for a tensor that was computed at compile time."""
    graph, module = before.graph, before.graph.owning_module
    assert module is not None
    number = 0
    while hasattr(module, f"folded_{number}"):
        number += 1
    mark_literal(tensor)
    module.register_buffer(f"folded_{number}", tensor, persistent=False)
    with graph.inserting_before(before):
        node = graph.get_attr(f"folded_{number}")
    mode = fake_mode_of(graph)
    node.meta["val"] = mode.from_tensor(tensor, static_shapes=True) if mode is not None else tensor
    inherit(node, before)
    return node


# -- values


def tensor_of(node: Any) -> Tensor | None:
    """The (fake) tensor that a node holds, None if it holds something else or is no node."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value if isinstance(value, Tensor) else None


def value_of(node: fx.Node) -> Tensor:
    """The (fake) tensor of a node that is known to hold one."""
    value = tensor_of(node)
    assert value is not None, node
    return value


def results_of(module: fx.GraphModule) -> list[fx.Node]:
    """The nodes that a module returns, of which each result is one."""
    (results,) = module.graph.output_node().args
    return list(cast("list[fx.Node]", results))


def is_static(tensor: Tensor) -> bool:
    """Whether its shape is plain integers and its memory is strided."""
    return tensor.layout is torch.strided and all(type(size) is int for size in tensor.shape)


def elements(tensor: Tensor) -> float:
    """How many elements a tensor has: infinitely many, if that is not known."""
    return tensor.numel() if all(type(size) is int for size in tensor.shape) else math.inf


def depends_on_data(graph: fx.Graph) -> bool:
    """Whether a size or a number of the graph is known only when it runs (``x[mask]``, ``torch.full(n, x.item())``)."""
    values = tree_leaves([node.meta.get("val") for node in graph.nodes])
    symbols = (torch.SymInt, torch.SymFloat, torch.SymBool)
    return any(
        isinstance(value, symbols)
        or (isinstance(value, Tensor) and value.layout is torch.strided and not is_static(value))
        for value in values
    )


def takes_any_size(module: fx.GraphModule) -> bool:
    """Whether some inputs of a module have sizes that differ from call to call."""
    return any(
        isinstance(value := node.meta.get("val"), Tensor) and is_sized_by_call(value)
        for node in module.graph.find_nodes(op="placeholder")
    )


def same_kind(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors agree in all but their elements: one may stand where the other stood."""
    return (
        one.dtype == other.dtype
        and one.device == other.device
        and one.layout == other.layout
        and one.shape == other.shape
        and (one.layout is not torch.strided or one.stride() == other.stride())
        and one.is_conj() == other.is_conj()
        and one.is_neg() == other.is_neg()
    )


def call(before: fx.Node, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
    """A new node in front of ``before``, with its fake value, on behalf of ``before``."""
    node = insert(before, target, *args, **kwargs)
    inherit(node, before)
    return node


def insert(before: fx.Node, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
    """A new node in front of ``before``, with its fake value."""
    graph = before.graph
    with graph.inserting_before(before):
        name = target.overloadpacket.__name__ if isinstance(target, torch._ops.OpOverload) else None
        node = graph.create_node("call_function", target, args, kwargs, name=name)
    plain_args, plain_kwargs = tree_map_only(fx.Node, lambda argument: argument.meta["val"], (args, kwargs))
    mode = fake_mode_of(graph)
    assert mode is not None
    with mode, torch.no_grad():
        node.meta["val"] = target(*plain_args, **plain_kwargs)
    return node


def replace(node: fx.Node, by: fx.Node) -> None:
    """Let ``by`` stand wherever ``node`` stood, and remove ``node``."""
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)


def fake_mode_of(graph: fx.Graph) -> Any:
    """The mode that the values of the graph belong to; all belong to one."""
    modes = (detect_fake_mode([node.meta["val"]]) for node in graph.nodes if "val" in node.meta)
    return next((mode for mode in modes if mode is not None), None)


# -- writes, and what a caller sees


def writes(node: fx.Node) -> list[fx.Node]:
    """The argument nodes that a node writes into."""
    return written_arguments(node) if node.op == "call_function" else []


def is_final_copy(node: fx.Node) -> bool:
    """Whether the node writes a result into an input: the one write that a functional graph may have, at its end."""
    if node.target is not torch.ops.aten.copy_.default or node.users:
        return False
    destination = node.args[0]
    return isinstance(destination, fx.Node) and destination.op == "placeholder"


def final_copies(graph: fx.Graph) -> list[fx.Node]:
    """The copies into inputs that come after everything else."""
    final: list[fx.Node] = []
    for node in reversed(graph.nodes):
        if node.op != "output" and not is_final_copy(node):
            break
        final.append(node)
    return final[:0:-1]


def breaches(graph: fx.Graph) -> Iterator[str]:
    """Each way in which a graph is not functional: a write, other than copies into inputs after everything else."""
    ended = False
    for node in graph.nodes:
        if node.op == "output":
            return
        if is_final_copy(node):
            ended = True
            continue
        if ended:
            yield f"{node.name} comes after a copy into an input"
        written = writes(node)
        if written:
            yield f"{node.name} ({node.target}) writes into {', '.join(argument.name for argument in written)}"


def is_functional(graph: fx.Graph) -> bool:
    """Whether no node writes into a tensor, but copies into inputs after everything else."""
    return not any(breaches(graph))


def exposed(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose memory leaves the graph: returned, or copied into an input, or viewed by such a node.

    Two of them must not become one tensor, nor become an input or a constant: the caller may write into a result, and
    the copies into inputs happen one after another.
    """
    leaving: set[fx.Node] = set()
    for node in graph.nodes:
        returned: list[fx.Node] = []
        if node.op == "output":
            returned = node.all_input_nodes
        elif is_final_copy(node):
            returned = [argument for argument in node.args[1:2] if isinstance(argument, fx.Node)]
        for start in returned:
            leaving.update(lineage(start))
    return leaving


def lineage(node: fx.Node) -> Iterator[fx.Node]:
    """The node, what it is a view of, and so on to the node that owns the memory."""
    yield node
    while is_view(node) and node.all_input_nodes:
        node = node.all_input_nodes[0]
        yield node


def copy_of(module: fx.GraphModule) -> fx.GraphModule:
    """A module with a graph of its own and those tensors of the module that the graph reads."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    return graph_module(module, graph)
