"""The laws of a module between two passes."""

from __future__ import annotations

from torch import fx

from sgc.emit.optimize.nodes import breaches
from sgc.errors import ModuleError


def check(module: fx.GraphModule, *, functional: bool = True) -> None:
    """Check a module and report all breaches together.

    Its graph is well formed, each node has its (fake) value in ``meta["val"]`` if it has one, and, if
    ``functional``, nothing is written into a tensor but by ``copy_`` into inputs, after everything else.

    :raises sgc.errors.ModuleError: naming each breach.
    """
    problems: list[str] = []
    try:
        module.graph.lint()
    except Exception as error:  # lint raises whatever it stumbles over
        problems.append(f"fx: {error}")
    problems += [
        f"{node.name} has no value in its meta" for node in module.graph.nodes if node.users and "val" not in node.meta
    ]
    if functional:
        problems += breaches(module.graph)
    if problems:
        raise ModuleError("the emitted module is illegal:\n  - " + "\n  - ".join(problems))
