"""Every automatic guide of pyro.infer.autoguide, and the easy guides of pyro.contrib."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.contrib.easyguide import EasyGuide, easy_guide
from pyro.distributions import constraints
from pyro.distributions.transforms import affine_autoregressive, iterated
from pyro.infer import autoguide
from pyro.infer.autoguide import init_to_feasible, init_to_mean, init_to_median, init_to_value
from torch import Tensor

from tests.reference.zoo.entry import Case, Collection

ENTRIES = Collection()
entry = ENTRIES.entry

DATA = torch.tensor([0.4, -0.3, 1.2])


def hierarchy(data: Tensor) -> None:
    """A positive scale, a simplex, and a latent for each row: something for each constraint."""
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("data", len(data)):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("obs", dist.Normal(z + weights[0], scale), obs=data)


def normals(data: Tensor) -> None:
    """A hierarchy of normals alone, for guides that read the priors' means."""
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    rate = pyro.sample("rate", dist.LogNormal(loc, 0.5))
    with pyro.plate("data", len(data)):
        z = pyro.sample("z", dist.Normal(loc, rate))
        pyro.sample("obs", dist.Normal(z, 1.0), obs=data)


@entry("Autoguides", "AutoNormal", inductor=True)
def auto_normal() -> Case:
    return Case(hierarchy, autoguide.AutoNormal(hierarchy, init_loc_fn=init_to_median(num_samples=3)), (DATA,))


@entry("Autoguides", "AutoDelta", inductor=True)
def auto_delta() -> Case:
    return Case(hierarchy, autoguide.AutoDelta(hierarchy, init_loc_fn=init_to_mean()), (DATA,))


@entry("Autoguides", "AutoDiagonalNormal", inductor=True)
def auto_diagonal_normal() -> Case:
    return Case(hierarchy, autoguide.AutoDiagonalNormal(hierarchy), (DATA,))


@entry("Autoguides", "AutoMultivariateNormal")
def auto_multivariate_normal() -> Case:
    return Case(hierarchy, autoguide.AutoMultivariateNormal(hierarchy, init_loc_fn=init_to_feasible), (DATA,))


@entry("Autoguides", "AutoLowRankMultivariateNormal", inductor=True)
def auto_low_rank_multivariate_normal() -> Case:
    return Case(hierarchy, autoguide.AutoLowRankMultivariateNormal(hierarchy, rank=2), (DATA,))


@entry("Autoguides", "AutoIAFNormal, whose flow is made at the first call")
def auto_iaf_normal() -> Case:
    return Case(normals, autoguide.AutoIAFNormal(normals, hidden_dim=[6], num_transforms=2), (DATA,))


@entry("Autoguides", "AutoNormalizingFlow")
def auto_normalizing_flow() -> Case:
    def flows(size: int) -> list[torch.nn.Module]:
        return iterated(2, affine_autoregressive, size, hidden_dims=[6])

    def init(size: int) -> dist.transforms.ComposeTransformModule:
        return dist.transforms.ComposeTransformModule(flows(size))

    return Case(normals, autoguide.AutoNormalizingFlow(normals, init), (DATA,))


@entry("Autoguides", "AutoLaplaceApproximation, which is a point estimate while it is trained")
def auto_laplace_approximation() -> Case:
    return Case(hierarchy, autoguide.AutoLaplaceApproximation(hierarchy), (DATA,))


@entry("Autoguides", "AutoGuideList: an AutoNormal, an AutoDelta and an AutoMultivariateNormal")
def auto_guide_list() -> Case:
    guide = autoguide.AutoGuideList(hierarchy)
    guide.append(autoguide.AutoNormal(pyro.poutine.block(hierarchy, expose=["loc", "weights"])))
    guide.append(autoguide.AutoDelta(pyro.poutine.block(hierarchy, expose=["scale"])))
    guide.append(autoguide.AutoMultivariateNormal(pyro.poutine.block(hierarchy, expose=["z"])))
    return Case(hierarchy, guide, (DATA,))


@entry("Autoguides", "AutoCallable: a function that returns the values of the sites it draws")
def auto_callable() -> Case:
    def part(data: Tensor) -> dict[str, Tensor]:
        loc = pyro.sample("loc", dist.Normal(pyro.param("q_loc", torch.tensor(0.1)), 0.3))
        return {"loc": loc}

    guide = autoguide.AutoGuideList(hierarchy)
    guide.append(autoguide.AutoCallable(pyro.poutine.block(hierarchy, expose=["loc"]), part))
    guide.append(autoguide.AutoDiagonalNormal(pyro.poutine.block(hierarchy, hide=["loc", "obs"])))
    return Case(hierarchy, guide, (DATA,))


