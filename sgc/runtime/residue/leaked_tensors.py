"""Takes the traced tensors away that a capture has left in a program's objects.

What a program keeps while it is captured (an attribute, an entry of a list, a variable of a closure) has no data. What
can be reached is noted before a capture. Where it leads to a traced tensor after it, it holds again what it held.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from sgc.errors import CaptureError, SideEffectWarning, SourceLine
from sgc.guards.environment.libraries import LIBRARY_ROOTS
from sgc.guards.environment.library_objects import is_cache, is_of_a_run
from sgc.guards.hooks import GLOBAL_HOOKS
from sgc.runtime.residue.holders import Holder, holders
from sgc.runtime.residue.reachable import UNWRITTEN, Visit, is_end, line_of, parts, reachable
from sgc.tracing import tracer
from sgc.tracing.source import warn
from sgc.tracing.state.param_store import current_store


class LeakedTensors:
    """What the objects that can be reached held before a capture.

    :param roots: model, guide, arguments and modules, each with a name.
    """

    def __init__(self, roots: Iterable[tuple[str, object]]) -> None:
        # On a parameter in the store a plate with a subsample notes its indices.
        self._visits = reachable((*roots, *current_store().tensors().items()))
        self._holders: list[Holder] = [holder for visit in self._visits.values() for holder in holders(visit)]

    def label_of(self, tensor: Tensor) -> str | None:
        """Where a tensor is, if it can be reached."""
        places = (Visit(part, visit, step) for visit in self._visits.values() for step, part in parts(visit))
        return next((place.label for place in places if place.value is tensor), None)

    def put_back(self) -> list[Visit]:
        """Put it back; return the places that held traced tensors."""
        places = []
        clean: dict[int, object] = {}
        for holder in [holder for holder in self._holders if holder.has_changed()]:
            left = [place for place in holder.new() if self._traced(place, clean) is not None]
            if left:
                holder.put_back(left)
                places += left
        return places

    def refuse_lasting(self, left: list[Visit]) -> None:
        """Refuse what could not be put back.

        :raises CaptureError: with the place.
        """
        lasting = next(self._lasting(), None) if left else None
        if lasting is not None:
            raise CaptureError(
                f"the program keeps a tensor in {lasting.label}, from where it cannot be taken away after the capture",
                source=self._line(lasting),
                remedy="keep it in an attribute, a list or a dictionary, or do not keep it",
            )

    def warn(self, left: list[Visit]) -> None:
        """Warn of what was put back."""
        shown = {place.label: self._line(place) for place in left if _is_of_user(place)}
        if shown:
            places = "; ".join(label if line is None else f"{label} ({line})" for label, line in shown.items())
            warn(
                f"the program keeps tensors of a run in {places}. A compiled program does not do so again: those of "
                "its first run stay there. Keep them in a buffer, or return them from the model.",
                SideEffectWarning,
            )

    def _lasting(self) -> Iterator[Visit]:
        """The traced tensors that are still there, in objects that cannot be written into."""
        clean: dict[int, object] = {}
        for holder in self._holders:
            for place in holder.new() if holder.has_changed() else ():
                visit = self._traced(place, clean)
                if visit is not None:
                    yield visit

    def _traced(self, place: Visit, clean: dict[int, object]) -> Visit | None:
        """The way to a traced tensor through objects that were not there before; None if there is none."""
        seen: dict[int, object] = {}
        waiting = deque([place])
        while waiting:
            visit = waiting.popleft()
            identity = id(visit.value)
            if tracer.is_traced(visit.value):
                return visit
            if not (identity in self._visits or identity in clean or identity in seen or is_end(visit.value)):
                seen[identity] = visit.value
                waiting += [Visit(part, visit, step) for step, part in parts(visit)]
        clean |= seen
        return None

    def _line(self, place: Visit) -> SourceLine | None:
        """Where the program writes there."""
        name = place.name()
        values = [visit.value for visit in self._visits.values()]
        functions = [value for value in values if isinstance(value, types.FunctionType)]
        functions.sort(key=lambda function: function.__name__ == "__init__")  # it writes first, but is not the program
        lines = (line_of(name, function) for function in functions if name is not None)
        return next((line for line in lines if line is not None), None)


@contextmanager
def without_leaks_into(functions: Iterable[type]) -> Iterator[None]:
    """Take away what a trace leaves in some classes of ``autograd.Function`` and what their code names.

    :raises CaptureError: where it cannot be taken away.
    """
    leaks = LeakedTensors((cls.__qualname__, cls) for cls in functions)
    try:
        yield
    finally:
        left = leaks.put_back()
    leaks.refuse_lasting(left)


def roots(
    model: Any, guide: Any, arguments: Iterable[tuple[str, Any]], modules: Iterable[nn.Module]
) -> Iterator[tuple[str, Any]]:
    """Where a program's objects are reached from, modules under the names of their classes."""
    for name, value in (("model", model), ("guide", guide), *arguments):
        yield type(value).__name__ if isinstance(value, nn.Module) else name, value
    yield from ((type(module).__name__, module) for module in modules)
    yield from GLOBAL_HOOKS.items()


def _is_of_user(place: Visit) -> bool:
    """Whether the user's code writes there; no program relies on what Pyro and torch write into their own objects."""
    owner, name = place.owner(), place.name() or ""
    if place.step is UNWRITTEN or type(owner).__module__.partition(".")[0] in LIBRARY_ROOTS or is_cache(owner, name):
        return False
    return not (isinstance(owner, (AutoGuide, Messenger)) and is_of_a_run(place.value))
