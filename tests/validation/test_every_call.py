"""The second call with something invalid raises what eager Pyro raises, and leaves everything as it was."""

from __future__ import annotations

import re
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import sgc
import sgc.infer
from sgc.errors import InvalidValueError
from sgc.runtime import validity
from tests.validation.programs import CASES, Branching, Case, Refuser, latent, observing, pyros_error, t

SEED = 3
CHEAP = sorted(CASES)
COMPILED = [
    "Bernoulli probs",
    "Poisson value",
    "MVN covariance",
    "the guide's value",
    "Dirichlet value",
    "subsampled plate",
]


def state() -> list[Any]:
    """Every parameter and average with its value, and the random state."""
    store = pyro.get_param_store()._params
    return [
        *((name, id(value), value.detach().tolist()) for name, value in store.items()),
        torch.get_rng_state().tolist(),
    ]


def raises_as_pyro(call: Any, case: Case, **options: Any) -> None:
    """``call(*case.bad)`` raises Pyro's error, type and text, and nothing changes."""
    expected = pyros_error(case, seed=SEED, **options)
    pyro.set_rng_seed(SEED)
    before = state()
    with pytest.raises(ValueError) as caught:
        call(*case.bad)
    assert type(caught.value) is type(expected)
    assert _printed(caught.value) == _printed(expected)
    assert state() == before


def _printed(error: ValueError) -> str:
    """``elbo.loss`` of sgc computes without gradients, Pyro's with them, which shows in a printed tensor."""
    return re.sub(r"(,\s*)grad_fn=<\w+>", "", str(error))


@pytest.mark.parametrize("name", CHEAP)
def test_a_loss_module(name: str) -> None:
    case = CASES[name]
    module = sgc.compile(case.model, case.guide, backend="eager")
    module(*case.good)
    for grad_mode in (torch.enable_grad, torch.no_grad):
        with grad_mode():
            raises_as_pyro(module, case)
    pyro.set_rng_seed(SEED)
    theirs = pyro.infer.TraceGraph_ELBO(max_plate_nesting=2).loss(case.model, case.guide, *case.good)
    pyro.set_rng_seed(SEED)
    assert module(*case.good).item() == theirs
    assert len(module.specializations) == 1


@pytest.mark.parametrize("name", COMPILED)
def test_an_elbo_on_inductor(name: str) -> None:
    case = CASES[name]
    elbo = sgc.infer.TraceGraph_ELBO(backend="inductor")
    elbo.loss_and_grads(case.model, case.guide, *case.good)
    gradient = pyro.param("loc").grad.clone()
    raises_as_pyro(lambda *args: elbo.loss_and_grads(case.model, case.guide, *args), case)
    raises_as_pyro(lambda *args: elbo.loss(case.model, case.guide, *args), case)
    assert torch.equal(pyro.param("loc").grad, gradient)
    pyro.set_rng_seed(SEED)
    theirs = pyro.infer.TraceGraph_ELBO(max_plate_nesting=2).loss(case.model, case.guide, *case.good)
    pyro.set_rng_seed(SEED)
    assert elbo.loss(case.model, case.guide, *case.good) == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("backend", ["eager", "torchscript", None])
@pytest.mark.parametrize("name", ["Bernoulli probs", "Poisson value", "obs_mask"])
def test_an_elbo(name: str, backend: Any) -> None:
    case = CASES[name]
    elbo = sgc.infer.TraceGraph_ELBO(backend=backend)
    elbo.loss_and_grads(case.model, case.guide, *case.good)
    raises_as_pyro(lambda *args: elbo.loss_and_grads(case.model, case.guide, *args), case)
    raises_as_pyro(lambda *args: elbo.loss(case.model, case.guide, *args), case)


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("particles", [3, 6])
@pytest.mark.parametrize("name", ["Bernoulli probs", "Poisson value", "the guide's value"])
def test_particles(name: str, particles: int, vectorize: bool) -> None:
    case = CASES[name]
    module = sgc.compile(
        case.model,
        case.guide,
        num_particles=particles,
        vectorize_particles=vectorize,
        backend="eager",
        max_plate_nesting=2,
    )
    module(*case.good)
    raises_as_pyro(module, case, num_particles=particles, vectorize=vectorize)


def test_an_invalid_particle_among_valid_ones() -> None:
    """Averages that earlier particles have moved are put back."""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(0.0, x - z), obs=torch.tensor(0.0))

    def guide(x: Tensor) -> None:
        probs = pyro.param("q", torch.tensor(0.1))
        pyro.sample("z", dist.Bernoulli(probs), infer={"baseline": {"use_decaying_avg_baseline": True}})

    module = sgc.compile(model, guide, num_particles=8, backend="eager")
    pyro.set_rng_seed(0)
    module(t(2.0))
    average = module.get_buffer("baselines.z").clone()
    raised = 0
    for seed in range(10):
        pyro.set_rng_seed(seed)
        before = state()
        try:
            module(t(0.5))
            average = module.get_buffer("baselines.z").clone()
        except ValueError as error:
            raised += 1
            assert "parameter scale" in str(error)
            assert state() == before
        assert torch.equal(module.get_buffer("baselines.z"), average)
    assert 0 < raised < 10


