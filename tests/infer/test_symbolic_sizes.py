"""Sizes that differ from call to call are inputs from the second one on, with Pyro's numbers at each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import sgc
from sgc.emit.backends.eager import Eager
from sgc.emit.backends.registry import registered
from sgc.emit.fx.rewriting import takes_any_size
from sgc.emit.rewrites.optimize import Optimized

SIZES = (6, 4, 7, 4, 9, 6)


def rows(n: int, *others: int) -> Tensor:
    return torch.randn(n, *others, generator=torch.Generator().manual_seed(n))


class Program:
    """A program of one argument or several, whose size is a number."""

    made = 2
    """How many specializations there are for all sizes."""

    def arguments(self, n: int) -> tuple[Any, ...]:
        return (rows(n, 3),)

    def model(self, *args: Any) -> None:
        raise NotImplementedError

    def guide(self, *args: Any) -> None:
        raise NotImplementedError


class Switches(Program):
    """A discrete site for each row, with a network and a learned baseline."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = nn.Linear(3, 1)

    def model(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand(x.shape).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("net", self.net)
        options = {"nn_baseline": lambda h: h.mean(-1), "nn_baseline_input": x}
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=self.net(x).squeeze(-1)), infer={"baseline": options})


class Minibatch(Program):
    """A plate of 20 of which a part is given, so that the scale depends on the size."""

    def arguments(self, n: int) -> tuple[Any, ...]:
        return rows(n), torch.arange(n)

    def model(self, x: Tensor, which: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 20, subsample=which) as index:
            pyro.sample("x", dist.Normal(loc + 0.1 * index, 1.0), obs=x)

    def guide(self, x: Tensor, which: Tensor) -> None:
        pyro.sample("loc", dist.Normal(pyro.param("m", torch.tensor(0.2)), 1.0))


class Drawn(Program):
    """Pyro draws as many rows as there are labels."""

    def arguments(self, n: int) -> tuple[Any, ...]:
        return (rows(n),)

    def model(self, x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 20, subsample_size=len(x)) as index:
            pyro.sample("x", dist.Normal(loc + 0.1 * index, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.sample("loc", dist.Normal(pyro.param("m", torch.tensor(0.2)), 1.0))


class Coinciding(Program):
    """Two plates, of which the sizes are equal in some calls."""

    def arguments(self, n: int) -> tuple[Any, ...]:
        return rows(n, 13 - n if n in (4, 9) else n), rows(n)

    def model(self, x: Tensor, y: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        columns, rows = pyro.plate("columns", x.shape[1], dim=-1), pyro.plate("rows", x.shape[0], dim=-2)
        with columns:
            c = pyro.sample("c", dist.Bernoulli(0.3))
        with rows:
            r = pyro.sample("r", dist.Normal(y[:, None], 1.0))
        with rows, columns:
            pyro.sample("x", dist.Normal(a + r + c, 1.0), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        pyro.sample("a", dist.Normal(pyro.param("m", torch.tensor(0.2)), 1.0))
        with pyro.plate("columns", x.shape[1], dim=-1):
            pyro.sample("c", dist.Bernoulli(pyro.param("q", torch.tensor(0.4))))
        with pyro.plate("rows", x.shape[0], dim=-2):
            pyro.sample("r", dist.Normal(y[:, None] * pyro.param("s", torch.tensor(0.5)), 1.0))


class GaussianProcess(Program):
    """A covariance of as many rows and columns, written in place."""

    def model(self, x: Tensor) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        covariance = 2.0 * torch.exp(-0.5 * torch.cdist(x, x).square() / scale)
        covariance.view(-1)[:: len(x) + 1] += 0.1
        loc = x.new_zeros(x.shape[0])
        factor = torch.linalg.cholesky(covariance + 0.01 * torch.eye(len(x)))
        pyro.sample("y", dist.MultivariateNormal(loc, scale_tril=factor), obs=x.sum(-1))

    def guide(self, x: Tensor) -> None:
        pyro.sample("scale", dist.LogNormal(pyro.param("m", torch.tensor(0.2)), 0.3))


class Branch(Program):
    """Another model for many rows than for few."""

    made = 3

    def model(self, x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            wide = 2.0 if len(x) > 6 else 1.0
            pyro.sample("x", dist.Normal(z, wide).expand(x.shape).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.2)), 1.0))


class Loop(Program):
    """A row after another in Python: each size is a program of its own."""

    made = 4

    def model(self, x: Tensor) -> None:
        z = pyro.sample("z_0", dist.Bernoulli(0.5))
        for i in range(len(x)):
            pyro.sample(f"x_{i}", dist.Normal(z, 1.0).expand([3]).to_event(1), obs=x[i])

    def guide(self, x: Tensor) -> None:
        pyro.sample("z_0", dist.Bernoulli(pyro.param("q", torch.tensor(0.4))))


class Sequences(Program):
    """A loop over time for sequences of two lengths, and any number of them."""

    made = 3

    def arguments(self, n: int) -> tuple[Any, ...]:
        return (rows(n, 3 if n == 7 else 2),)

    def model(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            for t in range(x.shape[1]):
                pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t])

    def guide(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.2)), 1.0))


