"""The texts of assertions, where they are written into a program in another language."""

from __future__ import annotations

import string

import torch
from torch import fx

from sgc.emit.fx.rewriting import value_of

_ASSERT = torch.ops.aten._assert_async.msg
_PLAIN = frozenset((string.ascii_letters + string.digits + " .,:;_+-=<>()[]/").encode())


def texts_for_cpp(module: fx.GraphModule) -> None:
    """Write the texts of assertions as they stand between quotes in C++: Inductor puts them there as they are."""
    for node in module.graph.find_nodes(op="call_function", target=_ASSERT):
        condition, text = node.args
        if value_of(condition).device.type == "cpu":
            node.args = (condition, escaped(text))
    module.recompile()


def escaped(text: str) -> str:
    """The inside of a C++ literal of a text in UTF-8."""
    return "".join(chr(byte) if byte in _PLAIN else f"\\{byte:03o}" for byte in text.encode(errors="replace"))
