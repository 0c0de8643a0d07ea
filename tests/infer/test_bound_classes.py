"""``TraceMeanField_ELBO`` and ``RenyiELBO`` of ``sgc.infer``, and bounds by ``sgc.compile``: constructor and steps."""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro import poutine
from torch import Tensor

import sgc
from sgc.errors import ArgumentError, BaselineError, ReparameterizationError, StandInWarning
from tests.programs import local_switches

DATA = torch.tensor([0.3, -1.2, 0.8])


def model(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 3):
        w = pyro.sample("w", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Normal(z * w, 1.0), obs=x)


def guide(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 0.7))
    with pyro.plate("rows", 3):
        pyro.sample("w", dist.Gamma(pyro.param("shape", torch.ones(3)).exp(), 1.0))


def mixed() -> tuple[Any, Any]:
    return local_switches()


@pytest.mark.parametrize("name", ["TraceMeanField_ELBO", "JitTraceMeanField_ELBO", "RenyiELBO"])
def test_the_constructor_takes_what_pyro_takes_in_its_order(name: str) -> None:
    theirs = list(inspect.signature(getattr(pyro.infer, name).__init__).parameters.values())
    ours = list(inspect.signature(getattr(sgc.infer, name).__init__).parameters.values())
    assert [(p.name, p.default) for p in ours[: len(theirs)]] == [(p.name, p.default) for p in theirs]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in ours[len(theirs) :])
    elbo = getattr(sgc.infer, name)()
    assert isinstance(elbo, pyro.infer.elbo.ELBO)
    assert isinstance(elbo, getattr(pyro.infer, name.removeprefix("Jit")))


STEPS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "mean field": ("TraceMeanField_ELBO", {}, lambda: (model, guide)),
    "mean field, particles": ("TraceMeanField_ELBO", {"num_particles": 3}, lambda: (model, guide)),
    "mean field, many particles": ("TraceMeanField_ELBO", {"num_particles": 6}, lambda: (model, guide)),
    "mean field, vectorised": (
        "TraceMeanField_ELBO",
        {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 1},
        lambda: (model, guide),
    ),
    "order 0": ("RenyiELBO", {}, lambda: (model, guide)),
    "order 0.5, switches": ("RenyiELBO", {"alpha": 0.5, "num_particles": 3}, mixed),
    "order -1, one particle": ("RenyiELBO", {"alpha": -1.0, "num_particles": 1}, mixed),
    "order 2, many particles": ("RenyiELBO", {"alpha": 2, "num_particles": 18}, lambda: (model, guide)),
    "order 0.5, vectorised": (
        "RenyiELBO",
        {"alpha": 0.5, "num_particles": 20, "vectorize_particles": True, "max_plate_nesting": 1},
        mixed,
    ),
}


def trained(svi_class: Any, elbo: Any, program: tuple[Any, Any], steps: int = 6) -> tuple[list[float], list[Tensor]]:
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    svi = svi_class(*program, pyro.optim.Adam({"lr": 0.05}), loss=elbo)
    losses = [svi.step(DATA) for _ in range(steps)]
    losses.append(svi.evaluate_loss(DATA))
    return losses, [tensor.detach().clone() for _, tensor in sorted(pyro.get_param_store().named_parameters())]


COMPILED = ("mean field", "order 0.5, switches", "order 0.5, vectorised")
"""One program of each kind, for Inductor."""


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *((name, "eager") for name in STEPS),
        *(pytest.param(name, "inductor", marks=pytest.mark.inductor) for name in COMPILED),
    ],
)
def test_steps_are_pyros_under_one_seed(name: str, backend: str) -> None:
    class_name, options, program = STEPS[name]
    theirs, their_parameters = trained(pyro.infer.SVI, getattr(pyro.infer, class_name)(**options), program())
    elbo = getattr(sgc.infer, class_name)(**options, backend=backend)
    ours, our_parameters = trained(sgc.SVI, elbo, program())
    assert ours == pytest.approx(theirs, rel=2e-5)
    for mine, yours in zip(our_parameters, their_parameters, strict=True):
        torch.testing.assert_close(mine, yours, rtol=1e-4, atol=1e-5)
    in_pyros_svi, _ = trained(pyro.infer.SVI, getattr(sgc.infer, class_name)(**options, backend=backend), program())
    assert in_pyros_svi == pytest.approx(theirs, rel=2e-5)


