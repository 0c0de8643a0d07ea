"""``estimators={"z": "enumerate"}`` beside other estimators: against Pyro where Pyro can, training, files, errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from pyro.optim import Adam
from torch import Tensor

import sgc
from sgc.errors import ArgumentError, EnumerationError, EstimatorError
from tests.saved.loaded_alike import loaded_alike
from tests.statistical.test_enumerated_sites import apart, chain, line, markov, nested


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield


def model_of_images(x: Tensor) -> None:
    with pyro.plate("data", 12, subsample=x):
        z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3))
        r = pyro.sample("r", dist.Normal(torch.tensor([-1.0, 0.0, 1.0])[z], 0.5))
        b = pyro.sample("b", dist.Bernoulli(logits=r))
        pyro.sample("x", dist.Normal(r + b * pyro.param("shift", torch.tensor(0.3)), 0.4), obs=x)


def guide_of_images(x: Tensor) -> None:
    with pyro.plate("data", 12, subsample=x):
        logits = pyro.param("logits", torch.linspace(-0.5, 0.5, 3)) * x[:, None]
        z = pyro.sample("z", dist.Categorical(logits=logits))
        r = pyro.sample("r", dist.Normal(pyro.param("loc", torch.tensor([-0.5, 0.1, 0.4]))[z] + 0.2 * x, 0.6))
        baseline = {"use_decaying_avg_baseline": True}
        pyro.sample("b", dist.Bernoulli(logits=pyro.param("w", torch.tensor(0.2)) * r), infer={"baseline": baseline})


X = torch.tensor([0.2, -0.7, 1.1, 0.4])


@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize(
    "particles", [{}, {"num_particles": 3}, {"num_particles": 2, "vectorize_particles": True}], ids=str
)
def test_pathwise_and_scored_sites_below_and_a_subsample(backend: str, particles: dict[str, Any]) -> None:
    """Amortised: a category, a pathwise site below it, and below that a score function with a baseline."""
    module = sgc.compile(
        model_of_images, guide_of_images, backend=backend, rng="torch", estimators={"z": "enumerate"}, **particles
    )
    verification = module.initialize(X).verify(X)
    assert verification, verification
    text = str(module.graph)
    assert "gradient: exact, by enumeration: its 3 values side by side" in text
    assert "for each value of z" in text and "log p(x): " in text and "weighted by z" in text


@pytest.mark.parametrize("program", [chain, nested, markov, apart])
def test_all_sites_enumerated_is_pyros_trace_enum(program: Callable[[], Any]) -> None:
    """Value and gradients are those of Pyro's ``TraceEnum_ELBO``, the estimator that has no noise either."""
    model, guide, args, *_ = program()
    module = sgc.compile(model, guide, backend="eager", estimators={"*": "enumerate"})
    loss = module(*args)
    loss.backward()
    store = dict(pyro.get_param_store().named_parameters())
    ours = {name: parameter.grad for name, parameter in store.items()}
    for parameter in store.values():
        parameter.grad = None

    def parallel(*args: Any) -> None:
        with pyro.poutine.infer_config(config_fn=lambda site: {"enumerate": "parallel"}):
            guide(*args)

    theirs = TraceEnum_ELBO().loss_and_grads(model, parallel, *args)
    assert float(loss) == pytest.approx(theirs, rel=1e-12)
    for name, parameter in store.items():
        assert torch.allclose(ours[name], parameter.grad, rtol=1e-10, atol=1e-12), name


def test_a_site_asks_for_it_itself() -> None:
    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(logits=line("a")), infer={"estimator": "enumerate"})
        pyro.sample("w", dist.Categorical(logits=line("b", 3)))

    model, *_ = apart()
    module = sgc.compile(model, guide, backend="eager").initialize()
    assert module.graph.estimator("z").value == "enumerated" and module.graph.is_asked("z")
    assert module.graph.estimator("w").value == "score function"
    assert module.verify()


