"""Programs as people write them under the class of ``sgc.infer``: losses, gradients and steps are Pyro's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.infer
import pytest
import torch
from torch import Tensor

import sgc
from tests.reference.objectives import COMPARISONS, Comparison
from tests.reference.objectives.comparison import Trained
from tests.reference.test_zoo import close

SEED, STEPS = 5, 3
BY_NAME = {one.name: one for one in COMPARISONS}


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    """In double precision a sum in another order is no difference, and a missing term is one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_default_dtype(before)


def made(comparison: Comparison) -> Trained:
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    return comparison.make()


def gradients(program: Trained, loss: Any, guide: Callable[..., Any]) -> dict[str, Tensor]:
    """The gradient of one evaluation."""
    pyro.set_rng_seed(SEED)
    loss.loss_and_grads(program.model, guide, *program.args)
    found = {name: p.grad.clone() for name, p in stored().items() if p.grad is not None}
    for parameter in stored().values():
        parameter.grad = None
    return found


def trained(
    program: Trained, svi_class: Callable[..., Any], loss: Any, guide: Callable[..., Any]
) -> tuple[list[float], dict[str, Tensor]]:
    """The losses of some steps, and the parameters afterwards."""
    pyro.set_rng_seed(SEED)
    svi = svi_class(program.model, guide, pyro.optim.Adam({"lr": 0.02}), loss)
    losses = [svi.step(*program.args) for _ in range(STEPS)]
    return losses, {name: p.detach().clone() for name, p in stored().items()}


def stored() -> dict[str, Tensor]:
    return {name: p for name, p in pyro.get_param_store()._params.items() if not name.startswith("__baseline")}


def assert_alike(mine: dict[str, Tensor], yours: dict[str, Tensor], relative: float) -> None:
    assert mine.keys() == yours.keys() and len(mine) > 0
    for name, value in yours.items():
        assert close(mine[name], value, relative), name


def both_sides(comparison: Comparison, **options: Any) -> Iterator[tuple[Trained, Any, Any, Callable[..., Any]]]:
    """Program, SVI, loss and guide, by Pyro and then by sgc, with the parameters of a first run by Pyro."""
    for infer in (pyro.infer, sgc.infer):
        program = made(comparison)
        theirs = program.loss(pyro.infer)
        theirs.loss(program.model, program.guide, *program.args)
        if infer is pyro.infer:
            yield program, infer.SVI, theirs, program.their_guide or program.guide
        else:
            asked = {} if program.estimators is None else {"estimators": program.estimators}
            yield program, infer.SVI, program.loss(infer, **options, **asked), program.guide


@pytest.mark.parametrize("name", BY_NAME)
def test_losses_gradients_and_steps_are_pyros_and_verify_says_so(name: str) -> None:
    theirs, ours = (
        (gradients(program, loss, guide), trained(program, svi, loss, guide), program, loss)
        for program, svi, loss, guide in both_sides(BY_NAME[name], backend="eager")
    )
    assert_alike(ours[0], theirs[0], 1e-8)
    assert ours[1][0] == pytest.approx(theirs[1][0], rel=1e-8)
    assert_alike(ours[1][1], theirs[1][1], 1e-8)
    program, loss = ours[2:]
    report = loss.compiled(program.model, program.guide).verify(*program.args)
    assert report.ok, str(report)
    assert report.loss.magnitude > 0 and any(row.magnitude > 0 for row in report.gradients)
    if program.estimators is None and program.their_elbo is None:
        assert not report.reasons  # the option is one of sgc's, which Pyro's class does not know


@pytest.mark.inductor
@pytest.mark.parametrize("name", [one.name for one in COMPARISONS if one.inductor])
def test_on_inductor(name: str) -> None:
    theirs, ours = (
        trained(program, svi, loss, guide)
        for program, svi, loss, guide in both_sides(BY_NAME[name], backend="inductor", rng="torch")
    )
    assert ours[0] == pytest.approx(theirs[0], rel=1e-7)
    assert_alike(ours[1], theirs[1], 1e-7)


def test_there_are_programs_of_each_kind() -> None:
    assert len(COMPARISONS) >= 25
    classes = {made(one).elbo for one in COMPARISONS}
    assert classes == {"TraceEnum_ELBO", "TraceMeanField_ELBO", "RenyiELBO", "TraceGraph_ELBO", "Trace_ELBO"}
