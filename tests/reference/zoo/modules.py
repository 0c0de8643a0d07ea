"""PyroModules: parameters and random variables that are attributes."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn import DenseNN, PyroModule, PyroParam, PyroSample, pyro_method
from torch import Tensor, nn

from tests.reference.zoo.entry import Case, Collection

ENTRIES = Collection()
entry = ENTRIES.entry


class Regression(PyroModule):
    """Bayesian linear regression."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](size, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, size]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 2.0).expand([1]).to_event(1))
        self.noise = PyroParam(torch.tensor(0.7), constraint=constraints.positive)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, self.noise), obs=y)
        return mean


@entry("Modules", "Bayesian regression: PyroSample weights, a PyroParam noise, and a hand-written guide")
def pyro_module_regression() -> Case:
    def guide(x: Tensor, y: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([[0.5, -0.5]]))
        scale = pyro.param("scale", torch.full((1, 2), 0.2), constraint=constraints.positive)
        pyro.sample("linear.weight", dist.Normal(loc, scale).to_event(2))
        pyro.sample("linear.bias", dist.Normal(pyro.param("bias", torch.zeros(1)), 0.1).to_event(1))

    return Case(Regression(2), guide, (torch.randn(5, 2), torch.randn(5)))


class Encoder(PyroModule):
    """A guide with parameters of its own and parameters of a module inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = PyroModule[nn.Sequential](PyroModule[nn.Linear](2, 3), nn.Tanh(), PyroModule[nn.Linear](3, 2))
        self.scale = PyroParam(lambda: torch.full((2,), 0.4), constraint=constraints.softplus_positive)

    def forward(self, data: Tensor) -> None:
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Normal(self.net(data), self.scale).to_event(1))


@entry("Modules", "A PyroModule as the guide, around an ordinary network", inductor=True)
def pyro_module_guide() -> Case:
    def model(data: Tensor) -> None:
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            pyro.sample("obs", dist.Normal(z, 0.5).to_event(1), obs=data)

    return Case(model, Encoder(), (torch.randn(3, 2),))


class Pair(PyroModule):
    """A model and a guide that are two methods of one module."""

    def __init__(self) -> None:
        super().__init__()
        self.prior_loc = PyroParam(torch.tensor(0.5))
        self.shift = nn.Parameter(torch.tensor(0.1))
        self.loc = PyroSample(lambda self: dist.Normal(self.prior_loc, 1.0))

    @pyro_method
    def model(self, data: Tensor) -> None:
        loc = self.loc + self.loc * self.shift
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.Normal(loc, 1.0), obs=data)

    @pyro_method
    def guide(self, data: Tensor) -> None:
        q_loc = pyro.param("q_loc", torch.tensor(0.3))
        pyro.sample("loc", dist.Normal(q_loc + self.shift, 0.5))


@entry("Modules", "Model and guide as methods of one PyroModule, with a PyroSample that depends on a PyroParam")
def pyro_methods() -> Case:
    pair = Pair()
    return Case(pair.model, pair.guide, (torch.tensor([0.3, 1.1]),))


@entry("Modules", "A network of pyro.nn, and a parameter list indexed in a loop")
def parameter_list() -> Case:
    net = DenseNN(2, [3], param_dims=[1, 1])
    weights = nn.ParameterList([nn.Parameter(torch.tensor(0.5 * i)) for i in range(3)])

    def model(data: Tensor) -> None:
        pyro.module("weights", weights)
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            mean = torch.zeros(())
            for power, weight in enumerate(weights):
                mean = mean + weight * z**power
            pyro.sample("obs", dist.Normal(mean.unsqueeze(-1), 1.0).expand([len(data), 2]).to_event(1), obs=data)

    def guide(data: Tensor) -> None:
        pyro.module("net", net)
        loc, raw = net(data)
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Normal(loc.squeeze(-1), raw.squeeze(-1).exp()))

    return Case(model, guide, (torch.randn(3, 2),))


@entry("Modules", "A network whose weights were given priors in place, by to_pyro_module_")
def bayesian_module() -> Case:
    net = nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1))
    pyro.nn.module.to_pyro_module_(net)
    for module in net.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            prior = dist.Normal(0.0, 1.0).expand(value.shape).to_event(value.dim())
            setattr(module, name, PyroSample(prior))

    def model(x: Tensor, y: Tensor) -> None:
        mean = net(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, 0.5), obs=y)

    def guide(x: Tensor, y: Tensor) -> None:
        shapes = {"0.weight": (2, 1), "0.bias": (2,), "2.weight": (1, 2), "2.bias": (1,)}
        for name, shape in shapes.items():
            loc = pyro.param(f"loc_{name}", lambda shape=shape: torch.randn(shape))
            pyro.sample(name, dist.Normal(loc, 0.1).to_event(len(shape)))

    return Case(model, guide, (torch.randn(4, 1), torch.randn(4)))
