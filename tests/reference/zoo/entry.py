"""What a program of the zoo is: a model, a guide, and what to run them with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """A fresh program: what ``TraceGraph_ELBO(**options).loss_and_grads`` is to be called with."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


Make = Callable[[], Case]


@dataclass(frozen=True)
class Entry:
    """A named maker of programs; ``make`` is deterministic given the seed set before the call.

    ``differs`` says why sgc's gradient is, on purpose, not the one of Pyro's TraceGraph_ELBO; its loss is.
    """

    name: str
    topic: str
    about: str
    make: Make
    inductor: bool = False
    differs: str = ""


class Collection(list[Entry]):
    """The entries of one module, in the order of their definition."""

    def entry(self, topic: str, about: str, *, inductor: bool = False, differs: str = "") -> Callable[[Make], Make]:
        """Adds the decorated function, which is the entry's ``make`` and gives it its name."""

        def add(make: Make) -> Make:
            self.append(Entry(make.__name__, topic, about, make, inductor, differs))
            return make

        return add
