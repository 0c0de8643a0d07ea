"""Many particles, one after another: one compiled step, of a size that does not depend on their number."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from torch import Tensor, nn

import sgc
import sgc.infer
from sgc.emit.backends.inductor_backend import Inductor
from sgc.emit.backends.registry import registered
from sgc.emit.differentiate import Differentiated, trace
from sgc.emit.inductor.compile_graph import compile_graph
from sgc.emit.inductor.compiled_step import BuiltStep, build_particle_loop
from sgc.emit.particle_loop import emit_particle_loop
from sgc.emit.train_step import new_flag
from sgc.errors import StandInWarning
from tests.backends import Veiled
from tests.training.programs import DATA, DECAYING, GAUSSIAN, NAN, ONE, SCALED

pytestmark = [pytest.mark.inductor, pytest.mark.cpu]

Program = tuple[Callable[..., Any], Callable[..., Any]]


def mixture() -> Program:
    """Discrete sites in a subsampled plate with a decaying average, which each particle moves."""

    def model(data: Tensor) -> None:
        locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(data), subsample_size=2) as rows:
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])))
            pyro.sample("x", dist.Normal(locs[z], 1.0), obs=data[rows])

    def guide(data: Tensor) -> None:
        logits = pyro.param("logits", torch.zeros(len(data), 2))
        with pyro.plate("data", len(data), subsample_size=2) as rows:
            pyro.sample("z", dist.Categorical(logits=logits[rows]), infer=DECAYING)

    return model, guide


def normalised() -> Program:
    """A buffer that each particle moves, and a baseline network."""
    torch.manual_seed(3)
    norm, baseline = nn.BatchNorm1d(1), nn.Linear(3, 3)

    def model(data: Tensor) -> None:
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=data)

    def guide(data: Tensor) -> None:
        pyro.module("norm", norm)
        pyro.module("baseline", baseline)
        scaled = norm(data.unsqueeze(-1)).squeeze(-1)
        options = {"baseline": {"nn_baseline": baseline, "nn_baseline_input": data}}
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Bernoulli(logits=scaled), infer=options)

    return model, guide


def trained(library: Any, make: Callable[[], Program], count: int, **options: Any) -> tuple[list[float], list[Tensor]]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model, guide = make()
    elbo = library.TraceGraph_ELBO(num_particles=count, **options)
    svi = library.SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.05, "betas": (0.9, 0.99)}), elbo)
    losses = [svi.step(DATA) for _ in range(6)]
    tensors = [value.detach().clone().as_subclass(Tensor) for _, value in sorted(pyro.get_param_store().items())]
    norms = [m for m in (cell.cell_contents for cell in guide.__closure__ or ()) if isinstance(m, nn.BatchNorm1d)]
    return losses, [*tensors, *(buffer.clone() for norm in norms for buffer in norm.buffers()), torch.get_rng_state()]


@pytest.mark.parametrize(("make", "count"), [(mixture, 5), (mixture, 20), (normalised, 7), (lambda: GAUSSIAN, 6)])
def test_as_pyro(make: Callable[[], Program], count: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", StandInWarning)
        losses, tensors = trained(sgc.infer, make, count, backend="inductor", rng="torch")
    expected, theirs = trained(pyro.infer, make, count)
    assert losses == pytest.approx(expected, rel=1e-5)
    for ours, other in zip(tensors, theirs, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-6)


def svi_of(program: Program, count: int, optimizer: Any = torch.optim.Adam, **options: Any) -> sgc.SVI:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    elbo = sgc.infer.TraceGraph_ELBO(num_particles=count, backend="inductor", rng="torch", **options)
    return sgc.SVI(*program, optimizer, elbo)


def test_many_steps_are_single_ones() -> None:
    svi = svi_of(mixture(), 6)
    losses = [svi.step(DATA) for _ in range(12)]
    at_once = svi_of(mixture(), 6).run(12, DATA)
    assert at_once.losses.tolist() == losses


def test_the_size_of_the_program_does_not_depend_on_their_number() -> None:
    sizes = set()
    for count in (5, 40):
        svi = svi_of(mixture(), count)
        svi.step(DATA)
        svi.step(DATA)
        sizes.add(svi.loss_module.profile())
    assert len(sizes) == 1


def test_called_from_python_where_c_is_not_known() -> None:
    known = svi_of(normalised(), 5)
    expected = [known.step(DATA) for _ in range(5)]
    with registered(Inductor(Veiled)), pytest.warns(StandInWarning, match="goes through Python"):
        svi = svi_of(normalised(), 5)
        assert [svi.step(DATA) for _ in range(5)] == pytest.approx(expected, rel=1e-6)


def test_a_loss_that_is_nan_leaves_everything_as_it_was() -> None:
    svi = svi_of(SCALED, 5)
    for _ in range(3):
        svi.step(ONE)
    before = pyro.param("p").item()
    with pytest.warns(UserWarning, match="NaN"):
        assert svi.step(NAN) != svi.step(NAN)
    assert pyro.param("p").item() == before
    assert svi.step(ONE) > 0
    assert pyro.param("p").item() != before


def test_what_is_not_valid_is_pyros_error_and_changes_nothing() -> None:
    def model(scale: Tensor) -> None:
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Bernoulli(0.5)), scale), obs=torch.tensor(1.0))

    def guide(scale: Tensor) -> None:
        pyro.sample("z", dist.Bernoulli(pyro.param("p", torch.tensor(0.4))), infer=DECAYING)

    svi = svi_of((model, guide), 6)
    for _ in range(3):
        svi.step(torch.tensor(1.0))
    before = {name: value.detach().clone() for name, value in svi.loss_module.state_dict().items()}
    with pytest.raises(ValueError, match="scale"):
        svi.step(torch.tensor(-1.0))
    after = svi.loss_module.state_dict()
    assert len(before) > 1 and all(torch.equal(after[name], value) for name, value in before.items())
    assert svi.step(torch.tensor(1.0)) > 0


# -- a particle that raises


def counting_step(fails_at: int, *, native: bool) -> tuple[BuiltStep, list[Tensor]]:
    """A step of four particles that add to a buffer; the one that would make it ``fails_at`` raises."""

    def particle(weight: Tensor, count: Tensor) -> list[Tensor]:
        count.add_(1.0)
        torch.ops.aten._assert_async.msg(count < fails_at, "too many")
        return [weight * count, count * 2.0]

    weight, count, momentum = torch.tensor(1.0), torch.tensor(0.0), torch.tensor(0.5)

    def update(parameters: list[Tensor], gradients: list[Tensor], state: list[Tensor]) -> None:
        state[0].add_(gradients[0])
        parameters[0].sub_(state[0])

    differentiated = Differentiated(trace(particle, [weight, count]), (0,))
    loop = emit_particle_loop(differentiated, [weight, count], [momentum], update, 4)
    inputs = [weight, count, momentum, new_flag(torch.device("cpu"))]
    built = build_particle_loop(loop, inputs, "torch", compile_graph if native else Veiled)
    built.compile()
    assert built.detour is not native
    return built, inputs


@pytest.mark.parametrize("native", [True, False])
def test_a_particle_that_raises_takes_back_what_others_have_written(native: bool) -> None:
    built, inputs = counting_step(10, native=native)
    weight, count, momentum, halted = inputs
    bound = built.bind(inputs)
    assert bound(inputs, 1)[0].tolist() == [(1 + 2 + 3 + 4) / 4]
    # The gradient is the mean of 2, 4, 6 and 8.
    assert (weight.item(), count.item(), momentum.item()) == (1 - 5.5, 4.0, 5.5)
    bound(inputs, 1)
    before = [tensor.clone() for tensor in inputs]
    for _ in range(2):
        with pytest.raises(RuntimeError, match="too many"):
            bound(inputs, 1)  # its second particle
        assert all(map(torch.equal, inputs, before))
    count.fill_(9.0)
    with pytest.raises(RuntimeError, match="too many"):
        bound(inputs, 1)  # its first one
    assert count.item() == 9.0 and torch.equal(weight, before[0]) and not halted
    count.zero_()
    bound(inputs, 1)
    assert count.item() == 4.0
