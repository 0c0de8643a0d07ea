"""Programs with sizes and numbers that depend on data: a compiled one computes what eager torch computes of any."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import sgc
import sgc.infer
from sgc.emit.backends.registry import build
from sgc.emit.rewrites.optimize import optimize
from sgc.errors import BackendError
from tests.emit.rewrites.graphs import traced


def gradient(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], list[Tensor]]:
    def program(x: Tensor) -> list[Tensor]:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            value = function(x).sum()
            return [value.detach(), torch.autograd.grad(value, x)[0]]

    return program


PROGRAMS: dict[str, Callable[[Tensor], list[Tensor]]] = {
    "unique": lambda x: [x.unique().sum()],
    "bincount": lambda x: [x.long().bincount().sum() * 2],
    "nonzero": lambda x: [x[x.nonzero(as_tuple=True)].exp().sum()],
    "masked_select": gradient(lambda x: (2 * x).masked_select(x > 1).exp()),
    "repeat_interleave": gradient(lambda x: torch.repeat_interleave(2 * x, x.detach().long())),
    "full": lambda x: [torch.full((2,), x[0].item()) * x[1]],
    "stack": lambda x: [torch.stack([(x * i).masked_select(x > i) for i in (1, 1, 1)]).sum()],
}
NEED_NUMBERS = {"masked_select", "repeat_interleave", "full"}
INPUTS = [torch.tensor(values) for values in ([1.0, 2.0, 2.0], [3.0, 2.0, 5.0], [2.0, 0.0, 1.0])]


def agrees(name: str, backend: str) -> bool:
    program = PROGRAMS[name]
    run = build(traced(program, INPUTS[0]), INPUTS[:1], backend, "torch").run
    return all(torch.allclose(ours, theirs) for x in INPUTS for ours, theirs in zip(run(x), program(x), strict=True))


@pytest.mark.parametrize("name", PROGRAMS)
def test_torchscript(name: str) -> None:
    if name in NEED_NUMBERS:
        with pytest.raises(BackendError, match="depends on data"):
            agrees(name, "torchscript")
    else:
        assert agrees(name, "torchscript")


@pytest.mark.inductor
@pytest.mark.cpu
@pytest.mark.parametrize("names", [list(PROGRAMS)[::2], list(PROGRAMS)[1::2]], ids=["even", "odd"])
def test_inductor(names: list[str]) -> None:
    assert [name for name in names if not agrees(name, "inductor")] == []


def test_passes_that_ask_for_sizes_say_so() -> None:
    report = optimize(traced(PROGRAMS["unique"], INPUTS[0]), INPUTS[:1]).report
    assert {record.name for record in report.records if not record.skipped} == {"functionalise", "drop_dead_nodes"}
    assert "skipped: sizes are not numbers" in str(report)


@pytest.mark.inductor
@pytest.mark.cpu
def test_training_steps() -> None:
    def model(x: Tensor) -> None:
        weight = pyro.param("weight", torch.tensor(0.5))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z + (weight * x).masked_select(x > 1).sum(), 1.0), obs=torch.tensor(0.7))

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 1.0))

    found = []
    backends = ("eager", "inductor")
    for backend in backends:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        elbo = sgc.infer.TraceGraph_ELBO(backend=backend, rng="torch")
        svi = sgc.SVI(model, guide, lambda p: torch.optim.Adam(p, lr=0.1), loss=elbo)
        found.append([svi.step(x) for x in INPUTS])
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_a_mask_of_literals_leaves_no_size_open() -> None:
    """The gradient of what is written is what lies there, as many as there are: as in ``vec_to_tril_matrix``."""

    def model(x: Tensor) -> None:
        numbers, matrix = torch.arange(3), torch.zeros(2, 3, 3)
        matrix[..., numbers < numbers.view(-1, 1)] = pyro.sample("z", dist.Normal(x, 1.0).to_event(2))
        pyro.sample("y", dist.Normal(matrix.sum(-1), 1.0).to_event(2), obs=torch.ones(2, 3))

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor([0.3, 0.1, 0.2])).expand(2, 3), 1.0).to_event(2))

    pyro.clear_param_store()
    loss_module = sgc.compile(model, guide, backend="torchscript").initialize(torch.zeros(2, 3))
    assert loss_module.verify(torch.zeros(2, 3)).ok
    loss_module(torch.zeros(2, 3)).backward()
    assert "depend on data" not in loss_module.profile()


def test_a_mask_of_data_stays_one() -> None:
    def model(x: Tensor) -> None:
        y = x.clone()
        y[x > 1] = 0.0
        pyro.sample("y", dist.Normal(y + pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0).to_event(1), obs=torch.ones(3))

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 1.0))

    pyro.clear_param_store()
    loss_module = sgc.compile(model, guide, backend="eager")
    assert all(loss_module.verify(x).ok for x in INPUTS)
    assert len(loss_module.specializations) == 1
