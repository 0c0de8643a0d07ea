"""What is compared: a program, the class of Pyro's that it is trained with, and what sgc is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pyro.infer


@dataclass(frozen=True)
class Trained:
    """A model and a guide with the arguments of a step.

    :param elbo: the name of the class, which ``pyro.infer`` and ``sgc.infer`` have.
    :param their_elbo: that of ``pyro.infer``, where its class of the same name does not know what sgc's does.
    :param options: of both.
    :param estimators: sgc's option of that name. What Pyro is asked for in its place stands in ``their_guide``.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]
    elbo: str
    options: dict[str, Any] = field(default_factory=dict)
    estimators: dict[str, str] | None = None
    their_guide: Callable[..., Any] | None = None
    their_elbo: str | None = None

    def loss(self, infer: ModuleType, **options: Any) -> Any:
        """The ELBO of ``pyro.infer`` or ``sgc.infer``."""
        name = self.their_elbo or self.elbo if infer is pyro.infer else self.elbo
        return getattr(infer, name)(**self.options, **options)


Make = Callable[[], Trained]


@dataclass(frozen=True)
class Comparison:
    """A named maker of one; ``make`` is deterministic given the seed set before the call."""

    name: str
    topic: str
    about: str
    make: Make
    inductor: bool = False


class Comparisons(list[Comparison]):
    """Those of one module, in the order of their definition."""

    def __init__(self, topic: str) -> None:
        super().__init__()
        self.topic = topic

    def add(self, about: str, *, inductor: bool = False) -> Callable[[Make], Make]:
        """Adds the decorated function, which gives the comparison its name."""

        def added(make: Make) -> Make:
            self.append(Comparison(make.__name__, self.topic, about, make, inductor))
            return make

        return added
