"""The leave-one-out baseline: at each particle the mean of the other particles' downstream costs.

Particles are independent, so that the others' costs do not depend on this one's sample, and the gradient stays unbiased
(Mnih and Rezende 2016, "Variational Inference for Monte Carlo Objectives"; Kool, van Hoof and Welling 2019, "Buy 4
REINFORCE Samples, Get a Baseline for Free!"). With K particles, at site s and per plate element:
``b[s, k] = (sum_j R[s, j] - R[s, k]) / (K - 1)``. Likewise with K samples at one site, which are drawn side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from sgc.errors import BaselineError
from sgc.graph import keys
from sgc.graph.arithmetic import Arithmetic, Value
from sgc.graph.cost_sums import DownstreamCostNode
from sgc.graph.effects import dependencies, storages, written_arguments
from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import BaselineNode, Payload, Stage
from sgc.graph.program import Particles, Program


@dataclass(frozen=True)
class LeaveOneOutNode(BaselineNode):
    """The mean of the other particles' downstream costs at a site, or of its other samples' where it has several.

    ``dim`` is the dim of the vectorised particles, or of the ``samples``, in the downstream cost; None where the
    particles are runs of the program.
    """

    crosses_particles: ClassVar[bool] = True

    dim: int | None = None
    particles: Particles = field(default_factory=Particles)
    samples: int = 0

    @classmethod
    def may_depend_on(cls) -> tuple[type[Payload], ...]:
        return (DownstreamCostNode,)

    def computed_from(self) -> tuple[str, ...]:
        return (keys.downstream(self.site),)

    def stage(self) -> Stage:
        return Stage.RUN if self.dim is not None else Stage.RUNS

    def compute(self, run: Arithmetic) -> Value:
        """All particles' costs without this one's, over how many these are."""
        key = keys.downstream(self.site)
        own = run.value(key)
        total = run.call(torch.sum, own, self.dim, True) if self.dim is not None else self._total(run, key)
        return run.call(torch.div, run.call(torch.sub, total, own), (self.samples or self.particles.count) - 1)

    def _total(self, run: Arithmetic, key: str) -> Value:
        def add_up() -> Value:
            total, *others = run.in_every_run(key)
            for cost in others:
                total = run.call(torch.add, total, cost)
            return total

        return run.once(self.key, add_up)

    def breaches(self, graph: StochasticGraph) -> Iterator[str]:
        """There are other particles, all at hand; and no cost of its own particle's is lost in a sum over the dim."""
        if self.samples:
            if self.dim is None or len(self.shape) < -self.dim or self.shape[self.dim] != self.samples:
                yield f"{self.key!r} has shape {self.shape}, without the samples in dim {self.dim}"
            return
        if self.particles.count < 2 or self.particles.calls != 1:
            yield f"{self.key!r} has no other particles at hand"
        if keys.LOSS in graph and graph.particles != self.particles:
            yield f"{self.key!r} is of other particles than the objective"
        if (self.dim is None) != (self.particles.plate is None):
            yield f"{self.key!r} does not say where the particles are"
        if self.dim is not None and (len(self.shape) < -self.dim or self.shape[self.dim] != self.particles.in_plate):
            yield f"{self.key!r} has shape {self.shape}, without the particles in dim {self.dim}"

    def words(self) -> str:
        count, what = (self.samples, "samples") if self.samples else (self.particles.count, "particles")
        return f"leave-one-out, the mean of the other {count - 1} {what}' costs"


def add_leave_one_out(
    graph: StochasticGraph,
    name: str,
    downstream: DownstreamCostNode,
    particles: Particles,
    carried_over: frozenset[str],
) -> None:
    """Add the baseline node of a scored site.

    :param carried_over: the sites of which a run leaves something to the next, see :func:`sites_carried_over`.

    :raises BaselineError: if particles that run one after another depend on each other, by memory that they write into.
    """
    assert graph.program is not None
    site = graph.program.site(name)
    dim, samples = None, 0
    if site.enumerated is not None and site.enumerated.samples:
        dim, samples = site.enumerated.dim, site.enumerated.size
    elif particles.plate is not None:
        assert site.guide is not None
        dim = next(plate.dim for plate in site.guide.plates if plate.name == particles.plate)
    elif name in carried_over:
        raise BaselineError(
            "use_leave_one_out needs independent particles, but one run of the program writes what depends on this "
            "site's sample into memory that the next run may read",
            site=name,
            source=site.source,
            remedy="pass vectorize_particles=True, or do not write into a buffer what depends on a sample",
        )
    node = LeaveOneOutNode(keys.baseline(name), downstream.shape, name, dim=dim, particles=particles, samples=samples)
    graph.add(node)
    graph.add_edge_across_particles(downstream.key, node.key)


def sites_carried_over(program: Program) -> frozenset[str]:
    """The latent sites upstream of what a run leaves behind in the memory of an input."""
    graph = program.module.graph
    outside = {storage for node in graph.nodes if node.op in ("placeholder", "get_attr") for storage in storages(node)}
    upstream: dict[object, frozenset[str]] = {}
    own = {site.value: frozenset({site.name}) for site in program.latent_sites()}
    left: frozenset[str] = frozenset()
    for node, parents in dependencies(graph).items():
        upstream[node] = own.get(node.name, frozenset()).union(*(upstream[parent] for parent in parents))
        if any(not outside.isdisjoint(storages(argument)) for argument in written_arguments(node)):
            left |= upstream[node]
    return left
