"""Sites of the model alone that cannot be summed out under ``objective="elbo"``: errors with site, line and remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import sgc
from sgc.errors import EnumerationError, EstimatorError, SgcError, SiteMismatchError
from tests.objectives.enumerated_programs import crossing_plates
from tests.statistical.test_enumerated_sites import line

PARALLEL = {"enumerate": "parallel"}


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield


def nothing() -> None:
    pass


def refusal(
    model: Callable[[], None], error: type[SgcError], guide: Callable[[], None] = nothing, **options: Any
) -> SgcError:
    with pytest.raises(error) as caught:
        sgc.compile(model, guide, backend="eager", **options)()
    assert caught.value.source is not None and caught.value.remedy
    return caught.value


def site_of(fn: Any, infer: dict[str, Any]) -> Callable[[], None]:
    def model() -> None:
        pyro.sample("c", fn, infer=infer)

    return model


@pytest.mark.parametrize("fn", [dist.Poisson(3.0), dist.Normal(0.0, 1.0), dist.Geometric(0.4)], ids=str)
def test_what_has_no_finite_support(fn: Any) -> None:
    error = refusal(site_of(fn, PARALLEL), EnumerationError)
    assert error.site == "c" and "has no finite support that could be enumerated" in error.problem
    assert "sample it in the guide" in error.remedy
    assert "has no finite support" in str(refusal(site_of(fn, {}), EnumerationError, estimators={"c": "enumerate"}))


def test_sequential_and_samples() -> None:
    error = refusal(site_of(dist.Bernoulli(0.3), {"enumerate": "sequential"}), EnumerationError)
    assert "summed out of the model at once, and it asks for 'sequential'" in error.problem
    assert "ask for 'parallel', or sample it in the guide" in error.remedy
    error = refusal(site_of(dist.Bernoulli(0.3), {**PARALLEL, "num_samples": 4}), EnumerationError)
    assert "it asks for num_samples=4" in error.problem


def test_without_the_request_it_is_a_mismatch_that_names_it() -> None:
    error = refusal(site_of(dist.Bernoulli(0.3), {}), SiteMismatchError)
    assert "the latent Bernoulli is in the model but not in the guide" in error.problem
    assert "infer={'enumerate': 'parallel'} at the statement sums it out" in error.remedy
    error = refusal(site_of(dist.Bernoulli(0.3), {}), SiteMismatchError, objective="Trace_ELBO")
    assert "enumerate" not in error.remedy


@pytest.mark.parametrize("estimator", ["score function", "leave-one-out", "auto"])
def test_other_estimators(estimator: str) -> None:
    error = refusal(
        site_of(dist.Bernoulli(0.3), PARALLEL), EstimatorError, estimators={"c": estimator}, num_particles=2
    )
    assert f"the estimator '{estimator}' cannot be had at a site that the guide does not draw" in error.problem
    assert "'enumerate', if its support is finite" in error.remedy


def test_a_density_outside_of_the_plate() -> None:
    def model() -> None:
        with pyro.plate("d", 5):
            c = pyro.sample("c", dist.Bernoulli(0.5), infer=PARALLEL)
        pyro.sample("x", dist.Normal(c.sum(-1, keepdim=True), 1.0), obs=torch.tensor([2.0]))

    error = refusal(model, EnumerationError)
    assert error.site == "x" and "depends on all 5 elements of 'c' in plate 'd' jointly" in error.problem
    assert "2**5 joint values" in error.problem


def test_the_guides_values_in_a_plate_below_a_sum_outside_of_it() -> None:
    """For each joint value of the guide's elements the sum is another one."""

    def model() -> None:
        c = pyro.sample("c", dist.Bernoulli(0.5), infer=PARALLEL)
        with pyro.plate("d", 3):
            pyro.sample("z", dist.Bernoulli(0.2 + 0.5 * c))

    def guide() -> None:
        with pyro.plate("d", 3):
            pyro.sample("z", dist.Bernoulli(logits=line("a", 3)))

    error = refusal(model, EnumerationError, guide, estimators={"z": "enumerate"})
    assert error.site == "c" and "log sum(c) depends on all 3 elements of 'z' in plate 'd' jointly" in error.problem
    assert "do not enumerate 'z'" in error.remedy
    assert sgc.compile(model, guide, backend="eager").initialize().verify()


