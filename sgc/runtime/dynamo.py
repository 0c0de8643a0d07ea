"""What ``torch.compile`` is to leave alone: sgc compiles by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def untraced(function: Function) -> Function:
    """A function that runs as it is, with all that it calls, in a function that ``torch.compile`` compiles.

    That one is compiled up to the call, and from the call on; with ``fullgraph=True`` torch says that it cannot be.
    """
    reason = "sgc has compiled it already; leave out fullgraph=True, or compile the function without this call"
    disabled: Function = torch.compiler.disable(function, reason=reason)
    return disabled