def test_what_trace_enum_would_enumerate_is_drawn_as_by_pyros_trace_graph() -> None:
    """``infer["enumerate"]`` means nothing to Pyro's ``TraceGraph_ELBO``, and stays at the site."""

    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(logits=line("a")), infer={"enumerate": "parallel"})
        pyro.sample("w", dist.Categorical(logits=line("b", 3)))

    model, *_ = apart()
    module = sgc.compile(model, guide, backend="eager", estimators={"w": "enumerate"}).initialize()
    assert module.graph.estimator("z").value == "score function"
    assert module.verify()


def test_it_trains_and_is_saved(tmp_path: Path) -> None:
    """Whole steps, on Inductor, as Pyro's Adam; the file gives the same loss."""
    pyro.set_rng_seed(0)
    module = sgc.compile(model_of_images, guide_of_images, estimators={"z": "enumerate"})
    elbo = sgc.infer.TraceGraph_ELBO(backend="inductor", estimators={"z": "enumerate"})
    result = sgc.SVI(model_of_images, guide_of_images, Adam({"lr": 0.05}), elbo).run(300, X)
    assert result.losses[-50:].mean() < result.losses[:50].mean()
    loaded = loaded_alike(module.initialize(X), tmp_path / "images.sgc", X)
    assert "by enumeration" in str(loaded.graph)


def refusal(model: Callable[[], None], guide: Callable[[], None], error: type[Exception], **options: Any) -> str:
    options = {"estimators": {"z": "enumerate"}, **options}
    with pytest.raises(error) as caught:
        sgc.compile(model, guide, backend="eager", **options)()
    assert not dict(pyro.get_param_store().named_parameters()) or all(
        p.grad is None for p in pyro.get_param_store().values()
    )
    return str(caught.value)


def test_a_site_whose_values_would_be_in_the_dim_of_what_it_reads() -> None:
    """It reads a step of a chain behind its pyro.markov, which has let the dim go."""

    def model() -> None:
        for t in pyro.markov(range(2)):
            pyro.sample(f"c{t}", dist.Bernoulli(0.5))
        for t in pyro.markov(range(1)):
            pyro.sample(f"z{t}", dist.Bernoulli(0.5))

    def guide() -> None:
        c = torch.tensor(0.0)
        for t in pyro.markov(range(2)):
            c = pyro.sample(f"c{t}", dist.Bernoulli(logits=c + line("a")))
        for t in pyro.markov(range(1)):
            pyro.sample(f"z{t}", dist.Bernoulli(logits=c + line("b")))

    text = refusal(model, guide, EnumerationError, estimators={"c1": "enumerate", "z0": "enumerate"})
    assert "at site 'z0': it depends on another enumerated site, and pyro.markov lets both" in text
    assert "remedy: read a site within the scope of its pyro.markov" in text


def test_a_density_outside_of_the_plate_needs_all_joint_values() -> None:
    """With a batch of one; a batch of more is refused by Pyro's own check."""

    def model() -> None:
        with pyro.plate("d", 5):
            z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0), obs=torch.tensor([2.0]))

    def guide() -> None:
        with pyro.plate("d", 5):
            pyro.sample("z", dist.Bernoulli(logits=line("a", 5)))

    text = refusal(model, guide, EnumerationError)
    assert "at site 'x': log p(x) depends on all 5 elements of 'z' in plate 'd' jointly" in text
    assert "2**5 joint values" in text and 'pyro.sample("x"' in text and "do not enumerate 'z'" in text


def test_pyros_own_check_of_shapes_is_explained() -> None:
    def model() -> None:
        with pyro.plate("d", 5):
            z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=torch.tensor(2.0))

    def guide() -> None:
        with pyro.plate("d", 5):
            pyro.sample("z", dist.Bernoulli(logits=line("a", 5)))

    with pytest.raises(ValueError, match="invalid log_prob shape") as caught:
        sgc.compile(model, guide, backend="eager", estimators={"z": "enumerate"})()
    assert any("enumerated for each element of a plate: 'z' in 'd'" in note for note in caught.value.__notes__)


