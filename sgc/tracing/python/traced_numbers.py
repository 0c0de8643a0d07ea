"""A Python number that is an input of the program: what Python computes with it is recorded as tensors are.

It is a number of Python's own kind, for whoever asks by ``isinstance``, and knows its value. Arithmetic gives another
such number; a comparison, ``int()`` or a text gives Python's answer, which becomes a guard. Its class is derived from
no class of numbers, lest C read a value in it unseen: what wants a number of Python's asks ``float()`` or an index of
it, or raises an error.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgc.graph.sizes import is_formula
from sgc.tracing import tracer
from sgc.tracing.python.number_arithmetic import ARITHMETIC
from sgc.tracing.values.reads import Reads

_LARGEST = 2**53


class TracedNumber(tracer.Traced):
    """The base of :class:`TracedFloat` and :class:`TracedInt`.

    ``value`` is the number, ``tensor`` stands for it in the capture: 0-d, float64, on the CPU.
    """

    value: Any
    tensor: Tensor
    answers: Answers
    may_be_rounded = False
    """Whether it is a whole number that another call may make too large for ``tensor``."""

    __array_ufunc__ = None
    """numpy is not to compute with it: it would in C."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self.value)

    @classmethod
    def __torch_function__(cls, *_: Any) -> Any:
        """Torch takes it for any kind of argument; the mode of a capture is asked what to do with it."""
        return NotImplemented

    def read(self) -> Any:
        """The number, as one on which the structure of the program relies."""
        if self.answers.is_recording():
            self.answers.require_exact(self)
        return self.answers.read(self.tensor, self.value)

    def __copy__(self) -> TracedNumber:
        return self

    def __deepcopy__(self, memo: Any) -> TracedNumber:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return type(self.value), (self.read(),)

    def __bool__(self) -> bool:
        return bool(self.answers.ask("ne", self, 0))

    def __float__(self) -> float:
        return float(self.read())

    def __int__(self) -> int:
        return int(self.answers.whole(self, "trunc"))

    def __complex__(self) -> complex:
        return complex(self.read())

    def __hash__(self) -> int:
        return hash(self.read())

    def __str__(self) -> str:
        return str(self.read())

    def __repr__(self) -> str:
        return repr(self.read())

    def __format__(self, spec: str) -> str:
        return format(self.read(), spec)

    def __neg__(self) -> Any:
        return self.answers.result(-self.value, lambda a: -a, self)

    def __pos__(self) -> Any:
        return self

    def __abs__(self) -> Any:
        return self.answers.result(abs(self.value), torch.abs, self)

    def __floor__(self) -> Any:
        return self.answers.rounded(self, math.floor, torch.floor)

    def __ceil__(self) -> Any:
        return self.answers.rounded(self, math.ceil, torch.ceil)

    def __trunc__(self) -> Any:
        return self.answers.rounded(self, math.trunc, torch.trunc)

    def __round__(self, digits: int | None = None) -> Any:
        if digits is not None:
            return round(self.read(), digits)
        return self.answers.rounded(self, round, torch.round)


class TracedFloat(TracedNumber):
    """A float that is recorded."""


class TracedInt(TracedNumber):
    """An int that is recorded."""

    def __index__(self) -> int:
        return operator.index(self.read())


_KINDS: dict[type, Any] = {float: TracedFloat, np.float64: TracedFloat, int: TracedInt}
TRACED = frozenset(_KINDS.values())


