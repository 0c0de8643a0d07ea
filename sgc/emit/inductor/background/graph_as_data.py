"""Graphs of aten operators as plain data, for another process: the text of one graph is always the same.

``GraphModule`` pickles as Python source, from which it is traced anew: names and notes are lost. torch's own pickler of
graphs (``torch.fx._graph_pickler``) imports all of Inductor, and its bytes differ from process to process.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from sgc.emit.fx.lazy_modules import graph_module
from sgc.emit.fx.rewriting import depends_on_data
from sgc.graph.meta_keys import DRAWS, IS_GRADIENT, IS_LITERAL, KEEPS


class NotPlain(Exception):
    """A graph has something that another process would not know; the text says what."""


_NOTES = (IS_GRADIENT, IS_LITERAL)
"""What is noted on nodes for those that come after the rewrites."""

_NAMESPACES = ("aten", "prims")
"""Operators that torch itself brings."""

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "getitem": operator.getitem,
    "_set_grad_enabled": torch._C._set_grad_enabled,
}
"""Functions of Python that graphs call besides operators."""


_UNSIZED = "a size that is not known before the program runs"


# -- tensors


def tensor_as_data(tensor: Tensor) -> list[Any]:
    """Shape, strides, dtype and device of a tensor, which is all that is compiled for.

    :raises NotPlain: if that does not say it all.
    """
    if tensor.layout is not torch.strided or tensor.is_conj() or tensor.is_neg() or tensor.is_quantized:
        raise NotPlain("a tensor that is not strided, or a conjugated one")
    sizes = [*tensor.shape, *tensor.stride()]
    if not all(type(size) is int for size in sizes):
        raise NotPlain(_UNSIZED)
    return [list(tensor.shape), list(tensor.stride()), _value_as_data(tensor.dtype), _value_as_data(tensor.device)]


def tensor_of_data(data: Sequence[Any]) -> Tensor:
    """A tensor of such a kind, with any values."""
    shape, strides, dtype, device = data
    return torch.empty_strided(shape, strides, dtype=_value_of(dtype, {}), device=_value_of(device, {}))


# -- graphs


def graph_as_data(module: fx.GraphModule) -> list[Any]:
    """The nodes of a graph that looks no tensors up (:func:`sgc.emit.fx.lift_tensors.lift_tensors`).

    :raises NotPlain: if another process could not compile it.
    """
    if depends_on_data(module.graph):
        raise NotPlain(_UNSIZED)
    nodes: list[Any] = []
    for node in module.graph.nodes:
        if KEEPS.of(node) is not None or DRAWS.of(node):
            raise NotPlain(f"a call of Python ({node.name})")
        notes = {note.name: note.of(node) for note in _NOTES if note.of(node) is not None}
        if node.op == "placeholder":
            nodes.append([node.name, "", [], {}, notes])
        elif node.op == "output":
            nodes.append([node.name, "output", _value_as_data(node.args), {}, notes])
        elif node.op == "call_function":
            kwargs = {name: _value_as_data(value) for name, value in node.kwargs.items()}
            nodes.append([node.name, _target_as_data(node.target), _value_as_data(node.args), kwargs, notes])
        else:
            raise NotPlain(f"a node of another kind ({node.op} {node.target})")
    return nodes


def graph_of_data(data: Sequence[Any], examples: Sequence[Tensor]) -> fx.GraphModule:
    """The graph of such data, with the fake value of each node.

    :param examples: tensors like its inputs.
    """
    graph = fx.Graph()
    known: dict[str, fx.Node] = {}
    for name, target, args, kwargs, notes in data:
        if not target:
            node = graph.create_node("placeholder", name, name=name)
        elif target == "output":
            node = graph.create_node("output", "output", _value_of(args, known), name=name)
        else:
            named = {key: _value_of(value, known) for key, value in kwargs.items()}
            node = graph.create_node("call_function", _target_of(target), _value_of(args, known), named, name=name)
        node.meta.update(notes)
        known[name] = node
    module = graph_module({}, graph)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(example, static_shapes=True) for example in examples]
    with torch.no_grad():
        FakeTensorProp(module, mode).propagate_dont_convert_inputs(*fakes)
    return module


def _target_as_data(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        if target.namespace in _NAMESPACES:
            return f"{target.namespace}::{target.overloadpacket.__name__}.{target._overloadname}"
    elif target in _FUNCTIONS.values():
        return next(name for name, function in _FUNCTIONS.items() if function is target)
    raise NotPlain(f"a call of {target}")


def _target_of(text: str) -> Callable[..., Any]:
    if text in _FUNCTIONS:
        return _FUNCTIONS[text]
    namespace, _, name = text.partition("::")
    packet, _, overload = name.rpartition(".")
    operator_: Callable[..., Any] = getattr(getattr(getattr(torch.ops, namespace), packet), overload)
    return operator_


# -- arguments

_OF_TORCH = (torch.dtype, torch.layout, torch.memory_format)


def _value_as_data(value: Any) -> Any:
    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else ["float", str(value)]
    if isinstance(value, fx.Node):
        return ["node", value.name]
    if isinstance(value, (list, tuple)):
        return ["tuple" if isinstance(value, tuple) else "list", *map(_value_as_data, value)]
    if isinstance(value, complex):
        return ["complex", str(value)]
    if isinstance(value, slice):
        return ["slice", *map(_value_as_data, (value.start, value.stop, value.step))]
    if isinstance(value, torch.device):
        return ["device", str(value)]
    if isinstance(value, _OF_TORCH):
        return ["torch", str(value).removeprefix("torch.")]
    raise NotPlain(f"an argument that is a {type(value).__name__}")


def _value_of(data: Any, known: dict[str, fx.Node]) -> Any:
    if not isinstance(data, list):
        return data
    kind, *parts = data
    match kind:
        case "node":
            return known[parts[0]]
        case "list":
            return [_value_of(part, known) for part in parts]
        case "tuple":
            return tuple(_value_of(part, known) for part in parts)
        case "slice":
            return slice(*(_value_of(part, known) for part in parts))
        case "float":
            return float(parts[0])
        case "complex":
            return complex(parts[0])
        case "device":
            return torch.device(parts[0])
        case _:
            return getattr(torch, parts[0])
