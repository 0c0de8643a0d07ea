"""Hierarchical regression of the diabetes study, with Pyro's and NumPyro's automatic guides.

intercept_mean, slope_mean, weights [8] ~ N(0, 1); intercept_scale, slope_scale, noise ~ HalfNormal(1); for each of 12
age groups intercept ~ N(intercept_mean, intercept_scale) and slope ~ N(slope_mean, slope_scale); for each of 442
patients progress ~ N(intercept[group] + slope[group] * mass + features . weights, noise). 37 latent numbers.
"""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal, init_to_value
from torch import Tensor

from benchmarks.workloads.base import Program, Values, Workload
from benchmarks.workloads.data import patients

GROUPS, FEATURES, PATIENTS, SCALE = 12, 8, 442, 0.1
SIZES = {
    "intercept_mean": 1,
    "intercept_scale": 1,
    "slope_mean": 1,
    "slope_scale": 1,
    "weights": FEATURES,
    "noise": 1,
    "intercept": GROUPS,
    "slope": GROUPS,
}
SCALES = ("intercept_scale", "slope_scale", "noise")
LATENT = sum(SIZES.values())
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class _Regression(Workload):
    """The model; a subclass chooses the guide."""

    pyro_guide: type[AutoNormal] | type[AutoMultivariateNormal]

    def __init__(self) -> None:
        self.data = patients(GROUPS)

    def pyro(self) -> Program:
        def model(features: Tensor, mass: Tensor, group: Tensor, progress: Tensor) -> None:
            intercept_mean = pyro.sample("intercept_mean", dist.Normal(0.0, 1.0))
            intercept_scale = pyro.sample("intercept_scale", dist.HalfNormal(1.0))
            slope_mean = pyro.sample("slope_mean", dist.Normal(0.0, 1.0))
            slope_scale = pyro.sample("slope_scale", dist.HalfNormal(1.0))
            weights = pyro.sample("weights", dist.Normal(0.0, 1.0).expand([FEATURES]).to_event(1))
            noise = pyro.sample("noise", dist.HalfNormal(1.0))
            with pyro.plate("groups", GROUPS):
                intercept = pyro.sample("intercept", dist.Normal(intercept_mean, intercept_scale))
                slope = pyro.sample("slope", dist.Normal(slope_mean, slope_scale))
            mean = intercept[group] + slope[group] * mass + features @ weights
            with pyro.plate("patients", len(progress)):
                pyro.sample("progress", dist.Normal(mean, noise), obs=progress)

        start = init_to_value(values={name: torch.tensor(value) for name, value in _start().items()})
        return model, self.pyro_guide(model, init_loc_fn=start, init_scale=SCALE)

    def numpyro(self) -> Program:
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as jdist
        import numpyro.infer.autoguide as guides

        def model(features, mass, group, progress):  # type: ignore[no-untyped-def]
            intercept_mean = numpyro.sample("intercept_mean", jdist.Normal(0.0, 1.0))
            intercept_scale = numpyro.sample("intercept_scale", jdist.HalfNormal(1.0))
            slope_mean = numpyro.sample("slope_mean", jdist.Normal(0.0, 1.0))
            slope_scale = numpyro.sample("slope_scale", jdist.HalfNormal(1.0))
            weights = numpyro.sample("weights", jdist.Normal(0.0, 1.0).expand([FEATURES]).to_event(1))
            noise = numpyro.sample("noise", jdist.HalfNormal(1.0))
            with numpyro.plate("groups", GROUPS):
                intercept = numpyro.sample("intercept", jdist.Normal(intercept_mean, intercept_scale))
                slope = numpyro.sample("slope", jdist.Normal(slope_mean, slope_scale))
            mean = intercept[group] + slope[group] * mass + features @ weights
            with numpyro.plate("patients", len(progress)):
                numpyro.sample("progress", jdist.Normal(mean, noise), obs=progress)

        start = numpyro.infer.init_to_value(values={name: jnp.asarray(value) for name, value in _start().items()})
        guide = getattr(guides, self.pyro_guide.__name__)
        return model, guide(model, init_loc_fn=start, init_scale=SCALE)

    def loss(self, latent: Tensor, log_q: Tensor, data: tuple[Tensor, ...]) -> Tensor:
        """Minus the ELBO for latent numbers in the space without constraints, [37]; log_q is their density there."""
        features, mass, group, progress = data
        pieces = dict(zip(SIZES, latent.split(list(SIZES.values())), strict=True))
        logs = torch.cat([pieces[name] for name in SCALES])
        intercept_scale, slope_scale, noise = logs.exp()
        standard = torch.cat(
            [
                *(pieces[name] for name in ("intercept_mean", "slope_mean", "weights")),
                (pieces["intercept"] - pieces["intercept_mean"]) / intercept_scale,
                (pieces["slope"] - pieces["slope_mean"]) / slope_scale,
                logs.exp(),
            ]
        )
        # A half normal has twice the density of a normal; the logarithms of scales carry their Jacobian.
        log_prior = -0.5 * standard.square().sum() - LATENT * HALF_LOG_2PI + len(SCALES) * math.log(2.0) + logs.sum()
        log_prior = log_prior - GROUPS * (logs[0] + logs[1])
        mean = pieces["intercept"][group] + pieces["slope"][group] * mass + features @ pieces["weights"]
        squares = ((progress - mean) / noise).square().sum()
        log_likelihood = -0.5 * squares - len(progress) * (logs[2] + HALF_LOG_2PI)
        return log_q - log_prior - log_likelihood


