"""Has torch's dispatcher, not Python, call operators with a generator of random numbers.

Such operators Inductor's C++ wrapper (torch 2.11 to 2.13) calls through Python, 5 µs each, also where no generator is
given. Those that have nothing to complain of are called by torch's dispatcher here, whose errors say less.

There is no option for it: the method that says whether the dispatcher may call an operator is replaced while a program
is generated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sgc.emit.inductor.tuning.tuning import Tuning
from sgc.native.private_attributes import replaced

_DRAWS = frozenset(("aten::_sample_dirichlet", "aten::_standard_gamma"))
"""Operators with a generator that raise nothing, whatever their parameters. In a traced graph none is given."""


@contextmanager
def draws_without_python() -> Iterator[None]:
    """While this is entered, C++ wrappers are generated in this way."""

    def with_draws(by_dispatcher: Callable[[Any], bool]) -> Callable[[Any], bool]:
        return lambda operator: operator._schema.name in _DRAWS or bool(by_dispatcher(operator))

    wrapper = "torch._inductor.codegen.cpp_wrapper_cpu:CppWrapperCpu"
    with replaced({f"{wrapper}._compatible_with_stableivalue": with_draws}):
        yield


TUNING = Tuning(
    name="dispatched_draws",
    what="gamma and Dirichlet draws are called by torch's dispatcher instead of Python",
    faster="steps",
    patch=draws_without_python,
)
