"""The guards of one specialization as one Python function, written for it and asked at every call.

Each guard contributes conditions that are cheap to see and enough for it: identities, and one comparison of all
tensors. Where they are true nothing else of the guard is looked at; where they are not, the guard itself decides. So
the function answers as the guards would, one after another, without their loops and calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class Names:
    """The names under which a generated function sees objects."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}
        self._of: dict[int, str] = {}

    def of(self, value: Any, hint: str) -> str:
        """The name of an object, or the object as it is written where that is the same object."""
        if value is None or value is True or value is False:
            return repr(value)
        if id(value) not in self._of:
            name = f"{hint if hint.isascii() and hint.isidentifier() else 'object'}_{len(self.objects)}"
            self.objects[name], self._of[id(value)] = value, name
        return self._of[id(value)]


@dataclass
class Quick:
    """Python for the usual case of a guard: what is fetched first, conditions that are enough, what is done then."""

    conditions: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    after: str = "pass"


class Writer(Protocol):
    """What contributes to a prologue: a guard."""

    def quick(self, names: Names) -> Quick | None:
        """The usual case; None if there is none, so that :meth:`miss` is asked at every call."""
        ...

    def miss(self, call: Any) -> str | None:
        """None where the guard holds."""
        ...


@dataclass(frozen=True)
class Prologue:
    """``holds(call)`` says whether all guards hold; ``code`` is its Python."""

    code: str
    holds: Callable[[Any], bool]


def write_prologue(guards: Sequence[Writer]) -> Prologue:
    """The function for some guards, in their order."""
    names = Names()
    lines = []
    for guard in guards:
        kind, quick = type(guard).__name__, guard.quick(names)
        missed = f"{names.of(guard.miss, f'miss_of_{kind}')}(call) is not None"
        lines.append(f"# {kind}")
        if quick is None:
            lines += [f"if {missed}:", "    return False"]
        elif quick.conditions or quick.before:
            lines += quick.before
            lines += ["if (", f"    {_AND.join(quick.conditions) or True}", "):", f"    {quick.after}"]
            lines += [f"elif {missed}:", "    return False"]

    def decide(call: Any) -> bool:
        return all(guard.miss(call) is None for guard in guards)

    # Where a tensor is none any more, or a cell is empty, a condition has no value.
    head, tail = ["def holds(call):", "    try:"], ["    except (AttributeError, ValueError):"]
    tail += [f"        return {names.of(decide, 'decide')}(call)"]
    code = "\n".join([*head, *(f"        {line}" for line in [*lines, "return True"]), *tail, ""])
    exec(compile(code, "<guards>", "exec"), names.objects)
    return Prologue(code, names.objects["holds"])


_AND = "\n            and "
