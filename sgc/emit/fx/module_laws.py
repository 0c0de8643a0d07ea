"""The laws of a module between two passes."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from sgc.emit.fx.rewriting import attribute, breaches
from sgc.errors import ModuleError
from sgc.graph.meta_keys import ABOUT


def devices(module: fx.GraphModule) -> frozenset[torch.device]:
    """The devices on which a module computes."""
    return frozenset(
        value.device
        for node in module.graph.nodes
        for value in tree_leaves(node.meta.get("val"))
        if isinstance(value, Tensor)
    )


def check(module: fx.GraphModule, *, functional: bool = True, allowed: Collection[torch.device] | None = None) -> None:
    """Check a module and report all breaches together.

    Its graph is well formed, each node has its (fake) value in ``meta["val"]`` if it has one, and, if
    ``functional``, nothing is written into a tensor but by ``copy_`` into inputs, after everything else. A tensor that
    the module holds is on the device that its node says, and with ``allowed`` nothing is on any other device.

    :param allowed: the devices of the module before it was rewritten.
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
    problems += _astray(module, allowed)
    if functional:
        problems += breaches(module.graph)
    if problems:
        raise ModuleError("the emitted module is illegal:\n  - " + "\n  - ".join(problems))


def _astray(module: fx.GraphModule, allowed: Collection[torch.device] | None) -> Iterator[str]:
    """Tensors on a device where they should not be, each with what it is for."""
    for node in module.graph.nodes:
        devices_of_node = [value.device for value in tree_leaves(node.meta.get("val")) if isinstance(value, Tensor)]
        about = f" ({ABOUT.of(node)})" if ABOUT.of(node) else ""
        if node.op == "get_attr" and devices_of_node:
            held = attribute(node)
            if isinstance(held, Tensor) and held.device != devices_of_node[0]:
                yield f"{node.name}{about} holds a tensor on {held.device} and stands for one on {devices_of_node[0]}"
        for device in devices_of_node:
            if allowed is not None and device not in allowed:
                yield f"{node.name}{about} is on {device}, where the module had nothing"
