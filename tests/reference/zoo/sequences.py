"""The classics that unroll over time, and those that attend, infer and repeat."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor, nn

from tests.reference.zoo.entry import Case, Collection
from tests.reference.zoo.sites import positive

ENTRIES = Collection()
entry = ENTRIES.entry


@entry("Classics", "A deep Markov model of three steps, over sequences of different lengths")
def deep_markov_model() -> Case:
    latents, pitches = 2, 3
    emitter = nn.Sequential(nn.Linear(latents, 4), nn.ReLU(), nn.Linear(4, pitches))
    transition = nn.Linear(latents, 2 * latents)
    rnn, combiner = nn.RNN(pitches, 4, batch_first=True), nn.Linear(4 + latents, 2 * latents)
    start = nn.Parameter(torch.zeros(latents))
    q_start = nn.Parameter(torch.zeros(latents))
    modules = nn.ModuleDict({"emitter": emitter, "transition": transition, "rnn": rnn, "combiner": combiner})
    modules.register_parameter("start", start)
    modules.register_parameter("q_start", q_start)

    def model(data: Tensor, mask: Tensor, annealing: float) -> None:
        pyro.module("dmm", modules)
        z = start.expand(len(data), latents)
        with pyro.plate("data", len(data)):
            for t in pyro.markov(range(data.shape[1])):
                loc, raw = transition(z).chunk(2, -1)
                with poutine.mask(mask=mask[:, t]):
                    with poutine.scale(scale=annealing):
                        z = pyro.sample(f"z_{t}", dist.Normal(loc, nn.functional.softplus(raw)).to_event(1))
                    pyro.sample(f"x_{t}", dist.Bernoulli(logits=emitter(z)).to_event(1), obs=data[:, t])

    def guide(data: Tensor, mask: Tensor, annealing: float) -> None:
        pyro.module("dmm", modules)
        hidden = rnn(data.flip(1))[0].flip(1)
        z = q_start.expand(len(data), latents)
        with pyro.plate("data", len(data)):
            for t in pyro.markov(range(data.shape[1])):
                loc, raw = combiner(torch.cat([hidden[:, t], z], -1)).chunk(2, -1)
                with poutine.mask(mask=mask[:, t]), poutine.scale(scale=annealing):
                    z = pyro.sample(f"z_{t}", dist.Normal(loc, nn.functional.softplus(raw)).to_event(1))

    mask = torch.tensor([[True, True, True], [True, False, False]])
    return Case(model, guide, (torch.rand(2, 3, pitches).round(), mask, 0.5))


@entry("Classics", "A discrete hidden Markov model of four steps, in a plate of sequences", inductor=True)
def hidden_markov_model() -> Case:
    def model(data: Tensor) -> None:
        probs = torch.full((2, 2), 0.5) + torch.eye(2)
        with pyro.plate("states", 2):
            trans = pyro.sample("trans", dist.Dirichlet(probs))
        emit = pyro.param("emit", torch.tensor([-1.0, 1.0]))
        with pyro.plate("sequences", len(data)):
            z = torch.zeros(len(data), dtype=torch.long)
            for t in pyro.markov(range(4)):
                z = pyro.sample(f"z_{t}", dist.Categorical(trans[z]))
                pyro.sample(f"x_{t}", dist.Normal(emit[z], 1.0), obs=data[:, t])

    def guide(data: Tensor) -> None:
        with pyro.plate("states", 2):
            pyro.sample("trans", dist.Dirichlet(positive("conc", 2.0, 1.5).diag() + 1.0))
        logits = pyro.param("logits", torch.zeros(len(data), 4, 2))
        with pyro.plate("sequences", len(data)):
            for t in pyro.markov(range(4)):
                pyro.sample(f"z_{t}", dist.Categorical(logits=logits[:, t]))

    return Case(model, guide, (torch.tensor([[-0.9, -1.1, 0.8, 1.2], [0.7, 1.1, 0.9, -1.0]]),))


@entry("Classics", "A chain of Gaussians with a guide that runs along it", inductor=True)
def gaussian_chain() -> Case:
    steps = 5

    def model() -> None:
        z = torch.tensor(0.0)
        for t in range(steps):
            z = pyro.sample(f"z_{t}", dist.Normal(z, 1.0))
        pyro.sample("obs", dist.Normal(z, 0.5), obs=torch.tensor(1.7))

    def guide() -> None:
        z = torch.tensor(0.0)
        for t in reversed(range(steps)):
            kappa = pyro.param(f"kappa_{t}", torch.tensor(0.5), constraint=constraints.unit_interval)
            loc = pyro.param(f"loc_{t}", torch.tensor(0.1))
            z = pyro.sample(f"z_{t}", dist.Normal(kappa * z + loc, positive(f"scale_{t}", 0.6)))

    return Case(model, guide)


@entry("Classics", "Two steps of attend, infer, repeat: presence by mask, with a network baseline")
def attend_infer_repeat() -> Case:
    pixels, steps = 9, 2
    decode = nn.Sequential(nn.Linear(2, pixels), nn.Sigmoid())
    cell = nn.LSTMCell(pixels + 3, 5)
    head = nn.Linear(5, 5)
    baseline_cell, baseline_head = nn.LSTMCell(pixels + 3, 4), nn.Linear(4, 1)
    modules = nn.ModuleDict({"decode": decode, "cell": cell, "head": head})
    baselines = nn.ModuleDict({"cell": baseline_cell, "head": baseline_head})

    def model(data: Tensor) -> None:
        pyro.module("air", modules)
        with pyro.plate("data", len(data)):
            canvas = torch.zeros(len(data), pixels)
            present = torch.ones(len(data), 1)
            for t in range(steps):
                present = pyro.sample(f"present_{t}", dist.Bernoulli(0.3 * present).to_event(1))
                with poutine.mask(mask=present.squeeze(-1).bool()):
                    what = pyro.sample(f"what_{t}", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                canvas = canvas + decode(what) * present
            pyro.sample("obs", dist.Normal(canvas, 0.5).to_event(1), obs=data)

    def guide(data: Tensor) -> None:
        pyro.module("air", modules)
        pyro.module("air_baselines", baselines)
        state = [torch.zeros(len(data), 5)] * 2
        baseline_state = [torch.zeros(len(data), 4)] * 2
        present, what = torch.ones(len(data), 1), torch.zeros(len(data), 2)
        with pyro.plate("data", len(data)):
            for t in range(steps):
                inputs = torch.cat([data, what, present], -1)
                state = list(cell(inputs, tuple(state)))
                baseline_state = list(baseline_cell(inputs.detach(), tuple(baseline_state)))
                value = (baseline_head(baseline_state[0]) * present).squeeze(-1)
                logit, loc, raw = head(state[0]).split([1, 2, 2], -1)
                probs = torch.sigmoid(logit) * present
                on_present = {"baseline": {"baseline_value": value}}
                present = pyro.sample(f"present_{t}", dist.Bernoulli(probs).to_event(1), infer=on_present)
                with poutine.mask(mask=present.squeeze(-1).bool()):
                    scale = nn.functional.softplus(raw)
                    what = pyro.sample(f"what_{t}", dist.Normal(loc, scale).to_event(1))

    return Case(model, guide, (torch.rand(3, pixels),))


@entry("Classics", "A change point: one discrete time, and the rates before and after it")
def change_point() -> Case:
    counts = torch.tensor([1.0, 0.0, 2.0, 5.0, 4.0, 6.0])

    def model() -> None:
        rates = pyro.sample("rates", dist.Gamma(torch.ones(2), 0.5).to_event(1))
        tau = pyro.sample("tau", dist.Categorical(torch.ones(6)))
        late = (torch.arange(6) >= tau).long()
        with pyro.plate("days", 6):
            pyro.sample("obs", dist.Poisson(rates[late]), obs=counts)

    def guide() -> None:
        pyro.sample("rates", dist.Gamma(positive("shape", 2.0, 5.0), 1.0).to_event(1))
        logits = pyro.param("logits", torch.zeros(6))
        baseline = {"use_decaying_avg_baseline": True, "baseline_beta": 0.95}
        pyro.sample("tau", dist.Categorical(logits=logits), infer={"baseline": baseline})

    return Case(model, guide)
