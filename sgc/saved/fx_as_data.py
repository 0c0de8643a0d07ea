"""The fx graphs of a program as data, and back as modules."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from sgc.emit.fx.rewriting import attribute
from sgc.emit.fx.values_as_data import NotPlain, value_as_data, value_of_data
from sgc.saved.operators import check_arguments, is_allowed, name_of, named

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,200}", re.ASCII)


def module_as_data(module: fx.GraphModule, keep: Callable[[Tensor], int]) -> list[Any]:
    """The nodes of a module.

    :param keep: takes a tensor that the module holds; gives its number in the file.
    :raises NotPlain: if no file holds what it calls.
    """
    nodes: list[Any] = []
    for node in module.graph.nodes:
        if node.op == "placeholder":
            nodes.append([node.name, "input"])
        elif node.op == "get_attr":
            held = attribute(node)
            if not isinstance(held, Tensor):
                raise NotPlain(f"a {type(held).__name__} among its operands")
            nodes.append([node.name, "tensor", keep(held)])
        elif node.op == "output":
            nodes.append([node.name, "output", [value_as_data(result) for result in node.args[0]]])
        elif node.op == "call_function" and is_allowed(node.target):
            kwargs = {name: value_as_data(value) for name, value in node.kwargs.items()}
            args = [value_as_data(value) for value in node.args]
            nodes.append([node.name, name_of(node.target), args, *([kwargs] if kwargs else [])])
        else:
            raise NotPlain(f"a call of {node.target}")
    return nodes


def module_of_data(data: Sequence[Any], tensors: Sequence[Tensor], inputs: int, results: int | None = None) -> Any:
    """A module of such data.

    fx writes Python of a graph, in which names stand as they are: a name that is no identifier is refused.

    :param tensors: those of the file.
    :param inputs: how many tensors it takes.
    :param results: how many it returns; None for any number.
    :raises ValueError: if these are no such data.
    """
    graph = fx.Graph()
    root = torch.nn.Module()
    known: dict[str, fx.Node] = {}
    for name, kind, *parts in data:
        if not isinstance(name, str) or not _IDENTIFIER.fullmatch(name) or keyword.iskeyword(name) or name in known:
            raise ValueError("a node has a name that is taken, or that is none")
        if graph.find_nodes(op="output"):
            raise ValueError("a node comes after the results")
        if kind == "input":
            known[name] = placeholder = graph.create_node("placeholder", name, name=name)
            placeholder.target = placeholder.name  # which is no name that the Python of fx uses
        elif kind == "tensor":
            if type(parts[0]) is not int or parts[0] < 0:
                raise ValueError("a tensor without a number")
            held = f"tensor_{parts[0]}"
            root.register_buffer(held, tensors[parts[0]], persistent=False)
            known[name] = graph.create_node("get_attr", held, name=name)
        elif kind == "output":
            given = [value_of_data(result, known) for result in parts[0]]
            if not all(isinstance(result, fx.Node) for result in given):
                raise ValueError("a result that no node gives")
            graph.output(given)
        else:
            args, kwargs = parts if len(parts) == 2 else (*parts, {})
            target = named(kind)
            values = tuple(value_of_data(value, known) for value in args)
            options = {key: value_of_data(value, known) for key, value in kwargs.items()}
            check_arguments(target, values, options)
            known[name] = graph.create_node("call_function", target, values, options, name=name)
    outputs = graph.find_nodes(op="output")
    given = outputs[0].args[0] if outputs else []
    if len(graph.find_nodes(op="placeholder")) != inputs or not given or results not in (None, len(given)):
        raise ValueError("a graph with another number of inputs or results")
    graph.lint()
    return fx.GraphModule(root, graph, class_name="Saved")