def test_statistics_of_batch_norm_stay() -> None:
    norm = torch.nn.BatchNorm1d(2)

    def model(x: Tensor) -> None:
        pyro.module("norm", norm)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Bernoulli(logits=norm(x).sum(-1) + z), obs=x[:, 0])

    module = sgc.compile(model, lambda x: latent(), backend="eager")
    x = torch.ones(3, 2)
    for call in (module, torch.no_grad()(module)):
        call(x)
        before = [buffer.clone() for buffer in norm.buffers()]
        with pytest.raises(ValueError, match="support"):
            call(2 * x)
        assert all(torch.equal(*pair) for pair in zip(norm.buffers(), before, strict=True))


def test_a_check_in_python_is_one_opaque_node() -> None:
    case = Case(observing(lambda z: Refuser(z, 1.0).expand([2]).to_event(1)), (t(1.0, 2.0),), (t(11.0, 2.0),))
    module = sgc.compile(case.model, case.guide, backend="eager")
    module(*case.good)
    raises_as_pyro(module, case)
    (opaque,) = (check for check in module.specializations[0].checks if check.opaque)
    assert str(opaque) == "the value in the support of Refuser (Refusing) at site 'x', by a call of Python"
    assert "read at" not in module.guards()


@pytest.mark.parametrize("wrapped", [False, True])
def test_what_an_opaque_density_scores(wrapped: bool) -> None:
    def branching(z: Tensor) -> Any:
        plain = Branching(z.exp().expand(2))
        return plain.mask(t(True, False)).to_event(1) if wrapped else plain.to_event(1)

    case = Case(observing(branching), (t(1.0, 2.0),), (t(1.0, -2.0),))
    module = sgc.compile(case.model, case.guide, backend="eager")
    module(*case.good)
    assert any("OpaqueFunction" in str(node.target) for node in module.module.graph.nodes) or "opaque" in module.code
    raises_as_pyro(module, case)
    module(*case.good)


def test_a_write_into_known_data_is_noticed() -> None:
    case, x = CASES["Poisson value"], torch.tensor(1.0)
    module = sgc.compile(case.model, case.guide, backend="eager")
    module(x)
    x.numpy()[...] = -1
    raises_as_pyro(module, Case(case.model, case.good, (x,)))


def test_closed_over_data_are_checked_too() -> None:
    x = torch.tensor([1.0, 0.0])

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 2):
            pyro.sample("x", dist.Bernoulli(logits=z), obs=x)

    module = sgc.compile(model, latent, backend="eager")
    module()
    x[0] = 3.0
    raises_as_pyro(module, Case(model, (), (), latent))


def test_numbers_that_pyro_does_not_draw() -> None:
    """With ``rng="fast"`` a sample of Inductor's may be invalid where Pyro's is not: then sgc says what it knows."""
    case = CASES["the guide's value"]

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)), x))

    module = sgc.compile(case.model, guide, backend="inductor", rng="fast")
    pyro.set_rng_seed(0)
    module(t(1e-4))
    raised = []
    for seed in range(20):
        pyro.set_rng_seed(seed)
        before = torch.get_rng_state()
        try:
            assert module(t(0.1)).isfinite()
        except ValueError as error:
            raised.append(error)
            assert torch.equal(torch.get_rng_state(), before)
    assert 0 < len(raised) < 20


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that is looked at as late as a GPU."""
    monkeypatch.setattr(
        validity.RandomState,
        "now",
        classmethod(lambda cls, device: cls(torch.default_generator.get_state(), torch.device("cuda"), None)),
    )


def test_on_a_gpu_one_call_late(late: None) -> None:
    case = CASES["Poisson value"]
    module = sgc.compile(case.model, case.guide, backend="eager")
    module(*case.good)
    module(*case.bad)
    with pytest.raises(ValueError, match="at site 'x'"):
        module(*case.good)
    for _ in range(3):
        module(*case.good)


def test_one_call_late_and_the_parameters_are_others(late: None) -> None:
    def model() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Bernoulli(pyro.param("p", torch.tensor(0.5))), obs=torch.tensor(1.0))

    module = sgc.compile(model, latent, backend="eager")
    module()
    probability = pyro.param("p").data
    probability.fill_(1.5)
    module()
    probability.fill_(0.5)
    with pytest.raises(InvalidValueError, match="the call before this one"):
        module()
    module()
