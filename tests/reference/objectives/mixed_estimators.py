"""Several estimators in one program: asked for by sgc's option, and in Pyro by what stands at the sites."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from tests.reference.objectives.closed_forms import positive
from tests.reference.objectives.comparison import Comparisons, Trained
from tests.reference.objectives.summed_out import pictures, spread

COMPARISONS = Comparisons("Several estimators in one program")
add = COMPARISONS.add

AVERAGE = {"baseline": {"use_decaying_avg_baseline": True}}


@add("A belief net: a network is the baseline of one layer, a decaying average that of the other", inductor=True)
def belief_net() -> Trained:
    up, top_up, down = nn.Linear(6, 3), nn.Linear(3, 2), nn.Linear(3, 6)
    top_down, baseline = nn.Linear(2, 3), nn.Linear(6, 1)

    def model(x: Tensor) -> None:
        pyro.module("down", down)
        pyro.module("top_down", top_down)
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Bernoulli(torch.full((2,), 0.4)).to_event(1))
            low = pyro.sample("low", dist.Bernoulli(logits=top_down(top)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=down(low)).to_event(1), obs=x)

    def guided(of_top: dict[str, Any]) -> Callable[[Tensor], None]:
        def guide(x: Tensor) -> None:
            for name, net in (("up", up), ("top_up", top_up), ("baseline", baseline)):
                pyro.module(name, net)
            known = {"baseline": {"nn_baseline": lambda x: baseline(x).squeeze(-1), "nn_baseline_input": x}}
            with pyro.plate("data", len(x)):
                low = pyro.sample("low", dist.Bernoulli(logits=up(x)).to_event(1), infer=known)
                pyro.sample("top", dist.Bernoulli(logits=top_up(low)).to_event(1), infer=dict(of_top))

        return guide

    return Trained(
        *(model, guided({}), (pictures(4),), "TraceGraph_ELBO"),
        estimators={"top": "decaying average"},
        their_guide=guided(AVERAGE),
    )


@add("Objects that are there or not: all switches have averages, the places stay pathwise")
def objects_with_places() -> Trained:
    def model(x: Tensor) -> None:
        for i in range(3):
            there = pyro.sample(f"there_{i}", dist.Bernoulli(0.5))
            place = pyro.sample(f"place_{i}", dist.Normal(0.0, 1.0))
            pyro.sample(f"x_{i}", dist.Normal(there * place, 0.5), obs=x[i])

    def guided(of_switch: dict[str, Any]) -> Callable[[Tensor], None]:
        def guide(x: Tensor) -> None:
            logits, locs = pyro.param("logits", 0.4 * spread(3)), pyro.param("locs", torch.zeros(3))
            for i in range(3):
                there = pyro.sample(f"there_{i}", dist.Bernoulli(logits=logits[i]), infer=dict(of_switch))
                pyro.sample(f"place_{i}", dist.Normal(locs[i] + there * x[i], 0.4))

        return guide

    return Trained(
        *(model, guided({}), (spread(3),), "TraceGraph_ELBO", {"num_particles": 2}),
        estimators={"*": "decaying average"},
        their_guide=guided(AVERAGE),
    )


@add("A rate and a switch, both by score functions though the rate has a pathwise gradient")
def a_rate_by_its_score() -> Trained:
    class Scored(dist.Normal):
        """In Pyro a distribution says so of itself."""

        has_rsample = False

    def model(counts: Tensor) -> None:
        on = pyro.sample("on", dist.Bernoulli(0.5))
        rate = pyro.sample("rate", dist.Normal(on, 1.0))
        with pyro.plate("data", len(counts)):
            pyro.sample("count", dist.Poisson(rate.exp()), obs=counts)

    def guided(family: type[dist.Normal]) -> Callable[[Tensor], None]:
        def guide(counts: Tensor) -> None:
            pyro.sample("on", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.2))))
            pyro.sample("rate", family(pyro.param("loc", torch.tensor(0.3)), positive("scale", torch.tensor(0.4))))

        return guide

    return Trained(
        *(model, guided(dist.Normal), (torch.tensor([1.0, 3, 0, 2]),), "TraceGraph_ELBO"),
        estimators={"rate": "score function"},
        their_guide=guided(Scored),
    )


@add("Trace_ELBO with a switch above normals: every cost for each score function")
def every_cost_for_a_switch() -> Trained:
    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
            w = pyro.sample("w", dist.Normal(z.to(x.dtype), 1.0))
            pyro.sample("x", dist.StudentT(4.0, w, 0.8), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=pyro.param("logits", spread(len(x), 3))))
            pyro.sample("w", dist.Normal(pyro.param("m", torch.zeros(3))[z], 0.6))

    return Trained(model, guide, (spread(4),), "Trace_ELBO", {"num_particles": 2})


@add("One switch enumerated, one drawn, a normal between them: TraceEnum_ELBO")
def enumerated_above_a_drawn_one() -> Trained:
    def model(x: Tensor) -> None:
        a = pyro.sample("a", dist.Bernoulli(0.3))
        w = pyro.sample("w", dist.Normal(a, 1.0))
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(0.6))
            pyro.sample("x", dist.Normal(w + b, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        a = pyro.sample(
            "a", dist.Bernoulli(logits=pyro.param("qa", torch.tensor(0.1))), infer={"enumerate": "parallel"}
        )
        pyro.sample("w", dist.Normal(pyro.param("m", torch.tensor(0.4)) * a, 0.7))
        with pyro.plate("data", len(x)):
            pyro.sample("b", dist.Bernoulli(logits=pyro.param("qb", spread(len(x)))))

    return Trained(model, guide, (spread(3),), "TraceEnum_ELBO", {"max_plate_nesting": 1})