@pytest.mark.parametrize("options", [{}, {"vectorize_particles": True, "max_plate_nesting": 1}], ids=str)
def test_whole_steps_of_the_importance_weighted_bound_are_those_of_its_gradient(options: dict[str, Any]) -> None:
    """Steps of ``sgc.SVI`` and of a loss module with an optimizer of torch's, from the same random numbers."""
    results = []
    for whole in (True, False):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        if whole:
            elbo = sgc.infer.ImportanceWeightedELBO(num_particles=4, backend="eager", **options)
            svi = sgc.SVI(*local_switches(), torch.optim.Adam, loss=elbo)
            losses = [svi.step(DATA) for _ in range(5)]
        else:
            module = sgc.compile(
                *local_switches(), backend="eager", rng="torch", objective="iwae", num_particles=4, **options
            ).initialize(DATA)
            optimizer = torch.optim.Adam(module.parameters())
            losses = []
            for _ in range(5):
                optimizer.zero_grad()
                loss = module(DATA)
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
        results.append((losses, [t.detach().clone() for t in pyro.get_param_store()._params.values()]))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    for one, other in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, other)


def test_the_importance_weighted_bound_learns_which_switches_are_on() -> None:
    """Of three switches, whose guesses start far off, by score functions alone."""

    def switched(x: Tensor) -> None:
        with pyro.plate("rows", 3):
            on = pyro.sample("on", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(on, 0.4), obs=x)

    def guess(x: Tensor) -> None:
        with pyro.plate("rows", 3):
            pyro.sample("on", dist.Bernoulli(logits=pyro.param("q", torch.tensor([-2.0, 2.0, -2.0]))))

    elbo = sgc.infer.ImportanceWeightedELBO(3, 1, vectorize_particles=True, backend="eager")
    pyro.set_rng_seed(0)
    svi = sgc.SVI(switched, guess, pyro.optim.Adam({"lr": 0.1}), loss=elbo)
    x = torch.tensor([0.9, -0.1, 1.2])
    for _ in range(300):
        svi.step(x)
    learned = pyro.param("q").detach().sigmoid()
    assert torch.allclose(learned, torch.tensor([1.0, 0.0, 1.0]), atol=0.15)
    report = elbo.compiled(switched, guess).verify(x)
    assert report and "multiplied by what a particle adds to the bound" in str(report)


def test_the_order_may_change_between_two_calls() -> None:
    elbo = sgc.infer.RenyiELBO(alpha=0.5, num_particles=2)
    for alpha in (0.5, -1.0, 0.5):
        elbo.alpha = alpha
        results = []
        for one in (elbo, pyro.infer.RenyiELBO(alpha=alpha, num_particles=2)):
            one.loss(model, guide, DATA)
            pyro.set_rng_seed(1)
            results.append(one.loss(model, guide, DATA))
        assert results[0] == pytest.approx(results[1], rel=1e-5)
    assert len(elbo._compiled) == 2
    copied = copy.deepcopy(elbo)
    assert copied.alpha == 0.5 and not copied._compiled


def test_orders_that_there_are_not() -> None:
    with pytest.raises(ValueError, match="The order alpha should not be equal to 1"):
        sgc.infer.RenyiELBO(alpha=1)
    with pytest.raises(ArgumentError, match="alpha must not be 1") as caught:
        sgc.Renyi(alpha=1.0)
    assert 'objective="elbo"' in caught.value.remedy
    for wrong in (math.nan, math.inf, "0.5", None, True):
        with pytest.raises(ArgumentError, match="alpha must be a finite number"):
            sgc.Renyi(alpha=wrong)  # type: ignore[arg-type]
    assert sgc.Renyi() == sgc.Renyi(alpha=0.0) and hash(sgc.Renyi(0.5)) == hash(sgc.Renyi(0.5))


