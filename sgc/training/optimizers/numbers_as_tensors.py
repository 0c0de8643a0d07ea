"""Lets an optimizer that computes with Python numbers be traced: the numbers become 0-d tensors.

Optimizers advance a step count and derive from it, in Python, numbers such as Adam's bias corrections. In a compiled
step these change from call to call, so they must be tensors there. In float64 they are what Python would compute.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_ASKS_FOR_ZERO = {"__ne__": True, "ne": True, "__eq__": False, "eq": False}
_SCALED = frozenset(("add", "add_", "sub", "sub_"))
_FUSED = {"addcdiv": "add", "addcdiv_": "add_", "addcmul": "add", "addcmul_": "add_"}


class NumbersAsTensors(TorchFunctionMode):
    """Accepts 0-d tensors where torch's operators want numbers, and gives one where ``item()`` would give a number.

    :param nonzero: for tensors that stand for options, by identity, the answer to "is it 0?".
    """

    def __init__(self, nonzero: Mapping[int, bool]) -> None:
        super().__init__()
        self._nonzero = nonzero

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "item" and args[0].dim() == 0:
            return args[0].double()
        if name in _ASKS_FOR_ZERO and id(args[0]) in self._nonzero and type(args[1]) in (int, float) and args[1] == 0:
            return self._nonzero[id(args[0])] == _ASKS_FOR_ZERO[name]
        if name in _SCALED and isinstance(options.get("alpha"), Tensor):
            return getattr(args[0], name)(args[1] * options["alpha"])
        if name in _FUSED and isinstance(options.get("value"), Tensor):
            scaled = options["value"] * args[1]
            combined = scaled / args[2] if name.startswith("addcdiv") else scaled * args[2]
            return getattr(args[0], _FUSED[name])(combined)
        return func(*args, **options)


class _Math:
    """The module ``math``, with a square root that takes tensors."""

    def __getattr__(self, name: str) -> Any:
        return getattr(math, name)

    @staticmethod
    def sqrt(number: Any) -> Any:
        return number.sqrt() if isinstance(number, Tensor) else math.sqrt(number)


@contextmanager
def numbers_as_tensors(step: Callable[..., Any], *, capturable: bool, nonzero: Mapping[int, bool]) -> Iterator[None]:
    """Trace an optimizer's ``step`` function.

    :param capturable: let torch's optimizers take the way that they take under ``torch.compile``, which keeps their
        step counts in tensors and branches on none of them.
    :param nonzero: see :class:`NumbersAsTensors`.
    """
    names = step.__globals__
    patched = {"math": _Math()} if names.get("math") is math else {}
    with mock.patch.dict(names, patched), NumbersAsTensors(nonzero):
        if capturable:
            with mock.patch.object(torch.compiler, "is_compiling", lambda: True):
                yield
        else:
            yield
