"""What is measured. A family is a class of :mod:`benchmarks.workloads`; a workload is a family at given sizes."""

from __future__ import annotations

from typing import Any

from benchmarks.workloads.air import AttendInferRepeat
from benchmarks.workloads.autoencoder import Autoencoder
from benchmarks.workloads.base import Workload
from benchmarks.workloads.belief_net import BeliefNet
from benchmarks.workloads.chains import DiscreteChain, GaussianChain
from benchmarks.workloads.coin import BetaBernoulli
from benchmarks.workloads.gamma_family import GammaFamily
from benchmarks.workloads.markov import DeepMarkov
from benchmarks.workloads.regression import RegressionMultivariate, RegressionNormal
from benchmarks.workloads.topics import Topics

FAMILIES: dict[str, type[Workload]] = {
    family.__name__: family
    for family in (
        BetaBernoulli,
        Autoencoder,
        BeliefNet,
        GammaFamily,
        RegressionNormal,
        RegressionMultivariate,
        GaussianChain,
        DiscreteChain,
        Topics,
        DeepMarkov,
        AttendInferRepeat,
    )
}


def make(family: str, sizes: dict[str, Any]) -> Workload:
    """The workload of a family, at these sizes."""
    return FAMILIES[family](**sizes)
