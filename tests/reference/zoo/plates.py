"""Plates: nested, sequential, subsampled, masked, and what they do to non-reparameterised sites."""

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

GRID = torch.tensor([[0.3, -0.5, 1.1], [0.7, 0.2, -0.4]])


@entry("Plates", "Nested plates, with latents at each level", inductor=True)
def nested_plates() -> Case:
    def model(data: Tensor) -> None:
        top = pyro.sample("top", dist.Normal(0.0, 1.0))
        with pyro.plate("cols", 3):
            col = pyro.sample("col", dist.Normal(top, 1.0))
            with pyro.plate("rows", 2):
                cell = pyro.sample("cell", dist.Normal(col, 1.0))
                pyro.sample("obs", dist.Normal(cell, 0.5), obs=data)

    def guide(data: Tensor) -> None:
        pyro.sample("top", dist.Normal(pyro.param("top_loc", torch.tensor(0.1)), 0.2))
        with pyro.plate("cols", 3):
            col = pyro.sample("col", dist.Normal(pyro.param("col_loc", torch.zeros(3)), 0.3))
            with pyro.plate("rows", 2):
                pyro.sample("cell", dist.Normal(col + pyro.param("cell_loc", torch.zeros(2, 3)), 0.4))

    return Case(model, guide, (GRID,))


@entry("Plates", "Plates with explicit dims, entered in either order and crossed", inductor=True)
def crossed_plates() -> Case:
    def model(data: Tensor) -> None:
        rows, cols = pyro.plate("rows", 2, dim=-2), pyro.plate("cols", 3, dim=-1)
        with rows:
            a = pyro.sample("a", dist.Normal(torch.zeros(2, 1), 1.0))
        with cols:
            b = pyro.sample("b", dist.Bernoulli(0.5))
        with rows, cols:
            pyro.sample("obs", dist.Normal(a + b, 0.5), obs=data)

    def guide(data: Tensor) -> None:
        rows, cols = pyro.plate("rows", 2, dim=-2), pyro.plate("cols", 3, dim=-1)
        with cols:
            pyro.sample("b", dist.Bernoulli(logits=pyro.param("logits", torch.tensor([0.1, 0.2, -0.1]))))
        with rows:
            pyro.sample("a", dist.Normal(pyro.param("loc", torch.tensor([[0.2], [0.4]])), 0.3))

    return Case(model, guide, (GRID,))


@entry("Plates", "A sequential plate: for i in pyro.plate", inductor=True)
def sequential_plate() -> Case:
    def model(data: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        for i in pyro.plate("data", len(data)):
            z = pyro.sample(f"z_{i}", dist.Bernoulli(0.5))
            pyro.sample(f"obs_{i}", dist.Normal(loc + z, 1.0), obs=data[i])

    def guide(data: Tensor) -> None:
        pyro.sample("loc", dist.Normal(pyro.param("q_loc", torch.tensor(0.2)), 0.4))
        logits = pyro.param("logits", torch.tensor([0.1, -0.2, 0.3]))
        for i in pyro.plate("data", len(data)):
            pyro.sample(f"z_{i}", dist.Bernoulli(logits=logits[i]))

    return Case(model, guide, (GRID[0],))


@entry("Plates", "A vectorised plate inside a sequential one, and the other way round")
def mixed_plates() -> Case:
    def model(data: Tensor) -> None:
        for i in pyro.plate("rows", 2):
            with pyro.plate(f"cols_{i}", 3):
                z = pyro.sample(f"z_{i}", dist.Bernoulli(0.5))
                pyro.sample(f"obs_{i}", dist.Normal(z, 1.0), obs=data[i])
        with pyro.plate("outer", 3):
            for j in pyro.plate("inner", 2):
                pyro.sample(f"w_{j}", dist.Normal(0.0, 1.0), obs=data[j])

    def guide(data: Tensor) -> None:
        logits = pyro.param("logits", torch.zeros(2, 3))
        for i in pyro.plate("rows", 2):
            with pyro.plate(f"cols_{i}", 3):
                pyro.sample(f"z_{i}", dist.Bernoulli(logits=logits[i]))

    return Case(model, guide, (GRID,))


@entry("Plates", "A subsampled plate, which draws its indices and scales its terms", inductor=True)
def subsampled_plate() -> Case:
    data = torch.linspace(-1.0, 2.0, 8)

    def model() -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 8, subsample_size=3) as batch:
            pyro.sample("obs", dist.Normal(loc, 1.0), obs=data[batch])

    def guide() -> None:
        pyro.sample("loc", dist.Normal(pyro.param("q_loc", torch.tensor(0.2)), positive("scale", 0.4)))

    return Case(model, guide)


