"""Programs for inspection, kept and printed: a short line for each operator."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from sgc.emit.rewrites.optimize import Optimized, Report


@dataclass(frozen=True)
class Rewritten:
    """What remains of an :class:`~sgc.emit.rewrites.optimize.Optimized` once it is compiled: its program and report.

    The program is a module where the backend runs the one that was differentiated, else text: so no module is kept
    that nothing runs.
    """

    program: fx.GraphModule | str
    report: Report

    @classmethod
    def of(cls, optimized: Optimized, differentiated: fx.GraphModule) -> Rewritten:
        """What remains.

        :param differentiated: the module before the rewrites.
        """
        module = optimized.module
        return cls(module if module is differentiated else program_text(module), optimized.report)

    def __str__(self) -> str:
        return self.program if isinstance(self.program, str) else program_text(self.program)


def program_text(module: fx.GraphModule) -> str:
    """A line for each operator, by its short name: ``sum_1 = sum(sub_2)``; one in place ends with an underscore.

    Numbers that are kept as 0-d tensors stand where they are used. What only changes how a tensor is seen by autograd,
    and where and of which type a tensor is made, is left out.
    """
    shown: dict[fx.Node, str] = {}
    lines = []
    for node in module.graph.nodes:
        name = _operator(node)
        if node.op == "placeholder":
            continue
        if node.op == "get_attr":
            shown[node] = _constant(module, str(node.target))
        elif node.op == "output":
            lines.append(f"return {_argument(node.args[0], shown)}")
        elif name in _UNSEEN:
            shown[node] = _argument(node.args[0], shown)
        elif name not in _OF_AUTOGRAD:
            kwargs = [f"{key}={_argument(v, shown)}" for key, v in node.kwargs.items() if key not in _OF_MEMORY]
            arguments = ", ".join([*(_argument(argument, shown) for argument in node.args), *kwargs])
            lines.append(f"{node.name} = {name}({arguments})" if node.users else f"{name}({arguments})")
    inputs = ", ".join(node.name for node in module.graph.find_nodes(op="placeholder"))
    return "\n".join([f"({inputs}) ->", *(f"  {line}" for line in lines)])


_UNSEEN = frozenset(("lift_fresh_copy", "detach", "detach_"))
_OF_AUTOGRAD = frozenset(("_set_grad_enabled",))
_OF_MEMORY = frozenset(("dtype", "device", "layout", "pin_memory", "memory_format"))


def _operator(node: fx.Node) -> str:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target.overloadpacket.__name__
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def _constant(module: fx.GraphModule, name: str) -> str:
    value: Any = operator.attrgetter(name)(module)
    return f"{value.item():.6g}" if isinstance(value, Tensor) and value.dim() == 0 else name


def _argument(value: Any, shown: dict[fx.Node, str]) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_argument(part, shown) for part in value)}]"
    if isinstance(value, fx.Node):
        return shown.get(value, value.name)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
