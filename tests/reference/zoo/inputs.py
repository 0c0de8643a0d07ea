"""What a program is called with: tensors of each kind, trees of them, numbers, strings and nothing."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from tests.reference.zoo.entry import Case, Collection
from tests.reference.zoo.sites import positive

ENTRIES = Collection()
entry = ENTRIES.entry


class Batch(NamedTuple):
    x: Tensor
    y: Tensor


@entry("Inputs", "Trees of tensors: a dict, a list, a tuple and a named tuple", inductor=True)
def trees_of_tensors() -> Case:
    def model(batch: Batch, extra: dict[str, Any], offsets: list[Tensor]) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        mean = w * batch.x + extra["shift"]["left"] - extra["pair"][1] + offsets[0] * offsets[1]
        with pyro.plate("data", len(batch.y)):
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=batch.y)

    def guide(batch: Batch, extra: dict[str, Any], offsets: list[Tensor]) -> None:
        pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(0.2)), positive("scale", 0.4)))

    batch = Batch(torch.randn(3), torch.randn(3))
    extra = {"shift": {"left": torch.tensor(0.5)}, "pair": (torch.tensor(0.1), torch.tensor(0.2))}
    return Case(model, guide, (batch, extra, [torch.tensor(0.3), torch.randn(3)]))


@entry("Inputs", "Numbers, strings, flags and None beside the tensors, some by keyword", inductor=True)
def plain_values() -> Case:
    def model(data: Tensor, size: int, weights: Tensor | None = None, *, family: str, scale: float, flag: bool) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(size), scale).to_event(1))
        mean = z.sum() if weights is None else z @ weights
        likelihood = {"normal": dist.Normal, "laplace": dist.Laplace}[family]
        with pyro.plate("data", len(data)):
            pyro.sample("obs", likelihood(mean if flag else -mean, scale), obs=data)

    def guide(data: Tensor, size: int, weights: Tensor | None = None, **options: Any) -> None:
        loc = pyro.param("loc", torch.full((size,), 0.3))
        pyro.sample("z", dist.Normal(loc, options["scale"] * 0.5).to_event(1))

    kwargs = {"weights": None, "family": "laplace", "scale": 0.7, "flag": True}
    return Case(model, guide, (torch.tensor([0.2, 0.5]), 2), kwargs)


@entry("Inputs", "Tensors by keyword only")
def keyword_tensors() -> Case:
    def model(*, x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Bernoulli(logits=w * x), obs=y)

    def guide(**batch: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.2)) + 0.1 * batch["y"].mean()
        pyro.sample("w", dist.Normal(loc, positive("scale", 0.4)))

    return Case(model, guide, (), {"x": torch.randn(4), "y": torch.tensor([1.0, 0.0, 1.0, 1.0])})


@entry("Inputs", "An input that requires a gradient beside one that does not", inductor=True)
def input_with_gradient() -> Case:
    def model(data: Tensor, context: Tensor) -> None:
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Normal(context, 1.0))
            pyro.sample("obs", dist.Normal(z, 1.0), obs=data)

    def guide(data: Tensor, context: Tensor) -> None:
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Normal(data * pyro.param("slope", torch.tensor(0.6)) + context, 0.5))

    return Case(model, guide, (torch.tensor([0.2, 0.5], requires_grad=True), torch.tensor([0.1, -0.1])))


@entry("Inputs", "Integer and boolean tensors: indices, counts and masks", inductor=True)
def integer_and_boolean_tensors() -> Case:
    def model(groups: Tensor, counts: Tensor, keep: Tensor) -> None:
        with pyro.plate("groups", 2):
            rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(counts)), pyro.poutine.mask(mask=keep):
            pyro.sample("obs", dist.Poisson(rate[groups]), obs=counts)

    def guide(groups: Tensor, counts: Tensor, keep: Tensor) -> None:
        sums = torch.zeros(2).index_add(0, groups, counts.float())
        weight = pyro.param("weight", torch.tensor(0.3))
        with pyro.plate("groups", 2):
            pyro.sample("rate", dist.LogNormal(weight * sums.log1p(), 0.3))

    groups = torch.tensor([0, 1, 1, 0])
    return Case(model, guide, (groups, torch.tensor([2, 0, 1, 3]), torch.tensor([True, True, False, True])))


@entry("Inputs", "float64 everywhere: data, parameters, a module and samples")
def double_precision() -> Case:
    net = nn.Linear(1, 1).double()

    def model(data: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(data)):
            b = pyro.sample("b", dist.Bernoulli(torch.tensor(0.5, dtype=torch.float64)))
            z = pyro.sample("z", dist.Normal(data.new_zeros(()), data.new_ones(())))
            pyro.sample("obs", dist.Normal(net(z.unsqueeze(-1)).squeeze(-1) + b, 1.0), obs=data)

    def guide(data: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([0.2, 0.1], dtype=torch.float64))
        with pyro.plate("data", len(data)):
            pyro.sample("b", dist.Bernoulli(logits=loc[0] + 0 * data))
            pyro.sample("z", dist.Normal(loc[1] + data, data.new_tensor(0.5)))

    return Case(model, guide, (torch.tensor([0.2, 0.9, -0.4], dtype=torch.float64),))


@entry("Inputs", "Mixed precision: float32 parameters, float64 data, and casts between them")
def mixed_dtypes() -> Case:
    def model(data: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.Normal(z.double() * data.float(), torch.tensor(1.0)), obs=data)

    def guide(data: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)) + data.mean().float(), 0.5))

    return Case(model, guide, (torch.tensor([0.2, 0.9, -0.4], dtype=torch.float64),))


@entry("Inputs", "Data that are not contiguous: a transpose, a stride and an expanded row")
def strided_inputs() -> Case:
    def model(data: Tensor, row: Tensor) -> None:
        with pyro.plate("cols", 3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("rows", 2):
                pyro.sample("obs", dist.Normal(z + row, 1.0), obs=data)

    def guide(data: Tensor, row: Tensor) -> None:
        with pyro.plate("cols", 3):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(3)) + data[0], 0.5))

    data = torch.arange(12.0).reshape(3, 4).t()[::2]
    return Case(model, guide, (data, torch.tensor([[0.1], [0.2]]).expand(2, 3)))


@entry("Inputs", "A dataset object with tensors and numbers for attributes")
def dataset_object() -> Case:
    class Dataset:
        def __init__(self) -> None:
            self.x = torch.linspace(-1.0, 1.0, 4)
            self.noise = 0.5

        def __len__(self) -> int:
            return len(self.x)

    def model(dataset: Dataset) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(dataset)):
            pyro.sample("obs", dist.Normal(z, dataset.noise), obs=dataset.x)

    def guide(dataset: Dataset) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.2)), 0.4))

    return Case(model, guide, (Dataset(),))


@entry("Inputs", "Randomness of the program's own: torch.randn and torch.randperm outside any site")
def own_randomness() -> Case:
    def model(data: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        noisy = data + 0.1 * torch.randn_like(data)
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.Normal(z, 1.0), obs=noisy[torch.randperm(len(data))])

    def guide(data: Tensor) -> None:
        jitter = 0.1 * torch.rand(())
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.2)) + jitter, 0.4))

    return Case(model, guide, (torch.tensor([0.2, 0.9, -0.4]),))
