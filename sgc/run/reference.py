"""Compares a specialization with eager Pyro under one seed, site by site and parameter by parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pyro.ops.provenance import get_provenance
from pyro.poutine import Trace
from torch import Tensor, nn

from sgc.capturing.randomness import random_state, restore_random_state
from sgc.capturing.rehearsal import BASELINE_PREFIX, preserved_state, pyro_elbo
from sgc.capturing.writes import undone_writes
from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import CostNode, Estimator
from sgc.graph.program import SiteKind
from sgc.run.guards import Call
from sgc.run.specialization import Specialization

_SEED = 20140714


@dataclass(frozen=True)
class Difference:
    """One compared quantity: the largest absolute difference, and the largest magnitude on Pyro's side."""

    name: str
    difference: float
    magnitude: float
    note: str = ""

    def within(self, tolerance: float) -> bool:
        """Whether the difference is small relative to the magnitude (or to 1, if that is larger)."""
        return self.difference <= tolerance * max(1.0, self.magnitude)


@dataclass(frozen=True)
class Verification:
    """The result of ``loss_module.verify``; its ``str`` is a table.

    ``backend`` says what computed sgc's side. With ``backend="inductor", rng="fast"`` other random numbers are
    drawn than by Pyro; then the emitted module itself is what is compared.
    """

    backend: str
    loss: Difference
    sites: tuple[Difference, ...]
    gradients: tuple[Difference, ...]
    tolerance: float
    differs_by_design: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether everything agrees to the tolerance; gradients where sgc differs by design are not counted."""
        compared = (self.loss, *self.sites, *(() if self.differs_by_design else self.gradients))
        return all(difference.within(self.tolerance) for difference in compared)

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        rows = [("loss", self.loss), *(("site", d) for d in self.sites), *(("gradient", d) for d in self.gradients)]
        width = max(len(difference.name) for _, difference in rows)
        lines = [f"sgc ({self.backend}) against eager Pyro under one seed: {'equal' if self.ok else 'DIFFERENT'}"]
        for kind, difference in rows:
            mark = "ok" if difference.within(self.tolerance) else "!!"
            note = f"  {difference.note}" if difference.note else ""
            lines.append(
                f"  {mark} {kind:<8} {difference.name:<{width}}  |difference| {difference.difference:.2e}"
                f"  of {difference.magnitude:.2e}{note}"
            )
        lines += [f"  by design: {reason}" for reason in self.differs_by_design]
        return "\n".join(lines)


def verify(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    call: Call,
    found: Specialization,
    tensors: list[Tensor],
    modules: Sequence[nn.Module],
    tolerance: float = 1e-5,
) -> Verification:
    """Run eager Pyro and the specialization from the same random state; nothing is left changed."""
    wanted = [i for i, tensor in enumerate(tensors) if tensor.requires_grad]
    leaves = [tensors[i] for i in wanted]
    averages = found.averages()
    lent = {BASELINE_PREFIX + node.site: t.clone() for node, t in zip(found.baselines.nodes, averages, strict=True)}
    with _nothing_changed(modules, averages, lent), undone_writes() as written:
        torch.manual_seed(_SEED)
        their_loss, their_gradients, traces = _pyro(model, guide, call, found, leaves)
    with _nothing_changed(modules, averages), written.again():
        torch.manual_seed(_SEED)
        values = found.values(tensors)
    same_numbers = found.backend(with_gradient=True) != "inductor" or found.options.rng == "torch"
    with _nothing_changed(modules, averages), written.again():
        torch.manual_seed(_SEED)
        our_loss, our_gradients = _ours(found, tensors, averages, wanted, compiled=same_numbers)
    inputs = found.inputs
    return Verification(
        backend=found.backend(with_gradient=True) if same_numbers else "the emitted module, eagerly",
        loss=_difference("-ELBO", their_loss, our_loss),
        sites=tuple(_site_differences(found.graph, traces, values)),
        gradients=tuple(
            _difference(inputs[i].name, theirs, ours)
            for i, theirs, ours in zip(wanted, their_gradients, our_gradients, strict=True)
        ),
        tolerance=tolerance,
        differs_by_design=tuple(dict.fromkeys(_by_design(found.graph, traces))),
    )


def _pyro(
    model: Callable[..., Any], guide: Callable[..., Any], call: Call, found: Specialization, leaves: list[Tensor]
) -> tuple[Tensor, Sequence[Tensor | None], tuple[Trace, Trace]]:
    elbo = pyro_elbo(found.options, found.max_plate_nesting)
    # Pyro divides by num_particles in either mode, also where one vectorised run holds them all.
    particles = found.options.num_particles
    loss: Any = 0.0
    surrogate: Any = 0.0
    first: tuple[Trace, Trace] | None = None
    with torch.enable_grad():
        for model_trace, guide_trace in elbo._get_traces(model, guide, call.args, call.kwargs):
            first = first or (model_trace, guide_trace)
            particle, term = elbo._loss_and_surrogate_loss_particle(model_trace, guide_trace)
            loss, surrogate = loss - particle / particles, surrogate + term / particles
        gradients: Sequence[Tensor | None] = [None] * len(leaves)
        if isinstance(surrogate, Tensor) and surrogate.requires_grad:
            gradients = torch.autograd.grad(surrogate, leaves, allow_unused=True)
    assert first is not None
    return torch.as_tensor(loss).detach(), gradients, first


def _ours(
    found: Specialization, tensors: list[Tensor], averages: list[Tensor], wanted: list[int], *, compiled: bool
) -> tuple[Tensor, list[Tensor | None]]:
    everything = [*tensors, *averages]
    if compiled:
        runnable = found.compiled(everything, with_gradient=True)
        with torch.no_grad():
            loss, *gradients = runnable.run(*everything)
        by_position = dict(zip(runnable.gradient_of, gradients, strict=False))
        return loss, [by_position.get(i) for i in wanted]
    with torch.enable_grad():
        runs = [found.emitted.module(*everything)[:2] for _ in range(found.repeats)]
        loss, surrogate = (torch.stack(parts).mean() for parts in zip(*runs, strict=True))
        leaves = [tensors[i] for i in wanted]
        if not surrogate.requires_grad:
            return loss, [None] * len(wanted)
        return loss.detach(), list(torch.autograd.grad(surrogate, leaves, allow_unused=True))


def _site_differences(
    graph: StochasticGraph, traces: tuple[Trace, Trace], values: dict[str, Tensor]
) -> Iterator[Difference]:
    program = graph.program
    assert program is not None
    model_trace, guide_trace = _by_name(graph, traces)
    for name in graph.sites(SiteKind.LATENT):
        node = program.site(name).value
        theirs = (guide_trace if name in guide_trace else model_trace)[name]["value"]
        if node is not None and isinstance(theirs, Tensor):
            yield _difference(name, theirs, values[node])
    for cost, node in _costs(graph, traces):
        yield _difference(cost.key, node["log_prob"], values[cost.fx])


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


def _costs(graph: StochasticGraph, traces: tuple[Trace, Trace]) -> Iterator[tuple[CostNode, Any]]:
    """Each cost node with Pyro's site."""
    model_trace, guide_trace = _by_name(graph, traces)
    for cost in graph.of_type(CostNode):
        yield cost, (model_trace if cost.sign > 0 else guide_trace)[cost.site]


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
    gap = torch.where(one == other, torch.zeros_like(one), (one - other).abs())  # equal infinities are equal
    finite = one[one.isfinite()]
    return Difference(name, float(gap.max()), float(finite.abs().max()) if finite.numel() else 0.0)


