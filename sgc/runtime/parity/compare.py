"""Compares a specialization with eager Pyro under one seed, site by site and parameter by parameter."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from pyro.poutine import Trace
from torch import Tensor, nn

from sgc.errors import SgcError
from sgc.graph.enumeration_nodes import MarginalCostNode
from sgc.graph.expectation_nodes import ProbabilityNode
from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import CostNode
from sgc.graph.plan import ENUMERATING
from sgc.graph.program import SiteKind
from sgc.guards.base import Call
from sgc.runtime.parity.by_design import Fault, Seen, pyro_without
from sgc.runtime.parity.eager_costs import eager_cost
from sgc.runtime.parity.stale_caches import StaleCachesCleared
from sgc.runtime.parity.verification import Difference, Reason, Verification
from sgc.runtime.restore_on_error import saved
from sgc.runtime.specializing.compiler import compile_loss
from sgc.runtime.specializing.specialization import Specialization
from sgc.runtime.speculation.branches import first_failed
from sgc.tracing.enumeration.enumerated_runs import joined, named_apart
from sgc.tracing.prototype import preserved_state
from sgc.tracing.reference.loss_of_objective import PYRO_LOSSES, pyro_elbo
from sgc.tracing.reference.pyro_loss import PyroLoss
from sgc.tracing.state.baseline_averages import BASELINE_PREFIX
from sgc.tracing.state.random_state import random_state, restore_random_state
from sgc.tracing.state.writes import undone_writes

_SEED = 20140714
_SEEDS = 100


@dataclass(frozen=True)
class _Result:
    """What one side has computed: each number by its kind and name."""

    loss: Tensor
    sites: dict[str, Tensor]
    gradients: dict[str, Tensor | None]

    def differences(self, other: _Result) -> list[Difference]:
        """From ``other``, which is Pyro's side: the loss first, then sites and gradients."""
        return [
            _difference("-ELBO", other.loss, self.loss),
            *(_difference(name, other.sites[name], ours) for name, ours in self.sites.items() if name in other.sites),
            *(_difference(name, other.gradients[name], ours) for name, ours in self.gradients.items()),
        ]


