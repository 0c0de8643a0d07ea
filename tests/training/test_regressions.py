"""A compiled step gives the numbers of a step in Python where memory, arguments or options are unusual."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from sgc.errors import ArgumentError, StandInWarning
from tests.backends import UncompiledSteps
from tests.training.programs import DATA, GAUSSIAN, ONE, SCALED, fresh, is_compiled, values

STEPS = 6


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05)


# -- the same numbers as with the optimizer in Python


def test_a_learning_rate_that_is_an_int_may_change(uncompiled: None) -> None:
    def stepped(backend: str) -> tuple[list[float], dict[str, Tensor]]:
        made: list[torch.optim.Optimizer] = []

        def make(parameters: Any) -> torch.optim.Optimizer:
            made.append(torch.optim.SGD(parameters, lr=1))
            return made[0]

        svi = fresh(make, program=SCALED, backend=backend)
        losses = [svi.step(100 * ONE) for _ in range(3)]
        made[0].param_groups[0]["lr"] = 0.25
        losses += [svi.step(100 * ONE) for _ in range(3)]
        assert is_compiled(svi, 100 * ONE) is (backend == "inductor")
        return losses, values()

    losses, expected = stepped("eager")
    ours, found = stepped("inductor")
    assert ours == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(found, expected)


def test_a_run_looks_at_the_parameters_that_the_program_branches_on(uncompiled: None) -> None:
    """The step itself moves ``p`` past 0.5, where the guide is another one."""

    def model(x: Tensor) -> None:
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        p = pyro.param("p", torch.tensor(0.0))
        pyro.sample("z", dist.Normal(p, 1.0 if p < 0.5 else 0.1))

    svi = fresh(sgd, program=(model, guide))
    losses, expected = [svi.step(torch.tensor(5.0)) for _ in range(12)], values()
    svi = fresh(sgd, program=(model, guide))
    assert svi.run(12, torch.tensor(5.0)).losses.tolist() == losses
    assert values() == expected
    assert expected["p"] > 0.5
    assert len(svi.loss_module.specializations) == 2


@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.filterwarnings("ignore:the optimizer runs outside")
def test_an_argument_gets_its_gradient_at_every_step(backend: str, uncompiled: None) -> None:
    def model(x: Tensor) -> None:
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)) + x, 1.0), obs=torch.tensor(1.0))

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("p", torch.tensor(0.0)), 1.0))

    svi = fresh(sgd, program=(model, guide), backend=backend)
    for _ in range(3):
        x = torch.tensor(20.0, requires_grad=True)
        svi.step(x)
        assert x.grad is not None
        assert x.grad > 10
    if backend == "inductor":
        svi = fresh(sgd, program=(model, guide))
        svi.step(x)
        with pytest.warns(StandInWarning, match=r"args\[0\] receives a gradient and no optimizer has it"):
            svi.step(x)


def _passed_as_an_argument(w: Tensor) -> tuple[Tensor, Tensor]:
    return w, w


def _of_the_same_memory(w: Tensor) -> tuple[Tensor, Tensor]:
    return w.detach().requires_grad_(), torch.zeros(3)


@pytest.mark.cpu  # on a GPU torch updates all parameters in one kernel, and those that share memory at random
@pytest.mark.parametrize("sharing", [_passed_as_an_argument, _of_the_same_memory])
def test_tensors_that_share_memory_are_trained_as_in_python(
    sharing: Callable[[Tensor], tuple[Tensor, Tensor]], uncompiled: None
) -> None:
    def trained(backend: str) -> tuple[list[float], Tensor]:
        w = torch.ones(3, requires_grad=True)
        other, argument = sharing(w)

        def model(x: Tensor) -> None:
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + other, 1.0).to_event(1), obs=x + torch.arange(3.0))

        svi = fresh(sgd, program=(model, lambda x: pyro.sample("z", dist.Normal(w, 1.0).to_event(1))), backend=backend)
        return [svi.step(argument) for _ in range(4)], w.detach()

    losses, expected = trained("eager")
    with pytest.warns(StandInWarning, match="share memory"):
        ours, found = trained("inductor")
    assert ours == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(found, expected)


def test_the_first_step_trains_under_no_grad_too(uncompiled: None) -> None:
    svi = fresh(program=GAUSSIAN)
    losses, expected = [svi.step(DATA) for _ in range(3)], values()
    svi = fresh(program=GAUSSIAN)
    with torch.no_grad():
        assert [svi.step(DATA) for _ in range(3)] == losses
    assert values() == expected


def test_another_optimizer_takes_over(uncompiled: None) -> None:
    svi = fresh(pyro.optim.SGD({"lr": 0.1}), program=GAUSSIAN)
    for _ in range(3):
        svi.step(DATA)
    svi.optim = pyro.optim.SGD({"lr": 0.0})
    before = values()
    for _ in range(3):
        svi.step(DATA)
    assert values() == before


# -- what is traced, and how often


def test_an_optimizer_that_cannot_be_traced_is_not_tried_again(
    uncompiled: UncompiledSteps, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = []
    update = torch.optim._adafactor._single_tensor_adafactor

    def counted(params: list[Tensor], *args: Any, **kwargs: Any) -> None:
        traced.extend(parameter for parameter in params if isinstance(parameter, FakeTensor))
        update(params, *args, **kwargs)

    monkeypatch.setattr(torch.optim._adafactor, "_single_tensor_adafactor", counted)
    svi = fresh(torch.optim.Adafactor, program=GAUSSIAN)
    counts = []
    with pytest.warns(StandInWarning, match="Adafactor cannot be traced"):
        for _ in range(5):
            svi.step(DATA)
            counts.append(len(traced))
    assert counts[1] > 0
    assert counts[1:] == [counts[1]] * 4


def cycled(backend: str, steps: int) -> dict[str, Tensor]:
    """Trained by SGD whose momentum is another one at each step, and asked in Python whether it is 0."""
    made: list[torch.optim.Optimizer] = []

    def make(parameters: Any) -> torch.optim.Optimizer:
        made.append(torch.optim.SGD(parameters, lr=0.01, momentum=0.9))
        return made[0]

    svi = fresh(make, program=GAUSSIAN, backend=backend)
    svi.step(DATA)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(made[0], 0.1, total_steps=steps + 1)
    for _ in range(steps):
        svi.step(DATA)
        scheduler.step()
    return values()


@pytest.mark.filterwarnings("ignore:the optimizer runs outside")
def test_a_momentum_that_changes_takes_effect(uncompiled: None) -> None:
    torch.testing.assert_close(cycled("inductor", STEPS), cycled("eager", STEPS))


@pytest.mark.filterwarnings("ignore:the optimizer runs outside")
def test_a_momentum_that_changes_is_not_compiled_at_every_step(uncompiled: UncompiledSteps) -> None:
    cycled("inductor", 20)
    assert 0 < uncompiled.built < 10


# -- what a run is over


@pytest.mark.cpu
def test_a_run_over_a_shuffled_loader_is_the_loop_over_it(uncompiled: None) -> None:
    data = torch.arange(12.0)
    svi = fresh(program=GAUSSIAN)
    loader: Any = torch.utils.data.DataLoader(data, batch_size=3, shuffle=True)  # type: ignore[arg-type]
    losses = [svi.step(batch) for _ in range(2) for batch in loader]
    assert fresh(program=GAUSSIAN).run(loader, epochs=2).losses.tolist() == losses


@pytest.mark.parametrize("steps", [DATA, torch.tensor(3.0), "ab"], ids=["a tensor", "a 0-d tensor", "a string"])
def test_a_run_over_rows_or_characters_is_refused(steps: Any) -> None:
    with pytest.raises(ArgumentError, match=f"not a {type(steps).__name__}"):
        fresh(program=GAUSSIAN).run(steps)