def _by_design(graph: StochasticGraph, traces: tuple[Trace, Trace]) -> Iterator[str]:
    """Where Pyro's gradient is known to be biased, and why."""
    for name in graph.sites(SiteKind.LATENT):
        if graph.estimator(name) is Estimator.PARTIAL:
            yield f"'{name}' is rejection-sampled; Pyro's TraceGraph_ELBO leaves out its score-function term"
    for trace in traces:
        for name, node in trace.nodes.items():
            value = node.get("value")
            if node["type"] == "sample" and not node["is_observed"] and isinstance(value, Tensor):
                if value.requires_grad and not getattr(node["fn"], "has_rsample", True):
                    yield f"'{name}' has no rsample; Pyro lets a gradient leak through its sampler"
    for cost, node in _costs(graph, traces):
        lost = graph.provenance(cost.key, reparameterized=False) - get_provenance(node["log_prob_sum"])
        if lost:
            yield f"{cost.key} depends on {', '.join(sorted(lost))}; Pyro's provenance loses that"


@contextmanager
def _nothing_changed(
    modules: Sequence[nn.Module], averages: list[Tensor], lent: dict[str, Tensor] | None = None
) -> Iterator[None]:
    state = random_state()
    saved = [average.clone() for average in averages]
    try:
        with preserved_state(modules, averages=lent):
            yield
    finally:
        restore_random_state(state)
        with torch.no_grad():
            for average, value in zip(averages, saved, strict=True):
                average.copy_(value)
