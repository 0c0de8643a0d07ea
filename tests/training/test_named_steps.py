"""An error in the midst of a run says in which step it was raised, and of which minibatch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from torch import Tensor

import sgc
from sgc.errors import DataDependenceError, NanLossError
from tests.training.programs import DATA, GAUSSIAN, NAN, ONE, SCALED, fresh

PLACES = [
    ([ONE, ONE, NAN], 1, "step 3 (minibatch 3 of epoch 1, index 2)"),
    ([NAN, ONE], 1, "step 1 (minibatch 1 of epoch 1, index 0)"),
]


@contextmanager
def quiet() -> Iterator[None]:
    with pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize(("batches", "epochs", "text"), PLACES)
def test_a_nan(batches: list[Tensor], epochs: int, text: str, backend: str, uncompiled: None) -> None:
    with quiet(), pytest.raises(NanLossError) as caught:
        fresh(program=SCALED, backend=backend).run(batches, epochs=epochs)
    assert f"the loss of {text} is NaN" in str(caught.value)
    assert not getattr(caught.value, "__notes__", [])


@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("sized", [True, False])
def test_a_nan_in_a_later_epoch(sized: bool, backend: str, uncompiled: None) -> None:
    class Worse:
        """Its third minibatch is NaN from the second epoch on."""

        epochs = 0

        def __iter__(self) -> Iterator[Tensor]:
            self.epochs += 1
            return iter([ONE, ONE, NAN if self.epochs > 1 else ONE, ONE])

    if sized:
        Worse.__len__ = lambda self: 4  # type: ignore[attr-defined]
    with quiet(), pytest.raises(NanLossError, match=r"step 7 \(minibatch 3 of epoch 2, index 2\)"):
        fresh(program=SCALED, backend=backend).run(Worse(), epochs=3)


def test_a_nan_of_a_loss_that_is_not_compiled() -> None:
    with quiet(), pytest.raises(NanLossError, match=r"step 2 \(minibatch 2 of epoch 1, index 1\)"):
        svi = sgc.SVI(*SCALED, pyro.optim.Adam({"lr": 0.1}), pyro.infer.Trace_ELBO())
        svi.run([ONE, NAN])


def noted(error: BaseException) -> str:
    """The note that names the step; Pyro's own errors have one that names the site before it."""
    return str(error.__notes__[-1])  # type: ignore[attr-defined]


def tosses(data: Tensor) -> None:
    with pyro.plate("tosses", len(data)):
        pyro.sample("x", dist.Bernoulli(pyro.param("p", torch.tensor(0.5))), obs=data)


def no_guide(data: Tensor) -> None:
    pass


GOOD, BAD = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0])


@pytest.mark.cpu
@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("good", [0, 1, 2, 5])
def test_pyros_own_error(good: int, backend: str, uncompiled: None) -> None:
    try:
        pyro.infer.SVI(tosses, no_guide, pyro.optim.Adam({"lr": 0.1}), pyro.infer.TraceGraph_ELBO()).step(BAD)
    except ValueError as error:
        expected = str(error)
    svi = fresh(program=(tosses, no_guide), backend=backend)
    with pytest.raises(ValueError) as caught:
        svi.run([GOOD] * good + [BAD, GOOD])
    assert type(caught.value) is ValueError and str(caught.value).splitlines()[0] == expected.splitlines()[0]
    where = f"raised in step {good + 1} (minibatch {good + 1} of epoch 1, index {good}) of the run"
    assert noted(caught.value).startswith(where)
    assert len(svi.result.losses) == good


@pytest.mark.cpu
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_pyros_own_error_in_a_run_of_so_many_steps(backend: str, uncompiled: None) -> None:
    def sinking(data: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(0.35))
        pyro.sample("x", dist.Normal(0.0, scale), obs=data)
        pyro.factor("sinks", 20 * scale.detach() - 20 * scale)

    svi = fresh(lambda p: torch.optim.SGD(p, lr=0.01), program=(sinking, no_guide), backend=backend)
    with pytest.raises(ValueError, match="scale") as caught:
        svi.run(50, torch.tensor(0.0))
    assert noted(caught.value).startswith(f"raised in step {len(svi.result.losses) + 1} of the run;")


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_an_error_of_sgcs_own(backend: str, uncompiled: None) -> None:
    def branching(data: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        if len(data) > 3 and z > 0:
            pyro.factor("more", torch.tensor(1.0))

    def guide(data: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))

    with pytest.raises(DataDependenceError) as caught:
        fresh(program=(branching, guide), backend=backend).run([DATA, DATA, torch.zeros(4)])
    assert noted(caught.value).startswith("raised in step 3 (minibatch 3 of epoch 1, index 2) of the run")


def test_an_error_of_the_program(uncompiled: None) -> None:
    def choosy(data: Tensor) -> None:
        if len(data) > 3:
            raise KeyError("too long")
        GAUSSIAN[0](data)

    with pytest.raises(KeyError, match="too long") as caught:
        fresh(program=(choosy, GAUSSIAN[1])).run([DATA, torch.zeros(4)])
    assert noted(caught.value).startswith("raised in step 2 (minibatch 2 of epoch 1, index 1) of the run")


def test_an_error_of_the_iterable_is_of_no_step(uncompiled: None) -> None:
    def batches() -> Iterator[Any]:
        yield DATA
        raise OSError("no such file")

    with pytest.raises(OSError, match="no such file") as caught:
        fresh(program=GAUSSIAN).run(batches())
    assert not getattr(caught.value, "__notes__", [])