class Answers:
    """Makes traced numbers, and answers what Python asks of them as long as the capture goes on."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads
        self._asked: set[tuple[Any, ...]] = set()
        self._kept: list[Any] = []  # so that no identity is used twice
        self.active = True
        self.missed = False
        """Whether a number was used where nothing is recorded."""

    def number(self, value: Any, tensor: Tensor) -> Any:
        """A number that stands for a 0-d tensor."""
        made = _KINDS[type(value)]()
        with torch._C.DisableTorchFunction():
            made.value, made.tensor, made.answers = value, tensor.double(), self
        return made

    def is_number(self, tensor: Tensor) -> bool:
        """Whether a tensor is a traced one of one real number."""
        return tracer.is_traced(tensor) and self.is_recording() and tensor.numel() == 1 and not tensor.is_complex()

    def number_of(self, tensor: Tensor, kind: type) -> Any:
        """A number that a tensor with one element holds; whole numbers are cut off, as by ``int``.

        :raises DataDependenceError: if it depends on a sample.
        """
        with torch._C.DisableTorchFunction():
            wide = tensor.detach().reshape(()).to(device="cpu", dtype=torch.float64 if kind is float else torch.int64)
        value = self._reads.computed(wide, "a number").value
        with tracer.concrete(), torch._C.DisableTorchFunction():
            number = value.item()
        if kind is int and abs(number) >= _LARGEST:
            return self.read(wide, number)
        made = self.number(number, wide)
        made.may_be_rounded = kind is int
        return made

    def converted(self, number: TracedNumber, kind: type) -> Any:
        """What ``int`` or ``float`` make of a number."""
        if kind is float:
            return self.result(float(number.value), torch.Tensor.double, number)
        return math.trunc(number)

    def result(self, value: Any, compute: Callable[..., Tensor], *numbers: Any) -> Any:
        """What a function of numbers gives, of which ``value`` is Python's own answer."""
        if not self.is_recording():
            return value
        if type(value) not in _KINDS or (isinstance(value, int) and abs(value) > _LARGEST):
            return self._guarded(value, numbers)
        with torch._C.DisableTorchFunction():
            tensor = compute(*map(self.operand, numbers)).double()
            made = self.number(value, tensor)
        if isinstance(made, TracedInt):
            for number in numbers:
                self.require_exact(number)
            made.may_be_rounded = True
        return made

    def rounded(self, number: TracedNumber, function: Callable[..., Any], compute: Callable[..., Tensor]) -> Any:
        """A whole number that is near."""
        made = self.result(function(number.value), compute, number)
        if isinstance(number, TracedFloat) and type(made) in TRACED:
            with torch._C.DisableTorchFunction():
                self.require(number.tensor.isfinite(), "what Python makes a whole number of")
        return made

    def operand(self, number: Any) -> Tensor:
        """The tensor of a number, traced or not: float64 also of an int, which overflows as Python's do not."""
        if isinstance(number, TracedNumber):
            return number.tensor
        if is_formula(number):
            return torch.ones((), dtype=torch.float64, device="cpu") * number
        return torch.full((), number, dtype=torch.float64, device="cpu")

    def _guarded(self, value: Any, numbers: tuple[Any, ...]) -> Any:
        """A value that follows from the values of some numbers, which are guarded instead."""
        for number in numbers:
            if isinstance(number, TracedNumber):
                number.read()
            elif is_formula(number):
                float(number)  # torch notes it
        return value

    def read(self, tensor: Tensor, value: Any) -> Any:
        """A value that Python is given, guarded."""
        if self._is_new("value", tensor):
            with torch._C.DisableTorchFunction():
                asked = tensor.long() if isinstance(value, int) else tensor
            self._reads.evaluate(asked, "a number")
        return value

    def ask(self, name: str, one: TracedNumber, other: Any) -> Any:
        """The answer to a comparison, guarded."""
        answer = getattr(operator, name)(one.value, value_of(other))
        if self.is_recording():
            self.require_exact(one)
            self.require_exact(other)
        if type(other) is int and abs(other) > _LARGEST:
            one.read()
        elif self._is_new(name, one.tensor, other.tensor if isinstance(other, TracedNumber) else other):
            with torch._C.DisableTorchFunction():
                asked = getattr(torch, name)(self.operand(one), self.operand(other))
            if bool(self._reads.numbers(asked)) is not bool(answer):  # as Python and torch round differently
                self._guarded(answer, (one, other))
        return answer

    def whole(self, number: TracedNumber, name: str) -> int:
        """A whole number that Python is given, guarded."""
        if self._is_new(name, number.tensor):
            with torch._C.DisableTorchFunction():
                asked = getattr(number.tensor.double(), name)().long()
            self._reads.evaluate(asked, "a number")
        return int(number.value)

    def require(self, holds: Tensor, what: str) -> None:
        """A condition for a number to be what Python gives, without an error and of the same kind."""
        assert self._reads.check_number is not None
        self._reads.check_number(holds, what)

    def require_exact(self, number: Any) -> None:
        """A whole number must be exact where Python goes on with it as one; as a float both are rounded alike."""
        if isinstance(number, TracedInt) and number.may_be_rounded:
            number.may_be_rounded = False
            with torch._C.DisableTorchFunction():
                self.require(number.tensor.abs() <= _LARGEST, "a whole number that is beyond 2**53")

    def require_as_in_c(self, number: TracedNumber, operands: tuple[Any, ...], what: str) -> None:
        """Python raises an error where C gives NaN of numbers, or an infinity of finite ones; numpy does not."""
        if type(number.value) is np.float64:
            return
        with torch._C.DisableTorchFunction():
            is_nan, is_infinite = number.tensor.isnan(), number.tensor.isinf()
            for operand in map(self.operand, operands):
                is_nan, is_infinite = is_nan & ~operand.isnan(), is_infinite & operand.isfinite()
            self.require(~(is_nan | is_infinite), what)

    def is_recording(self) -> bool:
        """Whether what is computed now is recorded."""
        if self.active and not tracer.is_capturing():
            self.missed = True
        return self.active and tracer.is_capturing()

    def _is_new(self, *question: Any) -> bool:
        """Whether something is asked for the first time in the capture."""
        if not self.is_recording():
            return False
        key = tuple(id(part) if isinstance(part, Tensor) else (type(part), part) for part in question)
        self._kept += question
        if key in self._asked:
            return False
        self._asked.add(key)
        return True


