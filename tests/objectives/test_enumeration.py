"""TraceEnum_ELBO, compiled: equal to Pyro's under one seed, exact where everything is enumerated."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro import poutine
from torch import Tensor

import sgc
from sgc.errors import EstimatorError, GraphError
from sgc.graph.enumeration_nodes import ExpectedCostNode, FactorDensityNode, MarginalCostNode
from sgc.graph.verify import verify
from sgc.tracing.enumeration.log_einsum import log_einsum
from tests.objectives import enumerated_programs as programs
from tests.objectives.enumerated_programs import PARALLEL, PROGRAMS, Program

SEED = 11


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def parameters() -> dict[str, Tensor]:
    return dict(pyro.get_param_store()._params)


def pyros(program: Program, elbo: pyro.infer.ELBO, seed: int = SEED) -> tuple[float, dict[str, Tensor | None]]:
    """Loss and gradients by an ELBO; whatever runs a program for the first time makes its parameters, of no draws."""
    model, guide, args, _ = program
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        elbo.loss(model, guide, *args)
        for parameter in parameters().values():
            parameter.grad = None
        pyro.set_rng_seed(seed)
        loss = elbo.loss_and_grads(model, guide, *args)
    return loss, {name: parameter.grad for name, parameter in parameters().items()}


@pytest.mark.parametrize("make", PROGRAMS, ids=lambda make: make.__name__)
def test_loss_and_gradients_are_pyros(make: Callable[[], Program]) -> None:
    program = make()
    theirs, their_gradients = pyros(program, pyro.infer.TraceEnum_ELBO(**program[3]))
    ours, gradients = pyros(program, sgc.infer.TraceEnum_ELBO(backend="eager", **program[3]))
    assert math.isclose(ours, theirs, rel_tol=1e-10)
    assert gradients.keys() == their_gradients.keys()
    for name, gradient in their_gradients.items():
        mine = gradients[name]
        assert (mine is None) == (gradient is None)
        assert mine is None or gradient is None or torch.allclose(mine, gradient, rtol=1e-9, atol=1e-11), name


@pytest.mark.parametrize("make", PROGRAMS, ids=lambda make: make.__name__)
def test_verify_agrees(make: Callable[[], Program]) -> None:
    model, guide, args, options = make()
    options = {name: value for name, value in options.items() if name != "strict_enumeration_warning"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss_module = sgc.compile(model, guide, objective="TraceEnum_ELBO", backend="eager", **options)
        result = loss_module.verify(*args)
    assert result and not result.reasons, result


def test_verify_takes_nan_for_nan() -> None:
    """A cost is infinite at every value, so that both gradients are NaN where they are infinity less infinity."""
    model, guide, (x,), options = programs.mixture()
    loss_module = sgc.compile(model, guide, objective="TraceEnum_ELBO", backend="eager", validate=False, **options)
    result = loss_module.verify(torch.cat([x[:-1], torch.tensor([torch.inf])]))
    assert result, result
    loss_module(torch.cat([x[:-1], torch.tensor([torch.inf])])).backward()
    assert parameters()["loc"].grad.isnan().all()  # type: ignore[union-attr]


def log_density(model: Callable[..., Any], args: tuple[Any, ...], values: dict[str, Tensor]) -> Tensor:
    total = poutine.trace(poutine.condition(model, data=values)).get_trace(*args).log_prob_sum()
    assert isinstance(total, Tensor)
    return total


def test_a_chain_is_summed_over_all_paths() -> None:
    """The loss is minus the log of a sum over all 3^4 paths; so is its gradient."""
    model, guide, args, _ = programs.hidden_markov(4)
    loss_module = sgc.compile(model, guide, objective="TraceEnum_ELBO", backend="eager")
    loss = loss_module(*args)
    loss.backward()
    gradients = {name: t.grad for name, t in parameters().items()}
    paths = []
    for path in itertools.product(range(3), repeat=4):
        values = {f"z_{t}": torch.tensor(state) for t, state in enumerate(path)}
        paths.append(log_density(model, args, values))
    exact = -torch.stack(paths).logsumexp(0)
    assert torch.allclose(loss, exact, rtol=1e-12)
    leaves = parameters()
    for (name, leaf), gradient in zip(leaves.items(), torch.autograd.grad(exact, list(leaves.values())), strict=True):
        mine = gradients[name]
        assert mine is not None and torch.allclose(mine, gradient, rtol=1e-10, atol=1e-13), (name, leaf)


def test_an_enumerated_guide_has_no_variance() -> None:
    """Every seed gives the exact ELBO and its gradient, which a score function gives in the mean only."""

    def model(x: Tensor) -> None:
        a = pyro.sample("a", dist.Bernoulli(logits=pyro.param("p", torch.tensor(0.3))))
        b = pyro.sample("b", dist.Categorical(programs.weights("w", 2, 3)[a.long()]))
        pyro.sample("x", dist.Normal(a - b, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        a = pyro.sample("a", dist.Bernoulli(logits=pyro.param("q", torch.tensor(0.1))), infer=PARALLEL)
        pyro.sample("b", dist.Categorical(programs.weights("r", 2, 3)[a.long()]), infer=PARALLEL)

    args = (torch.tensor(0.6),)
    loss_module = sgc.compile(model, guide, objective="TraceEnum_ELBO", backend="eager")
    runs = []
    for seed in range(3):
        pyro.set_rng_seed(seed)
        loss = loss_module(*args)
        for parameter in parameters().values():
            parameter.grad = None
        loss.backward()
        runs.append((loss.detach(), {name: t.grad.clone() for name, t in parameters().items() if t.grad is not None}))
    exact: Any = 0.0
    for a, b in itertools.product((0.0, 1.0), range(3)):
        values = {"a": torch.tensor(a), "b": torch.tensor(b)}
        log_q = log_density(guide, args, values)
        exact = exact + log_q.exp() * (log_q - log_density(model, args, values))
    expected = dict(zip(parameters(), torch.autograd.grad(exact, list(parameters().values())), strict=True))
    for loss, gradients in runs:
        assert torch.allclose(loss, exact, rtol=1e-12)
        for name, gradient in expected.items():
            assert torch.allclose(gradients[name], gradient, rtol=1e-10, atol=1e-13), name


def test_the_graph_says_what_is_summed_out_of_what() -> None:
    model, guide, args, _ = programs.hidden_markov(5)
    graph = sgc.compile(model, guide, objective="TraceEnum_ELBO", backend="eager").initialize(*args).graph
    (marginal,) = graph.of_type(MarginalCostNode)
    assert marginal.eliminated == tuple(f"z_{t}" for t in range(5))
    assert graph.costs() == (marginal.key,) and marginal.sums == 5
    assert set(marginal.factors) == {f"log p({name}_{t})" for name in "xz" for t in range(5)}
    assert [node.cost for node in graph.of_type(ExpectedCostNode)] == [marginal.key]
    text = graph.to_text()
    assert "gradient: exact, by enumeration: its 3 values side by side, summed out of the model" in text
    assert "the log of the sum over z_t, t = 0 … 4" in text
    assert "elbo: 1 expected cost" in text
    assert "log of the sum" in graph.to_mermaid()


def test_a_cost_is_weighted_by_the_sites_that_its_plates_are_in() -> None:
    model, guide, args, _ = programs.beside_a_score_function()
    loss_module = sgc.compile(model, guide, objective="TraceEnum_ELBO", backend="eager").initialize(*args)
    graph = loss_module.graph
    weights = {node.cost: set(node.weights) for node in graph.of_type(ExpectedCostNode)}
    assert weights["log p(x)"] == {"on", "z"} and weights["log p(on)"] == weights["log p(w)"] == {"on"}
    assert {name: graph.estimator(name).value for name in ("on", "w", "z")} == {
        "on": "enumerated",
        "w": "pathwise",
        "z": "score function (DiCE)",
    }
    assert "log p(x): [3], depends on on, w, z, weighted by on, z" in graph.to_text()


def test_a_site_of_one_value_is_summed_out_too() -> None:
    model, guide, args, _ = programs.one_value()
    graph = sgc.compile(model, guide, objective="TraceEnum_ELBO", backend="eager").initialize(*args).graph
    eliminated = [node.eliminated for node in graph.of_type(MarginalCostNode)]
    assert sorted(eliminated) == [("k",), ("n",), ("z",)]
    assert "there is one value of each, so that nothing is added up" in str(graph)


def test_each_run_of_a_sequential_enumeration_has_its_sites() -> None:
    model, guide, args, _ = programs.one_after_another()
    graph = sgc.compile(model, guide, objective="TraceEnum_ELBO", backend="eager").initialize(*args).graph
    assert {"on (run 1)", "w (run 1)", "on (run 2)", "w (run 2)"} <= set(graph.sites())
    assert "its 2 values one after another" in graph.to_text()


def test_a_marginal_of_a_site_that_is_no_cost_is_illegal() -> None:
    model, guide, args, _ = programs.mixture()
    graph = sgc.compile(model, guide, objective="TraceEnum_ELBO", backend="eager").initialize(*args).graph.copy()
    (marginal,) = graph.of_type(MarginalCostNode)
    graph.add_edge("w" if "w" in graph else "param w", marginal.key)
    with pytest.raises(GraphError, match="a marginal cost node may not depend on a input node"):
        verify(graph)


def test_steps_of_svi_are_pyros() -> None:
    model, guide, args, _ = programs.bayesian_mixture()

    def steps(svi: type, elbo: Any) -> list[float]:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        run = svi(model, guide, pyro.optim.Adam({"lr": 0.05}), loss=elbo)
        return [run.step(*args) for _ in range(8)]

    theirs = steps(pyro.infer.SVI, pyro.infer.TraceEnum_ELBO(max_plate_nesting=1))
    ours = steps(sgc.SVI, sgc.infer.TraceEnum_ELBO(max_plate_nesting=1, backend="eager"))
    assert ours == pytest.approx(theirs, rel=1e-9)


@pytest.mark.inductor
@pytest.mark.parametrize("make", [programs.hidden_markov, programs.beside_a_score_function])
def test_inductor_backend(make: Callable[[], Program]) -> None:
    program = make()
    theirs, their_gradients = pyros(program, pyro.infer.TraceEnum_ELBO())
    ours, gradients = pyros(program, sgc.infer.TraceEnum_ELBO(backend="inductor"))
    assert math.isclose(ours, theirs, rel_tol=1e-9)
    for name, gradient in their_gradients.items():
        mine = gradients[name]
        assert mine is not None and gradient is not None and torch.allclose(mine, gradient, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("a,b->", [(2,), (3,)]),
        ("ab,bc->ac", [(2, 3), (3, 4)]),
        ("ab->b", [(2, 3)]),
        ("ca,ab,b->c", [(4, 2), (2, 3), (3,)]),
    ],
)
def test_log_einsum_is_the_log_of_the_einsum_of_exp(equation: str, shapes: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    operands = [(3.0 * torch.randn(shape)).requires_grad_() for shape in shapes]
    tables: list[tuple[int, ...]] = []
    ours = log_einsum(equation, *operands, tables=tables)
    exact = torch.einsum(equation, *(operand.exp() for operand in operands)).log()
    assert torch.allclose(ours, exact, rtol=1e-12)
    for mine, theirs in zip(*(torch.autograd.grad(t.sum(), operands) for t in (ours, exact)), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-10)
    letters = zip(equation.partition("->")[0].replace(",", ""), itertools.chain(*shapes), strict=True)
    assert [math.prod(table) for table in tables] == [math.prod(dict(letters).values())]


def test_log_einsum_of_zeros_has_no_gradient() -> None:
    operand = torch.tensor([[-torch.inf, -torch.inf], [0.3, -torch.inf]], requires_grad=True)
    total = log_einsum("ab->a", operand, tables=[])
    assert torch.equal(total.detach(), torch.tensor([-torch.inf, 0.3]))
    (gradient,) = torch.autograd.grad(total[1], operand)
    assert torch.equal(gradient, torch.tensor([[0.0, 0.0], [1.0, 0.0]]))


def test_cost_nodes_have_the_shape_of_their_plates() -> None:
    model, guide, args, _ = programs.plates_within()
    graph = sgc.compile(model, guide, objective="TraceEnum_ELBO", backend="eager").initialize(*args).graph
    shapes = {cost.key: cost.shape for cost in graph.of_type(FactorDensityNode)}
    assert shapes == {"log p(topic)": (3, 1), "log p(word)": (3, 2), "log p(x)": (3, 2)}
    (marginal,) = graph.of_type(MarginalCostNode)
    assert [plate.name for plate in marginal.plates] == ["rows"]


def test_an_estimator_is_asked_for_beside_enumeration() -> None:
    """A pathwise site that asks for a score function has it, by DiCE; an enumerated one cannot ask."""

    def model() -> None:
        a = pyro.sample("a", dist.Bernoulli(0.4))
        pyro.sample("b", dist.Normal(a, 1.0))

    def guide(of_a: dict[str, Any], of_b: dict[str, Any]) -> Callable[[], None]:
        def program() -> None:
            a = pyro.sample("a", dist.Bernoulli(logits=pyro.param("q", torch.tensor(0.1))), infer=dict(of_a))
            pyro.sample("b", dist.Normal(pyro.param("m", torch.tensor(0.4)) + a, 0.7), infer=dict(of_b))

        return program

    asking = guide(PARALLEL, {"estimator": "score function"})
    loss_module = sgc.compile(model, asking, objective="TraceEnum_ELBO", backend="eager").initialize()
    assert loss_module.graph.estimator("b").value == "score function (DiCE)" and loss_module.graph.is_asked("b")
    torch.manual_seed(0)
    draws = []
    for _ in range(4000):
        for parameter in parameters().values():
            parameter.grad = None
        loss_module().backward()
        draws.append(torch.stack([parameters()[name].grad for name in ("q", "m")]))  # type: ignore[misc]
    mean, error = torch.stack(draws).mean(0), torch.stack(draws).std(0) / math.sqrt(len(draws))
    weight = torch.sigmoid(parameters()["q"].detach()).requires_grad_()
    m = parameters()["m"].detach().requires_grad_()
    divergence = weight * (weight / 0.4).log() + (1 - weight) * ((1 - weight) / 0.6).log()
    exact = divergence + 0.5 * (0.7**2 + m**2 - 1) - math.log(0.7)
    by_weight, by_m = torch.autograd.grad(exact, [weight, m])
    expected = torch.stack([by_weight * weight.detach() * (1 - weight.detach()), by_m])
    assert bool(((mean - expected).abs() <= 4 * error).all()), (mean, expected, error)

    both = guide({**PARALLEL, "estimator": "score function"}, {})
    with pytest.raises(EstimatorError, match="cannot be had here: the site is enumerated"):
        sgc.compile(model, both, objective="TraceEnum_ELBO", backend="eager")()
    with pytest.raises(EstimatorError, match="the estimators are 'score function', 'pathwise'"):
        sgc.compile(model, guide({"estimator": "reinforce"}, {}), objective="TraceEnum_ELBO", backend="eager")()
