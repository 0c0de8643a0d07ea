"""Bad programs get Pyro's own errors and warnings at their first loss, here as there."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro.infer import config_enumerate

import sgc.infer

Pair = tuple[Callable[[], Any], Callable[[], Any]]


def normal(name: str, loc: Any = 0.0, **options: Any) -> torch.Tensor:
    return pyro.sample(name, dist.Normal(loc, 1.0), **options)


def only_in_the_guide() -> Pair:
    def guide() -> None:
        normal("z")
        normal("extra")

    return lambda: normal("z"), guide


def only_in_the_model() -> Pair:
    def model() -> None:
        normal("z")
        normal("extra")

    return model, lambda: normal("z")


def discrete_only_in_the_model() -> Pair:
    def model() -> None:
        normal("x", pyro.sample("z", dist.Bernoulli(0.5)), obs=torch.tensor(0.3))

    return model, lambda: None


def observed_in_the_guide() -> Pair:
    def guide() -> None:
        normal("z", obs=torch.tensor(0.1))

    return lambda: normal("z"), guide


def one_name_twice() -> Pair:
    def model() -> None:
        normal("z")
        normal("z")

    return model, model


def different_shapes() -> Pair:
    def guide() -> None:
        with pyro.plate("data", 3):
            normal("z")

    def model() -> None:
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(torch.zeros(2, 1), 1.0).to_event(1))

    return model, guide


def not_independent_of_the_plate() -> Pair:
    def model() -> None:
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0))

    return model, model


def wider_than_its_plates() -> Pair:
    def model() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0))

    return model, model


def plate_too_small() -> Pair:
    def model() -> None:
        with pyro.plate("data", 3, dim=-1), pyro.plate("more", 2, dim=-1):
            normal("z")

    return model, model


def negative_scale() -> Pair:
    def guide() -> None:
        pyro.sample("z", dist.Normal(0.0, pyro.param("scale", torch.tensor(-1.0))))

    return lambda: normal("z"), guide


def value_outside_of_the_support() -> Pair:
    def model() -> None:
        normal("z")
        pyro.sample("x", dist.Bernoulli(0.5), obs=torch.tensor(2.0))

    return model, lambda: normal("z")


def enumerated_guide() -> Pair:
    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(pyro.param("q", torch.tensor(0.5))))

    return lambda: pyro.sample("z", dist.Bernoulli(0.5)), config_enumerate(guide, default="parallel")


def not_a_number() -> Pair:
    def model() -> None:
        normal("z")
        pyro.factor("trouble", torch.tensor(float("nan")))

    return model, lambda: normal("z")


def unrecognised_baseline_option() -> Pair:
    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(0.5), infer={"baseline": {"use_average": True}})

    return lambda: pyro.sample("z", dist.Bernoulli(0.5)), guide


def missing_parameter() -> Pair:
    return lambda: normal("z", pyro.param("nowhere")), lambda: normal("z")


PROGRAMS = [
    only_in_the_guide,
    only_in_the_model,
    discrete_only_in_the_model,
    observed_in_the_guide,
    one_name_twice,
    different_shapes,
    not_independent_of_the_plate,
    wider_than_its_plates,
    plate_too_small,
    negative_scale,
    value_outside_of_the_support,
    enumerated_guide,
    not_a_number,
    unrecognised_baseline_option,
    missing_parameter,
]
WORDED_ANEW = {discrete_only_in_the_model, unrecognised_baseline_option}
"""sgc names the site, the line and the remedy, where Pyro says less."""


def outcome(elbo: Any, program: Pair) -> tuple[Exception | None, list[tuple[type[Warning], str]]]:
    error = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            elbo.loss_and_grads(*program)
        except Exception as raised:
            error = raised
    found = [(w.category, str(w.message)) for w in caught if issubclass(w.category, UserWarning)]
    return error, list(dict.fromkeys(found))


@pytest.mark.parametrize("vectorize", [False, True], ids=["", "vectorised"])
@pytest.mark.parametrize("make", PROGRAMS, ids=lambda make: make.__name__)
def test_it_fails_as_in_pyro(make: Callable[[], Pair], vectorize: bool) -> None:
    options: dict[str, Any] = {"num_particles": 2, "vectorize_particles": True} if vectorize else {}
    their_error, their_warnings = outcome(pyro.infer.TraceGraph_ELBO(**options), make())
    assert their_error is not None or their_warnings, "this program is not bad at all"
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    our_error, our_warnings = outcome(sgc.infer.TraceGraph_ELBO(**options), make())
    assert our_warnings == their_warnings
    if their_error is None or our_error is None:
        assert our_error is their_error is None
    elif make in WORDED_ANEW:
        assert isinstance(our_error, (type(their_error), ValueError))
        assert "remedy" in str(our_error)
    else:
        assert type(our_error) is type(their_error)
        assert str(our_error) == str(their_error)


def test_a_failed_call_leaves_nothing_behind_and_fails_again() -> None:
    elbo, program = sgc.infer.TraceGraph_ELBO(), negative_scale()
    state = torch.get_rng_state()
    for _ in range(2):
        with pytest.raises(ValueError, match="scale"):
            elbo.loss(*program)
    assert torch.equal(torch.get_rng_state(), state)
    assert not list(pyro.get_param_store())


def test_a_plate_nesting_that_is_too_small_is_an_error() -> None:
    def model() -> None:
        with pyro.plate("outer", 2, dim=-2), pyro.plate("inner", 3, dim=-1):
            normal("z")

    messages = []
    for elbo in (pyro.infer.TraceGraph_ELBO, sgc.infer.TraceGraph_ELBO):
        with pytest.raises(ValueError, match="max_plate_nesting") as caught:
            elbo(max_plate_nesting=1, num_particles=2, vectorize_particles=False).loss(model, model)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
