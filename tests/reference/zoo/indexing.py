"""Samples that are used as an index, a condition, or a value written in place."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.indexing import Vindex
from torch import Tensor
from torch.nn.functional import embedding, one_hot

from tests.reference.zoo.entry import Case, Collection

ENTRIES = Collection()
entry = ENTRIES.entry


@entry("Samples as indices", "A 0-d categorical that selects a row: probs[z]", inductor=True)
def scalar_index() -> Case:
    probs = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.5, 0.5]])

    def model() -> None:
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
        y = pyro.sample("y", dist.Categorical(probs[z]))
        pyro.sample("obs", dist.Categorical(probs[y]), obs=torch.tensor(1))

    def guide() -> None:
        z = pyro.sample("z", dist.Categorical(logits=pyro.param("z_logits", torch.tensor([0.1, 0.0, 0.2]))))
        table = pyro.param("y_logits", torch.tensor([[0.1, 0.2], [0.3, -0.1], [0.0, 0.0]]))
        pyro.sample("y", dist.Categorical(logits=table[z]))

    return Case(model, guide)


@entry(
    "Samples as indices",
    "A batch of categoricals as an index: locs[z] for each row of a plate",
    inductor=True,
)
def batched_index() -> Case:
    def model(data: Tensor) -> None:
        locs = pyro.param("locs", torch.tensor([-1.0, 0.5, 2.0]))
        scales = torch.tensor([0.5, 1.0, 1.5])
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Categorical(torch.ones(3)))
            pyro.sample("obs", dist.Normal(locs[z], torch.take(scales, z)), obs=data)

    def guide(data: Tensor) -> None:
        logits = pyro.param("logits", lambda: torch.randn(len(data), 3))
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Categorical(logits=logits))

    return Case(model, guide, (torch.tensor([-0.7, 0.3, 1.9, 0.1]),))


@entry("Samples as indices", "Two samples that index two dimensions at once, one row and one column")
def several_indices() -> Case:
    def model(data: Tensor) -> None:
        table = pyro.param("table", torch.arange(6.0).reshape(2, 3) / 3)
        a = pyro.sample("a", dist.Categorical(torch.ones(2)))
        with pyro.plate("data", len(data)):
            b = pyro.sample("b", dist.Categorical(torch.ones(3)))
            pyro.sample("obs", dist.Normal(table[a, b], 0.5), obs=data)
        pyro.sample("row", dist.Normal(table[a, :].sum() + table[..., a].sum(), 1.0), obs=torch.tensor(2.0))

    def guide(data: Tensor) -> None:
        pyro.sample("a", dist.Categorical(logits=pyro.param("a_logits", torch.tensor([0.1, -0.1]))))
        b_logits = pyro.param("b_logits", torch.zeros(len(data), 3))
        with pyro.plate("data", len(data)):
            pyro.sample("b", dist.Categorical(logits=b_logits))

    return Case(model, guide, (torch.tensor([0.4, 1.4]),))


@entry("Samples as indices", "Vindex, gather, index_select and embedding by samples")
def index_functions() -> Case:
    def model(data: Tensor) -> None:
        table = pyro.param("table", torch.arange(6.0).reshape(2, 3) / 3)
        with pyro.plate("data", len(data)):
            a = pyro.sample("a", dist.Categorical(torch.ones(2)))
            b = pyro.sample("b", dist.Categorical(torch.ones(3)))
            mean = Vindex(table)[a, b] + embedding(a, table)[..., 0] + table.index_select(1, b)[0]
            picked = table[a].gather(-1, b.unsqueeze(-1)).squeeze(-1)
            pyro.sample("obs", dist.Normal(mean + picked, 1.0), obs=data)

    def guide(data: Tensor) -> None:
        with pyro.plate("data", len(data)):
            pyro.sample("a", dist.Categorical(logits=pyro.param("a_logits", torch.zeros(len(data), 2))))
            pyro.sample("b", dist.Categorical(logits=pyro.param("b_logits", torch.zeros(len(data), 3))))

    return Case(model, guide, (torch.tensor([0.4, 1.4, 2.0]),))


@entry("Samples as indices", "torch.where and comparisons on samples", inductor=True)
def where_on_samples() -> Case:
    def model(data: Tensor) -> None:
        change = pyro.sample("change", dist.Categorical(torch.ones(4)))
        rates = pyro.sample("rates", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
        time = torch.arange(len(data))
        rate = torch.where(time < change, rates[0], rates[1])
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.Poisson(rate), obs=data)

    def guide(data: Tensor) -> None:
        pyro.sample("change", dist.Categorical(logits=pyro.param("logits", torch.zeros(4))))
        loc = pyro.param("loc", torch.tensor([0.1, 0.9]))
        pyro.sample("rates", dist.LogNormal(loc, 0.2).to_event(1))

    return Case(model, guide, (torch.tensor([1.0, 0.0, 3.0, 4.0]),))


@entry("Samples as indices", "A one-hot of a sample, a boolean mask of a sample, and arithmetic on integers")
def one_hot_of_a_sample() -> Case:
    def model(data: Tensor) -> None:
        weight = pyro.param("weight", torch.tensor([[0.5, -0.5], [0.3, 0.2], [1.0, 0.1]]))
        z = pyro.sample("z", dist.Categorical(torch.ones(3)))
        h = one_hot(z, 3).to(weight.dtype) @ weight
        h = h.masked_fill(z == 1, 0.0) + (z % 2).float() + (z * 2 + 1).clamp(max=3)
        pyro.sample("obs", dist.Normal(h, 1.0).to_event(1), obs=data)

    def guide(data: Tensor) -> None:
        pyro.sample("z", dist.Categorical(logits=pyro.param("logits", torch.tensor([0.1, 0.0, 0.2]))))

    return Case(model, guide, (torch.tensor([0.4, 1.4]),))


@entry(
    "Samples as indices",
    "Samples written into a tensor in place: x[0] = z",
    differs="Pyro loses the provenance of a sample written in place",
)
def written_in_place() -> Case:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Bernoulli(0.5))
        x = torch.zeros(3)
        x[0] = z
        x[1:] = k
        x[2] += z
        x.mul_(2.0)
        pyro.sample("obs", dist.Normal(x, 1.0).to_event(1), obs=torch.tensor([0.1, 0.2, 0.3]))

    def guide() -> None:
        loc = pyro.param("loc", torch.tensor([0.3, 0.4]))
        pyro.sample("z", dist.Normal(loc[0], 0.5))
        pyro.sample("k", dist.Bernoulli(logits=loc[1]))

    return Case(model, guide)


@entry("Samples as indices", "A sample as the place to write: x[z] = 1, scatter and index_add")
def written_at_a_sample() -> Case:
    def model() -> None:
        z = pyro.sample("z", dist.Categorical(torch.ones(3)))
        w = pyro.sample("w", dist.Normal(1.0, 1.0))
        x = torch.zeros(3)
        x[z] = 1.0
        x = x.scatter(0, z.unsqueeze(0), w.unsqueeze(0)).index_add(0, z.unsqueeze(0), torch.ones(1))
        pyro.sample("obs", dist.Normal(x, 1.0).to_event(1), obs=torch.tensor([0.1, 1.2, 0.3]))

    def guide() -> None:
        pyro.sample("z", dist.Categorical(logits=pyro.param("logits", torch.tensor([0.1, 0.4, 0.2]))))
        pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(0.9)), 0.3))

    return Case(model, guide)


@entry("Samples as indices", "Samples stacked, concatenated, split and combined in lists", inductor=True)
def stacked_samples() -> Case:
    def model() -> None:
        flips = [pyro.sample(f"flip_{i}", dist.Bernoulli(0.5)) for i in range(3)]
        loc = pyro.sample("loc", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        first, second = loc.split(2)
        x = torch.cat([torch.stack(flips), first * second])
        pyro.sample("obs", dist.Normal(x, 1.0).to_event(1), obs=torch.linspace(0.0, 1.0, 5))

    def guide() -> None:
        logits = pyro.param("logits", torch.tensor([0.1, 0.4, 0.2]))
        for i, logit in enumerate(logits.unbind()):
            pyro.sample(f"flip_{i}", dist.Bernoulli(logits=logit))
        pyro.sample("loc", dist.Normal(pyro.param("loc_", torch.ones(4)), 0.3).to_event(1))

    return Case(model, guide)
