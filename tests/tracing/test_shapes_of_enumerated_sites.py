"""A program that does not broadcast over the values of an enumerated site: torch's error has a note about that dim."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import sgc

ROWS = 4
DATA = torch.linspace(0.0, 1.0, ROWS)


def concatenated(x: Tensor, z: Tensor) -> Tensor:
    return torch.cat([x.unsqueeze(-1), z], -1).sum(-1)


def expanded(x: Tensor, z: Tensor) -> Tensor:
    return z[..., 0].expand(ROWS) + x


def multiplied(x: Tensor, z: Tensor) -> Tensor:
    return torch.mm(z, torch.ones(3, 1)).squeeze(-1) + x


def indexed(x: Tensor, z: Tensor) -> Tensor:
    return z[3] + x


def program(compute: Callable[[Tensor, Tensor], Tensor], infer: dict[str, Any]) -> Any:
    def model(x: Tensor) -> None:
        with pyro.plate("rows", ROWS):
            z = pyro.sample("z", dist.OneHotCategorical(torch.ones(ROWS, 3)))
            pyro.sample("x", dist.Normal(compute(x, z), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        logits = pyro.param("logits", torch.zeros(ROWS, 3))
        with pyro.plate("rows", ROWS):
            pyro.sample("z", dist.OneHotCategorical(logits=logits), infer=infer)

    return model, guide


PARALLEL = {"enumerate": "parallel"}


@pytest.mark.parametrize("compute", [concatenated, expanded, multiplied, indexed], ids=lambda f: f.__name__)
def test_the_dim_is_told(compute: Callable[[Tensor, Tensor], Tensor]) -> None:
    pyro.clear_param_store()
    elbo = sgc.infer.TraceEnum_ELBO(backend="eager", max_plate_nesting=1)
    with pytest.raises((RuntimeError, IndexError)) as caught:
        elbo.loss(*program(compute, PARALLEL), DATA)
    where, about = caught.value.__notes__
    assert f"{__file__}:" in where
    assert about.startswith("all values of an enumerated site are in a dim of their own, left of the plates: 'z' has")
    assert "the shape [3, 1, 3]. What is computed of it must broadcast" in about


def test_an_estimator_that_enumerates_tells_it_too() -> None:
    pyro.clear_param_store()
    svi = sgc.SVI(*program(concatenated, {}), torch.optim.Adam, estimators={"z": "enumerate"}, backend="eager")
    with pytest.raises(RuntimeError, match="same number of dimensions") as caught:
        svi.step(DATA)
    assert any("'z' has the shape [3, 1, 3]" in note for note in caught.value.__notes__)


def test_other_programs_are_told_nothing_of_it() -> None:
    pyro.clear_param_store()
    with pytest.raises(RuntimeError) as caught:
        sgc.compile(*program(lambda x, z: torch.mm(x, z), {}), backend="eager")(DATA)
    assert len(caught.value.__notes__) == 1
    elbo = sgc.infer.TraceEnum_ELBO(backend="eager", max_plate_nesting=1)
    with pytest.raises(ValueError, match="scale") as invalid:
        elbo.loss(*program(lambda x, z: dist.Normal(x, -1.0).mean, PARALLEL), DATA)
    assert not any("dim of their own" in note for note in getattr(invalid.value, "__notes__", []))
