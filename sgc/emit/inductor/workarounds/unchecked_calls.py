"""Has the C++ wrapper look at the outcome of every operator that it calls.

Of some operators that write into a buffer (``bernoulli_``, ``scatter_reduce``) Inductor's C++ wrapper (torch 2.11 to
2.13) does not look at whether they failed. There is no option for it: the methods that write any line are replaced
while a program is generated, and a line that is such a call alone is made one that raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from sgc.emit.inductor.workarounds.workaround import MinimalProgram, Workaround
from sgc.native.private_attributes import replaced

_UNCHECKED = re.compile(r"(aoti_torch_(?:cpu|cuda|xpu|mps)_\w+\(.*\));")
"""A call of an operator whose outcome is not looked at."""


def _checked(line: Any) -> Any:
    """A line of a program, which raises if it calls an operator that fails."""
    operator = _UNCHECKED.fullmatch(line) if isinstance(line, str) else None
    return f"AOTI_TORCH_ERROR_CODE_CHECK({operator[1]});" if operator else line


@contextmanager
def calls_checked() -> Iterator[None]:
    """While this is entered, C++ wrappers are generated in this way."""

    def with_checks(write_line: Callable[..., None]) -> Callable[..., None]:
        return lambda self, line: write_line(self, _checked(line))

    def with_checks_elsewhere(set_writeline: Callable[..., Any]) -> Callable[..., Any]:
        def set_checked(self: Any, *target: Any) -> AbstractContextManager[Any]:
            *before, write = target  # one more in torch 2.13 than in torch 2.11
            return set_writeline(self, *before, lambda line: write(_checked(line)))

        return set_checked

    wrapper = "torch._inductor.codegen.cpp_wrapper_cpu:CppWrapperCpu"
    with replaced({f"{wrapper}.writeline": with_checks, f"{wrapper}.set_writeline": with_checks_elsewhere}):
        yield


def _multiplied(x: Tensor, index: Tensor) -> list[Tensor]:
    return [x.scatter_reduce(0, index, torch.full((2,), 3.0), "prod")]


WORKAROUND = Workaround(
    name="unchecked_calls",
    defect="the C++ wrapper goes on where operators that write into a buffer have failed",
    reported="https://github.com/pytorch/pytorch/pull/190909",
    seen=("2.11", "2.12", "2.13"),
    programs=[
        MinimalProgram(
            _multiplied,
            lambda: [torch.arange(3.0), torch.tensor([0, 1])],
            others=lambda: [torch.arange(3.0), torch.tensor([0, 5])],
        )
    ],
    patch=lambda module: calls_checked(),
)
