"""What a program prints: a first call runs it several times, and prints what Pyro's one call prints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from torch import Tensor

import sgc
import sgc.infer
from sgc.errors import DataDependenceError


def model(x: Tensor) -> None:
    print("model", x.shape)
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    print("sampled", z.shape)
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def of_random_numbers(x: Tensor) -> None:
    print("guide", x.shape)
    pyro.sample("z", dist.Normal(pyro.param("loc", lambda: torch.randn(())), 1.0))


def of_numbers(x: Tensor) -> None:
    print("guide", x.shape)
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 1.0))


GUIDES: dict[str, Callable[[], Any]] = {
    "AutoNormal": lambda: AutoNormal(model),  # runs the model once to make its parameters
    "AutoDiagonalNormal": lambda: AutoDiagonalNormal(model),
    "random numbers": lambda: of_random_numbers,
    "numbers": lambda: of_numbers,
}


@pytest.mark.parametrize("name", GUIDES)
def test_a_first_call_prints_what_pyro_prints(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for elbo in (pyro.infer.Trace_ELBO(), sgc.infer.Trace_ELBO(backend="eager")):
        pyro.clear_param_store()
        elbo.loss(model, GUIDES[name](), torch.tensor(0.3))
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and printed[0].count("sampled") >= 1


PRINTED: dict[str, Callable[[Tensor], None]] = {}
USED: dict[str, Callable[[Tensor], None]] = {}


def printed(model: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    PRINTED[model.__name__] = model
    return model


def used(model: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    USED[model.__name__] = model
    return model


def sampled() -> Tensor:
    return pyro.sample("z", dist.Normal(0.0, 1.0))


@printed
def in_an_f_string(x: Tensor) -> None:
    z = sampled()
    print(f"z = {z}, {z:.3f}", f"{z.mean()}")


@printed
def over_several_lines(x: Tensor) -> None:
    z = sampled()
    print(
        f"z = {z}",
        "and %s" % z,  # noqa: UP031
        "or {} of {}".format(z, x),  # noqa: UP032
        sep="; ",
    )


@printed
def by_str_in_a_loop(x: Tensor) -> None:
    z = sampled()
    for i in range(2):
        print(str(z), repr(z), format(z), f"{i}: {z.shape}")


@used
def as_a_key(x: Tensor) -> None:
    z = sampled()
    texts = {f"{z}": 1}
    print(f"{texts}")


@used
def beside_a_print(x: Tensor) -> None:
    z = sampled(); print(f"{z}"); pyro.sample(f"y{z}", dist.Normal(0.0, 1.0), obs=x)  # noqa: E702  # fmt: skip


@used
def given_to_another_function(x: Tensor) -> None:
    z = sampled()
    print(f"{len(f'{z}')}")


@used
def named_on_the_way(x: Tensor) -> None:
    z = sampled()
    print(text := f"{z}")
    pyro.deterministic("length", torch.tensor(len(text)))


@used
def its_method(x: Tensor) -> None:
    z = sampled()
    print(f"{z}".count("1"))


@used
def by_another_print(x: Tensor) -> None:
    def print(text: str) -> None:
        pyro.deterministic("length", torch.tensor(len(text)))

    z = sampled()
    print(f"{z}")


@pytest.mark.parametrize("name", PRINTED)
def test_a_text_that_is_printed_reads_nothing(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for elbo in (pyro.infer.Trace_ELBO(), sgc.infer.Trace_ELBO(backend="eager")):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        elbo.loss_and_grads(PRINTED[name], sampled_guide, torch.tensor(0.3))
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] and shown[0]
    pyro.set_rng_seed(1)
    elbo.loss_and_grads(PRINTED[name], sampled_guide, torch.tensor(0.3))
    assert not capsys.readouterr().out and len(elbo.compiled(PRINTED[name], sampled_guide).specializations) == 1


@pytest.mark.parametrize("name", USED)
def test_a_text_that_is_used_is_refused(name: str) -> None:
    with pytest.raises(DataDependenceError, match="__format__ reads the value of a sample"):
        sgc.infer.Trace_ELBO(backend="eager").loss(USED[name], sampled_guide, torch.tensor(0.3))


def sampled_guide(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 1.0))
