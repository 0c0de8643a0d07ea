"""The stages of one specialization, for inspection: what each made of the program, and how it prints."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from sgc.emit.differentiate import Differentiated
from sgc.emit.emitter import Emitted
from sgc.emit.rewrites.optimize import Report
from sgc.runtime.inspection.program_text import program_text
from sgc.runtime.specializing.specialization import Specialization
from sgc.tracing.declare import Capture
from sgc.tracing.prototype import Prototype


class Stages(Mapping[str, Any]):
    """What each stage of :mod:`sgc.runtime.specializing.compiler` has given, in order, by its name; its ``str`` shows
    the program after each.

    The first four are always there: a ``Prototype``, ``Capture``, ``StochasticGraph`` and ``Emitted``. A
    ``Differentiated`` follows once a gradient was asked for; then, for each backend and kind of call that was compiled,
    a ``Rewritten`` (what is kept of an ``Optimized``) and a ``Compiled``.
    """

    def __init__(self, specialization: Specialization) -> None:
        self._stages: dict[str, Any] = {
            "prototype": specialization.prototype,
            "capture": specialization.capture,
            "graph": specialization.graph,
            "emitted": specialization.emitted,
        }
        if specialization.differentiated is not None:
            self._stages["differentiated"] = specialization.differentiated
        for (with_gradient, backend), compiled in specialization.compiled.items():
            what = f"{_kind(with_gradient)}, {backend.name}"
            self._stages[f"optimized: {what}"] = compiled.rewritten
            self._stages[f"compiled: {what}"] = compiled

    def __getitem__(self, name: str) -> Any:
        return self._stages[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stages)

    def __len__(self) -> int:
        return len(self._stages)

    def __str__(self) -> str:
        return "\n".join(f"-- {name}\n{_shown(artefact)}" for name, artefact in self.items())

    def __repr__(self) -> str:
        return f"the stages {', '.join(self)}: print() shows the program after each"


def reports(specialization: Specialization) -> Iterator[tuple[str, Report]]:
    """How each module that was compiled so far was rewritten: for the gradient, for the loss alone, for a step."""
    for (with_gradient, backend), compiled in specialization.compiled.items():
        yield f"{_kind(with_gradient)}, {backend.name}", compiled.rewritten.report
    for backend, report in specialization.steps:
        yield f"whole step, {backend.name}", report


def _kind(with_gradient: bool) -> str:
    return "loss and gradients" if with_gradient else "loss alone"


def _shown(artefact: Any) -> str:
    match artefact:
        case Prototype():
            nesting = artefact.max_plate_nesting
            depth = f"; plates nest {nesting} deep" if math.isfinite(nesting) else ""
            return f"parameters: {', '.join(artefact.params) or 'none'}{depth}"
        case Capture() | Emitted() | Differentiated():
            return program_text(artefact.program.module if isinstance(artefact, Capture) else artefact.module)
        case _:
            return str(artefact)