def verify(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    call: Call,
    specialization: Specialization,
    tensors: list[Tensor],
    modules: Sequence[nn.Module],
    tolerance: float = 1e-5,
) -> Verification:
    """Run eager Pyro and the specialization from the same random state; nothing is left changed.

    Where they differ, eager Pyro runs again without its known faults. What is equal then differs by design; a fault is
    a reason for it if Pyro with this fault alone differs there.
    """
    wanted = [i for i, tensor in enumerate(tensors) if tensor.requires_grad]
    names = [specialization.inputs[i].name for i in wanted]
    leaves = [tensors[i] for i in wanted]
    averages = specialization.averages()
    nodes = specialization.baselines.nodes
    lent = {BASELINE_PREFIX + node.site: t.clone() for node, t in zip(nodes, averages, strict=True)}
    seed = _seed(specialization, tensors, modules)

    def pyro_side(make: Callable[..., PyroLoss]) -> _Result:
        elbo = pyro_elbo(specialization.options, specialization.prototype.max_plate_nesting, make)
        with _nothing_changed(modules, averages, lent):
            torch.manual_seed(seed)
            loss, gradients, traces = _pyro(elbo, model, guide, call, leaves)
        sites = dict(_pyro_sites(specialization.graph, traces))
        return _Result(loss, sites, dict(zip(names, gradients, strict=True)))

    objective = specialization.options.objective
    enumerated = _beside_other_estimators(specialization.graph) if objective not in ENUMERATING else []
    plain = partial(PYRO_LOSSES[objective], as_asked=bool(enumerated))
    with undone_writes() as written:
        pyro_side(plain)
    with written.again():  # not under the mode that saw what is written: it changes what torch.tensor(z) is in Pyro
        theirs = pyro_side(plain)
    with _nothing_changed(modules, averages), written.again():
        torch.manual_seed(seed)
        values = specialization.values(tensors)
    backend = specialization.backend_of(with_gradient=True)
    same_numbers = backend.draws_as_torch(specialization.options.rng)
    with _nothing_changed(modules, averages), written.again():
        torch.manual_seed(seed)
        our_loss, our_gradients = _ours(specialization, tensors, averages, wanted, compiled=same_numbers)
    sites = {name: values[node] for name, node in _site_nodes(specialization.graph).items()}
    ours = _Result(our_loss, sites, dict(zip(names, our_gradients, strict=True)))
    differences = ours.differences(theirs)
    reasons: list[Reason] = []
    if not all(row.within(tolerance) for row in differences):

        def without(faults: Collection[Fault]) -> _Result:
            with written.again():
                return pyro_side(pyro_without(objective, specialization.graph, faults, seen))

        seen = Seen()
        faults = tuple(fault for fault in Fault if not enumerated or fault is not Fault.UNKNOWN)
        mended = without(tuple(Fault))
        differences = [
            replace(row, by_design=not row.within(tolerance) and fair.within(tolerance))
            for row, fair in zip(differences, ours.differences(mended), strict=True)
        ]
        affected = {row.name for row in differences if row.by_design}
        for fault in faults if affected else ():
            rows = mended.differences(without([other for other in Fault if other is not fault]))
            differ = tuple(row.name for row in rows if row.name in affected and not row.within(tolerance))
            if differ:
                reasons += [Reason(text, differ, section) for text, section in seen.of(fault)]
        unexplained = tuple(affected.difference(*(reason.names for reason in reasons)))
        if unexplained:  # no fault alone is enough for these
            known = list(seen.words) or [Fault.PROVENANCE]
            reasons += [Reason(text, unexplained, section) for fault in known for text, section in seen.of(fault)]
    if enumerated:
        text = (
            f"{', '.join(map(repr, enumerated))}: all values, or several samples, are weighted or summed out, which "
            "Pyro's TraceGraph_ELBO cannot; sgc is compared with the sums over these values of eager Pyro's densities"
        )
        reasons.insert(0, Reason(text, ("the loss", "the gradients"), next(Seen().of(Fault.UNKNOWN))[1]))
    count = len(names)
    return Verification(
        backend=backend.name if same_numbers else "the emitted module, eagerly",
        loss=differences[0],
        sites=tuple(differences[1 : len(differences) - count]),
        gradients=tuple(differences[len(differences) - count :]),
        tolerance=tolerance,
        reasons=tuple(reasons),
        graph=specialization.graph,
    )


def _beside_other_estimators(graph: StochasticGraph) -> list[str]:
    """The sites that have several values in one run: those of the guide, then those of the model alone."""
    of_model = [site for marginal in graph.of_type(MarginalCostNode) for site in marginal.eliminated]
    return [*(node.site for node in graph.of_type(ProbabilityNode)), *of_model]


def _seed(specialization: Specialization, tensors: list[Tensor], modules: Sequence[nn.Module]) -> int:
    """A seed with which every branch on a sample goes as assumed.

    :raises sgc.errors.SgcError: if none of some seeds is one.
    """
    for seed in range(_SEED, _SEED + _SEEDS):
        with _nothing_changed(modules, specialization.averages()):
            torch.manual_seed(seed)
            if specialization.tally is None or first_failed(specialization, tensors) is None:
                return seed
    assumed = "; ".join(str(check) for check in specialization.checks if check.assumed)
    raise SgcError(f"with none of {_SEEDS} seeds does the program take the branches that were captured: {assumed}")


def _pyro(
    elbo: PyroLoss,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    call: Call,
    leaves: list[Tensor],
) -> tuple[Tensor, Sequence[Tensor | None], tuple[Trace, Trace]]:
    noted: list[tuple[Trace, Trace]] = []

    def runs() -> Iterator[tuple[Trace, Trace]]:
        for traces in elbo._get_traces(model, guide, call.args, call.kwargs):
            noted.append(traces)
            yield traces

    with torch.enable_grad(), StaleCachesCleared():
        value, surrogate = elbo.combined(runs())
        gradients: Sequence[Tensor | None] = [None] * len(leaves)
        if isinstance(surrogate, Tensor) and surrogate.requires_grad:
            gradients = torch.autograd.grad(surrogate, leaves, allow_unused=True)
    runs_of_one = len(noted) // (1 if elbo.vectorize_particles else elbo.num_particles)
    pairs = named_apart(noted[:runs_of_one])
    model_trace, guide_trace = (joined(of_runs) for of_runs in zip(*pairs, strict=True))
    return -torch.as_tensor(value).detach(), gradients, (model_trace, guide_trace)


