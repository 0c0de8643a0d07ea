"""Latent Dirichlet allocation (Blei et al. 2003) with the assignments drawn: documents are digits, words are pixels.

topic_words [8, 64] ~ Dirichlet(1/2), a document's mixture [8] ~ Dirichlet(1/2), each word's topic z ~
Categorical(mixture), word ~ Categorical(topic_words[z]). The guide has a Dirichlet for each topic and document, and
logits for each word's topic.
"""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from benchmarks.workloads.base import Program, Workload
from benchmarks.workloads.data import PIXELS, words
from benchmarks.workloads.layers import draw_categorical

TOPICS, PRIOR = 8, 0.5


class Topics(Workload):
    """LDA of 64 documents of 32 words, 8 topics, 64 different words; assignments by the score function."""

    discrete = True

    def __init__(self, documents: int = 64, length: int = 32) -> None:
        rng = np.random.default_rng(0)
        self.data = (words(documents, length),)
        self.values = {
            "for_topics": rng.uniform(1.0, 2.0, (TOPICS, PIXELS)).astype(np.float32),
            "for_mixtures": rng.uniform(1.0, 2.0, (documents, TOPICS)).astype(np.float32),
            "logits": (0.5 * rng.normal(size=(length, documents, TOPICS))).astype(np.float32),
        }
        self.positive = {"for_topics": "exp", "for_mixtures": "exp"}

    def pyro(self) -> Program:
        first = {name: torch.tensor(value) for name, value in self.values.items()}

        def model(seen: Tensor) -> None:
            with pyro.plate("topics", TOPICS):
                topic_words = pyro.sample("topic_words", dist.Dirichlet(torch.full((PIXELS,), PRIOR)))
            with pyro.plate("documents", seen.shape[1]):
                mixture = pyro.sample("mixture", dist.Dirichlet(torch.full((TOPICS,), PRIOR)))
                with pyro.plate("words", seen.shape[0]):
                    z = pyro.sample("z", dist.Categorical(mixture))
                    pyro.sample("word", dist.Categorical(topic_words[z]), obs=seen)

        def guide(seen: Tensor) -> None:
            topics = pyro.param("for_topics", first["for_topics"], constraint=constraints.positive)
            mixtures = pyro.param("for_mixtures", first["for_mixtures"], constraint=constraints.positive)
            assignments = pyro.param("logits", first["logits"])
            with pyro.plate("topics", TOPICS):
                pyro.sample("topic_words", dist.Dirichlet(topics))
            with pyro.plate("documents", seen.shape[1]):
                pyro.sample("mixture", dist.Dirichlet(mixtures))
                with pyro.plate("words", seen.shape[0]):
                    pyro.sample("z", dist.Categorical(logits=assignments))

        return model, guide

    def numpyro(self) -> Program:
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as jdist

        def model(seen):  # type: ignore[no-untyped-def]
            with numpyro.plate("topics", TOPICS):
                topic_words = numpyro.sample("topic_words", jdist.Dirichlet(jnp.full(PIXELS, PRIOR)))
            with numpyro.plate("documents", seen.shape[1]):
                mixture = numpyro.sample("mixture", jdist.Dirichlet(jnp.full(TOPICS, PRIOR)))
                with numpyro.plate("words", seen.shape[0]):
                    z = numpyro.sample("z", jdist.Categorical(mixture))
                    numpyro.sample("word", jdist.Categorical(topic_words[z]), obs=seen)

        def positive(name):  # type: ignore[no-untyped-def]
            return numpyro.param(name, jnp.asarray(self.values[name]), constraint=jdist.constraints.positive)

        def guide(seen):  # type: ignore[no-untyped-def]
            topics, mixtures = positive("for_topics"), positive("for_mixtures")
            assignments = numpyro.param("logits", jnp.asarray(self.values["logits"]))
            with numpyro.plate("topics", TOPICS):
                numpyro.sample("topic_words", jdist.Dirichlet(topics))
            with numpyro.plate("documents", seen.shape[1]):
                numpyro.sample("mixture", jdist.Dirichlet(mixtures))
                with numpyro.plate("words", seen.shape[0]):
                    numpyro.sample("z", jdist.Categorical(logits=assignments))

        return model, guide

    def by_hand(self, params: dict[str, Tensor], seen: Tensor) -> tuple[Tensor, Tensor]:
        params = self.constrain(params)
        topics, mixtures, logits = params["for_topics"], params["for_mixtures"], params["logits"]
        topic_words = torch.distributions.Dirichlet(topics, validate_args=False).rsample().log()
        mixture = torch.distributions.Dirichlet(mixtures, validate_args=False).rsample().log()
        log_p = _log_dirichlet(torch.full_like(topics, PRIOR), topic_words).sum()
        log_p = log_p + _log_dirichlet(torch.full_like(mixtures, PRIOR), mixture).sum()
        log_q = _log_dirichlet(topics, topic_words).sum() + _log_dirichlet(mixtures, mixture).sum()

        z = draw_categorical(logits)  # [word, document]
        documents = torch.arange(seen.shape[1], device=seen.device)
        log_z = torch.log_softmax(logits, -1).gather(-1, z.unsqueeze(-1)).squeeze(-1)
        log_word = mixture[documents, z] + topic_words[z, seen]
        costs = (log_word - log_z).detach()
        surrogate = log_p - log_q + (log_word + log_z * costs).sum()
        return log_q - log_p - costs.sum(), -surrogate


def _log_dirichlet(concentration: Tensor, log_value: Tensor) -> Tensor:
    normaliser = torch.lgamma(concentration.sum(-1)) - torch.lgamma(concentration).sum(-1)
    return ((concentration - 1) * log_value).sum(-1) + normaliser