class Arithmetic(Program):
    """Numbers that Python computes of the size."""

    def model(self, x: Tensor) -> None:
        half = x.shape[0] // 2
        z = pyro.sample("z", dist.Normal(torch.full((half,), 1.0 / len(x)), 1.0).to_event(1))
        padded = torch.cat([z, z.new_ones(len(x) - half)]) * (torch.arange(len(x)) / max(len(x), 2))
        with pyro.plate("rows", len(x)), pyro.poutine.scale(scale=100.0 / len(x)):
            pyro.sample("x", dist.Normal(padded[:, None] + x[:1], 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        m = pyro.param("m", torch.tensor(0.2))
        pyro.sample("z", dist.Normal(m.expand(x.size(0) // 2), 1.0).to_event(1))


class Logarithm(Program):
    """A number that Python computes of the size in C: each size is a program of its own."""

    made = 4

    def model(self, x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(math.log(len(x)), 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0).expand(x.shape).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.2)), 1.0))


class Averaged(Program):
    """A decaying average for each row: each size has its own."""

    made = 4

    def model(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z[:, None], 1.0).expand(x.shape).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            q = pyro.param("q", torch.tensor(0.4))
            pyro.sample("z", dist.Bernoulli(q), infer={"baseline": {"use_decaying_avg_baseline": True}})


class GlobalAverage(Program):
    """A decaying average of a site outside of the plate."""

    def model(self, x: Tensor) -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0).expand(x.shape).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        options = {"use_decaying_avg_baseline": True}
        pyro.sample("z", dist.Bernoulli(pyro.param("q", torch.tensor(0.4))), infer={"baseline": options})


class Opaque(Program):
    """A sampler that cannot be traced keeps the size that it was captured with."""

    made = 4

    def model(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.VonMises(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[:, None], 1.0).expand(x.shape).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.VonMises(x[:, 0], pyro.param("k", torch.tensor(2.0))))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 3 * gradient


class OwnGradient(Program):
    """A function with a gradient of its own runs as Python."""

    made = 4

    def model(self, x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(Doubled.apply(z.expand(x.shape)), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.2)), 1.0))


class Matrices(OwnGradient):
    """A pathwise sampler that cannot be traced."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Wishart(torch.tensor(4.0), scale_tril=torch.eye(2)))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0).to_event(1), obs=x[:, :2])

    def guide(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            df = pyro.param("df", torch.tensor(5.0))
            pyro.sample("z", dist.Wishart(df, scale_tril=torch.eye(2)))


class Masked(Program):
    """Ragged rows, padded and masked, in a float64 program with networks and a fresh layout of the data."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).double()

    def arguments(self, n: int) -> tuple[Any, ...]:
        return ({"x": rows(3, n).double().T, "lengths": torch.arange(n) % 4},)

    def model(self, batch: dict[str, Tensor]) -> None:
        x, lengths = batch["x"], batch["lengths"]
        with pyro.plate("rows", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), x.new_ones(())).to_event(1))
            there = torch.arange(3) < lengths[:, None]
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).mask(there).to_event(1), obs=x)

    def guide(self, batch: dict[str, Tensor]) -> None:
        pyro.module("net", self.net)
        x = batch["x"]
        with pyro.plate("rows", x.shape[0]):
            pyro.sample("z", dist.Normal(self.net(x), x.new_ones(())).to_event(1))


class Rebound(Program):
    """The data are an attribute, set before each call."""

    made = 3

    def arguments(self, n: int) -> tuple[Any, ...]:
        self.x, self.parts = rows(n, 3), [rows(n)]
        return ()

    def model(self) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(self.x)):
            pyro.sample("x", dist.Normal(z + self.parts[0][:, None], 1.0).to_event(1), obs=self.x)

    def guide(self) -> None:
        pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.2)), 1.0))


