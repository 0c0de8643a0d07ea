"""``SVI`` with sgc's loss as the default."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.infer
from pyro.infer.elbo import ELBO
from pyro.optim import PyroOptim

from sgc.infer.elbo import TraceGraph_ELBO


class SVI(pyro.infer.SVI):
    """Pyro's ``SVI``, compiled: ``step``, ``evaluate_loss``, optimizers and schedulers are Pyro's own.

    Each step runs the compiled loss and gradient, then hands the parameters that the program used to the
    optimizer, one optimizer state for each; baseline averages are never among them.

    :param model: a callable of Pyro statements.
    :param guide: likewise, with the same arguments.
    :param optim: a ``pyro.optim.PyroOptim`` or scheduler.
    :param loss: an ELBO, or a function of ``(model, guide, *args, **kwargs)``; a default
        :class:`sgc.infer.TraceGraph_ELBO` where omitted.
    :param loss_and_grads: as in Pyro, for a ``loss`` that is a function.
    :raises ValueError: if ``optim`` is no ``PyroOptim``.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optim: PyroOptim,
        loss: ELBO | Callable[..., Any] | None = None,
        loss_and_grads: Callable[..., Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, guide, optim, TraceGraph_ELBO() if loss is None else loss, loss_and_grads, **kwargs)
