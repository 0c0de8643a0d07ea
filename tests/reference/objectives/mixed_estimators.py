"""Several estimators in one program: asked for by sgc's option, and in Pyro by what stands at the sites."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import config_enumerate
from pyro.ops.indexing import Vindex
from torch import Tensor, nn
from torch.distributions import constraints

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


@add(
    "Topics of words summed out of the model, shares of topics pathwise, in minibatches: TraceGraph_ELBO", inductor=True
)
def topics_of_words() -> Trained:
    @config_enumerate
    def model(words: Tensor) -> None:
        vocabulary = pyro.param("vocabulary", torch.softmax(spread(3, 5), -1), constraint=constraints.simplex)
        with pyro.plate("documents", 12, subsample=words, dim=-2):
            shares = pyro.sample("shares", dist.Dirichlet(torch.tensor([1.0, 2.0, 0.7])))
            with pyro.plate("words", words.shape[1], dim=-1):
                topic = pyro.sample("topic", dist.Categorical(shares))
                pyro.sample("word", dist.Categorical(Vindex(vocabulary)[topic]), obs=words)

    def guide(words: Tensor) -> None:
        counts = nn.functional.one_hot(words, 5).sum(-2).to(torch.get_default_dtype())
        to_shares = pyro.param("to_shares", 0.2 * spread(5, 3))
        with pyro.plate("documents", 12, subsample=words, dim=-2):
            pyro.sample("shares", dist.Dirichlet(nn.functional.softplus((counts @ to_shares)[:, None]) + 0.4))

    words = torch.tensor([[0, 1, 1, 4], [3, 4, 4, 2], [0, 0, 2, 1]])
    return Trained(model, guide, (words,), "TraceGraph_ELBO", {"max_plate_nesting": 2}, their_elbo="TraceEnum_ELBO")


@add("One of two sets of components, enumerated in the guide; assignments summed out of the model")
def sets_of_components() -> Trained:
    def model(x: Tensor) -> None:
        which = pyro.sample("which", dist.Bernoulli(0.4))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        locs = pyro.param("locs", spread(2, 3))
        weights = pyro.param("weights", torch.tensor([0.2, 0.3, 0.5]), constraint=constraints.simplex)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(Vindex(locs)[which.long(), z], scale), obs=x)

    def guide(x: Tensor) -> None:
        which = pyro.sample("which", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.3))))
        loc = pyro.param("scale_loc", torch.tensor([-0.2, 0.1]))[which.long()]
        pyro.sample("scale", dist.LogNormal(loc, 0.2))

    return Trained(
        *(model, guide, (spread(5),), "TraceGraph_ELBO", {"max_plate_nesting": 1}),
        estimators={"which": "enumerate"},
        their_guide=config_enumerate(guide),
        their_elbo="TraceEnum_ELBO",
    )


@add("A hidden Markov model of sequences, its states summed out of the model, a rate above it with several particles")
def states_of_sequences() -> Trained:
    def model(x: Tensor, lengths: Tensor) -> None:
        rate = pyro.sample("rate", dist.Normal(0.0, 1.0))
        stay = torch.stack([torch.sigmoid(rate), torch.sigmoid(-rate)], -1)
        moves = torch.stack([stay, stay.flip(-1)], -2)
        levels = pyro.param("levels", torch.tensor([-0.7, 0.9]))
        with pyro.plate("sequences", len(x), dim=-1):
            state: Any = torch.tensor(0)
            for t in pyro.markov(range(x.shape[1])):
                with pyro.poutine.mask(mask=t < lengths):
                    probs = Vindex(moves)[..., state, :]
                    state = pyro.sample(f"state_{t}", dist.Categorical(probs), infer={"enumerate": "parallel"})
                    pyro.sample(f"x_{t}", dist.Normal(levels[state], 0.8), obs=x[:, t])

    def guide(x: Tensor, lengths: Tensor) -> None:
        pyro.sample("rate", dist.Normal(pyro.param("loc", torch.tensor(0.4)), positive("scale", torch.tensor(0.5))))

    lengths = torch.tensor([5, 3, 4])
    return Trained(
        *(model, guide, (spread(3, 5), lengths), "TraceGraph_ELBO", {"num_particles": 2, "max_plate_nesting": 1}),
        their_elbo="TraceEnum_ELBO",
    )