PROGRAMS: tuple[type[Program], ...] = (
    *(Switches, Minibatch, Drawn, Coinciding, GaussianProcess, Branch, Loop, Sequences, Arithmetic, Logarithm),
    *(Averaged, GlobalAverage, Opaque, OwnGradient, Matrices, Masked, Rebound),
)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def results(program: Program, losses: Callable[[tuple[Any, ...]], float], sizes: tuple[int, ...]) -> list[float]:
    """Losses and gradients at each size."""
    pyro.clear_param_store()
    found: list[float] = []
    for seed, n in enumerate(sizes):
        arguments = program.arguments(n)
        pyro.set_rng_seed(seed)
        found.append(losses(arguments))
        for _, parameter in sorted(pyro.get_param_store().named_parameters()):
            found += [] if parameter.grad is None else parameter.grad.double().flatten().tolist()
            parameter.grad = None
    return found


def of_pyro(program: Program, sizes: tuple[int, ...] = SIZES, **options: Any) -> list[float]:
    elbo = pyro.infer.TraceGraph_ELBO(**options)
    return results(program, lambda args: elbo.loss_and_grads(program.model, program.guide, *args), sizes)


def by_itself(program: Program, sizes: tuple[int, ...] = SIZES) -> list[float]:
    """By sgc, which keeps an average for each size, where Pyro fails; each size is captured for itself."""
    return of_sgc(program, "torchscript", sizes)[0]


def of_sgc(program: Program, backend: str, sizes: tuple[int, ...] = SIZES, **options: Any) -> tuple[list[float], int]:
    loss_module = sgc.compile(program.model, program.guide, backend=backend, rng="torch", **options)

    def loss(args: tuple[Any, ...]) -> float:
        value = loss_module(*args)
        value.backward()
        return float(value)

    return results(program, loss, sizes), len(loss_module.specializations)


@pytest.mark.parametrize("kind", PROGRAMS)
def test_any_size(kind: type[Program]) -> None:
    values, made = of_sgc(kind(), "eager")
    expected = by_itself(kind()) if kind is Averaged else of_pyro(kind())
    assert values == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert made == kind.made


@pytest.mark.inductor
@pytest.mark.parametrize("kind", [Drawn, Coinciding, GaussianProcess, Arithmetic, Masked])
def test_compiled_for_any_size(kind: type[Program]) -> None:
    values, made = of_sgc(kind(), "inductor", (6, 4, 7, 9))
    assert values == pytest.approx(of_pyro(kind(), (6, 4, 7, 9)), rel=1e-4, abs=1e-5)
    assert made == kind.made


@pytest.mark.parametrize("kind", [Minibatch, Coinciding, Sequences])
@pytest.mark.parametrize("options", [{"num_particles": 2}, {"num_particles": 2, "vectorize_particles": True}])
def test_particles(kind: type[Program], options: dict[str, Any]) -> None:
    nesting = {"max_plate_nesting": 2}
    values, made = of_sgc(kind(), "eager", **options, **nesting)
    assert values == pytest.approx(of_pyro(kind(), **options, **nesting), rel=1e-4, abs=1e-5)
    assert made == kind.made


class Speculating(Program):
    """A branch on a sample that nearly always goes one way."""

    made = 2

    def model(self, x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(2.0, 0.1))
        if z > 0:
            z = z + 1
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0).expand(x.shape).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(2.0)), 0.1))


def test_assumed_branches() -> None:
    values, made = of_sgc(Speculating(), "eager", dynamic="speculate")
    assert values == pytest.approx(of_pyro(Speculating()), rel=1e-5)
    assert made == Speculating.made


def trained(kind: type[Program], svi_of: Callable[[Any, Any], Any], sizes: tuple[int, ...] = SIZES) -> list[float]:
    pyro.clear_param_store()
    program = kind()
    svi = svi_of(program.model, program.guide)
    found = []
    for seed, n in enumerate((*sizes, *sizes)):
        pyro.set_rng_seed(seed)
        found.append(svi.step(*program.arguments(n)))
    return found


@pytest.mark.inductor
@pytest.mark.parametrize("kind", [Switches, Coinciding])
def test_compiled_steps(kind: type[Program]) -> None:
    optimizer = {"lr": 0.05}
    made = []

    def ours(model: Any, guide: Any) -> Any:
        elbo = sgc.infer.TraceGraph_ELBO(backend="inductor", rng="torch")
        made.append(sgc.SVI(model, guide, pyro.optim.Adam(optimizer), elbo))
        return made[-1]

    expected = trained(
        kind, lambda m, g: pyro.infer.SVI(m, g, pyro.optim.Adam(optimizer), pyro.infer.TraceGraph_ELBO())
    )
    assert trained(kind, ours) == pytest.approx(expected, rel=1e-4)
    assert len(made[0].loss_module.specializations) == 2


