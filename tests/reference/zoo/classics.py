"""The classics of stochastic variational inference, in small."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn
from torch.nn.functional import softplus

from tests.reference.zoo.entry import Case, Collection
from tests.reference.zoo.sites import positive

ENTRIES = Collection()
entry = ENTRIES.entry


@entry("Classics", "Beta-Bernoulli: the fairness of a coin", inductor=True)
def beta_bernoulli() -> Case:
    def model(flips: Tensor) -> None:
        fairness = pyro.sample("fairness", dist.Beta(10.0, 10.0))
        with pyro.plate("flips", len(flips)):
            pyro.sample("obs", dist.Bernoulli(fairness), obs=flips)

    def guide(flips: Tensor) -> None:
        pyro.sample("fairness", dist.Beta(positive("alpha", 15.0), positive("beta", 15.0)))

    return Case(model, guide, (torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0, 0.0]),))


class Decoder(nn.Module):
    def __init__(self, latents: int, hidden: int, pixels: int) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(latents, hidden), nn.Linear(hidden, pixels)

    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.out(softplus(self.hidden(z))))


class Encoder(nn.Module):
    def __init__(self, latents: int, hidden: int, pixels: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(pixels, hidden)
        self.loc, self.log_scale = nn.Linear(hidden, latents), nn.Linear(hidden, latents)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = softplus(self.hidden(x.flatten(-2)))
        return self.loc(hidden), self.log_scale(hidden).exp()


class VAE(nn.Module):
    """A variational autoencoder, as in Pyro's tutorial."""

    def __init__(self, latents: int = 3, hidden: int = 8, pixels: int = 64) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(latents, hidden, pixels), Decoder(latents, hidden, pixels)
        self.latents = latents

    def model(self, images: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("images", len(images)):
            zeros = images.new_zeros(len(images), self.latents)
            z = pyro.sample("latent", dist.Normal(zeros, zeros + 1).to_event(1))
            pixels = self.decoder(z)
            pyro.sample("obs", dist.Bernoulli(pixels).to_event(1), obs=images.flatten(-2))

    def guide(self, images: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("images", len(images)):
            loc, scale = self.encoder(images)
            pyro.sample("latent", dist.Normal(loc, scale).to_event(1))


@entry("Classics", "A variational autoencoder of 8 x 8 images", inductor=True)
def variational_autoencoder() -> Case:
    vae = VAE()
    return Case(vae.model, vae.guide, (torch.rand(4, 8, 8).round(),))


@entry("Classics", "A sigmoid belief net of two layers with NVIL baselines", inductor=True)
def sigmoid_belief_net() -> Case:
    nets = nn.ModuleDict(
        {
            "down2": nn.Linear(2, 3),
            "down1": nn.Linear(3, 6),
            "up1": nn.Linear(6, 3),
            "up2": nn.Linear(3, 2),
            "baseline1": nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(-2)),
            "baseline2": nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(-2)),
        }
    )

    def model(x: Tensor) -> None:
        pyro.module("nets", nets)
        with pyro.plate("data", len(x)):
            h2 = pyro.sample("h2", dist.Bernoulli(0.5).expand([2]).to_event(1))
            h1 = pyro.sample("h1", dist.Bernoulli(logits=nets["down2"](h2)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=nets["down1"](h1)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("nets", nets)

        def baseline(net: nn.Module, value: Tensor) -> dict[str, object]:
            return {"nn_baseline": net, "nn_baseline_input": value, "use_decaying_avg_baseline": True}

        with pyro.plate("data", len(x)):
            on_h1 = {"baseline": baseline(nets["baseline1"], x)}
            h1 = pyro.sample("h1", dist.Bernoulli(logits=nets["up1"](x)).to_event(1), infer=on_h1)
            on_h2 = {"baseline": baseline(nets["baseline2"], h1)}
            pyro.sample("h2", dist.Bernoulli(logits=nets["up2"](h1)).to_event(1), infer=on_h2)

    return Case(model, guide, (torch.rand(4, 6).round(),))


@entry("Classics", "A Gaussian mixture with discrete assignments")
def gaussian_mixture() -> Case:
    def model(data: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 3.0))
            scales = pyro.sample("scales", dist.LogNormal(0.0, 0.5))
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("obs", dist.Normal(locs[z], scales[z]), obs=data)

    def guide(data: Tensor) -> None:
        pyro.sample("weights", dist.Dirichlet(positive("conc", 2.0, 3.0)))
        with pyro.plate("components", 2):
            pyro.sample("locs", dist.Normal(pyro.param("loc", torch.tensor([-1.0, 1.0])), 0.2))
            pyro.sample("scales", dist.Delta(positive("scale_map", 0.7, 0.9)))
        probs = pyro.param("probs", torch.full((len(data), 2), 0.5), constraint=constraints.simplex)
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Categorical(probs))

    return Case(model, guide, (torch.tensor([-1.2, -0.8, 0.9, 1.3]),))


