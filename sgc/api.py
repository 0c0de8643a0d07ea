"""The public entries: :func:`compile` and :func:`capture`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from sgc.config import EstimatorName, Objective, Options, Renyi, Rng, as_estimators
from sgc.errors import ArgumentError
from sgc.graph.graph import StochasticGraph
from sgc.runtime.loss_module import LossModule


def compile(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *,
    num_particles: int = 1,
    vectorize_particles: bool = False,
    max_plate_nesting: float = math.inf,
    backend: str = "inductor",
    rng: Rng = "fast",
    cache_size: int = 16,
    validate: bool | None = None,
    dynamic: Literal["error", "speculate"] = "error",
    wait: bool | None = None,
    objective: Objective | Renyi = "elbo",
    analytic_kl: bool = False,
    estimators: Mapping[str, EstimatorName] | None = None,
) -> LossModule:
    """Compile a model and guide into a loss module. Nothing is run yet: the first call captures and compiles.

    By default the loss is that of Pyro's ``TraceGraph_ELBO`` (https://docs.pyro.ai, "SVI and loss"): its value is
    minus the ELBO, its gradient that of the surrogate of Schulman et al. 2015 with Rao-Blackwellised downstream
    costs and baselines.

    :param model: any callable of Pyro statements, an ``nn.Module`` or ``PyroModule`` too.
    :param guide: likewise, with the same arguments; an autoguide too.
    :param num_particles: how many samples of the ELBO are averaged.
    :param vectorize_particles: draw them in one vectorised run, in a plate of their own, instead of one
        after another.
    :param max_plate_nesting: the deepest nesting of vectorised plates; found by a run where needed.
    :param backend: ``"inductor"`` compiles to C++ or Triton; ``"eager"`` runs the emitted graph as it is,
        bit-equal to Pyro; ``"torchscript"`` makes TorchScript of it.
    :param rng: ``"torch"`` lets Inductor draw the same random numbers as eager torch under one seed; ``"fast"``
        may draw others of the same law.
    :param cache_size: how many specializations are kept.
    :param validate: whether the compiled program checks, at every call, the parameters of distributions and the values
        that they score, as Pyro's validation does; a call that fails raises Pyro's own error and changes nothing.
        ``None`` follows Pyro's switch (``pyro.enable_validation``), ``True`` and ``False`` do not.
    :param dynamic: how a branch on a sample is taken: ``"error"`` raises; ``"speculate"`` assumes that it goes as in
        the call that is captured, checks that at each call, and lets eager Pyro make a call where it does not, with the
        same random numbers. It implies ``rng="torch"``.
    :param wait: whether calls wait for Inductor. If not, the first ones run the graph that is compiled operator by
        operator, with the same random numbers, while another process compiles it; from which call on it is the compiled
        one depends on the machine, and the results differ by rounding. ``None`` does not wait on a CPU of two cores or
        more, unless ``torch.use_deterministic_algorithms`` or the environment variable ``SGC_WAIT`` ask for it.
    :param objective: ``"elbo"``, or the name of the class of Pyro's whose loss it is: ``"Trace_ELBO"``,
        ``"TraceMeanField_ELBO"``; of ``RenyiELBO`` it is ``sgc.Renyi(alpha)``. ``"iwae"`` is the importance weighted
        bound of ``num_particles``, with a gradient that is unbiased at sites with a score function, too.
    :param analytic_kl: with ``objective="elbo"``: take ``-KL(q(z) || p(z))`` in the place of ``log p(z) - log q(z)`` at
        each site where torch or Pyro has the closed form and the graph proves that the expectation stays.
    :param estimators: with ``objective="elbo"``: by the name of a site, or a pattern (``"z_*"``, ``"*"``), how the
        gradient passes through it: ``"pathwise"``, ``"partially pathwise"``, ``"score function"`` (without a baseline),
        ``"leave-one-out"``, ``"decaying average"`` or ``"decaying average per datum"`` (a score function with that
        baseline), ``"enumerate"`` (a discrete site: the exact sum over its values; one that the guide does not draw is
        summed out of the model), or ``"auto"``, which measures these, but for an average per datum, at the first call
        and takes the best (:meth:`sgc.LossModule.choice`). A name goes before what the site asks for by its ``infer``,
        and that before a pattern; of the patterns the first that matches counts.
    :raises sgc.errors.ArgumentError: if an option is of the wrong kind.
    :raises sgc.errors.BackendError: if the backend is unknown.
    """
    if dynamic not in ("error", "speculate"):
        raise ArgumentError(f"dynamic must be 'error' or 'speculate', not {dynamic!r}")
    speculate = dynamic == "speculate"
    options = Options(
        num_particles,
        vectorize_particles,
        max_plate_nesting,
        backend,
        "torch" if speculate else rng,
        cache_size,
        validate,
        speculate,
        wait,
        "RenyiELBO" if isinstance(objective, Renyi) else objective,
        alpha=objective.alpha if isinstance(objective, Renyi) else 0.0,
        analytic_kl=analytic_kl,
        estimators=as_estimators(estimators),
    )
    return LossModule(model, guide, options)


def capture(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> StochasticGraph:
    """The stochastic computation graph of a model and guide called with these arguments; nothing is compiled.

    :raises sgc.errors.SgcError: if the program cannot be captured.
    """
    return compile(model, guide, backend="eager").initialize(*args, **kwargs).graph