def test_the_version_for_one_size_is_taken_for_it() -> None:
    program = Switches()
    loss_module = sgc.compile(program.model, program.guide, backend="eager")
    for n in (6, 4):
        loss_module(*program.arguments(n))
    for n, symbolic in ((6, False), (4, True), (9, True), (6, False), (6, False), (3, True)):
        specialization, inputs = loss_module.specialization_for(*program.arguments(n))
        assert (specialization.capture.sizes is not None) == symbolic
        assert inputs[0].shape[0] == n


def test_a_size_of_one_or_none_is_a_version_of_its_own() -> None:
    program = GlobalAverage()
    values, made = of_sgc(program, "eager", (6, 4, 1, 5, 1, 3))
    assert values == pytest.approx(of_pyro(GlobalAverage(), (6, 4, 1, 5, 1, 3)), rel=1e-5)
    assert made == 3


def test_the_graph_shows_formulas() -> None:
    program = Minibatch()
    loss_module = sgc.compile(program.model, program.guide, backend="eager")
    for n in (6, 4):
        loss_module(*program.arguments(n))
    loss_module.initialize(*program.arguments(5))
    text = str(loss_module.graph)
    assert "x: observed Normal, [n], in rows, scaled by 20/n" in text
    assert "data args[0]: float32[n]" in text
    assert "log p(x): [n], depends on loc" in text
    assert loss_module.graph.payload("x").shape == (4,)
    assert bool(loss_module.verify(*program.arguments(7)))


def test_a_miss_names_the_line() -> None:
    program = Loop()
    loss_module = sgc.compile(program.model, program.guide, backend="eager")
    for n in (6, 4, 7):
        loss_module(*program.arguments(n))
    (miss,) = loss_module.misses()
    assert "the program needs the size itself at" in miss.remedy and "for i in range(len(x))" in miss.remedy

    branching = Branch()
    loss_module = sgc.compile(branching.model, branching.guide, backend="eager")
    for n in (6, 4, 7):
        loss_module(*branching.arguments(n))
    assert any("n <= 6" in miss.latest and "if len(x) > 6" in miss.latest for miss in loss_module.misses())


def test_a_value_that_is_not_valid_at_another_size_is_pyros_error() -> None:
    class Program:
        def model(self, x: Tensor) -> None:
            with pyro.plate("rows", len(x)):
                pyro.sample("x", dist.Exponential(1.0), obs=x)

        def guide(self, x: Tensor) -> None:
            pyro.param("unused", torch.tensor(0.0))

    program = Program()
    loss_module = sgc.compile(program.model, program.guide, backend="eager", validate=True)
    for n in (6, 4):
        loss_module(torch.ones(n))
    with pytest.raises(ValueError, match="Exponential"):
        loss_module(torch.tensor([1.0, -1.0, 2.0]))
    assert float(loss_module(torch.ones(3))) == pytest.approx(3.0)
    assert len(loss_module.specializations) == 2


class OfNumbers(Eager):
    """A backend that fails where a size is no number."""

    name = "of numbers"

    def build(self, optimized: Optimized, examples: list[Any], rng: Any) -> Any:
        if takes_any_size(optimized.module):
            raise RuntimeError("a size is no number")
        return super().build(optimized, examples, rng)


def test_what_a_backend_cannot_compile_for_any_size_is_compiled_for_each() -> None:
    with registered(OfNumbers()):
        values, made = of_sgc(Switches(), "of numbers")
    assert values == pytest.approx(of_pyro(Switches()), rel=1e-5)
    assert made == 4


def test_verify_goes_on_where_a_backend_cannot_compile_for_any_size() -> None:
    program = Switches()
    with registered(OfNumbers()):
        loss_module = sgc.compile(program.model, program.guide, backend="of numbers", rng="torch")
        for n in (6, 4):
            loss_module.initialize(*program.arguments(n))
        assert bool(loss_module.verify(*program.arguments(7)))
        assert loss_module.specializations[-1].capture.sizes is None


def test_other_tensors_that_share_a_size_and_then_do_not() -> None:
    """That two sizes are equal is a condition where the program adds up what has them."""

    class Adding(Program):
        def arguments(self, n: int) -> tuple[Any, ...]:
            return rows(n), rows(n if n != 9 else 1)

        def model(self, x: Tensor, y: Tensor) -> None:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("rows", len(x)):
                pyro.sample("x", dist.Normal(z + y, 1.0), obs=x)

        def guide(self, x: Tensor, y: Tensor) -> None:
            pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.2)), 1.0))

    values, made = of_sgc(Adding(), "eager")
    assert values == pytest.approx(of_pyro(Adding()), rel=1e-5)
    assert made == 3