def test_particles_that_a_bound_cannot_have() -> None:
    with pytest.raises(ArgumentError, match="with one it is the ELBO"):
        sgc.compile(model, guide, objective="iwae")
    module = sgc.compile(model, guide, backend="eager", objective=sgc.Renyi(0.5), num_particles=65)
    with pytest.raises(ArgumentError, match="needs all 65 in one program, and more than 64 are not unrolled") as caught:
        module(DATA)
    assert "vectorize_particles=True" in caught.value.remedy and not pyro.get_param_store()._params
    with pytest.raises(ArgumentError, match="objective must be one of"):
        sgc.compile(model, guide, objective="bound")  # type: ignore[arg-type]


def test_rejection_samplers_are_refused_by_pyros_bound_alone() -> None:
    from pyro.distributions.testing.rejection_gamma import ShapeAugmentedGamma

    def rates() -> None:
        z = pyro.sample("z", dist.Gamma(2.0, 1.0))
        pyro.factor("f", -((z - 1) ** 2))

    def guess() -> None:
        pyro.sample("z", ShapeAugmentedGamma(pyro.param("a", torch.tensor(2.0)), torch.tensor(1.0)))

    with pytest.raises(NotImplementedError) as caught:
        sgc.infer.RenyiELBO(num_particles=2).loss_and_grads(rates, guess)
    assert isinstance(caught.value, ReparameterizationError) and caught.value.site == "z"
    module = sgc.compile(rates, guess, backend="eager", objective="iwae", num_particles=3)
    module().backward()
    assert module.graph.estimator("z").value == "partially pathwise"
    assert module.verify()


def test_runs_that_depend_on_each_other_are_refused() -> None:
    """The samples of one particle are in what the next one reads: the others' bound is not independent of it."""
    memory = torch.zeros(())

    def remembering() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z + memory, 1.0), obs=torch.tensor(0.3))
        with torch.no_grad():
            memory.copy_(z)

    def guess() -> None:
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("q", torch.tensor(0.2))))

    with pytest.raises(BaselineError, match="the importance weighted bound needs independent particles") as caught:
        sgc.compile(remembering, guess, backend="eager", objective="iwae", num_particles=2)()
    assert caught.value.site == "z"


def test_the_printed_graph_says_what_the_bound_is_of() -> None:
    options: dict[str, Any] = {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 1}
    module = sgc.compile(*local_switches(), backend="eager", objective=sgc.Renyi(0.5), **options).initialize(DATA)
    text = str(module.graph)
    assert "loss: minus bound, Rényi's bound of order 0.5 of 3 particles, in the plate num_particles_vectorized" in text
    assert "      surrogate: bound + 1 score term of each particle" in text
    assert "minus Rényi's bound of order 0.5" in module.graph.to_dot()
    assert "log_weight: 3 log p terms - 2 log q terms" in text
    text = str(
        sgc.compile(*local_switches(), backend="eager", objective="iwae", num_particles=2).initialize(DATA).graph
    )
    assert "loss: minus bound, the importance weighted bound of 2 particles, one after another" in text


def test_what_cannot_be_captured_runs_by_pyros_class() -> None:
    def branching(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z if z > 0 else -z, 1.0), obs=x[0])

    def guess(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 0.7))

    for name in ("TraceMeanField_ELBO", "RenyiELBO"):
        results = []
        for make in (
            lambda name=name: getattr(pyro.infer, name)(num_particles=2),
            lambda name=name: getattr(sgc.infer, name)(num_particles=2, dynamic="eager"),
        ):
            pyro.clear_param_store()
            elbo = make()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                elbo.loss(branching, guess, DATA)
            pyro.set_rng_seed(5)
            loss = elbo.loss_and_grads(branching, guess, DATA)
            results.append((loss, float(pyro.param("loc").unconstrained().grad)))  # type: ignore[union-attr, arg-type]
        assert any(one.category is StandInWarning for one in caught)
        assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_handlers_around_a_model_scale_its_log_weights() -> None:
    scaled = poutine.scale(model, 0.5)
    results = []
    for make in (pyro.infer.RenyiELBO, sgc.infer.RenyiELBO):
        pyro.clear_param_store()
        elbo = make(alpha=0.5, num_particles=2)
        elbo.loss(scaled, guide, DATA)
        pyro.set_rng_seed(1)
        results.append(elbo.loss(scaled, guide, DATA))
    assert results[0] == pytest.approx(results[1], rel=1e-5)
