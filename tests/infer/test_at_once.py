"""A step that begins in C++, with its arguments, is the step that Python takes with them."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

import sgc
import sgc.infer
from sgc.training.bound_step import never
from sgc.training.stepper import Stepper

pytestmark = pytest.mark.inductor

GOOD, OTHER = torch.tensor([0.3, -0.2, 1.0]), torch.tensor([1.3, 0.4, -1.0])
INFINITE, INVALID = torch.tensor([0.3, float("inf"), 1.0]), torch.tensor(-1.0)


def model(data: Any, *, scale: Tensor, factor: float = 1.0, **_: Any) -> None:
    data = data[0] if isinstance(data, list) else data
    flag = pyro.sample("flag", dist.Bernoulli(0.4))
    z = pyro.sample("z", dist.Normal(flag, scale))
    pyro.factor("data", -((data - factor * z) ** 2).sum())
    pyro.factor("more", data.sum())  # of infinite data, the loss is NaN, and nothing before it


def guide(*_: Any, **__: Any) -> None:
    pyro.sample("flag", dist.Bernoulli(pyro.param("p", torch.tensor(0.5), constraint=constraints.unit_interval)))
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 1.0))


def trained(monkeypatch: pytest.MonkeyPatch, calls: list[tuple[tuple[Any, ...], dict[str, Any]]], at_once: bool) -> Any:
    """What each call of ``step`` gives, or the error that it raises, and the parameters in the end."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    svi = sgc.SVI(model, guide, torch.optim.Adam, sgc.infer.TraceGraph_ELBO(backend="inductor", rng="torch"))
    for _ in range(3):
        svi.step(*calls[0][0], **calls[0][1])
    stepper = svi.stepper
    assert stepper.latest is not None
    assert stepper.latest.take is not never
    if not at_once:
        stepper.latest.take = never
    asked: list[int] = []
    ready = Stepper.ready

    def count(self: Stepper, call: Any) -> Any:
        asked.append(1)
        return ready(self, call)

    outcomes: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "ready", count)
        for args, kwargs in calls:
            try:
                outcomes.append(svi.step(*args, **kwargs))
            except ValueError as error:
                outcomes.append(str(error))
    assert (not asked) is at_once
    return [*outcomes, *(value.tolist() for value in pyro.get_param_store().values())]


ONE = torch.tensor(1.0)
CALLS: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "positional and named": [((data,), {"scale": ONE, "factor": 2.0}) for data in (GOOD, OTHER, GOOD)],
    "in a list": [(([data],), {"scale": ONE}) for data in (GOOD, OTHER)],
    "halted": [((GOOD,), {"scale": ONE}), ((INFINITE,), {"scale": ONE}), ((OTHER,), {"scale": ONE})],
    "not valid": [((GOOD,), {"scale": ONE}), ((GOOD,), {"scale": INVALID}), ((OTHER,), {"scale": ONE})],
}


@pytest.mark.filterwarnings("ignore:Encountered NaN")
@pytest.mark.parametrize("name", CALLS)
def test_it_is_the_same_step(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    found, expected = (trained(monkeypatch, CALLS[name], at_once) for at_once in (True, False))
    assert str(found) == str(expected)  # NaN is like itself
    if name == "halted":
        assert str(found[1]) == "nan"
    if name == "not valid":
        assert "scale" in found[1]


CHANGED: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "another number": ((GOOD,), {"scale": ONE, "factor": 3.0}),
    "another name": ((GOOD,), {"scale": ONE, "other": 2.0}),
    "another order": ((GOOD,), {"factor": 2.0, "scale": ONE}),
    "another type": (([GOOD],), {"scale": ONE, "factor": 2.0}),
    "another shape": ((GOOD[:2],), {"scale": ONE, "factor": 2.0}),
    "one argument less": ((GOOD,), {"scale": ONE}),
}


def test_it_is_not_taken_for_other_arguments() -> None:
    pyro.clear_param_store()
    svi = sgc.SVI(model, guide, torch.optim.Adam)
    call = ((GOOD,), {"scale": ONE, "factor": 2.0})
    for _ in range(3):
        svi.step(*call[0], **call[1])
    stepper = svi.stepper
    assert stepper.latest is not None
    for args, kwargs in CHANGED.values():
        assert stepper.latest.take(args, kwargs) is None
    assert isinstance(stepper.latest.take(*call), float)
