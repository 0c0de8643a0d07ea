"""What a step costs that serves any batch size, beside the step that is compiled for one: the same data, in turns.

python -m benchmarks.dynamic_sizes
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

import sgc
import sgc.infer
from benchmarks.systems.base import LEARNING_RATE
from benchmarks.turns import Turns
from benchmarks.workloads import make
from benchmarks.workloads.data import words

DOCUMENTS, TOPICS, WORDS, LENGTH = 512, 8, 64, 32


Case = tuple[Callable[..., Any], Callable[..., Any], tuple[Tensor, ...]]
"""Model, guide and their arguments."""


def topics(batch: int) -> Case:
    """LDA with assignments drawn, on some of its documents; parameters for all of them."""

    def model(seen: Tensor, index: Tensor) -> None:
        with pyro.plate("topics", TOPICS):
            topic_words = pyro.sample("topic_words", dist.Dirichlet(torch.full((WORDS,), 0.5)))
        with pyro.plate("documents", DOCUMENTS, subsample=index):
            mixture = pyro.sample("mixture", dist.Dirichlet(torch.full((TOPICS,), 0.5)))
            with pyro.plate("words", LENGTH):
                z = pyro.sample("z", dist.Categorical(mixture))
                pyro.sample("word", dist.Categorical(topic_words[z]), obs=seen)

    def guide(seen: Tensor, index: Tensor) -> None:
        positive = constraints.positive
        for_topics = pyro.param("for_topics", lambda: 1 + torch.rand(TOPICS, WORDS), constraint=positive)
        mixtures = pyro.param("for_mixtures", lambda: 1 + torch.rand(DOCUMENTS, TOPICS), constraint=positive)
        assignments = pyro.param("logits", lambda: 0.5 * torch.randn(LENGTH, DOCUMENTS, TOPICS))
        with pyro.plate("topics", TOPICS):
            pyro.sample("topic_words", dist.Dirichlet(for_topics))
        with pyro.plate("documents", DOCUMENTS, subsample=index):
            pyro.sample("mixture", dist.Dirichlet(mixtures[index]))
            with pyro.plate("words", LENGTH):
                pyro.sample("z", dist.Categorical(logits=assignments[:, index]))

    seen = torch.tensor(words(DOCUMENTS, LENGTH))[:, :batch].contiguous()
    return model, guide, (seen, torch.arange(batch))


def workload(family: str, **sizes: int) -> Case:
    """A workload of the table."""
    made = make(family, sizes)
    return *made.pyro(), tuple(torch.tensor(array) for array in made.data)


PROGRAMS: dict[str, Callable[[int], Case]] = {
    "VAE, 64 hidden units": lambda batch: workload("Autoencoder", hidden=64, batch=batch),
    "VAE, 400 hidden units": lambda batch: workload("Autoencoder", hidden=400, batch=batch),
    "sigmoid belief net": lambda batch: workload("BeliefNet", batch=batch),
    "LDA": topics,
}
"""From the size of a batch."""


def trained(program: Callable[[int], Case], batches: list[int]) -> Callable[[], float]:
    """A step of one ``sgc.SVI`` that has taken steps on batches of these sizes, on the last of them."""
    model, guide, _ = program(batches[0])
    loss = sgc.infer.TraceGraph_ELBO(backend="inductor", rng="fast", wait=True)
    svi = sgc.SVI(model, guide, pyro.optim.Adam({"lr": LEARNING_RATE}), loss)
    for batch in batches:
        *_, args = program(batch)
        for _ in range(3):
            svi.step(*args)
    return lambda: svi.step(*args)


def trained_by_title(title: str, batches: list[int]) -> Callable[[], float]:
    """The same of a program by its name, for a process of its own."""
    return trained(PROGRAMS[title], batches)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=0.3, help="how long a turn lasts")
    parser.add_argument("--rounds", type=int, default=7, help="how many turns each program takes")
    options = parser.parse_args()
    print(f"sgc {sgc.__version__}, torch {torch.__version__}; batches of {options.batch}\n")
    print("| program | µs a step, this size | µs a step, any size | ratio |\n| --- | ---: | ---: | ---: |")
    for title in PROGRAMS:
        this = Turns(trained_by_title, title, [options.batch])
        any_size = Turns(trained_by_title, title, [options.batch // 2, options.batch + 32, options.batch])
        pairs = [(this.take(options.seconds), any_size.take(options.seconds)) for _ in range(options.rounds)]
        for process in (this, any_size):
            process.end()
        static, dynamic = (1e6 * statistics.median(times) for times in zip(*pairs, strict=True))
        print(f"| {title} | {static:.0f} | {dynamic:.0f} | {dynamic / static:.2f} |", flush=True)


if __name__ == "__main__":
    main()
