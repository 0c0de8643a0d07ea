"""A text of a sample that is the message of an error alone is no read of the sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

import sgc
from sgc.errors import DataDependenceError


def of_an_assertion(z: Tensor, limit: Tensor) -> Tensor:
    message = f"{z} is beyond {limit}"
    assert z < limit, message
    return z


def over_lines(z: Tensor, limit: Tensor) -> Tensor:
    message = (
        f"a value of {2 * z} was met, which is "
        f"beyond {limit}"
    )  # fmt: skip
    assert (z < limit).all(), "in the model: " + message
    return z


def of_an_error(z: Tensor, limit: Tensor) -> Tensor:
    message = "{} is beyond {}".format(z, limit)  # noqa: UP032
    if limit < -3:
        raise ValueError(message)
    return z


def by_percent(z: Tensor, limit: Tensor) -> Tensor:
    message = "%s is beyond" % z  # noqa: UP031
    assert z < limit, message
    return z


def directional(z: Tensor, limit: Tensor) -> Tensor:
    concentration = torch.stack([z.exp(), limit.abs()])
    angles = dist.SineBivariateVonMises(0.1, 0.2, concentration[0], concentration[1], correlation=torch.tensor(0.1))
    pyro.sample("angles", angles, obs=torch.tensor([0.3, 0.2]))
    return z


def program(use: Callable[[Tensor, Tensor], Tensor]) -> tuple[Callable[[Tensor], None], Callable[[Tensor], None]]:
    def model(limit: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(use(z, limit), 1.0), obs=torch.tensor(0.3))

    def guide(limit: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)), scale))

    return model, guide


@pytest.mark.parametrize("use", [of_an_assertion, over_lines, of_an_error, by_percent, directional])
def test_a_message_of_an_error(use: Callable[[Tensor, Tensor], Tensor]) -> None:
    module = sgc.compile(*program(use), backend="eager")
    assert module.verify(torch.tensor(9.0))
    assert module.verify(torch.tensor(8.0))
    assert len(module.specializations) == 1


@pytest.mark.parametrize("use", [of_an_assertion, over_lines])
def test_the_error_shows_the_value(use: Callable[[Tensor, Tensor], Tensor]) -> None:
    model, guide = program(use)
    module = sgc.compile(model, guide, backend="eager").initialize(torch.tensor(9.0))

    def message(loss: Callable[[Tensor], Any]) -> str:
        pyro.set_rng_seed(2)
        with pytest.raises(AssertionError) as raised:
            loss(torch.tensor(-9.0))
        return str(raised.value).partition("\n")[0]

    elbo = pyro.infer.TraceGraph_ELBO()
    assert message(module) == message(lambda limit: elbo.loss(model, guide, limit))


def kept(z: Tensor, limit: Tensor) -> Tensor:
    message = f"{z} is beyond"
    assert z < limit, message
    return z * len(message)


def returned(z: Tensor, limit: Tensor) -> Tensor:
    names = {}
    message = f"{z}"
    names[message] = z
    return names[message]


@pytest.mark.parametrize("use", [kept, returned])
def test_a_text_that_the_program_goes_on_with_is_a_read(use: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(DataDependenceError, match="reads the value of a sample"):
        sgc.compile(*program(use), backend="eager")(torch.tensor(9.0))