def test_values_that_are_mixed() -> None:
    def model() -> None:
        c = pyro.sample("c", dist.Categorical(torch.ones(3) / 3), infer=PARALLEL)
        pyro.sample("x", dist.Normal(c.double().mean(), 1.0), obs=torch.tensor(2.0))

    error = refusal(model, EnumerationError)
    assert error.site == "x" and "log p(x) depends on the enumerated 'c' and has no dim for its 3" in error.problem


def test_a_dim_that_plain_indexing_makes() -> None:
    def model() -> None:
        c = pyro.sample("c", dist.Categorical(torch.ones(3) / 3), infer=PARALLEL)
        with pyro.plate("d", 3):
            pyro.sample("x", dist.Normal(torch.arange(9.0).reshape(3, 3)[c], 1.0), obs=torch.ones(3))

    error = refusal(model, EnumerationError)
    assert error.site == "x" and "dim that is neither a plate's nor one of enumerated values" in error.problem
    assert "pyro.ops.indexing.Vindex" in error.remedy


def test_a_state_out_of_the_scope_of_its_markov_loop() -> None:
    def model() -> None:
        states = []
        for t in pyro.markov(range(4)):
            probs = torch.tensor([[0.6, 0.4], [0.3, 0.7]])[states[-1] if states else torch.tensor(0)]
            states.append(pyro.sample(f"c{t}", dist.Categorical(probs), infer=PARALLEL))
            far = states[t - 2] if t >= 2 else 0
            pyro.sample(f"x{t}", dist.Normal(1.0 * states[-1] + far, 1.0), obs=torch.tensor(0.5))

    error = refusal(model, EnumerationError)
    assert error.site == "x2" and "depends on the enumerated 'c0'" in error.problem and "pyro.markov" in error.problem


def test_a_chain_of_the_model_beside_one_of_the_guide() -> None:
    """The sum over the model's chain depends on every step of the guide's; two of three steps have one dim."""

    def model() -> None:
        z = c = torch.tensor(0)
        for t in pyro.markov(range(3)):
            z = pyro.sample(f"z{t}", dist.Categorical(torch.tensor([[0.6, 0.4], [0.3, 0.7]])[z]))
            c = pyro.sample(f"c{t}", dist.Categorical(torch.tensor([[0.9, 0.1], [0.2, 0.8]])[c]), infer=PARALLEL)
            pyro.sample(f"x{t}", dist.Normal(1.0 * z - c, 1.0), obs=torch.tensor(0.5))

    def guide(markov: Any = pyro.markov) -> None:
        for t in markov(range(3)):
            pyro.sample(f"z{t}", dist.Categorical(logits=line(f"a{t}", 2)))

    error = refusal(model, EnumerationError, guide, estimators={"z*": "enumerate"})
    assert error.site == "c0" and "depends on 'z0', 'z1', 'z2' jointly, and pyro.markov" in error.problem
    assert "leave its pyro.markov out" in error.remedy
    module = sgc.compile(model, lambda: guide(list), backend="eager", estimators={"z*": "enumerate"}).initialize()
    assert module.verify()


def test_scales_that_differ() -> None:
    def model() -> None:
        c = pyro.sample("c", dist.Bernoulli(0.5), infer=PARALLEL)
        with poutine.scale(scale=2.0):
            pyro.sample("x", dist.Normal(c, 1.0), obs=torch.tensor(0.4))

    error = refusal(model, EnumerationError)
    assert error.site in ("c", "x") and "share a common poutine.scale" in error.problem


def test_plates_that_are_not_nested() -> None:
    error = refusal(crossing_plates, EnumerationError)
    assert "'a', 'b' are in plates that are not nested in one another" in error.problem and error.site == "x"


def test_tables_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgc.passes.check_enumeration.LARGEST_TABLE", 500)

    def model() -> None:
        states = [pyro.sample(f"c{i}", dist.Bernoulli(0.5), infer=PARALLEL) for i in range(10)]
        pyro.sample("x", dist.Normal(sum(states), 1.0), obs=torch.tensor(2.0))

    error = refusal(model, EnumerationError)
    assert "log sum(c0 … c9) takes a sum over a table of" in error.problem and "pyro.markov" in error.remedy


def test_a_masked_distribution() -> None:
    error = refusal(site_of(dist.Bernoulli(0.3).mask(False), PARALLEL), EnumerationError)
    assert "its distribution is masked" in error.problem
