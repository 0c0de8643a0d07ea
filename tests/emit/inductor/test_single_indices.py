"""A 0-d index under Inductor: operators that take one read it at each call, and are not compiled for its value."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sgc
from sgc.emit.backends.registry import build
from sgc.emit.inductor.workarounds.single_indices import index_by_vectors
from tests.emit.rewrites.graphs import traced

TABLE, INDEX = torch.tensor([[-0.5, 0.2, 0.9], [1.0, 2.0, 3.0]]), torch.tensor(1)

AT_AN_INDEX: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "take": torch.take,
    "take of a transposed one": lambda x, i: torch.take(x.t(), i),
    "take of one element": lambda x, i: torch.take(x.sum(), i * 0),
    "take twice": lambda x, i: torch.take(x, i) * torch.take(x.exp(), (i + 3) % 6),
    "take from the end": lambda x, i: torch.take(x, -i),
    "a gradient of take": lambda x, i: torch.zeros(6).put(i, x.sum(), accumulate=True),
    "embedding": lambda x, i: F.embedding(i, x),
    "index_select": lambda x, i: x.index_select(1, i),
    "gather": lambda x, i: x[0].sum().gather(0, i * 0),
    "index_add": lambda x, i: x.index_add(1, i, torch.ones(2, 1)),
    "index_copy": lambda x, i: x.index_copy(0, i, torch.ones(1, 3)),
    "index_select of one number": lambda x, i: x.sum().index_select(0, i * 0),
    "index_fill": lambda x, i: x.index_fill(0, i, 2.0),
    "nll_loss": lambda x, i: F.nll_loss(x[0].log_softmax(-1), i),
    "cross_entropy": lambda x, i: F.cross_entropy(x[1], i),
    "one_hot": lambda x, i: F.one_hot(i, 3) * x,
}


@pytest.mark.parametrize("name", AT_AN_INDEX)
def test_a_vector_of_one_index_gives_the_same(name: str) -> None:
    module = traced(lambda x, i: [AT_AN_INDEX[name](x, i)], TABLE, INDEX)
    index_by_vectors(module)
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten.take.default):
        assert node.args[1].meta["val"].dim() == 1
    for index in (INDEX, 0 * INDEX):
        (found,) = module(TABLE, index)
        assert torch.equal(found, AT_AN_INDEX[name](TABLE, index))


@pytest.mark.inductor
def test_inductor_reads_none() -> None:
    module = traced(lambda x, i: [at(x, i) for at in AT_AN_INDEX.values()], TABLE, INDEX)
    compiled = build(module, (TABLE, INDEX), "inductor", "torch").run
    for index in (INDEX, 0 * INDEX):
        for name, found in zip(AT_AN_INDEX, compiled(TABLE, index), strict=True):
            torch.testing.assert_close(
                found, AT_AN_INDEX[name](TABLE, index), msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.inductor
def test_a_parameter_taken_at_a_sample() -> None:
    def model() -> None:
        table = pyro.param("table", torch.tensor([-0.5, 0.2, 0.9]))
        z = pyro.sample("z", dist.Categorical(torch.ones(3)))
        pyro.sample("x", dist.Normal(torch.take(table, z), 1.0), obs=torch.tensor(0.3))

    def guide() -> None:
        pyro.sample("z", dist.Categorical(logits=pyro.param("logits", torch.zeros(3))))

    module = sgc.compile(model, guide, backend="inductor", rng="torch").initialize()
    parameters = pyro.get_param_store()._params
    for seed in range(4):
        found = []
        for backward in (
            lambda: module().backward(),
            lambda: pyro.infer.TraceGraph_ELBO().loss_and_grads(model, guide),
        ):
            module.zero_grad()
            pyro.set_rng_seed(seed)
            backward()
            found.append({name: tensor.grad.clone() for name, tensor in parameters.items()})
        torch.testing.assert_close(*found)
