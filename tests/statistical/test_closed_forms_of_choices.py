"""``analytic_kl=True``: over all outcomes the gradient is that of the exact ELBO."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import sgc
from sgc.errors import ArgumentError
from sgc.passes.objectives.closed_forms import DivergenceNode
from tests.passes.test_closed_forms import reversed_in_the_guide, same_order
from tests.statistical.enumerate import binary, categories, estimates_of_particles, exact_gradient
from tests.statistical.test_exact import Infer, Program, chain, decaying, expected_estimate, logits, mixed, none, plates


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield


def reversed_choices(infer: Infer) -> Program:
    """The guide draws ``a`` from ``b``, whose density in the model depends on ``a``: that of ``b`` stays sampled."""

    def model(x: Tensor) -> None:
        a = pyro.sample("a", dist.Bernoulli(logits=logits("p", 0.2)[0]))
        b = pyro.sample("b", dist.Categorical(logits=torch.stack([a, 0.3 - a, 0.5 * a])))
        pyro.sample("x", dist.Normal(a + b, 0.8), obs=x)

    def guide(x: Tensor) -> None:
        b = pyro.sample("b", dist.Categorical(logits=logits("qb", 0.4, 0.0, -0.2)), infer=infer("b", ()))
        pyro.sample("a", dist.Bernoulli(logits=logits("qa", 0.4)[0] * (b - 1)), infer=infer("a", ()))

    return model, guide, (torch.tensor(1.4),), {"b": categories(3), "a": binary()}


def masked(infer: Infer) -> Program:
    """A plate that is masked by one tensor in guide and model, and by two that are equal in it."""
    mask = torch.tensor([True, False])

    def model(x: Tensor) -> None:
        with pyro.plate("data", 2):
            with poutine.mask(mask=mask):
                z = pyro.sample("z", dist.Bernoulli(logits=logits("p", 0.3, -0.2)))
            with poutine.mask(mask=mask.clone()):
                y = pyro.sample("y", dist.Bernoulli(logits=z - 0.2))
            pyro.sample("x", dist.Normal(z + y, 0.8), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 2):
            with poutine.mask(mask=mask):
                z = pyro.sample("z", dist.Bernoulli(logits=logits("qz", 0.5, 0.1)), infer=infer("z", (2,)))
            with poutine.mask(mask=mask):
                pyro.sample("y", dist.Bernoulli(logits=z + logits("qy", 0.3)[0]), infer=infer("y", (2,)))

    return model, guide, (torch.tensor([0.4, 1.2]),), {"z": binary(2), "y": binary(2)}


def drawn_of_masked(x: Tensor) -> None:
    """Its guide without masks."""
    with pyro.plate("data", 2):
        z = pyro.sample("z", dist.Bernoulli(logits=logits("qz", 0.5, 0.1)))
        pyro.sample("y", dist.Bernoulli(logits=z + logits("qy", 0.3)[0]))


TAKEN: dict[Callable[[Infer], Program], tuple[str, ...]] = {
    chain: ("a", "b", "c"),
    plates: ("g", "z"),
    mixed: ("z",),
    reversed_choices: ("a",),
    masked: ("z",),
}


@pytest.mark.parametrize("infer", [none, decaying])
@pytest.mark.parametrize("program", TAKEN)
def test_expected_loss_and_gradient_are_exact(program: Callable[[Infer], Program], infer: Infer) -> None:
    model, guide, args, supports = program(infer)
    drawn = drawn_of_masked if program is masked else guide
    module = sgc.compile(model, guide, backend="eager", analytic_kl=True).initialize(*args)
    assert sorted(node.site for node in module.graph.of_type(DivergenceNode)) == sorted(TAKEN[program])
    leaves = list(module.param_store.parameters())
    exact_loss, exact = exact_gradient(model, guide, args, supports, leaves, drawn)
    loss, gradients = expected_estimate(module, drawn, args, supports, leaves)
    assert torch.allclose(loss, exact_loss, rtol=1e-12)
    for ours, theirs in zip(gradients, exact, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("program", "least", "most"), [(chain, 0.0, 0.9), (mixed, 0.9, 0.98), (plates, 1.0, 1.05)])
def test_variance(program: Callable[[Infer], Program], least: float, most: float) -> None:
    """It mostly falls. It need not: the densities that are left out may cancel what is below them, as in the plates."""

    def variance(analytic_kl: bool) -> float:
        pyro.clear_param_store()
        model, guide, args, supports = program(none)
        module = sgc.compile(model, guide, backend="eager", analytic_kl=analytic_kl).initialize(*args)
        leaves = list(module.param_store.parameters())
        first = second = torch.zeros(())
        for probability, _, gradients in estimates_of_particles(module, guide, args, supports, leaves):
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            first, second = first + probability * flat, second + probability * flat**2
        return float((second - first**2).sum())

    assert least < variance(True) / variance(False) < most


def test_a_site_leaves_its_own_downstream_costs() -> None:
    model, guide, args, _ = chain(none)
    graph = sgc.compile(model, guide, backend="eager", analytic_kl=True).initialize(*args).graph
    assert graph.downstream_costs("c") == {"log p(x)"}
    assert graph.downstream_costs("a") == {"log p(x)", "-KL(q(b) || p(b))", "-KL(q(c) || p(c))"}
    text = str(graph)
    assert "times: log p(x) -KL(q(b) || p(b)) -KL(q(c) || p(c)), as []" in text
    assert "surrogate: 1 cost term - 3 divergence terms + 3 score terms" in text
    assert "-KL(q(a) || p(a))" in graph.to_dot(highlight="a")


@pytest.mark.parametrize("options", [{}, {"num_particles": 3}], ids=str)
def test_pyro_with_the_same_closed_forms_gives_the_same(options: dict[str, Any]) -> None:
    for program in TAKEN:
        pyro.clear_param_store()
        model, guide, args, _ = program(none)
        report = sgc.compile(model, guide, backend="eager", analytic_kl=True, **options).verify(*args)
        assert report and report.differs_by_design
        assert "the closed form of KL(q || p) is taken; Pyro's TraceGraph_ELBO takes both densities" in str(report)


@pytest.mark.inductor
def test_inductor_gives_what_the_eager_backend_gives() -> None:
    model, guide, args, _ = plates(none)
    results = []
    for backend in ("eager", "inductor"):
        module = sgc.compile(model, guide, backend=backend, rng="torch", analytic_kl=True).initialize(*args)
        leaves = list(module.param_store.parameters())
        pyro.set_rng_seed(2)
        loss = module(*args)
        loss.backward()
        results.append([loss.detach(), *(leaf.grad.clone() for leaf in leaves if leaf.grad is not None)])
        for leaf in leaves:
            leaf.grad = None
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_where_it_is_not_proved_both_densities_stay() -> None:
    x = torch.tensor([0.3, -0.8, 1.2])
    graph = sgc.compile(*reversed_in_the_guide(), backend="eager", analytic_kl=True).initialize(x).graph
    assert set(graph.costs()) == {"log p(b)", "-log q(b)", "log p(x)", "-KL(q(a) || p(a))"}
    model, guide = same_order()
    scaled = poutine.scale(model, 0.5)
    graph = sgc.compile(scaled, guide, backend="eager", analytic_kl=True).initialize(x).graph
    assert not list(graph.of_type(DivergenceNode))


def test_it_is_an_option_of_the_elbo() -> None:
    model, guide, _, _ = mixed(none)
    with pytest.raises(ArgumentError, match='an option of objective="elbo"'):
        sgc.compile(model, guide, objective="Trace_ELBO", analytic_kl=True)
    with pytest.raises(ArgumentError, match="analytic_kl must be True or False"):
        sgc.compile(model, guide, analytic_kl="yes")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="cannot be speculated with"):
        sgc.compile(model, guide, analytic_kl=True, dynamic="speculate")