def value_of(number: Any) -> Any:
    """Python's own number for one that may be traced, or a formula of sizes."""
    if is_formula(number):
        return number.node.hint
    return number.value if isinstance(number, TracedNumber) else number


# -- Python's operators

PLAIN_NUMBERS = (bool, int, float)
_COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
_DIVISIONS = frozenset(("truediv", "floordiv", "mod"))


def _binary(name: str, compute: Callable[[Tensor, Tensor], Tensor], *, reflected: bool) -> Callable[..., Any]:
    python = getattr(operator, name)

    def operate(self: TracedNumber, other: Any) -> Any:
        if isinstance(other, Tensor):
            return NotImplemented
        pair = (other, self) if reflected else (self, other)
        if not isinstance(other, (TracedNumber, *PLAIN_NUMBERS)) and not is_formula(other):
            return python(*(part.read() if part is self else part for part in pair))
        made = self.answers.result(python(*map(value_of, pair)), compute, *pair)
        if type(made) in TRACED and name in _DIVISIONS and type(made.value) is not np.float64:
            with torch._C.DisableTorchFunction():
                self.answers.require(self.answers.operand(pair[1]) != 0, "what Python divides by")
        elif type(made) in TRACED and name == "pow":
            self.answers.require_as_in_c(made, pair, "a power that is no real number")
        return made

    return operate


def _by_reading(name: str, *, reflected: bool) -> Callable[..., Any]:
    function = divmod if name == "divmod" else getattr(operator, name)

    def operate(self: TracedNumber, other: Any) -> Any:
        pair = (other, self) if reflected else (self, other)
        return function(*(part.read() if isinstance(part, TracedNumber) else part for part in pair))

    return operate


def _comparison(name: str) -> Callable[..., Any]:
    def compare(self: TracedNumber, other: Any) -> Any:
        if isinstance(other, (TracedNumber, *PLAIN_NUMBERS)):
            return self.answers.ask(name, self, other)
        if isinstance(other, Tensor):
            return NotImplemented
        return getattr(operator, name)(self.read(), other)

    return compare


for _name, _compute in ARITHMETIC.items():
    setattr(TracedNumber, f"__{_name}__", _binary(_name, _compute, reflected=False))
    setattr(TracedNumber, f"__r{_name}__", _binary(_name, _compute, reflected=True))
for _name in ("lshift", "rshift", "and", "or", "xor", "divmod"):
    _function = f"{_name}_" if _name in ("and", "or") else _name
    setattr(TracedNumber, f"__{_name}__", _by_reading(_function, reflected=False))
    setattr(TracedNumber, f"__r{_name}__", _by_reading(_function, reflected=True))
for _name in _COMPARISONS:
    setattr(TracedNumber, f"__{_name}__", _comparison(_name))
