"""What TraceEnum_ELBO cannot enumerate, and what changes from run to run, is refused by an error that says where."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro import poutine
from torch import Tensor

import sgc
from sgc.errors import CaptureError, EnumerationError
from sgc.tracing.reference import enumerable_sites
from tests.objectives import enumerated_programs as programs
from tests.objectives.enumerated_programs import PARALLEL, SEQUENTIAL, Program


def test_what_has_no_finite_support_is_refused() -> None:
    def model() -> None:
        pyro.sample("n", dist.Poisson(3.0), infer=PARALLEL)

    with pytest.raises(EnumerationError, match="a Poisson has no finite support") as raised:
        sgc.compile(model, programs.nothing, objective="TraceEnum_ELBO", backend="eager")()
    assert raised.value.site == "n" and "dist.Poisson(3.0)" in str(raised.value.source)
    assert isinstance(raised.value, NotImplementedError)  # as Pyro's


def test_a_density_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enumerable_sites, "LARGEST_TABLE", 50)
    model, guide, args, _ = programs.mixture()
    sgc.compile(model, guide, objective="TraceEnum_ELBO", backend="eager").initialize(*args)

    def joint() -> None:
        z: Any = 0
        for t in range(8):
            z = z + pyro.sample(f"z_{t}", dist.Bernoulli(0.2 + 0.01 * torch.as_tensor(z)), infer=PARALLEL)

    with pytest.raises(EnumerationError, match=r"a batch of \[2, 2, 2, 2, 2\], would have 64 elements") as raised:
        sgc.compile(joint, programs.nothing, objective="TraceEnum_ELBO", backend="eager")()
    assert raised.value.site == "z_5" and "pyro.markov" in raised.value.remedy


def test_plates_that_are_not_nested_are_refused() -> None:
    with pytest.raises(
        EnumerationError, match=r"'a', 'b' are in plates .* \('rows', 'columns'\).* plate nesting"
    ) as raised:
        sgc.compile(programs.crossing_plates, programs.nothing, objective="TraceEnum_ELBO", backend="eager")()
    assert raised.value.site == "x" and raised.value.source is not None


def _left_of_the_plates(where: str, of: str) -> Program:
    """A batch dim in no plate that is counted, where the values of another site are enumerated."""
    batch = torch.zeros(4)

    def model() -> None:
        a = pyro.sample("a", dist.Categorical(torch.ones(3)), infer=PARALLEL if of == "model" else {})
        if where == "guide":
            pyro.sample("w", dist.Normal(batch, 1.0).to_event(1))
        elif where == "plate":
            with pyro.plate("data", 4, dim=-2):
                pyro.sample("w", dist.Normal(batch.unsqueeze(-1), 1.0), obs=batch.unsqueeze(-1))
        else:
            pyro.sample("w", dist.Normal(batch + (0 if of == "guide" else a.sum()), 1.0), obs=batch)

    def guide() -> None:
        if of == "guide":
            pyro.sample("a", dist.Categorical(torch.ones(3)), infer=PARALLEL)
        if where == "guide":
            pyro.sample("w", dist.Normal(batch, 1.0))

    return model, guide, (), {"max_plate_nesting": int(where == "plate")}


@pytest.mark.parametrize(
    ("where", "of"),
    [("model", "model"), ("plate", "model"), ("model", "guide"), ("guide", "guide"), ("guide", "model")],
)
def test_a_batch_dim_that_no_counted_plate_has_is_refused(where: str, of: str) -> None:
    model, guide, args, options = _left_of_the_plates(where, of)
    with (
        pyro.validation_enabled(False),
        pytest.raises(EnumerationError, match="has a dim of size 4 where the 3") as raised,
    ):
        sgc.compile(model, guide, objective="TraceEnum_ELBO", backend="eager", **options)(*args)
    assert raised.value.site == "w" and raised.value.source is not None


def test_a_density_outside_of_the_plate_is_explained() -> None:
    def model() -> None:
        with pyro.plate("d", 3):
            z = pyro.sample("z", dist.Bernoulli(0.5), infer=PARALLEL)
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=torch.tensor(1.0))

    with pytest.raises(ValueError, match="invalid log_prob shape") as raised:
        sgc.compile(model, programs.nothing, objective="TraceEnum_ELBO", backend="eager")()
    assert any("enumerated for each element of a plate: 'z' in 'd'" in note for note in raised.value.__notes__)


def test_what_changes_in_one_of_several_runs_is_refused() -> None:
    """Each value of the enumerated site is a run; the number that changes is in the first, not in the last."""
    calls: list[Tensor] = []

    def model(x: Tensor) -> None:
        on = pyro.sample("on", dist.Bernoulli(0.3))
        calls.append(x)
        with poutine.scale(scale=1.0 if on else float(len(calls))):
            pyro.sample("x", dist.Normal(on, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("on", dist.Bernoulli(0.4), infer=SEQUENTIAL)

    with pytest.raises(CaptureError, match="at site 'x': two runs of the program"):
        sgc.compile(model, guide, objective="TraceEnum_ELBO", backend="eager")(torch.tensor(0.4))


def _upstream_outside_of_the_plate() -> None:
    a = pyro.sample("a", dist.Categorical(torch.tensor([0.3, 0.7])), infer=PARALLEL)
    with pyro.plate("rows", 2):
        b = pyro.sample("b", dist.Bernoulli(0.5), infer=PARALLEL)
        pyro.sample("x", dist.Normal(a + b, 1.0), obs=torch.zeros(2))


def _in_a_plate() -> None:
    with pyro.plate("rows", 2):
        pyro.sample("b", dist.Bernoulli(torch.sigmoid(pyro.param("w", torch.tensor(0.1)))), infer=PARALLEL)


def _in_a_deeper_plate() -> None:
    with pyro.plate("columns", 3, dim=-2):
        a = pyro.sample("a", dist.Bernoulli(0.5), infer=PARALLEL)
        with pyro.plate("rows", 2, dim=-1):
            b = pyro.sample("b", dist.Bernoulli(0.5), infer=PARALLEL)
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=torch.zeros(3, 2))


def _in_two_plates() -> None:
    with pyro.plate("columns", 3, dim=-2), pyro.plate("rows", 2, dim=-1):
        pyro.sample("b", dist.Bernoulli(0.4), infer=PARALLEL)


def _scaled_apart() -> None:
    b = pyro.sample("b", dist.Bernoulli(0.5), infer=PARALLEL)
    with poutine.scale(scale=2.0):
        pyro.sample("x", dist.Normal(b, 1.0), obs=torch.tensor(0.0))


def _enumerated_under_a_scale() -> None:
    b = pyro.sample("b", dist.Bernoulli(0.5), infer=PARALLEL)
    with poutine.scale(scale=0.5):
        pyro.sample("c", dist.Bernoulli(0.2 + 0.5 * b), infer=PARALLEL)


def _scaled_by_tensor() -> None:
    with poutine.scale(scale=torch.ones(2)), pyro.plate("rows", 2):
        b = pyro.sample("b", dist.Bernoulli(0.5), infer=PARALLEL)
        pyro.sample("x", dist.Normal(b, 1.0), obs=torch.zeros(2))


REFUSED_BY_PYRO: dict[str, tuple[Program, Program, str, str]] = {
    "upstream": (_upstream_outside_of_the_plate, _in_a_plate, "b", "to be no more global than guide enumeration"),
    "upstream, deeper": (_in_a_deeper_plate, _in_two_plates, "b", r"guide site 'b' in plate\('rows'\)"),
    "scale": (_scaled_apart, programs.nothing, "x", "share a common poutine.scale"),
    "scale of a site": (_enumerated_under_a_scale, programs.nothing, "c", "found 2 different scales"),
    "scale, not a number": (_scaled_by_tensor, programs.nothing, "b", "only supports scalar poutine.scale"),
}


@pytest.mark.parametrize("name", REFUSED_BY_PYRO)
def test_what_pyro_refuses_to_combine_is_refused_at_its_site(name: str) -> None:
    model, guide, site, text = REFUSED_BY_PYRO[name]
    with pytest.raises(ValueError, match=text):
        pyro.infer.TraceEnum_ELBO(max_plate_nesting=2).loss(model, guide)
    loss_module = sgc.compile(model, guide, objective="TraceEnum_ELBO", backend="eager", max_plate_nesting=2)
    with pytest.raises(EnumerationError, match=text) as raised:
        loss_module()
    assert isinstance(raised.value, ValueError)  # as Pyro's
    assert raised.value.site == site and f'pyro.sample("{site}"' in str(raised.value.source)
    assert "enumerate" in raised.value.remedy
