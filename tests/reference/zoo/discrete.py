"""Sites with discrete or otherwise non-reparameterised distributions."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from tests.reference.zoo.entry import Case, Collection
from tests.reference.zoo.sites import positive

ENTRIES = Collection()
entry = ENTRIES.entry


@entry("Discrete sites", "A Bernoulli latent that chooses between two means", inductor=True)
def bernoulli_latent() -> Case:
    def model(data: Tensor) -> None:
        flip = pyro.sample("flip", dist.Bernoulli(0.3))
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.Normal(2.0 * flip - 1.0, 1.0), obs=data)

    def guide(data: Tensor) -> None:
        prob = pyro.param("prob", torch.tensor(0.6), constraint=constraints.unit_interval)
        pyro.sample("flip", dist.Bernoulli(prob))

    return Case(model, guide, (torch.tensor([0.5, 1.5]),))


@entry("Discrete sites", "Categorical and OneHotCategorical latents by logits and by probs", inductor=True)
def categorical_latents() -> Case:
    def model() -> None:
        locs = pyro.param("locs", torch.tensor([-1.0, 0.0, 1.0]))
        z = pyro.sample("z", dist.Categorical(probs=torch.ones(3) / 3))
        w = pyro.sample("w", dist.OneHotCategorical(logits=torch.tensor([0.0, 0.2, 0.4])))
        mean = locs[z] + (w * locs).sum() + torch.nn.functional.one_hot(z, 3).float() @ locs
        pyro.sample("obs", dist.Normal(mean, 0.8), obs=torch.tensor(0.4))

    def guide() -> None:
        pyro.sample("z", dist.Categorical(logits=pyro.param("logits", torch.tensor([0.1, 0.0, -0.1]))))
        probs = pyro.param("probs", torch.tensor([0.2, 0.5, 0.3]), constraint=constraints.simplex)
        pyro.sample("w", dist.OneHotCategorical(probs=probs))

    return Case(model, guide)


@entry("Discrete sites", "Poisson, Geometric, Binomial and NegativeBinomial latents")
def count_latents() -> Case:
    def model() -> None:
        p = pyro.sample("p", dist.Poisson(torch.tensor([2.0, 4.0])).to_event(1))
        g = pyro.sample("g", dist.Geometric(0.4))
        b = pyro.sample("b", dist.Binomial(6, 0.5))
        n = pyro.sample("n", dist.NegativeBinomial(3.0, 0.4))
        pyro.sample("obs", dist.Normal(p.sum() + g - b + n, 2.0), obs=torch.tensor(5.0))

    def guide() -> None:
        pyro.sample("p", dist.Poisson(positive("rate", 2.5, 3.5)).to_event(1))
        prob = pyro.param("prob", torch.tensor([0.3, 0.4, 0.5]), constraint=constraints.unit_interval)
        pyro.sample("g", dist.Geometric(prob[0]))
        pyro.sample("b", dist.Binomial(6, prob[1]))
        pyro.sample("n", dist.NegativeBinomial(positive("failures", 2.0), prob[2]))

    return Case(model, guide)


@entry("Discrete sites", "Compound counts: Multinomial, BetaBinomial, GammaPoisson, DirichletMultinomial")
def compound_count_latents() -> Case:
    def model() -> None:
        m = pyro.sample("m", dist.Multinomial(4, torch.tensor([0.3, 0.7])))
        b = pyro.sample("b", dist.BetaBinomial(2.0, 3.0, 5))
        g = pyro.sample("g", dist.GammaPoisson(2.0, 1.0))
        d = pyro.sample("d", dist.DirichletMultinomial(torch.tensor([1.0, 2.0]), 3))
        total = m.sum() + b + g + d[0]
        pyro.sample("obs", dist.Normal(total, 2.0), obs=torch.tensor(8.0))

    def guide() -> None:
        pyro.sample("m", dist.Multinomial(4, logits=pyro.param("logits", torch.tensor([0.2, -0.2]))))
        pyro.sample("b", dist.BetaBinomial(positive("heads", 2.0), positive("tails", 2.0), 5))
        pyro.sample("g", dist.GammaPoisson(positive("shape", 1.5), positive("rate", 0.8)))
        pyro.sample("d", dist.DirichletMultinomial(positive("conc", 1.5, 1.0), 3))

    return Case(model, guide)


@entry(
    "Discrete sites",
    "Counts observed: zero-inflated, compound, ordered, and a DirichletMultinomial",
    inductor=True,
)
def observed_counts() -> Case:
    counts = torch.tensor([0.0, 3.0, 1.0, 0.0])

    def model() -> None:
        r = pyro.sample("r", dist.LogNormal(0.0, 1.0))
        gate = pyro.sample("gate", dist.Beta(1.0, 3.0))
        with pyro.plate("data", 4):
            pyro.sample("zip", dist.ZeroInflatedPoisson(r, gate=gate), obs=counts)
            zinb = dist.ZeroInflatedNegativeBinomial(r, logits=gate, gate_logits=-gate)
            pyro.sample("zinb", zinb, obs=counts)
            pyro.sample("gp", dist.GammaPoisson(r, 1.0), obs=counts)
            pyro.sample("bb", dist.BetaBinomial(r, 2.0, 5), obs=counts)
            cuts = torch.stack([-r, r, 2 * r])
            pyro.sample("grade", dist.OrderedLogistic(gate, cuts), obs=counts.long())
        pyro.sample("dm", dist.DirichletMultinomial(torch.stack([r, gate]), 4), obs=torch.tensor([1.0, 3.0]))

    def guide() -> None:
        pyro.sample("r", dist.LogNormal(pyro.param("loc", torch.tensor(0.1)), positive("scale", 0.3)))
        pyro.sample("gate", dist.Beta(positive("a", 1.5), positive("b", 3.0)))

    return Case(model, guide)


@entry("Discrete sites", "A VonMises guide site, whose sampler loops on its data, and a directional likelihood")
def von_mises() -> Case:
    def model(angles: Tensor) -> None:
        mean = pyro.sample("mean", dist.VonMises(0.0, 1.0))
        with pyro.plate("data", len(angles)):
            pyro.sample("obs", dist.VonMises(mean, 2.0), obs=angles)

    def guide(angles: Tensor) -> None:
        pyro.sample("mean", dist.VonMises(pyro.param("loc", torch.tensor(0.3)), positive("conc", 3.0)))

    return Case(model, guide, (torch.tensor([0.2, 0.5, -0.1]),))


@entry(
    "Discrete sites",
    "A SineBivariateVonMises guide site on the torus, and a sine-skewed likelihood",
    differs="Pyro lets a gradient leak through this sampler, which has no rsample",
)
def sine_bivariate_von_mises() -> Case:
    def model(angles: Tensor) -> None:
        prior = dist.SineBivariateVonMises(0.0, 0.0, torch.tensor(2.0), torch.tensor(2.0), torch.tensor(0.5))
        pair = pyro.sample("pair", prior)
        with pyro.plate("data", len(angles)):
            pyro.sample("obs", dist.VonMises(pair, 2.0).to_event(1), obs=angles)
        skewed = dist.SineSkewed(dist.VonMises(pair, 2.0).to_event(1), torch.tensor([0.2, -0.3]))
        pyro.sample("skewed", skewed, obs=angles[0])

    def guide(angles: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([0.2, -0.1]))
        conc = positive("conc", 3.0, 4.0)
        pyro.sample("pair", dist.SineBivariateVonMises(loc[0], loc[1], conc[0], conc[1], torch.tensor(0.4)))

    return Case(model, guide, (torch.tensor([[0.2, 0.5], [-0.1, 0.3]]),))


@entry("Discrete sites", "An LKJCholesky guide site and a truncated Polya-Gamma one: continuous, without rsample")
def continuous_without_rsample() -> Case:
    def model() -> None:
        corr = pyro.sample("corr", dist.LKJCholesky(3, torch.tensor(1.5)))
        omega = pyro.sample("omega", dist.TruncatedPolyaGamma(torch.ones(())))
        pyro.sample("obs", dist.MultivariateNormal(torch.zeros(3), scale_tril=corr), obs=torch.tensor([0.2, 0.5, 0.1]))
        pyro.sample("aux", dist.Normal(omega, 1.0), obs=torch.tensor(0.3))

    def guide() -> None:
        pyro.sample("corr", dist.LKJCholesky(3, positive("eta", 2.0)))
        pyro.sample("omega", dist.TruncatedPolyaGamma(torch.ones(())))

    return Case(model, guide)


@entry(
    "Discrete sites",
    "A mixture as the guide, which has no rsample, and mixtures as likelihoods",
    inductor=True,
)
def mixtures() -> Case:
    def model(data: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(0.0, 2.0))
        weights = dist.Categorical(torch.tensor([0.4, 0.6]))
        likelihood = dist.MixtureSameFamily(weights, dist.Normal(torch.stack([x, -x]), 1.0))
        with pyro.plate("data", len(data)):
            pyro.sample("obs", likelihood, obs=data)
            outlier = torch.tensor([True, False, False])
            masked = dist.MaskedMixture(outlier, dist.Normal(x, 1.0), dist.StudentT(3.0, x, 2.0))
            pyro.sample("robust", masked, obs=data)

    def guide(data: Tensor) -> None:
        logits = pyro.param("logits", torch.tensor([0.2, -0.3]))
        locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
        components = dist.Normal(locs, positive("scales", 0.5, 0.8))
        pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(logits=logits), components))

    return Case(model, guide, (torch.tensor([0.3, 1.1, 4.0]),))


@entry("Discrete sites", "MaskedMixture latents: one with rsample, one without")
def masked_mixture_latents() -> Case:
    which = torch.tensor([True, False])

    def model() -> None:
        with pyro.plate("pair", 2):
            x = pyro.sample("x", dist.MaskedMixture(which, dist.Normal(0.0, 1.0), dist.Normal(1.0, 2.0)))
            n = pyro.sample("n", dist.MaskedMixture(which, dist.Poisson(1.0), dist.Poisson(3.0)))
            pyro.sample("obs", dist.Normal(x + n, 1.0), obs=torch.tensor([1.0, 2.0]))

    def guide() -> None:
        loc, rate = pyro.param("loc", torch.tensor([0.1, 0.9])), positive("rate", 1.5, 2.5)
        with pyro.plate("pair", 2):
            pyro.sample("x", dist.MaskedMixture(which, dist.Normal(loc, 0.5), dist.Normal(loc, 1.0)))
            pyro.sample("n", dist.MaskedMixture(which, dist.Poisson(rate), dist.Poisson(rate + 1)))

    return Case(model, guide)


@entry("Discrete sites", "Delta latents: a point estimate with a log density, and an observed Delta")
def delta_sites() -> Case:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        s = pyro.sample("s", dist.Gamma(2.0, 2.0))
        pyro.sample("fixed", dist.Delta(torch.tensor(1.0)), obs=torch.tensor(1.0))
        pyro.sample("obs", dist.Normal(z, s).to_event(1), obs=torch.tensor([0.3, 0.4]))

    def guide() -> None:
        z = pyro.param("z_map", torch.tensor([0.1, 0.2]))
        pyro.sample("z", dist.Delta(z, event_dim=1))
        log_s = pyro.param("log_s", torch.tensor(0.2))
        pyro.sample("s", dist.Delta(log_s.exp(), log_density=-log_s))

    return Case(model, guide)


@entry("Discrete sites", "A reparameterisable distribution marked has_rsample_(False)", inductor=True)
def rsample_switched_off() -> Case:
    def model(data: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(data)):
            y = pyro.sample("y", dist.Normal(z, 1.0))
            pyro.sample("obs", dist.Normal(y, 1.0), obs=data)

    def guide(data: Tensor) -> None:
        loc, scale = pyro.param("loc", torch.tensor(0.2)), positive("scale", 0.6)
        z = pyro.sample("z", dist.Normal(loc, scale).has_rsample_(False))
        with pyro.plate("data", len(data)):
            pyro.sample("y", dist.Normal(z + data, scale).has_rsample_(False))

    return Case(model, guide, (torch.tensor([0.3, 1.1]),))


@entry("Discrete sites", "A reparameterised site downstream of a discrete one, and one beside it")
def continuous_after_discrete() -> Case:
    def model() -> None:
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.5])))
        x = pyro.sample("x", dist.Normal(k.float(), 1.0))
        y = pyro.sample("y", dist.Normal(0.0, 1.0))
        pyro.sample("obs_x", dist.Normal(x, 0.5), obs=torch.tensor(0.7))
        pyro.sample("obs_y", dist.Normal(y, 0.5), obs=torch.tensor(-0.2))

    def guide() -> None:
        k = pyro.sample("k", dist.Categorical(logits=pyro.param("logits", torch.tensor([0.2, 0.1]))))
        locs = pyro.param("locs", torch.tensor([0.1, 0.8]))
        pyro.sample("x", dist.Normal(locs[k], positive("scale", 0.5)))
        pyro.sample("y", dist.Normal(pyro.param("y_loc", torch.tensor(0.0)), 0.4))

    return Case(model, guide)


@entry(
    "Discrete sites",
    "A chain of discrete latents, each of which conditions the next, and a switch by their sum",
)
def discrete_chain() -> Case:
    def model() -> None:
        a = pyro.sample("a", dist.Bernoulli(0.5))
        b = pyro.sample("b", dist.Bernoulli(0.2 + 0.6 * a))
        c = pyro.sample("c", dist.Poisson(1.0 + a + b))
        pyro.sample("obs", dist.Poisson(1.0 + c), obs=torch.tensor(3.0))
        pyro.sample("side", dist.Normal(a, 1.0), obs=torch.tensor(0.7))

    def guide() -> None:
        logits = pyro.param("logits", torch.tensor([0.1, 0.2]))
        a = pyro.sample("a", dist.Bernoulli(logits=logits[0]))
        pyro.sample("b", dist.Bernoulli(logits=logits[1] * a))
        pyro.sample("c", dist.Poisson(positive("rate", 1.5)))

    return Case(model, guide)


SEEN = torch.tensor([[True, False, True], [True, True, False]])


def _masked_guide(data: Tensor) -> None:
    logits = pyro.param("logits", torch.zeros(3))
    with pyro.plate("rows", len(data)):
        pyro.sample("on", dist.Bernoulli(logits=data + logits).mask(SEEN).to_event(1))


@entry("Discrete sites", "Masked below to_event, in guide and model by the same mask", inductor=True)
def masked_below_to_event() -> Case:
    def model(data: Tensor) -> None:
        with pyro.plate("rows", len(data)):
            on = pyro.sample("on", dist.Bernoulli(0.3).expand(data.shape).mask(SEEN).to_event(1))
            pyro.sample("obs", dist.Normal(on, 1.0).mask(SEEN).to_event(1), obs=data)

    return Case(model, _masked_guide, (torch.linspace(-1.0, 1.5, 6).reshape(2, 3),))


@entry(
    "Discrete sites",
    "Masked below to_event, with hidden entries that reach a cost",
    inductor=True,
    differs="Pyro leaves hidden entries out of the score function",
)
def hidden_entries_in_a_cost() -> Case:
    def model(data: Tensor) -> None:
        with pyro.plate("rows", len(data)):
            on = pyro.sample("on", dist.Bernoulli(0.3).expand(data.shape).mask(SEEN).to_event(1))
            pyro.sample("obs", dist.Normal(on.sum(-1), 1.0), obs=data.sum(-1))

    return Case(model, _masked_guide, (torch.linspace(-1.0, 1.5, 6).reshape(2, 3),))


@entry(
    "Discrete sites",
    "A Dirichlet whose concentration is chosen by a Categorical, in the guide",
    inductor=True,
    differs="Pyro loses the gradient of an autograd function below a discrete site",
)
def dirichlet_below_a_categorical() -> Case:
    def model() -> None:
        k = pyro.sample("k", dist.Categorical(torch.ones(2)))
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        pyro.sample("obs", dist.Normal(weights[k], 0.5), obs=torch.tensor(0.4))

    def guide() -> None:
        k = pyro.sample("k", dist.Categorical(logits=pyro.param("logits", torch.tensor([0.2, -0.1]))))
        concentration = positive("conc", 1.2, 0.7, 2.0, 0.9, 1.5, 1.1).reshape(2, 3)
        pyro.sample("weights", dist.Dirichlet(concentration[k]))

    return Case(model, guide)
