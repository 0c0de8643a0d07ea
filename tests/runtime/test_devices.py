"""Programs on another device than the CPU; see :mod:`tests.second_device`."""

from __future__ import annotations

import contextlib
import importlib
import math
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from torch import Tensor, fx
from torch.distributions import constraints
from torch.utils._pytree import tree_leaves

import sgc
import sgc.errors
import sgc.infer
from sgc.tracing.state.random_state import random_state, restore_random_state, same_random_state
from tests.programs import asserting_model, switches_on
from tests.reference.pyro_side import AVERAGE, Outcome, Program
from tests.reference.test_zoo import SEED, assert_equal
from tests.reference.zoo import ZOO as CPU_ZOO
from tests.second_device import MadeOnDevice, device, unavailable

pytestmark = [
    pytest.mark.skipif(unavailable() is not None, reason=str(unavailable())),
    pytest.mark.usefixtures("second_device"),
]


NO_KERNEL = {"gru_encoder", "lstm_cell", "attend_infer_repeat"}
"""Programs with fused recurrent cells, operators that the CPU does not have and the second device thus neither."""

FEATURES = {
    *("constrained_matrices", "closed_over_leaves", "frozen_module_parameter", "random_initial_values"),
    *("auto_multivariate_normal", "auto_iaf_normal", "auto_normal_subsampled", "input_with_gradient"),
    *("own_randomness", "batch_norm_training", "dropout", "counting_buffer", "decaying_average"),
    *("baseline_in_a_subsampled_plate", "several_baselines", "decaying_and_network_baseline"),
    *("sequential_particles_decaying", "vectorized_particles_subsampled", "vectorized_particles_nested"),
    *("sigmoid_belief_net", "latent_dirichlet_allocation", "sparse_gamma_def", "hidden_markov_model"),
}
NAMES = [e.name for i, e in enumerate(CPU_ZOO) if (i % 7 == 0 or e.name in FEATURES) and e.name not in NO_KERNEL]


@cache
def zoo() -> dict[str, Any]:
    """The zoo, imported once more so that the tensors of its modules are on the device."""
    package = "tests.reference.zoo"
    known = {name: sys.modules.pop(name) for name in list(sys.modules) if (name + ".").startswith(f"{package}.")}
    parent = sys.modules["tests.reference"]
    try:
        with MadeOnDevice():
            return {entry.name: entry for entry in importlib.import_module(package).ZOO}
    finally:
        sys.modules.update(known)
        parent.zoo = known[package]  # type: ignore[attr-defined]


def tensors_of(outcome: Outcome) -> Iterator[Tensor]:
    yield from (gradient for gradient in outcome.gradients if gradient is not None)
    yield from outcome.buffers
    yield from outcome.averages.values()


@pytest.mark.parametrize("name", NAMES)
def test_program_does_what_pyro_does(name: str) -> None:
    entry = zoo()[name]
    with MadeOnDevice():
        pyro.set_rng_seed(0)
        program = Program(entry.make())
        theirs = program.pyro(SEED)
        ours, module = program.sgc(SEED, backend="eager")
        assert_equal(ours, theirs, 1e-6, gradients=not entry.differs)
    found = [*tensors_of(ours), *module.parameters(), *module.buffers()]
    assert {tensor.device for tensor in found} <= {device()}
    for specialization in module.specializations:
        assert list(strays(specialization.emitted.module.graph)) == []
    for graph in (made.rewritten.program.graph for s in module.specializations for made in s.compiled.values()):
        assert list(strays(graph)) == []


def strays(graph: fx.Graph) -> Iterator[str]:
    """The nodes on another device, save for literals of the program and the numbers of calls."""
    for node in graph.nodes:
        values = [value for value in tree_leaves(node.meta.get("val")) if isinstance(value, Tensor)]
        is_literal = node.target is torch.ops.aten.lift_fresh_copy.default and node.args[0].op == "get_attr"
        if node.op == "call_function" and not is_literal and any(value.device != device() for value in values):
            yield node.format_node()


