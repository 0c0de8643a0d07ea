"""Adds to an error of Pyro's or torch's, as a note, the site and the user's line that it is about.

Pyro raises where it notices something, which is often behind the statement: when it makes the distribution, when it
enters a plate, or when it scores the trace. The error stays what it is; Python shows its notes below its text.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor

from sgc.errors import SgcError, SourceLine
from sgc.tracing.enumeration.asked_enumeration import values_dim
from sgc.tracing.source import belongs_to_user, current_line, is_of_pyro, line_of, parsed


class Statements(Messenger):
    """Notes the source line of each sample statement, and the shape of each site that has all its values at once."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: dict[str, SourceLine | None] = {}
        self._enumerated: dict[str, list[int]] = {}

    def _pyro_sample(self, msg: Any) -> None:
        self._lines[msg["name"]] = current_line()

    def _pyro_post_sample(self, msg: Any) -> None:
        infer = msg["infer"] or {}
        if values_dim(infer) is not None and isinstance(msg["value"], Tensor):
            self._enumerated[msg["name"]] = list(msg["value"].shape)

    def locate(self, error: BaseException) -> None:
        """Add a note to an error, unless it was raised by the user's own code or says where it is about itself."""
        if isinstance(error, SgcError) or error.__traceback__ is None:
            return
        steps = list(_steps(error.__traceback__))
        if belongs_to_user(steps[-1].tb_frame):
            return
        site = next(filter(None, (_site(step.tb_frame) or _named_in(step) for step in reversed(steps))), None)
        line = line_of(error.__traceback__)
        if line is None and site is not None:
            line = self._lines.get(site)
        if line is not None:
            error.add_note(f"at site '{site}', {line}" if site is not None else f"at {line}")
        if self._enumerated and isinstance(error, (RuntimeError, IndexError)):
            shapes = ", ".join(f"'{name}' has the shape {shape}" for name, shape in self._enumerated.items())
            error.add_note(
                f"all values of an enumerated site are in a dim of their own, left of the plates: {shapes}. What is "
                "computed of it must broadcast over that dim (x.expand, index from the right: x[..., 0])"
            )


def original(error: BaseException) -> BaseException:
    """The error as sgc raised it: Pyro's handlers raise another of the same class that has only its text."""
    while isinstance(error.__cause__, SgcError):
        error = error.__cause__
    return error


@contextmanager
def located() -> Iterator[Statements]:
    """Add a note to errors raised inside."""
    statements = Statements()
    try:
        with statements:
            yield statements
    except SgcError as error:
        raise original(error)  # noqa: B904 (it has a cause of its own)
    except Exception as error:
        statements.locate(error)
        raise


def _steps(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _named_in(step: TracebackType) -> str | None:
    """The site whose statement the user's line is in: its distribution is made before Pyro is given its name."""
    if not belongs_to_user(step.tb_frame):
        return None
    code = step.tb_frame.f_code
    start, end, *_ = list(code.co_positions())[step.tb_lasti // 2]
    sites = []
    for call in ast.walk(parsed(code)):
        if isinstance(call, ast.Call) and ast.unparse(call.func).rpartition(".")[2] == "sample" and call.args:
            name, last = call.args[0], call.end_lineno or call.lineno
            if start is not None and end is not None and call.lineno <= start and end <= last:
                sites += [name.value] if isinstance(name, ast.Constant) and isinstance(name.value, str) else []
    return sites[-1] if sites else None


def _site(frame: FrameType) -> str | None:
    """The site or plate that a Pyro function is running for."""
    if not is_of_pyro(frame):
        return None
    given = frame.f_locals
    for name in ("msg", "initial_msg", "site", "node"):
        message = given.get(name)
        if isinstance(message, dict) and message.get("type") in ("sample", "param"):
            return str(message["name"])
    plate = given.get("self")
    if isinstance(plate, IndepMessenger):
        named = getattr(plate, "name", given.get("name"))  # it refuses some sizes before it has its name
        return None if named is None else str(named)
    return None
