"""Sigmoid belief net with neural baselines (Mnih & Gregor 2014, NVIL).

top ~ Bernoulli(logits), 32 units; bottom ~ Bernoulli(linear(top)), 64 units; x ~ Bernoulli(linear(bottom)), 64 pixels.
Guide bottom ~ Bernoulli(mlp(x)), top ~ Bernoulli(mlp(bottom)); a baseline mlp for each, of x and of bottom. NumPyro has
no baselines and does without.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from benchmarks.workloads.base import Program, Workload
from benchmarks.workloads.data import PIXELS, binary
from benchmarks.workloads.layers import (
    dense,
    draw_bernoulli,
    linear,
    load,
    log_bernoulli,
    mlp,
    numpyro_params,
)

TOP, BOTTOM, HIDDEN = 32, 64, 100
Baselines = Literal["none", "network", "network + average"]


class BeliefNet(Workload):
    """Two binary layers of 32 and 64 units over digits; a neural baseline for each layer (NumPyro: none).

    :param baselines: of Pyro's program. The networks are trained where they are used.
    """

    discrete = True

    def __init__(self, batch: int = 128, baselines: Baselines = "network") -> None:
        self.baselines = baselines
        rng = np.random.default_rng(0)
        self.data = (binary(batch),)
        self.values = {"top_logits": np.zeros(TOP, np.float32)}
        self.values |= linear(rng, "bottom_given_top", TOP, BOTTOM) | linear(rng, "pixels_given_bottom", BOTTOM, PIXELS)
        self.values |= mlp(rng, "bottom_given_pixels", PIXELS, HIDDEN, BOTTOM)
        self.values |= mlp(rng, "top_given_bottom", BOTTOM, HIDDEN, TOP)
        self.values |= mlp(rng, "bottom_baseline", PIXELS, HIDDEN, 1) | mlp(rng, "top_baseline", BOTTOM, HIDDEN, 1)

    def pyro(self) -> Program:
        first_logits = torch.tensor(self.values["top_logits"])
        bottom_given_top = load(nn.Linear(TOP, BOTTOM), self.values, "bottom_given_top")
        pixels_given_bottom = load(nn.Linear(BOTTOM, PIXELS), self.values, "pixels_given_bottom")
        bottom_given_pixels = load(_mlp(PIXELS, BOTTOM), self.values, "bottom_given_pixels")
        top_given_bottom = load(_mlp(BOTTOM, TOP), self.values, "top_given_bottom")
        bottom_baseline = load(_mlp(PIXELS, 1), self.values, "bottom_baseline")
        top_baseline = load(_mlp(BOTTOM, 1), self.values, "top_baseline")
        networks = {"bottom": _Squeezed(bottom_baseline), "top": _Squeezed(top_baseline)}

        def asked(layer: str, seen: Tensor) -> dict[str, Any]:
            if self.baselines == "none":
                return {}
            average = {"use_decaying_avg_baseline": True} if self.baselines == "network + average" else {}
            return {"baseline": {"nn_baseline": networks[layer], "nn_baseline_input": seen, **average}}

        def model(x: Tensor) -> None:
            pyro.module("bottom_given_top", bottom_given_top)
            pyro.module("pixels_given_bottom", pixels_given_bottom)
            prior = pyro.param("top_logits", first_logits)
            with pyro.plate("images", len(x)):
                top = pyro.sample("top", dist.Bernoulli(logits=prior.expand(len(x), -1)).to_event(1))
                bottom = pyro.sample("bottom", dist.Bernoulli(logits=bottom_given_top(top)).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=pixels_given_bottom(bottom)).to_event(1), obs=x)

        def guide(x: Tensor) -> None:
            pyro.module("bottom_given_pixels", bottom_given_pixels)
            pyro.module("top_given_bottom", top_given_bottom)
            if self.baselines != "none":
                pyro.module("bottom_baseline", bottom_baseline)
                pyro.module("top_baseline", top_baseline)
            with pyro.plate("images", len(x)):
                bottom = pyro.sample(
                    "bottom",
                    dist.Bernoulli(logits=bottom_given_pixels(x)).to_event(1),
                    infer=asked("bottom", x),
                )
                pyro.sample(
                    "top",
                    dist.Bernoulli(logits=top_given_bottom(bottom)).to_event(1),
                    infer=asked("top", bottom),
                )

        return model, guide

    def numpyro(self) -> Program:
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as jdist

        def two_layers(p, name, x):  # type: ignore[no-untyped-def]
            return dense(p, f"{name}.2", jnp.tanh(dense(p, f"{name}.0", x)))

        def model(x):  # type: ignore[no-untyped-def]
            p = numpyro_params(self.values, "bottom_given_top", "pixels_given_bottom")
            prior = numpyro.param("top_logits", jnp.asarray(self.values["top_logits"]))
            with numpyro.plate("images", len(x)):
                logits = jnp.broadcast_to(prior, (len(x), TOP))
                top = numpyro.sample("top", jdist.Bernoulli(logits=logits).to_event(1))
                logits = dense(p, "bottom_given_top", top)
                bottom = numpyro.sample("bottom", jdist.Bernoulli(logits=logits).to_event(1))
                logits = dense(p, "pixels_given_bottom", bottom)
                numpyro.sample("x", jdist.Bernoulli(logits=logits).to_event(1), obs=x)

        def guide(x):  # type: ignore[no-untyped-def]
            p = numpyro_params(self.values, "bottom_given_pixels", "top_given_bottom")
            with numpyro.plate("images", len(x)):
                logits = two_layers(p, "bottom_given_pixels", x)
                bottom = numpyro.sample("bottom", jdist.Bernoulli(logits=logits).to_event(1))
                logits = two_layers(p, "top_given_bottom", bottom)
                numpyro.sample("top", jdist.Bernoulli(logits=logits).to_event(1))

        return model, guide

    def by_hand(self, params: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        def two_layers(name: str, seen: Tensor) -> Tensor:
            return dense(params, f"{name}.2", torch.tanh(dense(params, f"{name}.0", seen)))

        def log_prob(logits: Tensor, value: Tensor) -> Tensor:
            return log_bernoulli(logits, value).sum(-1)

        logits = two_layers("bottom_given_pixels", x)
        bottom = draw_bernoulli(logits)
        q_bottom = log_prob(logits, bottom)
        logits = two_layers("top_given_bottom", bottom)
        top = draw_bernoulli(logits)
        q_top = log_prob(logits, top)

        p_top = log_prob(params["top_logits"].expand(len(x), -1), top)
        p_bottom = log_prob(dense(params, "bottom_given_top", top), bottom)
        p_x = log_prob(dense(params, "pixels_given_bottom", bottom), x)

        top_cost = p_top + p_bottom - q_top  # what depends on the top layer, given the bottom one
        bottom_cost = top_cost + p_x - q_bottom
        elbo = bottom_cost.sum()
        top_error = top_cost.detach() - two_layers("top_baseline", bottom).squeeze(-1)
        bottom_error = bottom_cost.detach() - two_layers("bottom_baseline", x).squeeze(-1)
        score = q_top * top_error.detach() + q_bottom * bottom_error.detach()
        surrogate = (p_top + p_bottom + p_x + score).sum()
        baseline_loss = top_error.square().sum() + bottom_error.square().sum()
        return -elbo, baseline_loss - surrogate


class _Squeezed(nn.Module):
    """A prediction of each image's downstream cost."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, seen: Tensor) -> Tensor:
        return self.layers(seen).squeeze(-1)


def _mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, outputs))