@entry("Autoguides", "AutoStructured: normal, delta and multivariate conditionals with linear dependencies")
def auto_structured() -> Case:
    guide = autoguide.AutoStructured(
        normals,
        conditionals={"loc": "normal", "rate": "delta", "z": "mvn"},
        dependencies={"z": {"loc": "linear"}, "rate": {"loc": "linear"}},
    )
    return Case(normals, guide, (DATA,))


@entry("Autoguides", "AutoStructured, which finds the dependencies itself")
def auto_structured_inferred() -> Case:
    return Case(normals, autoguide.AutoStructured(normals, conditionals="normal"), (DATA,))


@entry("Autoguides", "AutoGaussian, whose precision follows the model's dependencies")
def auto_gaussian() -> Case:
    return Case(normals, autoguide.AutoGaussian(normals), (DATA,))


@entry("Autoguides", "AutoNormalMessenger", inductor=True)
def auto_normal_messenger() -> Case:
    return Case(hierarchy, autoguide.AutoNormalMessenger(hierarchy), (DATA,))


@entry("Autoguides", "AutoHierarchicalNormalMessenger")
def auto_hierarchical_normal_messenger() -> Case:
    guide = autoguide.AutoHierarchicalNormalMessenger(normals, hierarchical_sites=["z"])
    return Case(normals, guide, (DATA,))


@entry("Autoguides", "AutoRegressiveMessenger")
def auto_regressive_messenger() -> Case:
    return Case(normals, autoguide.AutoRegressiveMessenger(normals), (DATA,))


@entry("Autoguides", "A messenger guide with a posterior of its own at one site, amortised over a plate")
def custom_messenger() -> Case:
    class Guide(autoguide.AutoNormalMessenger):
        def get_posterior(self, name: str, prior: dist.TorchDistribution) -> dist.TorchDistribution:
            if name == "z":
                weight = pyro.param("weight", torch.tensor(0.8))
                return dist.Normal(weight * self.upstream_value("loc"), 0.5)
            return super().get_posterior(name, prior)

    return Case(hierarchy, Guide(hierarchy, amortized_plates=("data",)), (DATA,))


@entry("Autoguides", "An AutoNormal whose plate is subsampled by create_plates")
def auto_normal_subsampled() -> Case:
    def model(data: Tensor, batch: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(data), subsample=batch):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("obs", dist.Normal(z, 1.0), obs=data[batch])

    def create_plates(data: Tensor, batch: Tensor) -> pyro.plate:
        return pyro.plate("data", len(data), subsample=batch)

    guide = autoguide.AutoNormal(model, create_plates=create_plates, init_loc_fn=init_to_mean())
    return Case(model, guide, (torch.linspace(-1.0, 1.0, 5), torch.tensor([4, 1, 2])))


@entry("Autoguides", "A guide that is an autoguide in part and discrete in part", inductor=True)
def autoguide_and_discrete() -> Case:
    def model(data: Tensor) -> None:
        locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2)))
            pyro.sample("obs", dist.Normal(locs[z], 1.0), obs=data)

    init = init_to_value(values={"locs": torch.tensor([-0.5, 0.5])})
    continuous = autoguide.AutoNormal(pyro.poutine.block(model, expose=["locs"]), init_loc_fn=init)

    def guide(data: Tensor) -> None:
        continuous(data)
        logits = pyro.param("logits", torch.zeros(len(data), 2))
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Categorical(logits=logits))

    return Case(model, guide, (DATA,))


@entry("Autoguides", "EasyGuide: a group of sites under one auxiliary normal, and point estimates")
def easy_guide_class() -> Case:
    class Guide(EasyGuide):
        def guide(self, data: Tensor) -> None:
            group = self.group(match="loc|scale")
            size = group.event_shape
            loc = pyro.param("group_loc", torch.zeros(size))
            tril = pyro.param("group_tril", 0.3 * torch.eye(size[0]), constraint=constraints.lower_cholesky)
            group.sample("group", dist.MultivariateNormal(loc, scale_tril=tril))
            self.map_estimate("weights")
            with self.plate("data", len(data)):
                pyro.sample("z", dist.Normal(pyro.param("z_loc", torch.zeros(len(data))), 0.4))

    return Case(hierarchy, Guide(hierarchy), (DATA,))


@entry("Autoguides", "The easy_guide decorator, with a group inside a plate")
def easy_guide_decorator() -> Case:
    @easy_guide(normals)
    def guide(self: EasyGuide, data: Tensor) -> None:
        for name in ("loc", "rate"):
            self.map_estimate(name)
        rows = self.group(match="z")
        with self.plate("data", len(data)):
            scale = pyro.param("z_scale", torch.full((3, 1), 0.4), constraint=constraints.positive)
            rows.sample("rows", dist.Normal(pyro.param("z_loc", torch.zeros(3, 1)), scale).to_event(1))

    return Case(normals, guide, (DATA,))
