"""Discrete sites that are summed out: ``TraceEnum_ELBO``."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal
from pyro.ops.indexing import Vindex
from torch import Tensor, nn
from torch.distributions import constraints

from tests.reference.objectives.comparison import Comparisons, Trained

COMPARISONS = Comparisons("Sites summed out: `TraceEnum_ELBO`")
add = COMPARISONS.add


def spread(*shape: int) -> Tensor:
    return torch.linspace(-1.5, 2.5, int(torch.Size(shape).numel())).reshape(shape)


@add("A mixture of normals, its weights, means and scale by AutoDelta")
def mixture_by_map() -> Trained:
    @config_enumerate
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2)))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            assignment = pyro.sample("assignment", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[assignment], scale), obs=x)

    start = {"weights": torch.tensor([0.4, 0.6]), "scale": torch.tensor(1.2), "locs": torch.tensor([-1.0, 1.5])}
    guide = AutoDelta(
        poutine.block(model, expose=["weights", "locs", "scale"]), init_loc_fn=lambda site: start[site["name"]]
    )
    return Trained(model, guide, (spread(7),), "TraceEnum_ELBO", {"max_plate_nesting": 1})


@add("The same, with the memberships enumerated in the guide")
def mixture_with_memberships() -> Trained:
    def model(x: Tensor) -> None:
        locs = pyro.param("locs", torch.tensor([-1.0, 1.5]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5])))
            pyro.sample("x", dist.Normal(locs[z], 0.9), obs=x)

    @config_enumerate
    def guide(x: Tensor) -> None:
        probs = pyro.param("probs", torch.full((len(x), 2), 0.5), constraint=constraints.simplex)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(probs))

    return Trained(model, guide, (spread(5),), "TraceEnum_ELBO", {"max_plate_nesting": 1})


@add("A hidden Markov model of sequences of several lengths, as in Pyro's examples/hmm.py")
def music_of_several_lengths() -> Trained:
    tones = 3

    def model(sequences: Tensor, lengths: Tensor) -> None:
        with poutine.mask(mask=torch.tensor(True)):
            probs_x = pyro.sample("probs_x", dist.Dirichlet(0.9 * torch.eye(2) + 0.1).to_event(1))
            probs_y = pyro.sample("probs_y", dist.Beta(1.0, 9.0).expand([2, tones]).to_event(2))
        plate = pyro.plate("tones", tones, dim=-1)
        with pyro.plate("sequences", len(sequences), dim=-2):
            x: Any = 0
            for t in pyro.markov(range(sequences.shape[1])):
                with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                    x = pyro.sample(f"x_{t}", dist.Categorical(probs_x[x]), infer={"enumerate": "parallel"})
                    with plate:
                        pyro.sample(f"y_{t}", dist.Bernoulli(probs_y[x.squeeze(-1)]), obs=sequences[:, t])

    guide = AutoDelta(poutine.block(model, expose_fn=lambda site: site["name"].startswith("probs_")))
    played = (spread(2, 4, tones).cos() > 0.3).to(torch.get_default_dtype())
    return Trained(model, guide, (played, torch.tensor([4, 2])), "TraceEnum_ELBO", {"max_plate_nesting": 2})


@add("Two hidden chains that are observed together")
def factorial_markov_model() -> Trained:
    @config_enumerate
    def model(x: Tensor) -> None:
        stay = pyro.param("stay", torch.tensor([0.7, 0.8]), constraint=constraints.unit_interval)
        loc = pyro.param("loc", torch.tensor([[-1.0, 0.0], [0.5, 2.0]]))
        a = b = torch.tensor(0)
        for t in pyro.markov(range(len(x))):
            a = pyro.sample(f"a_{t}", dist.Bernoulli(torch.where(a == 1, stay[0], 1 - stay[0]))).long()
            b = pyro.sample(f"b_{t}", dist.Bernoulli(torch.where(b == 1, stay[1], 1 - stay[1]))).long()
            pyro.sample(f"x_{t}", dist.Normal(Vindex(loc)[a, b], 1.0), obs=x[t])

    return Trained(model, lambda x: None, (spread(4),), "TraceEnum_ELBO", {"max_plate_nesting": 0})


class Classifier(nn.Module):
    """A semi-supervised autoencoder: the class of a datum is known or enumerated."""

    def __init__(self, pixels: int = 6, classes: int = 3, latents: int = 2) -> None:
        super().__init__()
        self.classes, self.latents = classes, latents
        self.to_class = nn.Linear(pixels, classes)
        self.encoder = nn.Linear(pixels + classes, 2 * latents)
        self.decoder = nn.Linear(latents + classes, pixels)

    def model(self, x: Tensor, y: Tensor | None) -> None:
        pyro.module("classifier", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), self.latents), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(x.new_ones(len(x), self.classes) / self.classes), obs=y)
            shape = torch.broadcast_shapes(z.shape[:-1], y.shape[:-1])
            both = torch.cat([z.expand(*shape, -1), y.expand(*shape, -1)], -1)
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(both)).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor | None) -> None:
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", dist.OneHotCategorical(logits=self.to_class(x)), infer={"enumerate": "parallel"})
            shape = torch.broadcast_shapes(x.shape[:-1], y.shape[:-1])
            both = torch.cat([x.expand(*shape, -1), y.expand(*shape, -1)], -1)
            loc, log_scale = self.encoder(both).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def pictures(count: int) -> Tensor:
    return (spread(count, 6).sin() > 0).to(torch.get_default_dtype())


@add("A semi-supervised VAE on data without classes: the class is enumerated in the guide")
def classes_that_are_not_known() -> Trained:
    net = Classifier()
    return Trained(net.model, net.guide, (pictures(4), None), "TraceEnum_ELBO", {"max_plate_nesting": 1})


@add("The same VAE on data with classes: nothing is left to enumerate")
def classes_that_are_known() -> Trained:
    net = Classifier()
    known = torch.eye(3)[torch.tensor([0, 2, 1, 1])]
    options = {"max_plate_nesting": 1, "strict_enumeration_warning": False}
    return Trained(net.model, net.guide, (pictures(4), known), "TraceEnum_ELBO", options)


@add("Latent Dirichlet allocation: topics of words enumerated, those of documents amortised")
def topics_of_documents() -> Trained:
    network = nn.Sequential(nn.Linear(8, 4), nn.Sigmoid(), nn.Linear(4, 3))

    def model(words: Tensor) -> None:
        with pyro.plate("topics", 3):
            weights = pyro.sample("weights", dist.Gamma(1.0 / 3, 1.0))
            topic_words = pyro.sample("topic_words", dist.Dirichlet(torch.ones(8) / 8))
        with pyro.plate("documents", words.shape[1]):
            doc_topics = pyro.sample("doc_topics", dist.Dirichlet(weights))
            with pyro.plate("words", words.shape[0]):
                topic = pyro.sample("word_topics", dist.Categorical(doc_topics), infer={"enumerate": "parallel"})
                pyro.sample("doc_words", dist.Categorical(topic_words[topic]), obs=words)

    def guide(words: Tensor) -> None:
        positive = constraints.positive
        weights = pyro.param("weights_posterior", lambda: torch.ones(3), constraint=positive)
        topic_words = pyro.param(
            "words_posterior", lambda: torch.ones(3, 8) + 0.3, constraint=constraints.greater_than(0.5)
        )
        with pyro.plate("topics", 3):
            pyro.sample("weights", dist.Gamma(weights, 1.0))
            pyro.sample("topic_words", dist.Dirichlet(topic_words))
        pyro.module("predictor", network)
        with pyro.plate("documents", words.shape[1]):
            counts = torch.zeros(words.shape[1], 8).scatter_add(1, words.t(), torch.ones(words.t().shape))
            pyro.sample("doc_topics", dist.Dirichlet(network(counts).exp()))

    words = torch.tensor([[0, 3, 7], [1, 3, 5], [0, 2, 7], [4, 3, 6]])
    return Trained(model, guide, (words,), "TraceEnum_ELBO", {"max_plate_nesting": 2})


@add("Capture and recapture of animals: whether each is alive is summed out, year by year")
def cormack_jolly_seber() -> Trained:
    def model(captured: Tensor) -> None:
        count, years = captured.shape
        survival = pyro.sample("survival", dist.Uniform(0.0, 1.0))
        recapture = pyro.sample("recapture", dist.Uniform(0.0, 1.0))
        with pyro.plate("animals", count, dim=-1):
            z = torch.ones(count)
            seen = torch.zeros(count).bool()
            for t in pyro.markov(range(years)):
                with poutine.mask(mask=seen):
                    mean = survival * z
                    z = pyro.sample(f"z_{t}", dist.Bernoulli(mean), infer={"enumerate": "parallel"})
                    pyro.sample(f"y_{t}", dist.Bernoulli(recapture * z), obs=captured[:, t])
                seen = seen | captured[:, t].bool()

    guide = AutoDiagonalNormal(poutine.block(model, expose=["survival", "recapture"]), init_scale=0.1)
    captured = torch.tensor([[1.0, 0, 1, 0], [0, 1, 1, 1], [0, 0, 1, 0], [1, 1, 0, 0]])
    return Trained(model, guide, (captured,), "TraceEnum_ELBO", {"max_plate_nesting": 1})


@add("Labels by several annotators who confuse classes (Dawid and Skene), by AutoNormal")
def annotators_who_confuse() -> Trained:
    @config_enumerate
    def model(annotator: Tensor, labels: Tensor) -> None:
        prior = pyro.sample("prior", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("annotators", 3, dim=-2), pyro.plate("classes", 2, dim=-1):
            confusion = pyro.sample("confusion", dist.Dirichlet(torch.tensor([2.0, 1.0])))
        with pyro.plate("items", labels.shape[1], dim=-1):
            truth = pyro.sample("truth", dist.Categorical(prior))
            with pyro.plate("positions", labels.shape[0], dim=-2):
                pyro.sample("labels", dist.Categorical(Vindex(confusion)[annotator, truth, :]), obs=labels)

    guide = AutoNormal(poutine.block(model, hide=["truth", "labels"]), init_scale=0.2)
    annotator, labels = torch.tensor([[0, 1, 2], [2, 0, 1]]), torch.tensor([[0, 1, 1], [1, 1, 0]])
    return Trained(model, guide, (annotator, labels), "TraceEnum_ELBO", {"max_plate_nesting": 2})


@add("Regression with outliers: whether a point is one is summed out", inductor=True)
def outliers_of_a_regression() -> Trained:
    def model(x: Tensor, y: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 2.0))
        rate = pyro.sample("rate", dist.Beta(1.0, 9.0))
        with pyro.plate("data", len(x)):
            outlier = pyro.sample("outlier", dist.Bernoulli(rate), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(slope * x * (1 - outlier), 0.3 + 5 * outlier), obs=y)

    guide = AutoNormal(poutine.block(model, hide=["outlier"]), init_scale=0.1)
    x = spread(6)
    y = 1.5 * x + torch.tensor([0.1, -0.2, 6.0, 0.0, 0.2, -0.1])
    return Trained(model, guide, (x, y), "TraceEnum_ELBO", {"max_plate_nesting": 1})


@add("A change of the rate of accidents at an unknown year, which is enumerated")
def change_of_a_rate() -> Trained:
    def model(counts: Tensor) -> None:
        early, late = (pyro.sample(name, dist.Gamma(2.0, 1.0)) for name in ("early", "late"))
        years = len(counts)
        change = pyro.sample("change", dist.Categorical(torch.ones(years) / years), infer={"enumerate": "parallel"})
        for year in range(years):
            rate = torch.where(change > year, early, late)
            pyro.sample(f"count_{year}", dist.Poisson(rate), obs=counts[year])

    def guide(counts: Tensor) -> None:
        for name, start in (("early", 3.0), ("late", 1.0)):
            loc = pyro.param(f"{name}_loc", torch.tensor(start).log())
            pyro.sample(name, dist.LogNormal(loc, 0.2))

    counts = torch.tensor([4.0, 5, 4, 1, 0, 1])
    return Trained(model, guide, (counts,), "TraceEnum_ELBO", {"max_plate_nesting": 0})


@add("Counts with too many zeros: a gate of its own for each, enumerated in minibatches of a plate")
def gates_of_a_minibatch() -> Trained:
    def model(counts: Tensor) -> None:
        gate = pyro.param("gate", torch.tensor(0.3), constraint=constraints.unit_interval)
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(counts), subsample_size=4) as chosen:
            closed = pyro.sample("closed", dist.Bernoulli(gate), infer={"enumerate": "parallel"})
            pyro.sample("count", dist.Poisson(rate * (1 - closed) + 1e-3), obs=counts[chosen])

    def guide(counts: Tensor) -> None:
        pyro.sample("rate", dist.Gamma(pyro.param("shape", torch.tensor(3.0), constraint=constraints.positive), 2.0))

    return Trained(model, guide, (torch.tensor([0.0, 3, 0, 2, 0, 0, 4]),), "TraceEnum_ELBO", {"max_plate_nesting": 1})