def test_a_dim_that_plain_indexing_makes_is_refused() -> None:
    """Pyro's check of shapes does not look to the left of the plates."""

    def model() -> None:
        z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3))
        with pyro.plate("d", 3):
            pyro.sample("x", dist.Normal(torch.arange(9.0).reshape(3, 3)[z], 1.0), obs=torch.ones(3))

    def guide() -> None:
        pyro.sample("z", dist.Categorical(logits=line("a", 3)))

    text = refusal(model, guide, EnumerationError)
    assert "log p(x) has shape [3, 1, 3], and its dim -3 is neither a plate's nor one of enumerated values" in text
    assert "pyro.ops.indexing.Vindex" in text


def test_values_that_are_mixed_are_refused() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3))
        pyro.sample("x", dist.Normal(z.double().mean(), 1.0), obs=torch.tensor(2.0))

    def guide() -> None:
        pyro.sample("z", dist.Categorical(logits=line("a", 3)))

    text = refusal(model, guide, EnumerationError)
    assert (
        "log p(x) depends on the enumerated 'z' and has no dim for its 3 values" in text and 'pyro.sample("x"' in text
    )


def test_a_value_out_of_the_scope_of_its_markov_loop_is_refused() -> None:
    """Pyro computes something with it, in silence."""

    def chain_of(sample: Callable[..., Tensor], last: bool) -> None:
        seen = []
        for t in pyro.markov(range(4)):
            previous = seen[-1] if seen else torch.tensor(0)
            z = sample(f"z{t}", dist.Categorical(torch.tensor([[0.6, 0.4], [0.3, 0.7]])[previous]))
            seen.append(z)
            far = seen[t - 2] if last and t >= 2 else 0
            if last:
                sample(f"x{t}", dist.Normal(1.0 * z + far, 1.0), obs=torch.tensor(0.5))

    text = refusal(
        lambda: chain_of(pyro.sample, True),
        lambda: chain_of(pyro.sample, False),
        EnumerationError,
        estimators={"z*": "enumerate"},
    )
    assert "at site 'x2': log p(x2) depends on the enumerated 'z0'" in text and "pyro.markov" in text


def test_no_finite_support() -> None:
    def program() -> None:
        pyro.sample("z", dist.Poisson(3.0))

    text = refusal(program, program, EnumerationError)
    assert "a Poisson has no finite support that could be enumerated" in text
    module = sgc.compile(program, program, backend="eager", estimators={"*": "enumerate"}).initialize()
    assert module.graph.estimator("z").value == "score function"


@pytest.mark.parametrize("objective", ["Trace_ELBO", "TraceEnum_ELBO", "RenyiELBO"])
def test_other_objectives_refuse_it(objective: Any) -> None:
    def program() -> None:
        pyro.sample("z", dist.Bernoulli(0.3), infer={"estimator": "enumerate"})

    text = refusal(program, program, EstimatorError, objective=objective, estimators={}, num_particles=2)
    assert "the estimator 'enumerate' cannot be had with the objective" in text
    remedy = 'infer={"enumerate": "parallel"}' if objective == "TraceEnum_ELBO" else 'objective="elbo"'
    assert remedy in text
    with pytest.raises(ArgumentError):
        sgc.compile(program, program, objective=objective, num_particles=2, estimators={"z": "enumerate"})


def test_tables_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sites that are all joint: one density of ten, each with its own dim."""
    monkeypatch.setattr("sgc.passes.expectations.LARGEST_TABLE", 500)

    def model() -> None:
        zs = [pyro.sample(f"z{i}", dist.Bernoulli(0.5)) for i in range(10)]
        pyro.sample("x", dist.Normal(sum(zs), 1.0), obs=torch.tensor(2.0))

    def guide() -> None:
        for i in range(10):
            pyro.sample(f"z{i}", dist.Bernoulli(logits=line(f"a{i}")))

    text = refusal(model, guide, EnumerationError, estimators={"z*": "enumerate"})
    assert "at site 'z9': the sum over its values is of a table of [2, 2, 2, 2, 2, 2, 2, 2, 2, 2]" in text
