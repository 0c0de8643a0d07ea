"""Baselines that scored sites do not have and could have: what is left of the downstream costs with each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import BaselineNode
from sgc.passes.baselines.leave_one_out import LeaveOneOutNode, sites_carried_over

DECAYING_AVERAGE, LEAVE_ONE_OUT = "with a decaying average", "with leave-one-out"

PYROS_BETA = 0.9
"""The decay of an average where a site gives no ``baseline_beta``."""


def admissible(graph: StochasticGraph, site: str) -> tuple[str, ...]:
    """The baselines that a scored site could have in the place of its own, or of none.

    A network is the user's to give. Leave-one-out needs other particles in one call of the emitted module, independent
    of this one.
    """
    own = graph.baseline(site)
    has_average = isinstance(own, BaselineNode) and own.average is not None and own.learned is None
    choices = [] if has_average else [DECAYING_AVERAGE]
    particles = graph.particles
    if particles.count > 1 and particles.calls == 1 and not isinstance(own, LeaveOneOutNode):
        assert graph.program is not None
        if particles.runs == 1 or site not in sites_carried_over(graph.program):
            choices.append(LEAVE_ONE_OUT)
    return tuple(choices)


def settling_draws(beta: float = PYROS_BETA) -> int:
    """Of how many independent costs the mean has the variance of a decaying average that has settled.

    The average's is ``(1 - beta) / (1 + beta)`` times that of a cost.
    """
    return round((1 + beta) / (1 - beta))


@dataclass
class OtherBaselines:
    """What these baselines leave of the downstream costs, draw by draw.

    :param graph: it says where the particles are.
    :param averages: by site the decaying average before the next draw, of the downstream cost's shape.
    :param beta: the decay of the averages, which move with each run; 1: they stay.
    """

    graph: StochasticGraph
    averages: dict[str, Tensor] = field(default_factory=dict)
    beta: float = PYROS_BETA

    @classmethod
    def settled(cls, graph: StochasticGraph, costs: Mapping[str, Sequence[Tensor]]) -> OtherBaselines:
        """Begin with averages that have settled.

        :param costs: by site the downstream costs of :func:`settling_draws` independent runs.
        """
        return cls(graph, {site: torch.stack(tuple(own)).mean(0) for site, own in costs.items()})

    def left(self, site: str, choice: str, costs: Sequence[Tensor]) -> list[Tensor]:
        """The downstream costs of a draw, run by run, less the baseline."""
        return self._less_average(site, costs) if choice == DECAYING_AVERAGE else self._less_others(site, costs)

    def _less_average(self, site: str, costs: Sequence[Tensor]) -> list[Tensor]:
        left = []
        for cost in costs:
            average = self.averages[site]
            left.append(cost - average)
            self.averages[site] = self.beta * average + (1 - self.beta) * cost
        return left

    def _less_others(self, site: str, costs: Sequence[Tensor]) -> list[Tensor]:
        """As in :class:`sgc.passes.baselines.leave_one_out.LeaveOneOutNode`."""
        particles = self.graph.particles
        if particles.plate is None:
            total = torch.stack(tuple(costs)).sum(0)
        else:
            assert self.graph.program is not None
            guide = self.graph.program.site(site).guide
            assert guide is not None
            dim = next(plate.dim for plate in guide.plates if plate.name == particles.plate)
            assert dim is not None
            total = costs[0].sum(dim, keepdim=True)
        return [cost - (total - cost) / (particles.count - 1) for cost in costs]
