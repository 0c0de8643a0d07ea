"""Where Python raises an error of a number that moves, or has another kind of number, a compiled program has no NaN."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from torch import Tensor

import sgc
import sgc.infer
from sgc.errors import CaptureError, SgcError

USUAL = (0.2, 0.3, 0.5)
INFINITE = math.inf


def program(use: Callable[[Any], Any]) -> Callable[[Any], None]:
    def model(a: Any) -> None:
        pyro.sample("x", dist.Normal(use(a), 1.0), obs=torch.tensor(0.5))

    return model


def guide(a: Any) -> None:
    pyro.param("unused", torch.tensor(0.3))


def outcome(loss: Callable[[Any], Any], a: Any) -> float | type[Exception]:
    try:
        return float(loss(a))
    except SgcError:
        raise
    except Exception as error:
        return type(error)


AS_PYTHON: dict[str, tuple[Callable[[Any], Any], list[Any]]] = {
    "division": (lambda a: 1.0 / a, [0.0, -0.0]),
    "an infinity by zero": (lambda a: min(3.0, INFINITE / a), [0.0, INFINITE]),
    "quotient beyond the largest": (lambda a: min(3.0, 1e308 / a), [1e-10]),
    "floor division": (lambda a: 5.0 // a, [0.0]),
    "remainder": (lambda a: a % (a - 0.9), [0.9]),
    "remainder by an infinity": (lambda a: 0.2 % a, [INFINITE]),
    "power of zero": (lambda a: min(3.0, a**-1), [0.0]),
    "power beyond the largest": (lambda a: min(3.0, a**2.0), [1e200, -INFINITE]),
    "product beyond the largest": (lambda a: min(3.0, a * a), [1e200]),
    "logarithm": (math.log, [0.0, -1.0]),
    "logarithm of an infinity": (lambda a: min(3.0, math.log(a)), [INFINITE, -INFINITE]),
    "logarithm to a base": (lambda a: math.log(2.0, a), [0.0, 1.0, INFINITE]),
    "root": (math.sqrt, [-1.0]),
    "sine": (lambda a: min(3.0, math.sin(a)), [INFINITE]),
    "exponential": (lambda a: min(3.0, math.exp(a)), [1000.0, INFINITE]),
    "arc cosine": (math.acos, [2.0]),
    "power of math": (lambda a: math.pow(a, 0.5), [-2.0]),
    "remainder of math": (lambda a: math.fmod(5.0, a), [0.0, INFINITE]),
    "degrees": (lambda a: min(3.0, math.degrees(a)), [1e308]),
    "whole number": (lambda a: 1.0 * round(a), [INFINITE, math.nan]),
    "numpy's own number": (lambda a: min(3.0, float(np.float64(1.0) * a)), [1e308]),
}


@pytest.mark.parametrize(("use", "values"), AS_PYTHON.values(), ids=AS_PYTHON)
def test_errors_and_numbers_are_those_of_python(use: Callable[[Any], Any], values: list[Any]) -> None:
    model, elbo = program(use), pyro.infer.TraceGraph_ELBO()
    module = sgc.compile(model, guide, backend="eager")
    for a in (*USUAL, *values, USUAL[0]):
        expected = outcome(lambda a: elbo.loss(model, guide, a), a)
        found = outcome(module, a)
        assert found == expected if isinstance(expected, type) else found == pytest.approx(expected, rel=1e-6), a


BEYOND: dict[str, tuple[Callable[[Any], Any], list[Any], Any]] = {
    "power of a negative number": (lambda a: abs(a**0.5), [2.0, 3.0, 4.0], -2.0),
    "root of a negative whole number": (lambda a: abs(a**0.5), [2, 3, 4], -2),
    "exponent that is no whole number": (lambda a: abs((-2.0) ** a), [2.0, 4.0, 6.0], 0.5),
    "product of whole numbers": (lambda a: 1.0 * (a * a + 1 - a * a), [2, 3, 4], 10**10),
    "power of whole numbers": (lambda a: 1.0 * (a**5 % 7), [2, 3, 4], 10**6),
    "floor of a number": (lambda a: 1.0 * (math.floor(a) % 7), [2.5, 3.5, 4.5], 1e30),
}


@pytest.mark.parametrize("validate", [None, False])
@pytest.mark.parametrize(("use", "usual", "beyond"), BEYOND.values(), ids=BEYOND)
def test_what_no_compiled_program_computes_is_an_error(
    use: Callable[[Any], Any], usual: list[Any], beyond: Any, validate: bool | None
) -> None:
    model, elbo = program(use), pyro.infer.TraceGraph_ELBO()
    module = sgc.compile(model, guide, backend="eager", validate=validate)
    for a in usual:
        assert float(module(a)) == pytest.approx(elbo.loss(model, guide, a), rel=1e-6)
    state = torch.get_rng_state()
    with pytest.raises(CaptureError, match="a power that is no real number|a whole number that is beyond") as raised:
        module(beyond)
    assert raised.value.source is not None
    assert raised.value.source.file == __file__
    assert raised.value.source.text in str(raised.value)
    assert torch.equal(torch.get_rng_state(), state)
    assert float(module(usual[-1])) == pytest.approx(elbo.loss(model, guide, usual[-1]), rel=1e-6)


def test_a_first_call_with_such_a_number_is_as_python() -> None:
    model, elbo = program(lambda a: abs(a**0.5)), pyro.infer.TraceGraph_ELBO()
    module = sgc.compile(model, guide, backend="eager")
    for a in (-2.0, -3.0, -4.0):
        assert float(module(a)) == pytest.approx(elbo.loss(model, guide, a), rel=1e-6)


@pytest.mark.inductor
def test_steps_of_training_go_on_by_pyro_where_that_is_asked_for() -> None:
    def model(x: Tensor, a: float) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z * abs(a**0.5), 1.0), obs=x)

    def guide(x: Tensor, a: float) -> None:
        pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.1)), 1.0))

    def trained(make: Callable[..., Any], elbo: Any) -> list[float]:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = make(model, guide, pyro.optim.Adam({"lr": 0.1}), elbo)
        losses = [svi.step(torch.tensor(0.7), a) for a in (2.0, 3.0, 4.0, -2.0, 5.0)]
        return [*losses, pyro.param("m").item()]

    expected = trained(pyro.infer.SVI, pyro.infer.TraceGraph_ELBO())
    with pytest.warns(sgc.errors.StandInWarning, match="no real number"):
        found = trained(sgc.SVI, sgc.infer.TraceGraph_ELBO(backend="inductor", dynamic="eager"))
    assert found == pytest.approx(expected, rel=1e-5)
    with pytest.raises(CaptureError, match="no real number"):
        trained(sgc.SVI, sgc.infer.TraceGraph_ELBO(backend="inductor"))
    assert pyro.param("m").item() == pytest.approx(_after_three(model, guide), rel=1e-5)


def _after_three(model: Callable[..., None], guide: Callable[..., None]) -> float:
    """The parameter after the three steps of eager Pyro that precede the error."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), pyro.infer.TraceGraph_ELBO())
    for a in (2.0, 3.0, 4.0):
        svi.step(torch.tensor(0.7), a)
    return float(pyro.param("m"))
