"""What a program takes from around it, as one guard."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import FunctionType
from typing import Any

import numpy as np
from torch import Tensor, nn

from sgc.errors import CaptureError
from sgc.guards.base import Call, Guard
from sgc.guards.environment.libraries import LIBRARY_ROOTS, is_of_a_library
from sgc.guards.environment.noted_values import Environment
from sgc.guards.miss import NO_REASONS, Miss
from sgc.native.conditions import Condition
from sgc.tracing.state.external_reads import ExternalReads
from sgc.tracing.state.places import Place
from sgc.tracing.state.random_state import drawn_from
from sgc.tracing.state.value_parts import PLAIN


class EnvironmentGuard(Guard):
    """The globals, closures and attributes that model and guide name, and those of objects among the arguments.

    And environment and context variables that an eager run has asked for.

    :param moving: places whose tensors and numbers are inputs.
    :param owned: the identities of tensors that others own.
    :param by_value: why numbers in some places are the same at each call.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        call: Call,
        reads: ExternalReads,
        moving: Collection[Place] = (),
        owned: Collection[int] = (),
        by_value: Mapping[Place, str] = NO_REASONS,
    ) -> None:
        self._by_value = by_value
        self._installed = [*_installed(model), *_installed(guide)]
        objects = [leaf for leaf in call.leaves if not isinstance(leaf, (Tensor, np.ndarray, np.generic, *PLAIN))]
        self._environment = Environment(model, guide, *objects, reads=reads, moving=moving)
        tied = self._environment.tied(owned)
        if tied:
            self._environment = Environment(model, guide, *objects, reads=reads, moving={*moving}.difference(tied))

    @property
    def modules(self) -> Iterable[nn.Module]:
        """The modules that they lead to."""
        return self._environment.modules.values()

    @property
    def free(self) -> Mapping[Place, Any]:
        """The places of inputs, with what was there."""
        return self._environment.free

    @property
    def tensors(self) -> Collection[int]:
        """The identities of the tensors that the program can reach without Pyro's store, but for inputs."""
        return self._environment.tensors()

    @property
    def functions(self) -> Sequence[FunctionType]:
        """The functions of the program that are not a library's, or are the model or the guide themselves."""
        return [*self._environment.functions, *self._installed]

    def moved(self) -> Iterator[Place]:
        """The places that hold another tensor or number than they did, those of inputs among them."""
        yield from self._environment.free
        yield from self._environment.moved()

    def conditions(self) -> list[Condition]:
        return self._environment.conditions()

    def miss(self, call: Call) -> Miss | None:
        return self._environment.changed(self._by_value)

    def refuse_used_up(self) -> None:
        """Refuse a program that has drawn from a generator, or has taken items of an iterator or file, that it keeps.

        :raises CaptureError: with the names.
        """
        drawn, taken = self._environment.drawn(), self._environment.taken()
        if drawn:
            raise drawn_from(" and ".join(drawn))
        if taken:
            raise CaptureError(
                f"the program takes items of {' and '.join(taken)}, which a compiled program would not do again",
                remedy="take them outside of model and guide and pass them as arguments",
            )

    def describe(self) -> Iterator[str]:
        yield from self._environment


def _installed(part: Callable[..., Any]) -> Iterator[FunctionType]:
    """The function of a model or guide that an installed package brings, other than those that sgc is made of.

    It reads numbers of its arguments as a user's own does.
    """
    function = inspect.unwrap(type(part).forward if isinstance(part, nn.Module) else part)
    function = getattr(function, "__func__", function)
    module = getattr(function, "__module__", None) or ""
    if isinstance(function, FunctionType) and is_of_a_library(module) and module.partition(".")[0] not in LIBRARY_ROOTS:
        yield function
