"""Sites with continuous distributions, most of them reparameterised."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.transforms import AffineCoupling, affine_autoregressive, iterated, planar, spline
from pyro.nn import DenseNN
from torch import Tensor

from tests.reference.zoo.entry import Case, Collection

ENTRIES = Collection()
entry = ENTRIES.entry


def positive(name: str, *values: float) -> Tensor:
    """A positive parameter: a scalar for one value, a vector for more."""
    init = torch.tensor(values[0] if len(values) == 1 else values)
    return pyro.param(name, init, constraint=constraints.positive)


@entry(
    "Sites",
    "Normal latents of every shape: scalar, batch, to_event, expand, expand_by, a mask",
    inductor=True,
)
def normal_shapes() -> Case:
    keep = torch.tensor([True, False, True])

    def model() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(a, 1.0).expand([3]).to_event(1))
        c = pyro.sample("c", dist.Normal(b.sum(), 1.0).expand_by([2, 3]).to_event(2))
        d = pyro.sample("d", dist.Normal(c[0], 1.0).mask(keep).to_event(1))
        pyro.sample("obs", dist.Normal(c + d, 0.5).to_event(2), obs=torch.ones(2, 3))

    def guide() -> None:
        loc = pyro.param("loc", torch.tensor([0.1, 0.2, 0.3]))
        scale = positive("scale", 0.5)
        a = pyro.sample("a", dist.Normal(loc[0], scale))
        b = pyro.sample("b", dist.Independent(dist.Normal(loc + a, scale), 1))
        pyro.sample("c", dist.Normal(b, scale).expand_by([2]).to_event(2))
        pyro.sample("d", dist.Normal(loc, scale).mask(keep).to_event(1))

    return Case(model, guide)


@entry("Sites", "Gamma, Beta and Dirichlet latents, whose gradients are implicit", inductor=True)
def gamma_beta_dirichlet() -> Case:
    def model() -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
        prob = pyro.sample("prob", dist.Beta(1.5, 1.5))
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        pyro.sample("count", dist.Poisson(rate), obs=torch.tensor(2.0))
        pyro.sample("heads", dist.Binomial(5, prob), obs=torch.tensor(3.0))
        pyro.sample("votes", dist.Multinomial(6, weights), obs=torch.tensor([1.0, 2.0, 3.0]))

    def guide() -> None:
        pyro.sample("rate", dist.Gamma(positive("shape", 2.0), positive("rate_", 1.5)))
        pyro.sample("prob", dist.Beta(positive("heads_", 2.0), positive("tails_", 3.0)))
        pyro.sample("weights", dist.Dirichlet(positive("conc", 1.0, 2.0, 3.0)))

    return Case(model, guide)


@entry("Sites", "Exponential, LogNormal, HalfCauchy, HalfNormal and Uniform latents", inductor=True)
def positive_sites() -> Case:
    def model(data: Tensor) -> None:
        tau = pyro.sample("tau", dist.HalfCauchy(1.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(2.0))
        wait = pyro.sample("wait", dist.Exponential(0.5))
        size = pyro.sample("size", dist.LogNormal(0.0, tau))
        start = pyro.sample("start", dist.Uniform(0.0, 1.0))
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.Normal(start + size * wait, sigma), obs=data)

    def guide(data: Tensor) -> None:
        pyro.sample("tau", dist.LogNormal(pyro.param("tau_loc", torch.tensor(0.0)), 0.1))
        pyro.sample("sigma", dist.HalfNormal(positive("sigma_scale", 1.0)))
        pyro.sample("wait", dist.Exponential(positive("wait_rate", 1.0)))
        pyro.sample("size", dist.LogNormal(pyro.param("size_loc", torch.tensor(0.0)), positive("size_scale", 0.5)))
        high = pyro.param("high", torch.tensor(0.8), constraint=constraints.interval(0.5, 1.0))
        pyro.sample("start", dist.Uniform(0.0, high))

    return Case(model, guide, (torch.tensor([0.8, 1.9]),))


@entry("Sites", "StudentT, Laplace, Cauchy, Gumbel and Logistic latents")
def heavy_tailed_sites() -> Case:
    families = {
        "cauchy": dist.Cauchy,
        "gumbel": dist.Gumbel,
        "laplace": dist.Laplace,
        "logistic": dist.Logistic,
    }

    def model() -> None:
        total = pyro.sample("student", dist.StudentT(3.0, 0.0, 1.0))
        for name, family in families.items():
            total = total + pyro.sample(name, family(0.0, 1.0))
        pyro.sample("obs", dist.StudentT(4.0, total, 1.0), obs=torch.tensor(0.7))

    def guide() -> None:
        df = positive("df", 5.0)
        pyro.sample("student", dist.StudentT(df, pyro.param("loc", torch.tensor(0.2)), positive("scale", 0.5)))
        for name, family in families.items():
            loc = pyro.param(f"{name}_loc", torch.tensor(0.1))
            pyro.sample(name, family(loc, positive(f"{name}_scale", 0.3)))

    return Case(model, guide)


@entry("Sites", "Weibull, Pareto, InverseGamma, Kumaraswamy and Chi2 latents")
def survival_sites() -> Case:
    def model() -> None:
        sites = {
            "weibull": dist.Weibull(1.5, 1.2),
            "pareto": dist.Pareto(1.0, 2.0),
            "inverse": dist.InverseGamma(3.0, 2.0),
            "kumaraswamy": dist.Kumaraswamy(2.0, 2.0),
            "chi": dist.Chi2(3.0),
        }
        total = sum(pyro.sample(name, site) for name, site in sites.items())
        pyro.sample("obs", dist.Weibull(total, 2.0), obs=torch.tensor(1.5))

    def guide() -> None:
        pyro.sample("weibull", dist.Weibull(positive("weibull_scale", 1.0), positive("weibull_shape", 2.0)))
        pyro.sample("pareto", dist.Pareto(torch.tensor(1.0), positive("pareto_alpha", 3.0)))
        pyro.sample("inverse", dist.InverseGamma(positive("inverse_shape", 4.0), positive("inverse_rate", 2.0)))
        pyro.sample("kumaraswamy", dist.Kumaraswamy(positive("a", 1.5), positive("b", 2.5)))
        pyro.sample("chi", dist.Chi2(positive("df", 4.0)))

    return Case(model, guide)


@entry("Sites", "MultivariateNormal by covariance, precision and scale_tril, and a low-rank one", inductor=True)
def multivariate_normals() -> Case:
    def model() -> None:
        a = pyro.sample("a", dist.MultivariateNormal(torch.zeros(2), torch.eye(2) * 2))
        b = pyro.sample("b", dist.MultivariateNormal(a, precision_matrix=torch.tensor([[2.0, 0.5], [0.5, 1.0]])))
        noise = torch.tensor([[1.0, 0.0], [0.3, 1.0]])
        pyro.sample("obs", dist.MultivariateNormal(b, scale_tril=noise), obs=torch.tensor([0.3, -0.8]))

    def guide() -> None:
        tril = pyro.param("tril", torch.eye(2), constraint=constraints.lower_cholesky)
        pyro.sample("a", dist.MultivariateNormal(pyro.param("a_loc", torch.zeros(2)), scale_tril=tril))
        factor = pyro.param("factor", torch.tensor([[0.5], [0.2]]))
        diag = positive("diag", 0.5, 0.7)
        pyro.sample("b", dist.LowRankMultivariateNormal(pyro.param("b_loc", torch.ones(2)), factor, diag))

    return Case(model, guide)


@entry("Sites", "MultivariateStudentT, Stable, SoftLaplace and AsymmetricLaplace latents")
def pyros_own_continuous_sites() -> Case:
    def model() -> None:
        v = pyro.sample("v", dist.MultivariateStudentT(4.0, torch.zeros(2), torch.eye(2)))
        s = pyro.sample("s", dist.SoftLaplace(0.0, 1.0))
        a = pyro.sample("a", dist.AsymmetricLaplace(0.0, 1.0, 1.5))
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.sample("obs", dist.Normal(v.sum() + s + a + w, 1.0), obs=torch.tensor(0.9))

    def guide() -> None:
        loc = pyro.param("loc", torch.zeros(2))
        tril = pyro.param("tril", torch.eye(2), constraint=constraints.softplus_lower_cholesky)
        pyro.sample("v", dist.MultivariateStudentT(positive("df", 5.0), loc, tril))
        pyro.sample("s", dist.SoftLaplace(loc[0], positive("s_scale", 0.5)))
        pyro.sample("a", dist.AsymmetricLaplace(loc[1], positive("a_scale", 0.5), positive("asymmetry", 1.2)))
        pyro.sample("w", dist.Stable(positive("stability", 1.5), torch.tensor(0.1), positive("w_scale", 0.3)))

    return Case(model, guide)


@entry("Sites", "A ProjectedNormal latent on the circle")
def projected_normal() -> Case:
    def model() -> None:
        direction = pyro.sample("direction", dist.ProjectedNormal(torch.tensor([1.0, 0.5])))
        pyro.sample("obs", dist.Normal(direction, 0.3).to_event(1), obs=torch.tensor([0.6, 0.8]))

    def guide() -> None:
        pyro.sample("direction", dist.ProjectedNormal(pyro.param("conc", torch.tensor([0.8, 0.9]))))

    return Case(model, guide)


@entry("Sites", "A Wishart latent that is a precision matrix")
def wishart() -> Case:
    def model() -> None:
        precision = pyro.sample("precision", dist.Wishart(torch.tensor(3.0), torch.eye(2)))
        normal = dist.MultivariateNormal(torch.zeros(2), precision_matrix=precision)
        with pyro.plate("data", 3):
            pyro.sample("obs", normal, obs=torch.tensor([[0.1, 0.4], [-0.5, 0.2], [1.0, -0.3]]))

    def guide() -> None:
        df = pyro.param("df", torch.tensor(4.0), constraint=constraints.greater_than(2.0))
        tril = pyro.param("tril", torch.eye(2), constraint=constraints.lower_cholesky)
        pyro.sample("precision", dist.Wishart(df, scale_tril=tril))

    return Case(model, guide)


@entry("Sites", "A transformed distribution with trainable planar and spline layers")
def trainable_flow() -> Case:
    bend, squash = planar(2), spline(2, count_bins=3)

    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.module("squash", squash)
        flow = dist.TransformedDistribution(dist.Normal(z, 1.0).to_event(1), [squash])
        pyro.sample("obs", flow, obs=torch.tensor([0.2, 0.4]))

    def guide() -> None:
        pyro.module("bend", bend)
        base = dist.Normal(pyro.param("loc", torch.zeros(2)), torch.ones(2)).to_event(1)
        pyro.sample("z", dist.TransformedDistribution(base, [bend]))

    return Case(model, guide)


@entry("Sites", "An inverse autoregressive flow and a coupling layer, amortised over a plate", inductor=True)
def autoregressive_flow() -> Case:
    flows = iterated(2, affine_autoregressive, 2, hidden_dims=[4])
    coupling = AffineCoupling(1, DenseNN(1, [4], param_dims=[1, 1]))

    def model(data: Tensor) -> None:
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("obs", dist.Normal(z, 1.0).to_event(1), obs=data)

    def guide(data: Tensor) -> None:
        pyro.module("flows", torch.nn.ModuleList(flows))
        pyro.module("coupling", coupling)
        with pyro.plate("data", len(data)):
            base = dist.Normal(data, 1.0).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [*flows, coupling]))

    return Case(model, guide, (torch.randn(3, 2),))


@entry("Sites", "A latent pushed through fixed transforms, and a folded one")
def fixed_transforms() -> Case:
    transforms = torch.distributions.transforms

    def model() -> None:
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
        r = pyro.sample("r", dist.HalfNormal(1.0))
        pyro.sample("obs", dist.Normal(p + w[0], r), obs=torch.tensor(0.9))

    def guide() -> None:
        loc = pyro.param("loc", torch.tensor([0.1, -0.2]))
        scale = positive("scale", 0.5)
        pyro.sample("p", dist.TransformedDistribution(dist.Normal(loc[0], scale), transforms.SigmoidTransform()))
        base = dist.Normal(loc, scale).to_event(1)
        pyro.sample("w", dist.TransformedDistribution(base, transforms.StickBreakingTransform()))
        pyro.sample("r", dist.FoldedDistribution(dist.Normal(loc[1], scale)))

    return Case(model, guide)


@entry("Sites", "An LKJ prior on correlations, with a pushed-forward guide")
def lkj_prior() -> Case:
    def model(data: Tensor) -> None:
        corr = pyro.sample("corr", dist.LKJCholesky(2, torch.tensor(2.0)))
        scale = pyro.sample("scale", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(data)):
            tril = scale.unsqueeze(-1) * corr
            pyro.sample("obs", dist.MultivariateNormal(torch.zeros(2), scale_tril=tril), obs=data)

    def guide(data: Tensor) -> None:
        base = dist.Normal(pyro.param("loc", torch.tensor([0.2])), positive("sd", 0.4)).to_event(1)
        push = torch.distributions.transforms.CorrCholeskyTransform()
        pyro.sample("corr", dist.TransformedDistribution(base, push))
        pyro.sample("scale", dist.Delta(positive("scale_map", 0.8, 1.2), event_dim=1))

    return Case(model, guide, (torch.randn(4, 2),))
