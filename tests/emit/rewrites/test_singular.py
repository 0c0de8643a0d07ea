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
from sgc.emit.differentiate import trace
from sgc.emit.rewrites.optimize import optimize
from sgc.emit.rewrites.singular_matrices import failures_are_nan
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


@pytest.mark.parametrize(
    "name, factors",
    {
        "the same twice": lambda x: [torch.linalg.cholesky(x), torch.roll(torch.linalg.cholesky(x), 1, 2)],
        "literals": lambda x: [torch.linalg.cholesky(torch.full((2, 2), 0.2) + torch.eye(2)) @ x],
        "two, of which one is wanted": lambda x: [torch.linalg.inv_ex(x)[1], torch.linalg.inv(x)],
    }.items(),
)
def test_graphs_that_were_rewritten(name: str, factors: Callable[[Tensor], list[Tensor]]) -> None:
    module = optimize(trace(factors, [GOOD]), [GOOD]).module
    failures_are_nan(module, validates=False)
    for matrices in (GOOD, BAD):
        for found, good in zip(module(matrices), factors(GOOD), strict=True):
            if matrices is GOOD:
                torch.testing.assert_close(found, good)
            elif found.is_floating_point() and name != "literals":
                assert found[0].isfinite().all() and found[1].isnan().all()


def test_a_look_behind_what_reads_the_factor() -> None:
    def factors(matrices: Tensor) -> list[Tensor]:
        return [torch.linalg.cholesky(matrices).triu()]

    module = trace(factors, [GOOD])
    (look,) = module.graph.find_nodes(op="call_function", target=torch.ops.aten._linalg_check_errors.default)
    module.graph.output_node().prepend(look)
    failures_are_nan(module, validates=False)
    (found,) = module(BAD)
    assert found[0].isfinite().all() and found[1].diagonal().isnan().all()
