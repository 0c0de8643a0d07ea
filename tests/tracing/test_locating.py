"""Pyro's own errors keep class and text, and get a note with the site and the user's line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceGraph_ELBO
from torch import Tensor

import sgc

X = torch.tensor(1.5)


def guide(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 1.0))


def _latent() -> Tensor:
    return pyro.sample("z", dist.Normal(0.0, 1.0))


def scale(x: Tensor) -> None:
    pyro.sample("x", dist.Normal(_latent(), -1.0), obs=x)  # the line of "x"


def scale_on_a_line_of_its_own(x: Tensor) -> None:
    pyro.sample(
        "x",
        dist.Normal(_latent(), -1.0),  # the line of "x"
        obs=x,
    )


def nan(x: Tensor) -> None:
    z = _latent()
    pyro.sample("x", dist.Normal(z * float("nan"), 1.0), obs=x)  # the line of "x"


def support(x: Tensor) -> None:
    _latent()
    pyro.sample("x", dist.Bernoulli(0.5), obs=x + 1)  # the line of "x"


def shape_in_a_plate(x: Tensor) -> None:
    _latent()
    with pyro.plate("rows", 3):
        pyro.sample("x", dist.Normal(torch.zeros(2), 1.0), obs=x)  # the line of "x"


def no_plate(x: Tensor) -> None:
    _latent()
    pyro.sample("x", dist.Normal(torch.zeros(3), 1.0), obs=x.expand(3))  # the line of "x"


def colliding_plates(x: Tensor) -> None:
    _latent()
    with pyro.plate("rows", 3, dim=-1), pyro.plate("columns", 2, dim=-1):  # the line of "columns"
        pyro.sample("x", dist.Normal(0.0, 1.0))


def subsample(x: Tensor) -> None:
    _latent()
    with pyro.plate("rows", 3, subsample_size=5):  # the line of "rows"
        pass


def empty(x: Tensor) -> None:
    _latent()
    with pyro.plate("rows", len(x.expand(3)[3:])):  # the line of "rows"
        pyro.sample("x", dist.Normal(0.0, 1.0))


def empty_loop(x: Tensor) -> None:
    _latent()
    for row in pyro.plate("rows", 0):  # the line of "rows"
        pyro.sample(f"x_{row}", dist.Normal(0.0, 1.0))


def empty_inside(x: Tensor) -> None:
    with pyro.plate("columns", 3):
        _latent()
        rows = pyro.plate("rows", size=0)  # the line of "rows"
        with rows:
            pyro.sample("x", dist.Normal(0.0, 1.0))


def twice(x: Tensor) -> None:
    pyro.sample("x", dist.Normal(_latent(), 1.0), obs=x)
    pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)  # the line of "x"


def missing(x: Tensor) -> None:
    _latent()
    known = poutine.trace(lambda: pyro.deterministic("y", x)).get_trace()

    @poutine.replay(trace=known)  # type: ignore[untyped-decorator]
    def inner() -> None:
        pyro.sample("y", dist.Normal(0.0, 1.0))  # the line of "y"

    inner()


def sizes(x: Tensor) -> None:
    _latent()
    pyro.sample("x", dist.Normal(torch.zeros(3), torch.ones(2)))  # the line of "x"


def matrix(x: Tensor) -> None:
    _latent()
    pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), -torch.eye(2)))  # the line of "x"


PROGRAMS = [scale, scale_on_a_line_of_its_own, nan, support, shape_in_a_plate, no_plate, colliding_plates, subsample]
PROGRAMS += [twice, missing, sizes, matrix, empty, empty_loop, empty_inside]
ERRORS = (ValueError, RuntimeError, ZeroDivisionError)


def marked_line(program: Callable[..., Any]) -> tuple[str, int]:
    """The site that a comment in a program names, and the number of that line."""
    lines = Path(__file__).read_text().splitlines()
    start = program.__code__.co_firstlineno
    number = next(n for n in range(start, len(lines)) if "# the line of" in lines[n - 1])
    return lines[number - 1].split('"')[-2], number


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_first_call(program: Callable[..., Any]) -> None:
    with pytest.raises(ERRORS) as theirs:
        TraceGraph_ELBO().loss(program, guide, X)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    with pytest.raises(ERRORS) as ours:
        sgc.compile(program, guide, backend="eager")(X)
    assert type(ours.value) is type(theirs.value)
    assert str(ours.value).splitlines()[0].split("loc:")[0] == str(theirs.value).splitlines()[0].split("loc:")[0]
    site, number = marked_line(program)
    (note,) = ours.value.__notes__
    assert note.startswith(f"at site '{site}', {__file__}:{number}: ")
    assert note.endswith(Path(__file__).read_text().splitlines()[number - 1].strip())


def test_a_later_call_whose_validity_is_checked() -> None:
    def program(x: Tensor) -> None:
        pyro.sample("x", dist.Normal(_latent(), x), obs=torch.tensor(0.3))  # the line of "x"

    number = program.__code__.co_firstlineno + 1
    compiled = sgc.compile(program, guide, backend="eager")
    compiled(X)
    with pytest.raises(ValueError, match="scale") as caught:
        compiled(-X)
    assert caught.value.__notes__[0].startswith(f"at site 'x', {__file__}:{number}: pyro.sample(")
    svi = sgc.SVI(program, guide, pyro.optim.Adam({"lr": 0.1}), sgc.infer.TraceGraph_ELBO(backend="eager"))
    svi.step(X)
    with pytest.raises(ValueError, match="scale") as caught:
        svi.step(-X)
    assert len(caught.value.__notes__) == 1


@pytest.mark.filterwarnings("ignore::sgc.errors.StandInWarning")
@pytest.mark.parametrize("dynamic", ["eager", "speculate"])
def test_a_program_that_eager_pyro_runs(dynamic: Any) -> None:
    def program(x: Tensor) -> None:
        if _latent() > 0.5:
            x = -x
        pyro.sample("x", dist.Normal(0.0, x), obs=torch.tensor(0.3))

    elbo = sgc.infer.TraceGraph_ELBO(backend="eager", dynamic=dynamic)
    raised = 0
    for seed in range(12):
        pyro.set_rng_seed(seed)
        try:
            elbo.loss(program, guide, X)
        except ValueError as error:
            raised += 1
            number = program.__code__.co_firstlineno + 3
            assert error.__notes__[0].startswith(f"at site 'x', {__file__}:{number}: ")
    assert 0 < raised < 12


def test_a_line_without_a_site() -> None:
    def program(x: Tensor) -> None:
        law = dist.Normal(_latent(), -1.0)
        pyro.sample("x", law, obs=x)

    with pytest.raises(ValueError, match="scale") as caught:
        sgc.compile(program, guide, backend="eager")(X)
    number = program.__code__.co_firstlineno + 1
    assert caught.value.__notes__ == [f"at {__file__}:{number}: law = dist.Normal(_latent(), -1.0)"]


def test_errors_of_the_users_own_say_where_they_are_themselves() -> None:
    def program(x: Tensor) -> None:
        _latent()
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught:
        sgc.compile(program, guide, backend="eager")(X)
    assert not hasattr(caught.value, "__notes__")