@entry("Plates", "A plate subsampled alike in model and guide, with discrete local latents")
def subsampled_discrete_plate() -> Case:
    data = torch.linspace(-1.0, 2.0, 6)

    def model() -> None:
        weight = pyro.sample("weight", dist.Beta(1.0, 1.0))
        with pyro.plate("data", 6, subsample_size=3) as batch:
            z = pyro.sample("z", dist.Bernoulli(weight))
            pyro.sample("obs", dist.Normal(2 * z - 1, 1.0), obs=data[batch])

    def guide() -> None:
        pyro.sample("weight", dist.Beta(positive("a", 2.0), positive("b", 2.0)))
        logits = pyro.param("logits", torch.zeros(6))
        with pyro.plate("data", 6, subsample_size=3) as batch:
            pyro.sample("z", dist.Bernoulli(logits=logits[batch]))

    return Case(model, guide)


@entry("Plates", "A plate whose subsample is given, and pyro.subsample on the data")
def given_subsample() -> Case:
    def model(data: Tensor, batch: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(data), subsample=batch):
            x = pyro.subsample(data, event_dim=0)
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("obs", dist.Normal(z, 1.0), obs=x)

    def guide(data: Tensor, batch: Tensor) -> None:
        pyro.sample("loc", dist.Normal(pyro.param("q_loc", torch.tensor(0.2)), 0.4))
        with pyro.plate("data", len(data), subsample=batch):
            pyro.sample("z", dist.Normal(pyro.param("z_loc", torch.zeros(len(data)), event_dim=0), 0.5))

    return Case(model, guide, (torch.linspace(-1.0, 2.0, 6), torch.tensor([4, 0, 3])))


@entry("Plates", "Two subsampled plates, nested, over a matrix of data")
def nested_subsampling() -> Case:
    data = torch.arange(20.0).reshape(4, 5) / 10

    def model() -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("cols", 5, subsample_size=2, dim=-1) as cols:
            shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
            with pyro.plate("rows", 4, subsample_size=3, dim=-2) as rows:
                pyro.sample("obs", dist.Normal(loc + shift, 1.0), obs=data[rows.unsqueeze(-1), cols])

    def guide() -> None:
        pyro.sample("loc", dist.Normal(pyro.param("q_loc", torch.tensor(0.2)), 0.4))
        locs = pyro.param("locs", torch.zeros(5))
        with pyro.plate("cols", 5, subsample_size=2, dim=-1) as cols:
            pyro.sample("shift", dist.Normal(locs[cols], 0.3))

    return Case(model, guide)


@entry(
    "Plates",
    "Sequences of different lengths: a mask in a plate, and sites that all rows share",
    inductor=True,
)
def masked_plate() -> Case:
    lengths = torch.tensor([3, 1])

    def model(data: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 2):
            for t in range(3):
                with pyro.poutine.mask(mask=t < lengths):
                    z = pyro.sample(f"z_{t}", dist.Bernoulli(0.5))
                    pyro.sample(f"obs_{t}", dist.Normal(loc + z, 1.0), obs=data[:, t])

    def guide(data: Tensor) -> None:
        pyro.sample("loc", dist.Normal(pyro.param("q_loc", torch.tensor(0.2)), 0.4))
        logits = pyro.param("logits", torch.zeros(2, 3))
        with pyro.plate("rows", 2):
            for t in range(3):
                with pyro.poutine.mask(mask=t < lengths):
                    pyro.sample(f"z_{t}", dist.Bernoulli(logits=logits[:, t]))

    return Case(model, guide, (GRID,))


