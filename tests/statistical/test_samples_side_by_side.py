"""Several samples at one site, each with the others' costs as its baseline: exact in expectation, and less variance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine

import sgc
from sgc.errors import BaselineError
from tests.statistical.enumerate import exact_gradient
from tests.statistical.test_enumerated_sites import Program, apart, chain, markov, of_draws, plates


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield


def with_samples(guide: Callable[..., Any], samples: dict[str, int], **baseline: Any) -> Callable[..., Any]:
    """A guide of which some sites ask for so many samples, with a leave-one-out baseline."""

    def asks(site: Any) -> dict[str, Any]:
        if site["name"] not in samples:
            return {}
        return {"num_samples": samples[site["name"]], "baseline": {"use_leave_one_out": True, **baseline}}

    wrapped: Callable[..., Any] = poutine.infer_config(guide, config_fn=asks)
    return wrapped


@pytest.mark.parametrize(
    ("program", "samples", "enumerated"),
    [
        (chain, {"w": 2}, ()),
        (chain, {"z": 2}, ()),
        (chain, {"z": 2, "v": 2}, ()),
        (chain, {"w": 3}, ("z", "v")),
        (chain, {"z": 3}, ("v",)),
        (plates, {"w": 2}, ("v",)),
        (plates, {"w": 2}, ("z", "v")),
        (plates, {"z": 3}, ("w", "v")),
        (apart, {"z": 3}, ()),
        (apart, {"z": 2, "w": 2}, ()),
        (markov, {"s1": 2}, ("z0", "z1", "z2", "s0", "s2")),
    ],
    ids=lambda value: value.__name__ if callable(value) else str(value),
)
def test_expectation_is_exact_and_has_less_variance(
    program: Callable[[], Program], samples: dict[str, int], enumerated: tuple[str, ...]
) -> None:
    model, guide, args, supports, counts = program()
    estimators: Any = dict.fromkeys(enumerated, "enumerate")
    module = sgc.compile(model, with_samples(guide, samples), backend="eager", estimators=estimators)
    leaves = list(module.initialize(*args).param_store.parameters())
    drawn = partial(guide, scale=1.0) if program is plates else None  # what is scaled is a density, not a draw
    exact_loss, exact = exact_gradient(model, guide, args, supports, leaves, drawn)
    loss, gradients, variance = of_draws(module, args, counts, enumerated, leaves)
    assert torch.allclose(loss, exact_loss, rtol=1e-12)
    for ours, theirs in zip(gradients, exact, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    single = sgc.compile(model, guide, backend="eager", estimators=estimators)
    *_, of_one_sample = of_draws(single, args, counts, enumerated, leaves)
    assert variance < of_one_sample
    assert module.verify(*args), module.verify(*args)


def test_the_graph_says_so_and_particles_go_beside_it() -> None:
    model, guide, args, *_ = chain()
    module = sgc.compile(model, with_samples(guide, {"w": 3}), backend="eager", num_particles=2).initialize(*args)
    text = str(module.graph)
    assert "3 samples side by side, each weighted by 1/3" in text
    assert "as [3, 1], for each of its samples" in text and "as [3, 1], for each sample of w" in text
    assert "leave-one-out, the mean of the other 2 samples' costs" in text
    assert module.graph.particles.count == 2
    assert module.verify(*args)


def test_the_option_takes_them_too_and_inductor() -> None:
    """With the number of samples in the guide; as Pyro's, ``num_samples`` alone changes nothing."""
    model, guide, args, *_ = chain()
    asking: Callable[..., Any] = poutine.infer_config(guide, config_fn=lambda site: {"num_samples": 4})
    assert sgc.compile(model, asking, backend="eager").initialize(*args).graph.payload("w").shape == ()
    module = sgc.compile(
        model, asking, backend="inductor", rng="torch", estimators={"w": "leave-one-out", "z": "enumerate"}
    ).initialize(*args)
    assert "4 samples side by side" in str(module.graph) and "its 3 values side by side" in str(module.graph)
    assert module.verify(*args)


def test_they_cannot_have_another_baseline_beside_it() -> None:
    model, guide, args, *_ = chain()
    both = with_samples(guide, {"w": 3}, use_decaying_avg_baseline=True)
    with pytest.raises(BaselineError, match="at site 'w': use_leave_one_out cannot be combined"):
        sgc.compile(model, both, backend="eager")(*args)
    alone = with_samples(guide, {"w": 1})
    with pytest.raises(BaselineError, match="give the site infer={'num_samples': 2} or more"):
        sgc.compile(model, alone, backend="eager")(*args)


def test_a_normal_with_a_score_function_has_detached_samples() -> None:
    def model() -> None:
        pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
        pyro.sample("x", pyro.distributions.Normal(pyro.sample("y", pyro.distributions.Normal(0.0, 1.0)), 1.0))

    def guide() -> None:
        loc = pyro.param("loc", torch.tensor(0.3))
        infer = {"estimator": "score function", "num_samples": 5, "baseline": {"use_leave_one_out": True}}
        pyro.sample("z", pyro.distributions.Normal(loc, 1.0), infer=infer)
        pyro.sample("y", pyro.distributions.Normal(loc, 1.0))
        pyro.sample("x", pyro.distributions.Normal(loc, 1.0))

    module = sgc.compile(model, guide, backend="eager").initialize()
    assert module.graph.estimator("z").value == "score function" and module.verify()