def _ours(
    specialization: Specialization, tensors: list[Tensor], averages: list[Tensor], wanted: list[int], *, compiled: bool
) -> tuple[Tensor, list[Tensor | None]]:
    everything = [*tensors, *averages]
    if compiled:
        backend = specialization.backend_of(with_gradient=True)
        runnable = compile_loss(specialization, everything, with_gradient=True, backend=backend, wait=True)
        with torch.no_grad():
            loss, *gradients = runnable.run(*everything)
        by_position = dict(zip(runnable.gradient_of, gradients, strict=False))
        return loss, [by_position.get(i) for i in wanted]
    with torch.enable_grad():
        runs = [specialization.emitted.module(*everything)[:2] for _ in range(specialization.repeats)]
        loss, surrogate = (torch.stack(parts).mean() for parts in zip(*runs, strict=True))
        leaves = [tensors[i] for i in wanted]
        if not surrogate.requires_grad:
            return loss, [None] * len(wanted)
        return loss.detach(), list(torch.autograd.grad(surrogate, leaves, allow_unused=True))


def _site_nodes(graph: StochasticGraph) -> dict[str, str]:
    """The fx nodes of samples and costs, by their names in the report."""
    program = graph.program
    assert program is not None
    values = {name: program.site(name).value for name in graph.sites(SiteKind.LATENT)}
    costs = {cost.key: cost.fx for cost in _densities(graph)}
    return {name: node for name, node in {**values, **costs}.items() if node is not None}


def _pyro_sites(graph: StochasticGraph, traces: tuple[Trace, Trace]) -> Iterator[tuple[str, Tensor]]:
    """Pyro's samples and costs, by their names in the report."""
    model_trace, guide_trace = _by_name(graph, traces)
    for name in graph.sites(SiteKind.LATENT):
        value = (guide_trace if name in guide_trace else model_trace)[name]["value"]
        if isinstance(value, Tensor):
            yield name, value
    for cost in _densities(graph):
        yield cost.key, eager_cost(cost, model_trace, guide_trace)


def _densities(graph: StochasticGraph) -> Iterator[CostNode]:
    """The costs that are of one site; what sites are summed out into is compared by the loss."""
    return (cost for cost in graph.of_type(CostNode) if not isinstance(cost, MarginalCostNode))


def _by_name(graph: StochasticGraph, traces: tuple[Trace, Trace]) -> list[dict[str, Any]]:
    """Pyro's sites by our names.

    They are matched by position: sites of a sequential plate over a random subsample have other names at each run.
    """
    program = graph.program
    assert program is not None
    return [
        dict(zip(order, (node for node in trace.nodes.values() if node["type"] == "sample"), strict=True))
        for order, trace in zip((program.model_order, program.guide_order), traces, strict=True)
    ]


def _difference(name: str, theirs: Tensor | None, ours: Tensor | None) -> Difference:
    if theirs is None or ours is None:
        if theirs is None and ours is None:
            return Difference(name, 0.0, 0.0, "no gradient")
        return Difference(name, float("inf"), 0.0, f"a gradient in {'sgc' if theirs is None else 'Pyro'} only")
    one, other = (torch.as_tensor(t).detach().to(torch.float64) for t in (theirs, ours))
    if one.shape != other.shape:
        return Difference(name, float("inf"), 0.0, f"shapes {list(one.shape)} and {list(other.shape)}")
    if one.numel() == 0:
        return Difference(name, 0.0, 0.0)
    same = (one == other) | (one.isnan() & other.isnan())  # equal infinities have no difference, nor have two NaN
    gap = torch.where(same, torch.zeros_like(one), (one - other).abs())
    finite = one[one.isfinite()]
    return Difference(name, float(gap.max()), float(finite.abs().max()) if finite.numel() else 0.0)


@contextmanager
def _nothing_changed(
    modules: Sequence[nn.Module], averages: list[Tensor], lent: dict[str, Tensor] | None = None
) -> Iterator[None]:
    state = random_state()
    restore_averages = saved(averages)
    try:
        with preserved_state(modules, averages=lent):
            yield
    finally:
        restore_random_state(state)
        restore_averages()
