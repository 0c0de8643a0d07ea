"""What is trained until its ELBO is good enough, by :mod:`benchmarks.training`."""

from __future__ import annotations

from benchmarks.problems.base import Problem
from benchmarks.problems.digits_net import DigitsNet
from benchmarks.problems.documents import Documents
from benchmarks.problems.markov_model import MarkovModel
from benchmarks.problems.mixture import Mixture
from benchmarks.problems.scenes import Scenes

PROBLEMS: dict[str, type[Problem]] = {
    "belief_net": DigitsNet,
    "mixture": Mixture,
    "hmm": MarkovModel,
    "lda": Documents,
    "air": Scenes,
}