class RegressionNormal(_Regression):
    """Patients in 12 age groups, AutoNormal."""

    pyro_guide = AutoNormal

    def __init__(self) -> None:
        super().__init__()
        self.values = {"loc": np.zeros(LATENT, np.float32), "scale": np.full(LATENT, SCALE, np.float32)}
        self.positive = {"scale": "softplus"}

    def by_hand(self, params: dict[str, Tensor], *data: Tensor) -> tuple[Tensor, Tensor]:
        params = self.constrain(params)
        noise = torch.randn_like(params["loc"])
        latent = params["loc"] + params["scale"] * noise
        log_q = -0.5 * noise.square().sum() - params["scale"].log().sum() - LATENT * HALF_LOG_2PI
        loss = self.loss(latent, log_q, data)
        return loss, loss

    def gradients_by_hand(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """The pieces of each latent variable, in the order of ``SIZES``."""
        ours = {}
        for own, pyros, numpyros in (("loc", "locs", "loc"), ("scale", "scales", "scale")):
            in_pyro = [f"AutoNormal.{pyros}.{name}" for name in SIZES]
            in_numpyro = [f"{name}_auto_{numpyros}" for name in SIZES]
            names = in_pyro if in_pyro[0] in gradients else in_numpyro
            ours[own] = torch.cat([gradients[name].reshape(-1) for name in names])
        return ours


class RegressionMultivariate(_Regression):
    """Patients in 12 age groups, AutoMultivariateNormal."""

    pyro_guide = AutoMultivariateNormal

    def __init__(self) -> None:
        super().__init__()
        prefix = "AutoMultivariateNormal"
        self.values = {
            f"{prefix}.loc": np.zeros(LATENT, np.float32),
            f"{prefix}.scale": np.full(LATENT, SCALE, np.float32),
            f"{prefix}.scale_tril": np.zeros((LATENT, LATENT), np.float32),
        }
        self.positive = {f"{prefix}.scale": "softplus"}

    def by_hand(self, params: dict[str, Tensor], *data: Tensor) -> tuple[Tensor, Tensor]:
        loc, scale, below = self.constrain(params).values()
        noise = torch.randn_like(loc)
        latent = loc + scale * (below.tril(-1) @ noise + noise)
        log_q = -0.5 * noise.square().sum() - scale.log().sum() - LATENT * HALF_LOG_2PI
        loss = self.loss(latent, log_q, data)
        return loss, loss


def _start() -> Values:
    """The first location of each latent variable: 0, and 1 for scales."""
    shapes = {name: () if size == 1 else (size,) for name, size in SIZES.items()}
    return {name: np.full(shape, float(name in SCALES), np.float32) for name, shape in shapes.items()}
