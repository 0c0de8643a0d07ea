"""Latent Dirichlet allocation (Pyro's example ``lda``), as :mod:`benchmarks.workloads.topics`: digits are documents.

topic_words [8, 64] ~ Dirichlet(1/2), a document's mixture [8] ~ Dirichlet(1/2), each word's topic z ~
Categorical(mixture), word ~ Categorical(topic_words[z]). The guide has a Dirichlet for each topic and document, and
where it draws the assignments, logits [64, 8] for each word of each document.
"""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.ops.indexing import Vindex
from torch import Tensor

from benchmarks.problems.asked import ASKED
from benchmarks.problems.base import Course, Judge, Method, Problem
from benchmarks.workloads.base import Program
from benchmarks.workloads.data import PIXELS, words
from benchmarks.workloads.topics import PRIOR, TOPICS


class Documents(Problem):
    title = "LDA, 100 documents of 64 words, 8 topics"
    words = "Full batch. The ELBO is that with the assignments summed out, for each word."
    methods = (
        Method("sgc", "score function, decaying average", "drawn, average"),
        Method("sgc", "score function, leave-one-out, K = 4", "drawn", particles=4, estimators="leave-one-out"),
        Method("sgc", "score function, auto, K = 4", "drawn", particles=4, estimators="auto"),
        Method("sgc", "summed out of the model", "summed out", "TraceEnum_ELBO"),
        Method("Pyro", "score function, decaying average", "drawn, average"),
        Method("Pyro Jit", "score function (an average is an error there)", "drawn"),
        Method("Pyro", "summed out of the model", "summed out", "TraceEnum_ELBO"),
        Method("Pyro Jit", "summed out of the model", "summed out", "TraceEnum_ELBO"),
        Method("NumPyro", "score function", "drawn"),
        Method("NumPyro", "score function, K = 4", "drawn", particles=4),
        Method("NumPyro", "summed out of the model", "summed out", "TraceEnum_ELBO"),
    )
    course = Course(learning_rate=0.1, block=25, blocks=40, reference=-3.6547, fraction=0.9)
    nesting = 2
    judge = Judge("summed out", "TraceEnum_ELBO", 4)

    def __init__(self, quick: bool = False) -> None:
        rng = np.random.default_rng(0)
        documents, length = (10, 8) if quick else (100, 64)
        self.count = documents * length
        self.data = words(documents, length)
        self.minibatches = self.data[None]
        self.values = {
            "for_topics": rng.uniform(1.0, 2.0, (TOPICS, PIXELS)).astype(np.float32),
            "for_mixtures": rng.uniform(1.0, 2.0, (documents, TOPICS)).astype(np.float32),
            "logits": np.zeros((length, documents, TOPICS), np.float32),
        }

    def pyro(self, variant: str) -> Program:
        of_model, of_guide = ASKED[variant]
        first = {name: torch.tensor(value) for name, value in self.values.items()}

        def model(seen: Tensor) -> None:
            with pyro.plate("topics", TOPICS):
                topic_words = pyro.sample("topic_words", dist.Dirichlet(torch.full((PIXELS,), PRIOR)))
            with pyro.plate("documents", seen.shape[1]):
                mixture = pyro.sample("mixture", dist.Dirichlet(torch.full((TOPICS,), PRIOR)))
                with pyro.plate("words", seen.shape[0]):
                    z = pyro.sample("z", dist.Categorical(mixture), infer=of_model())
                    chosen = Vindex(topic_words.unsqueeze(-3))[..., z, :]  # the particles, if any, left of the words
                    pyro.sample("word", dist.Categorical(chosen), obs=seen)

        def guide(seen: Tensor) -> None:
            topics = pyro.param("for_topics", first["for_topics"], constraint=constraints.positive)
            mixtures = pyro.param("for_mixtures", first["for_mixtures"], constraint=constraints.positive)
            with pyro.plate("topics", TOPICS):
                pyro.sample("topic_words", dist.Dirichlet(topics))
            with pyro.plate("documents", seen.shape[1]):
                pyro.sample("mixture", dist.Dirichlet(mixtures))
                if of_guide is not None:
                    logits = pyro.param("logits", first["logits"])
                    with pyro.plate("words", seen.shape[0]):
                        pyro.sample("z", dist.Categorical(logits=logits), infer=of_guide())

        return model, guide

    def numpyro(self, variant: str) -> Program:
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as jdist

        of_model, of_guide = ASKED[variant]
        first = {name: jnp.asarray(value) for name, value in self.values.items()}

        def model(seen):  # type: ignore[no-untyped-def]
            with numpyro.plate("topics", TOPICS):
                topic_words = numpyro.sample("topic_words", jdist.Dirichlet(jnp.full(PIXELS, PRIOR)))
            with numpyro.plate("documents", seen.shape[1]):
                mixture = numpyro.sample("mixture", jdist.Dirichlet(jnp.full(TOPICS, PRIOR)))
                with numpyro.plate("words", seen.shape[0]):
                    z = numpyro.sample("z", jdist.Categorical(mixture), infer=of_model())
                    numpyro.sample("word", jdist.Categorical(topic_words[z]), obs=seen)

        def positive(name):  # type: ignore[no-untyped-def]
            return numpyro.param(name, first[name], constraint=jdist.constraints.positive)

        def guide(seen):  # type: ignore[no-untyped-def]
            topics, mixtures = positive("for_topics"), positive("for_mixtures")
            with numpyro.plate("topics", TOPICS):
                numpyro.sample("topic_words", jdist.Dirichlet(topics))
            with numpyro.plate("documents", seen.shape[1]):
                numpyro.sample("mixture", jdist.Dirichlet(mixtures))
                if of_guide is not None:
                    logits = numpyro.param("logits", first["logits"])
                    with numpyro.plate("words", seen.shape[0]):
                        numpyro.sample("z", jdist.Categorical(logits=logits), infer=of_guide())

        return model, guide
