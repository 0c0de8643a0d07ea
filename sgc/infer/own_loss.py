"""The loss that an ``SVI`` makes itself, from options, and the compiled class to take in the place of one of Pyro's."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pyro.infer.elbo import ELBO

from sgc.errors import ArgumentError
from sgc.infer import elbo
from sgc.infer.compiled_loss import CompiledLoss

_OPTIONS = frozenset(inspect.signature(elbo.TraceGraph_ELBO).parameters)
_OTHER_LOSS = ("objective", "analytic_kl", "alpha")


def own_loss(options: Mapping[str, Any]) -> elbo.TraceGraph_ELBO:
    """A :class:`~sgc.infer.elbo.TraceGraph_ELBO` with these options that compiles with Inductor at once.

    :raises sgc.errors.ArgumentError: if it has no such option.
    """
    for name in options:
        if name not in _OPTIONS:
            raise ArgumentError(f"an SVI has no option {name!r}", remedy=_remedy(name))
    return elbo.TraceGraph_ELBO(**{"backend": "inductor", "rng": "fast", **options})


def refuse_options(options: Mapping[str, Any], loss: ELBO | Callable[..., Any]) -> None:
    """Refuse options beside a loss, which has its own.

    :raises sgc.errors.ArgumentError: with the first one.
    """
    for name in options:
        compiled = isinstance(loss, CompiledLoss)
        raise ArgumentError(
            f"{name} is for the loss that SVI makes itself, where none is given",
            remedy=f"pass it to the loss: sgc.infer.{type(loss).__name__}({name}=...)" if compiled else "leave it out",
        )


def compiled_class(loss: ELBO | Callable[..., Any]) -> str:
    """The class to take in the place of a loss that is not compiled: that of the same name, where there is one."""
    name = type(loss).__name__
    own = getattr(elbo, name, None)
    return f"sgc.infer.{name if isinstance(own, type) else elbo.TraceGraph_ELBO.__name__}"


def _remedy(name: str) -> str:
    if name in _OTHER_LOSS:
        return "pass the loss itself: sgc.SVI(model, guide, optim, sgc.infer.Trace_ELBO()), say"
    close = difflib.get_close_matches(name, _OPTIONS, 1)
    meant = f"did you mean {close[0]!r}? " if close else ""
    return f"{meant}its options are those of sgc.infer.TraceGraph_ELBO: num_particles, estimators, backend, wait, ..."
