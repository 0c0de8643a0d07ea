"""A matrix without a factor, an inverse or a solution is torch's error, or NaN where nothing is checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from torch import Tensor

import sgc
from tests.training.programs import fresh, values

GOOD = torch.tensor([[[2.0, 0.3], [0.3, 1.0]], [[1.0, 0.0], [0.0, 3.0]]])
BAD = torch.stack([GOOD[0], torch.zeros(2, 2)])

OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "cholesky": torch.linalg.cholesky,
    "inv": torch.linalg.inv,
    "solve": lambda matrices: torch.linalg.solve(matrices, torch.ones(2, 2)),
    "solve with vectors": lambda matrices: torch.linalg.solve(matrices[1], torch.ones(2)),
}


def program(operator: Callable[[Tensor], Tensor]) -> Any:
    def model(matrices: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        loc = operator(matrices + 0 * z).sum()
        pyro.sample("x", dist.Normal(z + loc, 1.0, validate_args=False), obs=torch.tensor(0.3))

    def guide(matrices: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.2)), 1.0))

    return model, guide


@pytest.mark.parametrize("name", OPERATORS)
def test_it_is_torchs_error(name: str) -> None:
    model, guide = program(OPERATORS[name])
    with pytest.raises(torch.linalg.LinAlgError) as theirs:
        pyro.infer.TraceGraph_ELBO().loss(model, guide, BAD)
    module = sgc.compile(model, guide, backend="eager", validate=True)
    with torch.no_grad():
        module(GOOD)
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            pyro.set_rng_seed(1)
            good = module(GOOD)
            pyro.set_rng_seed(1)
            assert good.item() == pytest.approx(pyro.infer.TraceGraph_ELBO().loss(model, guide, GOOD), rel=1e-6)
            with pytest.raises(torch.linalg.LinAlgError) as ours:
                module(BAD)
            assert str(ours.value).splitlines()[0] == str(theirs.value).splitlines()[0]


@pytest.mark.parametrize("name", OPERATORS)
def test_nothing_is_checked(name: str) -> None:
    model, guide = program(OPERATORS[name])
    eager, script = (sgc.compile(model, guide, backend=b, validate=False) for b in ("eager", "torchscript"))
    assert math.isfinite(eager(GOOD).item()) and math.isfinite(script(GOOD).item())
    with pytest.raises(torch.linalg.LinAlgError):
        eager(BAD)
    with pytest.warns(UserWarning, match="NaN"):
        assert script(BAD).isnan()


@pytest.mark.inductor
@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("minibatches", [True, False])
def test_a_run(minibatches: bool, validate: bool) -> None:
    def run(matrices: Tensor, steps: int) -> Tensor:
        if minibatches:
            return svi.run([matrices.clone() for _ in range(steps)]).losses
        return svi.run(steps, matrices).losses

    svi = fresh(program=program(torch.linalg.cholesky), validate=validate)
    run(GOOD, 5)
    before = values()
    with pytest.raises(torch.linalg.LinAlgError):  # Pyro's, or met where the sites of a NaN are looked for
        run(BAD, 5)
    assert values() == before and len(svi.result.losses) == 0
    assert run(GOOD, 3).isfinite().all() and values() != before
