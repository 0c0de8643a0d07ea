"""Stand-ins for the process that compiles: they answer at the step that a test says."""

from __future__ import annotations

from collections.abc import Callable

from sgc.emit.inductor.background import compile_worker
from sgc.emit.inductor.background.compile_request import Answer


class Promised:
    """A request that is compiled in this process, when it is asked for."""

    def __init__(self, text: str, is_due: Callable[[], bool]) -> None:
        self.text = text
        self._is_due = is_due
        self._answer: Answer | None = None
        self.failure = ""

    def is_done(self) -> bool:
        return self._is_due()

    @property
    def answer(self) -> Answer | None:
        if self._answer is None and not self.failure:
            self._answer = compile_worker.compiled(self.text)
        return self._answer


class AtRequest:
    """Compiles what it was asked for, once ``due`` is set; or fails then, if there is a ``failure``."""

    def __init__(self, failure: str = "") -> None:
        self.requests: list[Promised] = []
        self.due = False
        self._failure = failure

    def submit(self, text: str) -> Promised:
        promised = Promised(text, lambda: self.due)
        promised.failure = self._failure
        self.requests.append(promised)
        return promised