@entry("Plates", "pyro.plate_stack and a plate used as a decorator")
def plate_stack() -> Case:
    def model(data: Tensor) -> None:
        with pyro.plate_stack("grid", (2, 3)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("obs", dist.Normal(z, 1.0), obs=data)

    @pyro.plate("grid_0", 3, dim=-1)
    @pyro.plate("grid_1", 2, dim=-2)
    def guide(data: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(2, 3)), 0.3))

    return Case(model, guide, (GRID,))


@entry("Plates", "pyro.markov: a chain of discrete states, unrolled")
def markov_chain() -> Case:
    def model(data: Tensor) -> None:
        trans = pyro.param("trans", torch.tensor([[0.8, 0.2], [0.3, 0.7]]), constraint=constraints.simplex)
        z = torch.tensor(0)
        for t in pyro.markov(range(len(data))):
            z = pyro.sample(f"z_{t}", dist.Categorical(trans[z]))
            pyro.sample(f"obs_{t}", dist.Normal(2.0 * z - 1.0, 1.0), obs=data[t])

    def guide(data: Tensor) -> None:
        logits = pyro.param("logits", torch.zeros(len(data), 2))
        for t in pyro.markov(range(len(data))):
            pyro.sample(f"z_{t}", dist.Categorical(logits=logits[t]))

    return Case(model, guide, (GRID[0],))


@entry("Plates", "Rao-Blackwellisation: a global discrete site, and local ones in a plate", inductor=True)
def global_and_local_discrete() -> Case:
    def model(data: Tensor) -> None:
        k = pyro.sample("k", dist.Bernoulli(0.5))
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Bernoulli(0.3 + 0.4 * k))
            pyro.sample("obs", dist.Normal(z + k, 1.0), obs=data)
        pyro.sample("side", dist.Normal(k, 1.0), obs=torch.tensor(0.4))

    def guide(data: Tensor) -> None:
        pyro.sample("k", dist.Bernoulli(logits=pyro.param("k_logit", torch.tensor(0.2))))
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("logits", torch.zeros(len(data)))))

    return Case(model, guide, (GRID[0],))


@entry("Plates", "Rao-Blackwellisation across sibling plates that a discrete site of a third reaches into")
def sibling_plates() -> Case:
    def model(data: Tensor) -> None:
        rows, cols = pyro.plate("rows", 2, dim=-2), pyro.plate("cols", 3, dim=-1)
        with rows:
            r = pyro.sample("r", dist.Bernoulli(torch.full((2, 1), 0.4)))
        with cols:
            c = pyro.sample("c", dist.Poisson(1.5))
            pyro.sample("col_sum", dist.Normal(c, 1.0), obs=data.sum(0))
        with rows, cols:
            e = pyro.sample("e", dist.Bernoulli(0.5))
            pyro.sample("obs", dist.Normal(r + c + e, 1.0), obs=data)
        pyro.sample("total", dist.Normal(r.sum() + c.sum(), 1.0), obs=data.sum())

    def guide(data: Tensor) -> None:
        rows, cols = pyro.plate("rows", 2, dim=-2), pyro.plate("cols", 3, dim=-1)
        with rows:
            r = pyro.sample("r", dist.Bernoulli(logits=pyro.param("r_logits", torch.tensor([[0.1], [0.2]]))))
        with cols:
            pyro.sample("c", dist.Poisson(positive("c_rate", 1.0, 2.0, 1.5)))
        with rows, cols:
            pyro.sample("e", dist.Bernoulli(logits=pyro.param("e_logits", torch.zeros(2, 3)) + r))

    return Case(model, guide, (GRID,))


@entry("Plates", "Batch dimensions of size one that broadcast against a plate")
def broadcast_of_size_one() -> Case:
    def model(data: Tensor) -> None:
        with pyro.plate("rows", 2, dim=-2):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor([[0.3]])))
            w = pyro.sample("w", dist.Normal(torch.zeros(2, 1), 1.0))
            with pyro.plate("cols", 3, dim=-1):
                pyro.sample("obs", dist.Normal(z * w, torch.ones(1, 1)), obs=data)
        with pyro.plate("one", 1):
            pyro.sample("single", dist.Normal(z.sum(), 1.0), obs=torch.ones(1))

    def guide(data: Tensor) -> None:
        with pyro.plate("rows", 2, dim=-2):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit", torch.tensor([[0.4]]))))
            pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor([[0.5]])), 0.3))

    return Case(model, guide, (GRID,))
