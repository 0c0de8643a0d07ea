"""Makes writes functional where all that holds the written memory is one and the same tensor.

An optimizer's update writes so, and what a recurrent cell adds to the product that it has just made: there is no view
of the memory, and a write is a new value for all that read it afterwards. That needs no new trace.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

from sgc.emit.fx.purity import is_view
from sgc.emit.fx.rewriting import (
    fake_mode_of,
    final_copies,
    insert,
    is_functional,
    is_static,
    same_kind,
    tensor_of,
    writes,
)
from sgc.graph.effects import storages, written_storages
from sgc.graph.meta_keys import inherit

_aten = torch.ops.aten

_DRAW = _aten.normal_functional.default
_EMPTY = {_aten.empty.memory_format, _aten.empty_like.default, _aten.new_empty.default}


def replace_plain_writes(graph: fx.Graph) -> bool:
    """Replace writes, but those into views and into what has views; whether there was any.

    What is written into an input is copied into it at the end.
    """
    if is_functional(graph):
        return False
    groups = _groups(graph)
    values = {storage: written for storage, nodes in groups.items() if (written := _written_values(nodes)) is not None}
    current = {storage: groups[storage][0] for storage in values}
    final = final_copies(graph)
    storage_of = {node: storage for storage in values for node in groups[storage]}
    for node in list(graph.nodes):
        for used in node.all_input_nodes:
            if used in storage_of:
                node.replace_input_with(used, current[storage_of[used]])
        storage = storage_of.get(node)
        if storage is not None and node in values[storage]:
            functional = _functional_form(node.target)
            assert functional is not None
            with graph.inserting_before(final[0] if node in final else node):
                name = functional.overloadpacket.__name__
                made = graph.create_node("call_function", functional, node.args, node.kwargs, name=name)
            made.meta["val"] = values[storage][node]
            inherit(made, node)
            current[storage] = made
    for storage, value in current.items():
        owner, *others = groups[storage]
        for node in reversed(others):
            graph.erase_node(node)
        if owner.op == "placeholder" and value is not owner:
            insert(graph.output_node(), _aten.copy_.default, owner, value)
    return bool(current)


def _groups(graph: fx.Graph) -> dict[int, list[fx.Node]]:
    """The nodes that hold memory which is written, by that memory, in their order."""
    final = set(final_copies(graph))
    written = written_storages(node for node in graph.nodes if node not in final)
    groups: dict[int, list[fx.Node]] = {}
    for node in graph.nodes:
        for storage in storages(node) & written:
            groups.setdefault(storage, []).append(node)
    return groups


def _written_values(nodes: list[fx.Node]) -> dict[fx.Node, Tensor] | None:
    """What each write would give if it were functional; None if some node is another tensor, or cannot be so."""
    owner, *others = nodes
    memory = tensor_of(owner)
    if memory is None or not is_static(memory) or owner.op == "get_attr" or writes(owner):
        return None
    values: dict[fx.Node, Tensor] = {}
    for node in others:
        held = tensor_of(node)
        if (
            held is None
            or not is_static(held)
            or not same_kind(held, memory)
            or held.storage_offset() != memory.storage_offset()
        ):
            return None
        if _is_write_into(node, nodes):
            value = _functional_value(node, owner)
            if value is None or not same_kind(value, memory):
                return None  # it would be of another type: what is written takes on that of the memory
            values[node] = value
        elif not is_view(node):
            return None
    writers = (user for node in nodes for user in node.users if user not in values)
    return None if any(not set(nodes).isdisjoint(writes(user)) for user in writers) else values


def _is_write_into(node: fx.Node, nodes: list[fx.Node]) -> bool:
    written = writes(node)
    return len(written) == 1 and written[0] in nodes and node.args[0] is written[0]


def _functional_value(node: fx.Node, owner: fx.Node) -> Tensor | None:
    functional = _functional_form(node.target)
    if functional is None or (functional is _DRAW and owner.target not in _EMPTY):
        return None
    args, kwargs = tree_map_only(fx.Node, lambda argument: argument.meta["val"], (node.args, node.kwargs))
    mode = fake_mode_of(node.graph)
    assert mode is not None
    with mode, torch.no_grad():
        value = functional(*args, **kwargs)
    return value if isinstance(value, Tensor) else None


@cache
def _functional_form(target: Any) -> torch._ops.OpOverload | None:
    if target is _aten.normal_.default:
        return _DRAW
    if target is _aten.copy_.default:
        return _aten.copy.default
    if target is _aten.index_put_.default:
        return _aten.index_put.default
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return None
    name = target._schema.name.partition("::")[2]
    if not name.endswith("_") or name.endswith("__") or torch.Tag.pointwise not in target.tags:
        return None
    packet = getattr(_aten, name[:-1], None)
    for overload in packet.overloads() if packet is not None else ():
        functional = getattr(packet, overload)
        if not functional._schema.is_mutable and _takes(functional) == _takes(target):
            return functional  # not always of the same name: pow_.Scalar is pow.Tensor_Scalar
    return None


def _takes(target: torch._ops.OpOverload) -> list[tuple[str, str]]:
    return [(argument.name, str(argument.type)) for argument in target._schema.arguments]
