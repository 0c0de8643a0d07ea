"""With ``rng="torch"`` what Inductor compiles draws what torch draws, also what nothing reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch._inductor.config as inductor_config
from torch import Tensor
from torch._inductor.utils import fresh_cache
from torch.nn import functional as F

import sgc
from sgc.emit.backends.registry import build
from sgc.emit.inductor.compile_graph import compile_graph
from sgc.errors import BackendError
from tests.emit.rewrites.graphs import results, traced

DRAWS: list[Callable[[Tensor], Any]] = [
    lambda x: torch.rand(3),
    lambda x: torch.rand_like(x),
    lambda x: torch.randn(2),
    lambda x: torch.randn_like(x),
    lambda x: torch.randint(0, 9, (3,)),
    lambda x: torch.randint_like(x, 9),
    lambda x: torch.randperm(5),
    lambda x: F.dropout(x),
    lambda x: torch.native_dropout(x, 0.5, True),
    lambda x: F.rrelu(x - 0.7, training=True),
    lambda x: torch.empty(3).bernoulli_(x),
    lambda x: torch.empty(3, dtype=torch.int64).bernoulli_(0.3),
    lambda x: torch.bernoulli(x),
    lambda x: torch.normal(x, x),
    lambda x: torch.multinomial(x, 1),
    lambda x: torch.poisson(x + 2),
    lambda x: torch.binomial(x + 7, x),
    lambda x: torch._standard_gamma(x),
    lambda x: torch._sample_dirichlet(x),
    lambda x: torch.empty(3).uniform_(),
    lambda x: torch.empty(3).normal_(),
    lambda x: torch.empty(3).exponential_(),
    lambda x: torch.empty(3).cauchy_(),
    lambda x: torch.empty(3).geometric_(0.3),
    lambda x: torch.empty(3).log_normal_(),
    lambda x: torch.empty(3, dtype=torch.int64).random_(4),
    lambda x: torch.rand(0),
    lambda x: fill(torch.empty(4)),
    lambda x: shift(x),
]


@torch.library.custom_op("sgc_tests::fill", mutates_args=("x",), tags=(torch.Tag.nondeterministic_seeded,))
def fill_in_place(x: Tensor) -> None:
    x.uniform_()


@torch.library.custom_op("sgc_tests::shift", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def shift(x: Tensor) -> Tensor:
    return x + torch.randn(2).sum()


@shift.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def fill(x: Tensor) -> Tensor:
    fill_in_place(x)
    return x


LAID_OUT: list[Callable[[Tensor], Tensor]] = [
    lambda x: torch.bernoulli(x),
    lambda x: torch.bernoulli(x, p=0.3),
    lambda x: torch.empty_like(x).bernoulli_(x),
    lambda x: F.dropout(x, 0.3),
    lambda x: torch.normal(x, x),
    lambda x: torch.empty_like(x).uniform_(1.0, 2.0),
]


@pytest.mark.inductor
@pytest.mark.cpu
@pytest.mark.parametrize("read", ["none", "all", "every other", "the last first"])
def test_every_random_operator(read: str) -> None:
    """Each is drawn, where it was, whether anybody reads it or not, and the random state is that of torch."""

    def program(x: Tensor) -> list[Tensor]:
        found = []
        for number, draw in enumerate(DRAWS):
            drawn = draw(x)
            if read != "none" and (read != "every other" or number % 2):
                found += [part.double() for part in (drawn if isinstance(drawn, tuple) else (drawn,))]
            found.append(torch.rand(2))
        if read == "the last first":
            large = torch.rand(1000) * found[-1][0]  # whose memory is better free before the others are there
            return [large.sum(), *reversed(found)]
        return found

    x = torch.full((3,), 0.5)
    module = traced(program, x)
    compiled = build(module, [x], "inductor", "torch").run
    (*expected, _), state = results(module, x), torch.get_rng_state()
    torch.manual_seed(0)
    torch.testing.assert_close(list(compiled(x)), expected)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.inductor
@pytest.mark.cpu
def test_draws_of_float64_and_of_transposed_tensors() -> None:
    def program(x: Tensor) -> list[Tensor]:
        return [*(draw(y) for y in (x, x.t(), x.t().double(), x.double()) for draw in LAID_OUT), torch.rand(2)]

    x = torch.rand(5, 6)
    module = traced(program, x)
    compiled = build(module, [x], "inductor", "torch").run
    (*expected, _), state = results(module, x), torch.get_rng_state()
    torch.manual_seed(0)
    torch.testing.assert_close(list(compiled(x)), expected)
    assert torch.equal(torch.get_rng_state(), state)


def model_of_subsamples(x: Tensor) -> None:
    with pyro.plate("columns", 6, subsample_size=3, dim=-1) as i:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Bernoulli(0.3))
        with pyro.plate("rows", 4, subsample_size=2, dim=-2) as j:
            c = pyro.sample("c", dist.Bernoulli(a.sigmoid()))
            pyro.sample("x", dist.Normal(a * b + c, 1.0), obs=x[j][:, i])


def guide_of_subsamples(x: Tensor) -> None:
    first, second = pyro.param("first", torch.zeros(6)), pyro.param("second", torch.zeros(6))
    third = pyro.param("third", torch.zeros(4, 6))
    with pyro.plate("columns", 6, subsample_size=3, dim=-1) as i:
        a = pyro.sample("a", dist.Normal(first[i], 0.8))
        b = pyro.sample("b", dist.Bernoulli(logits=second[i] + a))
        with pyro.plate("rows", 4, subsample_size=2, dim=-2) as j:
            pyro.sample("c", dist.Bernoulli(logits=third[j][:, i] + b))


@pytest.mark.inductor
@pytest.mark.cpu
def test_a_subsample_is_drawn_where_it_was() -> None:
    """Though it is used as an index after other draws."""
    x = torch.arange(24.0).view(4, 6) / 10
    losses = []
    for elbo in (sgc.infer.TraceGraph_ELBO(backend="inductor", rng="torch"), pyro.infer.TraceGraph_ELBO()):
        elbo.loss_and_grads(model_of_subsamples, guide_of_subsamples, x)
        pyro.set_rng_seed(0)
        losses.append(elbo.loss_and_grads(model_of_subsamples, guide_of_subsamples, x))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def of_continuous_families(x: Tensor) -> None:
    with pyro.plate("columns", 3, dim=-1):
        a = pyro.sample("a", dist.Gamma(2.0, x.abs() + 1))
        hidden(dist.Cauchy(a, 1.0))
        pyro.sample("b", dist.Dirichlet(torch.ones(3, 4)))
        with pyro.plate("rows", 2, dim=-2):
            c = pyro.sample("c", dist.Beta(1.5, 2.0))
            hidden(dist.StudentT(3.0))
            d = pyro.sample("d", dist.LogNormal(x, 0.3))
            pyro.sample("e", dist.Laplace(0.0, 1.0))
        f = pyro.sample("f", dist.Weibull(2.0, 1.5))
        pyro.sample("g", dist.VonMises(x, 2.0))
    h = pyro.sample("h", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
    hidden(dist.Exponential(torch.ones(5)))
    pyro.sample("x", dist.Normal(a.sum() + (c * d).sum() + f.sum() + h.sum(), 1.0), obs=x.sum())


def of_discrete_families(x: Tensor) -> None:
    with pyro.plate("columns", 3, dim=-1):
        a = pyro.sample("a", dist.Poisson(2.0 + x.abs()))
        hidden(dist.Geometric(0.4))
        b = pyro.sample("b", dist.Categorical(torch.full((3, 4), 0.25)))
        with pyro.plate("rows", 2, dim=-2):
            c = pyro.sample("c", dist.Binomial(6, 0.3))
            hidden(dist.Multinomial(5, torch.ones(4)).expand([3]))
            d = pyro.sample("d", dist.Bernoulli(0.4))
            e = pyro.sample("e", dist.OneHotCategorical(torch.ones(3)))
        with pyro.poutine.mask(mask=x > 0):
            f = pyro.sample("f", dist.NegativeBinomial(4.0, 0.3))
        pyro.sample("g", dist.BetaBinomial(2.0, 2.0, 5))
    hidden(dist.Uniform(torch.zeros(7), 1.0))
    total = a.sum() + b.sum() + (c * d).sum() + e[..., 0].sum() + f.sum()
    pyro.sample("x", dist.Normal(total * 0.1, 1.0), obs=x.sum())


def hidden(law: Any) -> None:
    """A draw of which no graph knows what it is for."""
    with pyro.poutine.block():
        pyro.sample("hidden", law)


def guided(model: Callable[[Tensor], None], x: Tensor) -> None:
    """The prior, with a parameter in it, and a draw before and after."""
    torch.rand(2)
    with pyro.poutine.block(hide=["x"]):
        model(x * pyro.param("scale", torch.tensor(1.1)))
    torch.empty(3).cauchy_()


@pytest.mark.inductor
@pytest.mark.cpu
@pytest.mark.parametrize("model", [of_continuous_families, of_discrete_families])
def test_pyros_distributions(model: Callable[[Tensor], None]) -> None:
    """Losses and random states of Pyro: of a loss module, of a step, and of many steps."""
    x = torch.tensor([-0.4, 0.3, 0.8])

    def guide(x: Tensor) -> None:
        guided(model, x)

    def optimizer() -> Any:
        return pyro.optim.SGD({"lr": 1e-4})

    module = sgc.compile(model, guide, rng="torch").initialize(x)
    svi = sgc.SVI(model, guide, optimizer(), sgc.infer.TraceGraph_ELBO(backend="inductor", rng="torch"))
    ours: list[Callable[[], float]] = [
        lambda: float(without_gradient(module, x)),
        lambda: float(module(x).detach()),
        lambda: svi.step(x),
        lambda: svi.step(x),
        lambda: float(svi.run(3, x).losses[-1]),
    ]
    elbo = pyro.infer.TraceGraph_ELBO()
    eager = pyro.infer.SVI(model, guide, optimizer(), elbo)
    theirs: list[Callable[[], float]] = [
        lambda: elbo.loss(model, guide, x),
        lambda: elbo.loss(model, guide, x),
        lambda: eager.step(x),
        lambda: eager.step(x),
        lambda: [eager.step(x) for _ in range(3)][-1],
    ]
    losses = []
    for calls in (ours, theirs):
        pyro.get_param_store()["scale"] = torch.tensor(1.1)
        pyro.set_rng_seed(5)
        losses.append([(call(), torch.rand(1).item()) for call in calls])
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-4, atol=1e-4)


def without_gradient(module: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        loss: Tensor = module(x)
    return loss


@pytest.mark.inductor
@pytest.mark.cpu
def test_particles() -> None:
    """All at once, and one after another."""

    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("rows", 4):
            pyro.sample("rate", dist.Gamma(2.0, 2.0))
            k = pyro.sample("k", dist.Categorical(w))
            pyro.sample("x", dist.Normal(k + 0.0, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        torch.randn(3)
        pyro.sample("w", dist.Dirichlet(pyro.param("of w", torch.full((3,), 2.0))))
        with pyro.plate("rows", 4):
            pyro.sample("rate", dist.Gamma(pyro.param("of rate", torch.tensor(2.0)), 2.0))
            torch.rand(1)
            pyro.sample("k", dist.Categorical(pyro.param("of k", torch.full((4, 3), 0.3))))

    x = torch.arange(4.0)
    for options in ({"vectorize_particles": True, "max_plate_nesting": 1}, {}):
        found = []
        for elbo in (sgc.infer.TraceGraph_ELBO, pyro.infer.TraceGraph_ELBO):
            own = {"backend": "inductor", "rng": "torch"} if elbo is sgc.infer.TraceGraph_ELBO else {}
            loss = elbo(num_particles=3, **options, **own)
            loss.loss_and_grads(model, guide, x)
            pyro.set_rng_seed(0)
            found.append((loss.loss_and_grads(model, guide, x), torch.rand(1).item()))
        assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.inductor
@pytest.mark.parametrize("harm", [lambda nodes: nodes[::-1], lambda nodes: nodes[1:], lambda nodes: [*nodes, nodes[0]]])
def test_a_pass_that_moves_or_drops_or_repeats_draws(harm: Callable[[list[Any]], list[Any]]) -> None:
    """Whatever Inductor does after it has put all in order, no program is given that draws in another order."""

    def passed(nodes: list[Any]) -> list[Any]:
        calls = [node for node in nodes if getattr(node.node, "op_overload", None) is torch.ops.aten.randn.default]
        places = [nodes.index(node) for node in calls]
        harmed = harm(calls)
        for place, node in zip(places, harmed, strict=False):
            nodes[place] = node
        return [node for node in nodes if node not in calls or node in harmed] + harmed[len(places) :]

    def program(x: Tensor) -> list[Tensor]:
        torch.randn(3)
        torch.randn(4)
        return [x + torch.rand(2)]

    x = torch.ones(2)
    with (
        fresh_cache(),
        inductor_config.patch({"_post_fusion_custom_pass": passed, "reorder_for_peak_memory": False}),
        pytest.raises(BackendError, match="draws of the program in their order.*\n.*remedy: use rng") as raised,
    ):
        compile_graph(traced(program, x), [x], "torch")
    assert str(raised.value).count("remedy") == 1
