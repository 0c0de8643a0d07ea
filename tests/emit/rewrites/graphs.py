"""Small graphs for the tests of the passes: traced from a function, and shown line by line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from sgc.emit.differentiate import trace
from sgc.emit.fx.module_laws import check
from sgc.emit.rewrites.optimize import PASSES


def traced(function: Callable[..., Any], *examples: Tensor) -> fx.GraphModule:
    """The graph of a function that returns a list, its inputs renamed to x0, x1, ..."""
    module = trace(function, list(examples))
    for position, node in enumerate([node for node in module.graph.nodes if node.op == "placeholder"]):
        node._rename(f"x{position}")
        node.target = f"x{position}"
    module.recompile()
    return module


def lines(module: fx.GraphModule) -> list[str]:
    """Each node but the inputs: ``name = operator(arguments)``; keyword arguments are left out."""
    shown = []
    for node in module.graph.nodes:
        arguments = ", ".join(_shown(argument) for argument in node.args)
        if node.op == "output":
            shown.append(f"return {arguments}")
        elif node.op == "get_attr":
            shown.append(f"{node.name} = {getattr(module, node.target).tolist()}")
        elif node.op == "call_function":
            operator = str(node.target).removeprefix("aten.").removesuffix(".default")
            shown.append(f"{node.name} = {operator}({arguments})")
    return shown


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_shown(part) for part in value)}]"
    return str(value)


def apply(name: str, module: fx.GraphModule, rng: Any = "torch") -> bool:
    """Run one pass; the laws hold after it, and a second run changes nothing and says so."""
    before = lines(module)
    changed = PASSES[name](module, rng)
    module.recompile()
    check(module)
    after = lines(module)
    assert changed == (before != after)
    assert not PASSES[name](module, rng)
    assert lines(module) == after
    return changed


def results(module: fx.GraphModule, *tensors: Tensor, seed: int = 0) -> list[Tensor]:
    """What the module returns, and its inputs afterwards."""
    inputs = [tensor.clone() for tensor in tensors]
    torch.manual_seed(seed)
    with torch.no_grad():
        return [*module(*inputs), *inputs]


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """Equal bit by bit: -0.0 is not 0.0, NaN is NaN."""
    return all(
        a.dtype == b.dtype
        and a.shape == b.shape
        and a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()
        for a, b in zip(ours, theirs, strict=True)
    )