@entry("Classics", "Latent Dirichlet allocation with an amortised guide and a discrete topic for each word")
def latent_dirichlet_allocation() -> Case:
    words, documents, topics, vocabulary = 3, 2, 2, 4
    net = nn.Sequential(nn.Linear(vocabulary, 4), nn.ReLU(), nn.Linear(4, topics))

    def model(data: Tensor) -> None:
        with pyro.plate("topics", topics):
            topic_words = pyro.sample("topic_words", dist.Dirichlet(torch.ones(vocabulary)))
        with pyro.plate("documents", documents):
            shares = pyro.sample("shares", dist.Dirichlet(torch.ones(topics)))
            with pyro.plate("words", words):
                z = pyro.sample("z", dist.Categorical(shares))
                pyro.sample("word", dist.Categorical(topic_words[z]), obs=data)

    def guide(data: Tensor) -> None:
        pyro.module("net", net)
        conc = pyro.param("conc", lambda: torch.rand(topics, vocabulary) + 1, constraint=constraints.positive)
        with pyro.plate("topics", topics):
            pyro.sample("topic_words", dist.Dirichlet(conc))
        counts = nn.functional.one_hot(data, vocabulary).sum(0).float()
        logits = pyro.param("logits", torch.zeros(words, documents, topics))
        with pyro.plate("documents", documents):
            pyro.sample("shares", dist.Dirichlet(net(counts).exp()))
            with pyro.plate("words", words):
                pyro.sample("z", dist.Categorical(logits=logits))

    return Case(model, guide, (torch.tensor([[0, 3], [1, 3], [0, 2]]),))


@entry("Classics", "A hierarchical regression with a slope for each group", inductor=True)
def hierarchical_regression() -> Case:
    def model(group: Tensor, x: Tensor, y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        spread = pyro.sample("spread", dist.HalfNormal(1.0))
        noise = pyro.sample("noise", dist.HalfCauchy(1.0))
        with pyro.plate("groups", 2):
            slope = pyro.sample("slope", dist.Normal(mean, spread))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(slope[group] * x, noise), obs=y)

    group, x = torch.tensor([0, 1, 0, 1]), torch.linspace(-1.0, 1.0, 4)
    return Case(model, AutoDiagonalNormal(model), (group, x, 0.8 * x + 0.1))


@entry("Classics", "A sparse gamma deep exponential family of two layers")
def sparse_gamma_def() -> Case:
    def model(x: Tensor) -> None:
        with pyro.plate("w_top", 6):
            w_top = pyro.sample("w_top_", dist.Gamma(0.3, 0.1))
        with pyro.plate("w_bottom", 12):
            w_bottom = pyro.sample("w_bottom_", dist.Gamma(0.3, 0.1))
        with pyro.plate("data", len(x)):
            z_top = pyro.sample("z_top", dist.Gamma(0.5, 0.5).expand([2]).to_event(1))
            rate = 0.5 / (z_top @ w_top.reshape(2, 3))
            z_bottom = pyro.sample("z_bottom", dist.Gamma(0.5, rate).to_event(1))
            pyro.sample("obs", dist.Poisson(z_bottom @ w_bottom.reshape(3, 4)).to_event(1), obs=x)

    def gamma(name: str, *shape: int) -> dist.TorchDistribution:
        alpha = softplus(pyro.param(f"alpha_{name}", lambda: 0.5 + 0.1 * torch.randn(shape)))
        mean = softplus(pyro.param(f"mean_{name}", lambda: 0.1 * torch.randn(shape)))
        return dist.Gamma(alpha, alpha / mean)

    def guide(x: Tensor) -> None:
        with pyro.plate("w_top", 6):
            pyro.sample("w_top_", gamma("w_top", 6))
        with pyro.plate("w_bottom", 12):
            pyro.sample("w_bottom_", gamma("w_bottom", 12))
        with pyro.plate("data", len(x)):
            pyro.sample("z_top", gamma("z_top", len(x), 2).to_event(1))
            pyro.sample("z_bottom", gamma("z_bottom", len(x), 3).to_event(1))

    return Case(model, guide, (torch.tensor([[1.0, 0.0, 2.0, 1.0], [0.0, 3.0, 1.0, 0.0]]),))


@entry("Classics", "A Bayesian neural network with an automatic guide", inductor=True)
def bayesian_neural_network() -> Case:
    class Network(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.out = PyroModule[nn.Linear](1, 3), PyroModule[nn.Linear](3, 1)
            for layer in (self.hidden, self.out):
                for name, value in list(layer.named_parameters()):
                    setattr(
                        layer,
                        name,
                        PyroSample(dist.Normal(0.0, 1.0).expand(value.shape).to_event(value.dim())),
                    )

        def forward(self, x: Tensor, y: Tensor) -> None:
            mean = self.out(torch.tanh(self.hidden(x))).squeeze(-1)
            noise = pyro.sample("noise", dist.Gamma(2.0, 4.0))
            with pyro.plate("data", len(x)):
                pyro.sample("obs", dist.Normal(mean, noise), obs=y)

    network = Network()
    x = torch.linspace(-1.0, 1.0, 5)
    return Case(network, AutoNormal(network), (x.unsqueeze(-1), x.sin()))


@entry("Classics", "A logistic regression with a subsampled plate")
def logistic_regression() -> Case:
    x = torch.randn(10, 2)
    y = (x.sum(-1) > 0).float()

    def model() -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 10, subsample_size=4) as batch:
            pyro.sample("obs", dist.Bernoulli(logits=x[batch] @ w + b), obs=y[batch])

    def guide() -> None:
        tril = pyro.param("tril", torch.eye(2), constraint=constraints.lower_cholesky)
        pyro.sample("w", dist.MultivariateNormal(pyro.param("w_loc", torch.zeros(2)), scale_tril=tril))
        pyro.sample("b", dist.Normal(pyro.param("b_loc", torch.tensor(0.0)), positive("b_scale", 0.5)))

    return Case(model, guide)