def data() -> Tensor:
    return torch.tensor([-1.0, 0.5, 2.0], device=device())


def test_capture_leaves_the_random_state_of_the_device() -> None:
    model, guide = switches_on()
    module = sgc.compile(model, guide, backend="eager")
    pyro.set_rng_seed(0)
    before = torch.other.get_rng_state()  # type: ignore[attr-defined]
    module.initialize(data())
    assert torch.equal(torch.other.get_rng_state(), before)  # type: ignore[attr-defined]


def test_device_that_starts_up_in_the_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing asks the device for its random state before; CUDA would start up where it is not wanted."""
    monkeypatch.setattr(torch.other, "is_initialized", lambda: False)  # type: ignore[attr-defined]
    pyro.set_rng_seed(0)
    state = random_state()
    assert "other" not in state
    monkeypatch.undo()
    expected = torch.rand(2, device=device())
    restore_random_state(state)
    assert torch.equal(torch.rand(2, device=device()), expected)


def test_loss_module_moves() -> None:
    model, guide = switches_on()
    module = sgc.compile(model, guide, backend="eager")
    module(data().cpu())
    module.to(device())
    assert {tensor.device for tensor in [*module.parameters(), *module.buffers()]} == {device()}
    module(data()).backward()
    assert {parameter.grad.device for parameter in module.parameters() if parameter.grad is not None} == {device()}
    assert {average.device for average in module.baselines.buffers()} == {device()}


def test_average_follows_the_program() -> None:
    model, guide = switches_on()
    module = sgc.compile(model, guide, backend="eager")
    module(data())
    (name,) = (name for name in pyro.get_param_store()._params if name.startswith(AVERAGE))
    store = pyro.get_param_store()
    del store[name]
    store._params[name] = torch.ones(3)
    store._param_to_name[store._params[name]] = name
    store._constraints[name] = constraints.real
    module(data())
    assert store._params[name].device == device()


def test_default_device_is_guarded() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        assert z.device == torch.get_default_device()

    module = sgc.compile(model, model, backend="eager")
    module()
    with MadeOnDevice():
        assert module().device == device()
    assert module().device == torch.device("cpu")


def test_list_of_tensors_is_read_to_the_default_device() -> None:
    """``torch.tensor([on_device, 1.0])`` is on the CPU, also in a capture."""

    def model(x: Tensor) -> None:
        means = torch.tensor([x[0], 1.0])
        assert means.device == torch.device("cpu")
        with pyro.plate("two", 2):
            pyro.sample("z", dist.Normal(means, torch.ones(2)))

    module = sgc.compile(model, model, backend="eager")
    assert module(data()).device == torch.device("cpu")


def test_mixed_devices_are_pyros_error_and_change_nothing() -> None:
    def model(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(x + torch.zeros(3), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("m", torch.zeros(3)), 1.0).to_event(1))

    module = sgc.compile(model, guide, backend="eager")
    before = random_state()
    with pytest.raises(RuntimeError, match="same device"):
        module(data())
    assert same_random_state(before, random_state())
    assert "m" not in pyro.get_param_store()


def test_nan_is_looked_at_one_call_late() -> None:
    """So that the CPU need not wait for the step that it has just sent off."""
    model, guide = switches_on()
    module = sgc.compile(model, guide, backend="eager", validate=False).initialize(data())
    with torch.no_grad():
        pyro.get_param_store()._params["loc_loc"].fill_(math.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert module(data()).isnan()
    with pytest.warns(UserWarning, match="NaN"), contextlib.suppress(ValueError):
        module(data())


def test_validity_is_looked_at_one_call_late() -> None:
    model, guide = switches_on()
    module = sgc.compile(model, guide, backend="eager").initialize(data())
    with torch.no_grad():
        pyro.get_param_store()._params["loc_loc"].fill_(math.nan)
        assert module(data()).isnan()
        with pytest.raises(ValueError, match="satisfy the constraint Real"):
            module(data())


def test_a_branch_that_goes_another_way_than_assumed_is_looked_at_at_once() -> None:
    on = device()

    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4, device=on)))
        loc = pyro.param("loc", lambda: torch.tensor(0.5, device=on))
        if z:
            loc = -2 * loc
        pyro.sample("x", dist.Normal(loc, 1.0), obs=torch.tensor(0.3, device=on))

    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(pyro.param("p", lambda: torch.tensor(0.3, device=on))))

    outcomes = []
    for svi_of, elbo in (
        (pyro.infer.SVI, pyro.infer.TraceGraph_ELBO()),
        (sgc.SVI, sgc.infer.TraceGraph_ELBO(backend="eager", dynamic="speculate")),
    ):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = svi_of(model, guide, pyro.optim.Adam({"lr": 0.02}), elbo)
        losses = [svi.step() for _ in range(20)]
        outcomes.append((losses, pyro.param("loc").item(), random_state()))
    assert outcomes[0][:2] == outcomes[1][:2]
    assert same_random_state(outcomes[0][2], outcomes[1][2])
    tallies = [made.tally for made in svi.loss_module.specializations]  # type: ignore[attr-defined]
    assert 2 < sum(tally.failures.total() for tally in tallies) < 18


DRAWS = {
    "bernoulli": lambda p: dist.Bernoulli(p),
    "multinomial": lambda p: dist.Categorical(p.expand(2)),
    "poisson": lambda p: dist.Poisson(p),
}


@pytest.mark.parametrize("draw", DRAWS)
def test_an_operator_that_would_assert_is_given_what_does_no_harm(draw: str) -> None:
    """On a GPU it would end all computation of the process there; on the CPU, and here, it raises."""

    on, drawn = device(), DRAWS[draw]

    def model() -> None:
        z = pyro.sample("z", drawn(torch.tensor(0.4, device=on)))
        pyro.sample("x", dist.Normal(z.double(), 1.0), obs=torch.tensor(0.3, device=on))

    def guide() -> None:
        pyro.sample("z", drawn(pyro.param("p", torch.tensor(0.3, device=on))))

    module = sgc.compile(model, guide, backend="eager")
    module()
    with torch.no_grad():
        pyro.param("p").fill_(math.nan)
        module()
        with pytest.raises(ValueError, match="to satisfy the constraint"):
            module()
        pyro.param("p").fill_(0.3)
    assert module().isfinite()


def test_an_index_out_of_bounds_is_given_what_does_no_harm() -> None:
    """``Categorical`` looks its value up; Pyro checks that value first."""

    on = device()

    def model(x: Tensor) -> None:
        with pyro.plate("data", 2):
            pyro.sample("x", dist.Categorical(torch.tensor([0.4, 0.6], device=on)), obs=x)

    module = sgc.compile(model, lambda x: None, backend="eager")
    assert module(torch.tensor([0, 1], device=device())).isfinite()
    bad = torch.tensor([0, 7], device=device())
    module(bad)
    with pytest.raises(ValueError, match="within the support"):
        module(bad)


def test_an_assertion_of_the_program_is_a_check() -> None:
    model, guide = asserting_model, guide_of_z
    module = sgc.compile(model, guide, backend="eager", validate=True)
    assert module(torch.tensor(1.0, device=device())).isfinite()
    with pytest.raises(AssertionError):
        for _ in range(20):  # z is 1 within 20 draws but for a chance of 1e-7
            module(torch.tensor(0.5, device=device()))


def guide_of_z(limit: Tensor) -> None:
    pyro.sample("z", dist.Bernoulli(pyro.param("p", torch.tensor(0.55, device=limit.device))))


def test_a_package_is_for_the_cpu(tmp_path: Path) -> None:
    module = sgc.compile(asserting_model, guide_of_z, backend="eager").initialize(torch.tensor(1.0, device=device()))
    with pytest.raises(sgc.errors.SavedProgramError, match="another device than the CPU"):
        sgc.package(module, tmp_path / "loss.pt2", torch.tensor(1.0, device=device()))
    assert not list(tmp_path.iterdir())
