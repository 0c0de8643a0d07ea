"""Attend, infer, repeat (Eslami et al. 2016): up to 2 digits at random places of a 24 x 24 canvas.

At each of 2 steps: z_pres ~ Bernoulli(z_pres' / 2), where ' is the step before; where z_pres is 1, z_where = (scale,
left, top) ~ N((3, 0, 0), (0.2, 1, 1)) and z_what [6] ~ N(0, 1), and a window 8 x 8 = sigmoid(mlp(z_what)) is placed on
the canvas. x ~ N(canvas, 0.3). In the guide an RNN sees the image and the variables of the step before, and predicts
z_pres and z_where; an mlp of the window there predicts z_what. The baseline of z_pres is another RNN of the same input
(NumPyro: none).

Windows are placed and read bilinearly. Scaling and shifting act on each axis alone, so that this is a product with a
matrix of weights max(0, 1 - distance in pixels) from both sides.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.workloads.base import Program, Workload
from benchmarks.workloads.data import scenes
from benchmarks.workloads.layers import dense, linear, load, log_bernoulli, mlp, numpyro_params, recurrent

STEPS, SIDE, WINDOW, WHAT, WHERE, HIDDEN = 2, 24, 8, 6, 3, 48
PRESENT, NOISE = 0.5, 0.3
WHERE_LOC, WHERE_SCALE = (3.0, 0.0, 0.0), (0.2, 1.0, 1.0)
SEEN = SIDE * SIDE + WHERE + WHAT + 1
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class AttendInferRepeat(Workload):
    """AIR: up to 2 digits on 24 x 24 pixels, 2 steps, batches of 64; a recurrent baseline (NumPyro: none)."""

    discrete = True

    def __init__(self, batch: int = 64, baseline: bool = True) -> None:
        self.baseline = baseline  # of Pyro's program; the network is there in any case
        rng = np.random.default_rng(0)
        self.data = (scenes(batch, SIDE, STEPS),)
        self.values = mlp(rng, "decoder", WHAT, 32, WINDOW * WINDOW) | recurrent(rng, "rnn", SEEN, HIDDEN)
        self.values |= linear(rng, "predict", HIDDEN, 1 + 2 * WHERE)
        self.values["predict.bias"][1:] += np.array([3.0, 0.0, 0.0, -1.0, -1.0, -1.0], np.float32)
        self.values |= mlp(rng, "encoder", WINDOW * WINDOW, 32, 2 * WHAT)
        self.values |= recurrent(rng, "baseline_rnn", SEEN, HIDDEN) | linear(rng, "baseline", HIDDEN, 1)

    def pyro(self) -> Program:
        decoder = load(_mlp(WHAT, WINDOW * WINDOW), self.values, "decoder")
        encoder = load(_mlp(WINDOW * WINDOW, 2 * WHAT), self.values, "encoder")
        rnn = load(nn.RNNCell(SEEN, HIDDEN), self.values, "rnn")
        predict = load(nn.Linear(HIDDEN, 1 + 2 * WHERE), self.values, "predict")
        baseline_rnn = load(nn.RNNCell(SEEN, HIDDEN), self.values, "baseline_rnn")
        baseline = load(nn.Linear(HIDDEN, 1), self.values, "baseline")
        with_baseline = self.baseline
        fine, coarse = torch.linspace(-1, 1, SIDE), torch.linspace(-1, 1, WINDOW)
        fine_pixels, coarse_pixels = torch.arange(float(SIDE)), torch.arange(float(WINDOW))
        where_prior = torch.tensor(WHERE_LOC), torch.tensor(WHERE_SCALE)

        def model(x: Tensor) -> None:
            pyro.module("decoder", decoder)
            canvas, present = torch.zeros_like(x), x.new_ones(len(x), 1)
            with pyro.plate("scenes", len(x)):
                for t in range(STEPS):
                    present = pyro.sample(f"z_pres_{t}", dist.Bernoulli(PRESENT * present).to_event(1))
                    seen = present.bool()
                    prior = dist.Normal(*where_prior).expand([len(x), WHERE])
                    where = pyro.sample(f"z_where_{t}", prior.mask(seen).to_event(1))
                    prior = dist.Normal(0.0, 1.0).expand([len(x), WHAT])
                    what = pyro.sample(f"z_what_{t}", prior.mask(seen).to_event(1))
                    window = torch.sigmoid(decoder(what)).view(-1, WINDOW, WINDOW)
                    canvas = canvas + _place(window, where, fine, coarse_pixels) * present.unsqueeze(-1)
                pyro.sample("x", dist.Normal(canvas, NOISE).to_event(2), obs=x)

        def guide(x: Tensor) -> None:
            pyro.module("rnn", rnn)
            pyro.module("predict", predict)
            pyro.module("encoder", encoder)
            if with_baseline:
                pyro.module("baseline_rnn", baseline_rnn)
                pyro.module("baseline", baseline)
            state, of_baseline = x.new_zeros(len(x), HIDDEN), x.new_zeros(len(x), HIDDEN)
            where, what, present = x.new_zeros(len(x), WHERE), x.new_zeros(len(x), WHAT), x.new_ones(len(x), 1)
            with pyro.plate("scenes", len(x)):
                for t in range(STEPS):
                    seen = torch.cat([x.flatten(1), where, what, present], -1)
                    state = rnn(seen, state)
                    logit, loc, raw_scale = predict(state).split([1, WHERE, WHERE], -1)
                    infer = {}
                    if with_baseline:
                        of_baseline = baseline_rnn(seen.detach(), of_baseline)
                        infer = {"baseline": {"baseline_value": (baseline(of_baseline) * present).squeeze(-1)}}
                    posterior = dist.Bernoulli(torch.sigmoid(logit) * present).to_event(1)
                    present = pyro.sample(f"z_pres_{t}", posterior, infer=infer)
                    mask = present.bool()
                    posterior = dist.Normal(loc, F.softplus(raw_scale))
                    where = pyro.sample(f"z_where_{t}", posterior.mask(mask).to_event(1))
                    glimpse = _attend(x, where, coarse, fine_pixels)
                    loc, raw_scale = encoder(glimpse.flatten(1)).chunk(2, -1)
                    posterior = dist.Normal(loc, F.softplus(raw_scale))
                    what = pyro.sample(f"z_what_{t}", posterior.mask(mask).to_event(1))

        return model, guide

    def numpyro(self) -> Program:
        import jax
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as jdist

        fine, coarse = jnp.linspace(-1, 1, SIDE), jnp.linspace(-1, 1, WINDOW)
        fine_pixels, coarse_pixels = jnp.arange(float(SIDE)), jnp.arange(float(WINDOW))
        where_prior = jnp.array(WHERE_LOC), jnp.array(WHERE_SCALE)

        def two_layers(p, name, x):  # type: ignore[no-untyped-def]
            return dense(p, f"{name}.2", jax.nn.relu(dense(p, f"{name}.0", x)))

        def model(x):  # type: ignore[no-untyped-def]
            p = numpyro_params(self.values, "decoder")
            canvas, present = jnp.zeros_like(x), jnp.ones((len(x), 1))
            with numpyro.plate("scenes", len(x)):
                for t in range(STEPS):
                    present = numpyro.sample(f"z_pres_{t}", jdist.Bernoulli(PRESENT * present).to_event(1))
                    seen = present == 1
                    prior = jdist.Normal(*where_prior).expand([len(x), WHERE])
                    where = numpyro.sample(f"z_where_{t}", prior.mask(seen).to_event(1))
                    prior = jdist.Normal(0.0, 1.0).expand([len(x), WHAT])
                    what = numpyro.sample(f"z_what_{t}", prior.mask(seen).to_event(1))
                    window = jax.nn.sigmoid(two_layers(p, "decoder", what)).reshape(-1, WINDOW, WINDOW)
                    canvas = canvas + _place(window, where, fine, coarse_pixels) * present[..., None]
                numpyro.sample("x", jdist.Normal(canvas, NOISE).to_event(2), obs=x)

        def guide(x):  # type: ignore[no-untyped-def]
            p = numpyro_params(self.values, "rnn", "predict", "encoder")
            flat, state = x.reshape(len(x), -1), jnp.zeros((len(x), HIDDEN))
            where, what, present = jnp.zeros((len(x), WHERE)), jnp.zeros((len(x), WHAT)), jnp.ones((len(x), 1))
            with numpyro.plate("scenes", len(x)):
                for t in range(STEPS):
                    of_input = jnp.concatenate([flat, where, what, present], -1) @ p["rnn.weight_ih"].T
                    of_state = state @ p["rnn.weight_hh"].T + p["rnn.bias_hh"]
                    state = jnp.tanh(of_input + p["rnn.bias_ih"] + of_state)
                    logit, loc, raw_scale = jnp.split(dense(p, "predict", state), [1, 1 + WHERE], -1)
                    # Not a probability of 0, whose gradient is NaN here: exp(-100) is 0 too, next to 1.
                    posterior = jdist.Bernoulli(logits=jnp.where(present == 1, logit, -100.0))
                    present = numpyro.sample(f"z_pres_{t}", posterior.to_event(1))
                    mask = present == 1
                    posterior = jdist.Normal(loc, jax.nn.softplus(raw_scale))
                    where = numpyro.sample(f"z_where_{t}", posterior.mask(mask).to_event(1))
                    glimpse = _attend(x, where, coarse, fine_pixels).reshape(len(x), -1)
                    loc, raw_scale = jnp.split(two_layers(p, "encoder", glimpse), 2, -1)
                    posterior = jdist.Normal(loc, jax.nn.softplus(raw_scale))
                    what = numpyro.sample(f"z_what_{t}", posterior.mask(mask).to_event(1))

        return model, guide

    def by_hand(self, params: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        def two_layers(name: str, seen: Tensor) -> Tensor:
            return dense(params, f"{name}.2", F.relu(dense(params, f"{name}.0", seen)))

        # Both RNNs see the image at each step: their products with it are taken once, and together.
        size = SIDE * SIDE
        weights = torch.cat([params["rnn.weight_ih"], params["baseline_rnn.weight_ih"]])
        biases = torch.cat([params[f"{name}.bias_{kind}"] for kind in ("ih", "hh") for name in ("rnn", "baseline_rnn")])
        of_image = x.flatten(1) @ weights[:, :size].T + biases.view(2, -1).sum(0)
        of_rest = weights[:, size:].T
        recurrence = params["rnn.weight_hh"].T, params["baseline_rnn.weight_hh"].T

        fine = torch.linspace(-1, 1, SIDE, device=x.device)
        coarse = torch.linspace(-1, 1, WINDOW, device=x.device)
        fine_pixels = torch.arange(float(SIDE), device=x.device)
        coarse_pixels = torch.arange(float(WINDOW), device=x.device)
        state, of_baseline = x.new_zeros(len(x), HIDDEN), x.new_zeros(len(x), HIDDEN)
        where, what, present = x.new_zeros(len(x), WHERE), x.new_zeros(len(x), WHAT), x.new_ones(len(x), 1)
        noise = torch.randn(STEPS, len(x), WHERE + WHAT, device=x.device)
        uniform = torch.rand(STEPS, len(x), 1, device=x.device)
        steps, costs, baselines, scores = [], [], [], []
        for t in range(STEPS):
            rest = torch.cat([where, what, present], -1)
            own = of_image[:, :HIDDEN] + rest @ of_rest[:, :HIDDEN]
            others = of_image[:, HIDDEN:] + rest.detach() @ of_rest[:, HIDDEN:]
            state = torch.tanh(own + state @ recurrence[0])
            of_baseline = torch.tanh(others + of_baseline @ recurrence[1])
            baselines.append((dense(params, "baseline", of_baseline) * present).squeeze(-1))
            logit, where_loc, raw_scale = dense(params, "predict", state).split([1, WHERE, WHERE], -1)
            where_scale = F.softplus(raw_scale)
            before, present = present, (uniform[t] < torch.sigmoid(logit) * present).to(x.dtype)
            where = where_loc + where_scale * noise[t, :, :WHERE]
            glimpse = _attend(x, where, coarse, fine_pixels)
            what_loc, raw_scale = two_layers("encoder", glimpse.flatten(1)).chunk(2, -1)
            what_scale = F.softplus(raw_scale)
            what = what_loc + what_scale * noise[t, :, WHERE:]

            scores.append((before * log_bernoulli(logit, present)).squeeze(-1))
            prior = before * (present * math.log(PRESENT) + (1 - present) * math.log(1 - PRESENT))
            standard = [(where[:, i] - WHERE_LOC[i]) / WHERE_SCALE[i] for i in range(WHERE)]
            squares = noise[t].square().sum(-1) - what.square().sum(-1) - sum(s.square() for s in standard)
            logs = where_scale.log().sum(-1) + what_scale.log().sum(-1) - sum(math.log(s) for s in WHERE_SCALE)
            costs.append(prior.squeeze(-1) + present.squeeze(-1) * (0.5 * squares + logs))
            steps.append((where, what, present))

        where, what, present = (torch.cat(values) for values in zip(*steps, strict=True))
        window = torch.sigmoid(two_layers("decoder", what)).view(-1, WINDOW, WINDOW)
        placed = _place(window, where, fine, coarse_pixels) * present.unsqueeze(-1)
        error = (x - placed.view(STEPS, *x.shape).sum(0)) / NOISE
        likelihood = -0.5 * error.square().sum((1, 2)) - size * (HALF_LOG_2PI + math.log(NOISE))
        elbo, surrogate, baseline_loss = likelihood, likelihood, torch.zeros_like(likelihood)
        for t in reversed(range(STEPS)):
            elbo = elbo + costs[t] - scores[t]
            difference = elbo.detach() - baselines[t]
            surrogate = surrogate + costs[t] + scores[t] * difference.detach()
            baseline_loss = baseline_loss + difference.square()
        return -elbo.sum(), (baseline_loss - surrogate).sum()


def _mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, outputs))


def _place(window: Any, where: Any, fine: Any, coarse_pixels: Any) -> Any:
    """Windows [n, 8, 8] on empty canvases [n, 24, 24]; for torch's tensors and JAX's arrays."""
    columns, rows = (
        _bilinear((where[:, :1] * (fine - where[:, i : i + 1]) + 1) * (0.5 * (WINDOW - 1)), coarse_pixels)
        for i in (1, 2)
    )
    return rows @ window @ columns.mT


def _attend(image: Any, where: Any, coarse: Any, fine_pixels: Any) -> Any:
    """What the windows [n, 8, 8] see of canvases [n, 24, 24]; the inverse of :func:`_place`."""
    columns, rows = (
        _bilinear((coarse / where[:, :1] + where[:, i : i + 1] + 1) * (0.5 * (SIDE - 1)), fine_pixels) for i in (1, 2)
    )
    return rows @ image @ columns.mT


def _bilinear(positions: Any, pixels: Any) -> Any:
    """Weights [n, positions, pixels]: 1 at a pixel, 0 from the next one on."""
    return (1 - abs(positions[:, :, None] - pixels)).clip(0)
