"""Traced numbers where torch, ``math``, ``min`` and ``max`` are given Python's.

A number stays one in what it does to dtypes: among tensors of its own kind it takes theirs, else the default one.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FunctionType
from typing import Any
from unittest import mock

import numpy as np
import pyro.distributions.util
import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from sgc.tracing.python.recorded_functions import MATHEMATICAL, recorded_extreme, recorded_function
from sgc.tracing.python.recorded_names import recorded_names
from sgc.tracing.python.traced_numbers import Answers, TracedFloat, TracedInt, TracedNumber
from sgc.tracing.values.reads import DATA_DEPENDENT, Reads

_MAKING = frozenset((torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor))
_FILLING = frozenset((torch.full, torch.full_like, Tensor.new_full))
_BY_VALUE = frozenset((torch.arange, torch.linspace, torch.logspace, torch.float_power, Tensor.float_power))
"""They need numbers in the precision of Python's, or to make a shape."""

_REDUCED = (torch.float16, torch.bfloat16)
_CLAMPING = frozenset(("clamp", "clamp_", "clip", "clip_"))
_SCALED = {"add": 1, "add_": 1, "sub": 1, "sub_": 1}
_FUSED = {"addcdiv": "div", "addcdiv_": "div", "addcmul": "mul", "addcmul_": "mul"}


class NumbersInCalls(TorchFunctionMode):
    """Gives torch's functions 0-d tensors for traced numbers, or the numbers where they must know them."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not any(isinstance(leaf, TracedNumber) for leaf in _leaves((args, kwargs))):
            return func(*args, **kwargs)
        try:
            return self._computed(func, args, kwargs)
        except (TypeError, *DATA_DEPENDENT):
            return func(*_replaced(args, TracedNumber.read), **_replaced(kwargs, TracedNumber.read))

    def _computed(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = getattr(func, "__name__", "")
        if func in _BY_VALUE:
            raise TypeError
        if func in _MAKING and isinstance(args[0], TracedNumber):
            return _made(args[0], kwargs)
        if func in _FILLING:
            return _filled(func, args, kwargs)
        tensors = [leaf for leaf in _leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        args, kwargs = _replaced((args, kwargs), lambda number: _among(number, tensors, kwargs.get("dtype")))
        if name in _SCALED and isinstance(kwargs.get("alpha"), Tensor):
            return getattr(args[0], name)(args[1] * kwargs["alpha"])
        if name in _FUSED and isinstance(kwargs.get("value"), Tensor):
            product = getattr(kwargs["value"] * args[1], _FUSED[name])(args[2])
            return getattr(args[0], "add_" if name.endswith("_") else "add")(product)
        if name in _CLAMPING:
            bounds = [kwargs.get("min", (*args, None)[1]), kwargs.get("max", (*args, None, None)[2])]
            low, high = (torch.as_tensor(b, dtype=args[0].dtype) if type(b) in (int, float) else b for b in bounds)
            return func(args[0], min=low, max=high)
        return func(*args, **kwargs)


def _made(number: TracedNumber, options: dict[str, Any]) -> Tensor:
    """What ``torch.tensor`` makes of a number."""
    own = torch.float64 if type(number.value) is np.float64 else _own_dtype(number)
    dtype = options.get("dtype") or own
    made = number.tensor.to(device=options.get("device") or torch.get_default_device(), dtype=dtype)
    return made.clone() if made is number.tensor else made


def _filled(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A tensor of one number in all places."""
    fill = kwargs.pop("fill_value") if "fill_value" in kwargs else args[-1]
    args = args[: 1 if func is torch.full else 2 if func is Tensor.new_full else 1]
    if not isinstance(fill, TracedNumber):
        raise TypeError  # another of its arguments is
    if func is torch.full:
        kwargs = {"dtype": _own_dtype(fill), **{k: v for k, v in kwargs.items() if v is not None}}
        empty = torch.zeros(*args, **kwargs) if args else torch.zeros(kwargs.pop("size"), **kwargs)
    else:
        empty = args[0].new_zeros(*args[1:], **kwargs) if func is Tensor.new_full else torch.zeros_like(*args, **kwargs)
    return empty.fill_(fill.tensor.to(device=empty.device, dtype=empty.dtype))


def _own_dtype(number: TracedNumber) -> torch.dtype:
    return torch.get_default_dtype() if isinstance(number, TracedFloat) else torch.int64


def _among(number: TracedNumber, tensors: Sequence[Tensor], dtype: torch.dtype | None) -> Tensor:
    """The tensor of a number that is computed with others.

    :param dtype: what the function is told to make.
    :raises TypeError: in half precision, in which torch computes with a number that is not rounded to it.
    """
    own, device = _own_dtype(number), torch.device("cpu")
    if tensors:
        device = tensors[0].device
        others = tensors[0].dtype
        for tensor in tensors[1:]:
            others = torch.promote_types(others, tensor.dtype)
        if others.is_floating_point or others.is_complex or (isinstance(number, TracedInt) and others != torch.bool):
            own = others
    own = dtype or own
    if own in _REDUCED:
        raise TypeError
    return number.tensor.to(device=device, dtype=own)


def _unless_traced(is_one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: not isinstance(value, TracedNumber) and is_one(value)


def _leaves(tree: Any) -> Iterator[Any]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, slice):
            yield from (leaf.start, leaf.stop, leaf.step)
        else:
            yield from leaf if isinstance(leaf, torch.Size) else (leaf,)


def _replaced(tree: Any, replace: Callable[[TracedNumber], Any]) -> Any:
    """The same with something else for each number; in sizes and slices the number as it is read."""
    if isinstance(tree, TracedNumber):
        return replace(tree)
    if isinstance(tree, slice):
        return slice(*(_replaced(end, TracedNumber.read) for end in (tree.start, tree.stop, tree.step)))
    if isinstance(tree, torch.Size):
        return torch.Size([_replaced(size, TracedNumber.read) for size in tree])
    if type(tree) in (list, tuple):
        return type(tree)(_replaced(part, replace) for part in tree)
    if type(tree) is dict:
        return {key: _replaced(part, replace) for key, part in tree.items()}
    return tree


@contextmanager
def numbers_in_calls(reads: Reads, functions: Iterable[FunctionType]) -> Iterator[Answers]:
    """Numbers that are made by what this gives are recorded while it is entered, and those read of tensors.

    :param functions: of the program.
    """
    answers = Answers(reads)
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(reads, "as_number", answers.number_of))
        stack.enter_context(recorded_names(functions, answers))
        for name in MATHEMATICAL:
            stack.enter_context(mock.patch.object(math, name, recorded_function(name)))
        for function in (min, max):
            stack.enter_context(mock.patch.object(builtins, function.__name__, recorded_extreme(function)))
        # By it Pyro spares itself a product with a scale that is 1, which would be another program.
        is_one = pyro.distributions.util.is_identically_one
        stack.enter_context(mock.patch.object(pyro.distributions.util, is_one.__name__, _unless_traced(is_one)))
        # To torch a number is not like a tensor, though it has what lets tensor-like objects into its functions.
        is_tensor_like = _unless_traced(torch.overrides.is_tensor_like)
        stack.enter_context(mock.patch.object(torch.distributions.utils, "is_tensor_like", is_tensor_like))
        # It logs an error of torch's for each function that has to be given the number itself.
        stack.enter_context(mock.patch.object(fake_tensor.log, "disabled", new=True))
        stack.enter_context(NumbersInCalls())
        try:
            yield answers
        finally:
            answers.active = False
