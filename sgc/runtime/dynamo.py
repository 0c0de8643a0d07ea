"""What ``torch.compile`` is to leave alone: sgc compiles by itself.

Dynamo is imported by ``torch.compiler.disable``, which takes longer than all of sgc. So a function is marked when
Dynamo first comes upon it: that asks this module for :func:`outside`, which is made then.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def untraced(function: Function) -> Function:
    """A function that runs as it is, with all that it calls, in a function that ``torch.compile`` compiles.

    That one is compiled up to the call, and from the call on; with ``fullgraph=True`` torch says that it cannot be.
    """

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return _THIS.outside(function, args, kwargs)
        return function(*args, **kwargs)

    return cast(Function, run)


_THIS: Any = sys.modules[__name__]


def __getattr__(name: str) -> Any:
    """``outside(function, args, kwargs)`` calls a function without Dynamo; made where it is first asked for."""
    if name != "outside":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    reason = "sgc has compiled it already; leave out fullgraph=True, or compile the function without this call"
    globals()[name] = outside = torch.compiler.disable(_called, reason=reason)
    return outside


def _called(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return function(*args, **kwargs)
