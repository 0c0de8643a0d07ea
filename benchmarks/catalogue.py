"""The rows of the table: a title for each family and its sizes. Light, for the process that only waits."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """A workload, by the name of its family and the arguments that make it."""

    title: str
    family: str
    sizes: dict[str, int] = {}
    chain: bool = False
    """Unrolled, so that eager Pyro pays for each statement; the aim is higher there."""


WORKLOADS: dict[str, Entry] = {
    "beta_bernoulli": Entry("Beta-Bernoulli", "BetaBernoulli"),
    "vae": Entry("VAE on digits, 64 hidden units, batch 128", "Autoencoder", {"hidden": 64}),
    "wide_vae": Entry("VAE on digits, 400 hidden units, batch 128", "Autoencoder", {"hidden": 400}),
    "sigmoid_belief_net": Entry("Sigmoid belief net with NVIL baselines, batch 128", "BeliefNet"),
    "gamma_family": Entry("Sparse gamma deep exponential family, batch 128", "GammaFamily"),
    "regression_normal": Entry("Hierarchical regression, AutoNormal", "RegressionNormal"),
    "regression_mvn": Entry("Hierarchical regression, AutoMultivariateNormal", "RegressionMultivariate"),
    **{
        f"gaussian_chain_{steps}": Entry(f"Gaussian chain, T = {steps}", "GaussianChain", {"steps": steps}, chain=True)
        for steps in (20, 50, 200)
    },
    **{
        f"discrete_chain_{steps}": Entry(f"Discrete chain, T = {steps}", "DiscreteChain", {"steps": steps}, chain=True)
        for steps in (20, 50, 200)
    },
    "lda": Entry("LDA with assignments drawn, 64 documents", "Topics"),
    "deep_markov": Entry("Deep Markov model, batch 64", "DeepMarkov"),
    "air": Entry("AIR with a baseline, batch 64", "AttendInferRepeat"),
}
