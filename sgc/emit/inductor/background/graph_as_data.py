"""Graphs of aten operators as plain data, for another process: the text of one graph is always the same.

``GraphModule`` pickles as Python source, from which it is traced anew: names and notes are lost. torch's own pickler of
graphs (``torch.fx._graph_pickler``) imports all of Inductor, and its bytes differ from process to process.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from sgc.emit.fx.lazy_modules import graph_module
from sgc.emit.fx.rewriting import depends_on_data
from sgc.emit.fx.values_as_data import NotPlain, value_as_data, value_of_data
from sgc.graph.meta_keys import DRAWS, IS_GRADIENT, IS_LITERAL, KEEPS

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
    return [list(tensor.shape), list(tensor.stride()), value_as_data(tensor.dtype), value_as_data(tensor.device)]


def tensor_of_data(data: Sequence[Any]) -> Tensor:
    """A tensor of such a kind, with any values."""
    shape, strides, dtype, device = data
    return torch.empty_strided(shape, strides, dtype=value_of_data(dtype, {}), device=value_of_data(device, {}))


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
            nodes.append([node.name, "output", value_as_data(node.args), {}, notes])
        elif node.op == "call_function":
            kwargs = {name: value_as_data(value) for name, value in node.kwargs.items()}
            nodes.append([node.name, _target_as_data(node.target), value_as_data(node.args), kwargs, notes])
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
            node = graph.create_node("output", "output", value_of_data(args, known), name=name)
        else:
            named = {key: value_of_data(value, known) for key, value in kwargs.items()}
            node = graph.create_node("call_function", _target_of(target), value_of_data(args, known), named, name=name)
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
