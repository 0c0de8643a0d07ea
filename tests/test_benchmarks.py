"""The benchmarks compare like with like: one loss and one gradient, in Pyro, in NumPyro and by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import TraceGraph_ELBO

from benchmarks import loss, overhead, profile
from benchmarks.catalogue import WORKLOADS
from benchmarks.outcome import Outcome, disagreements
from benchmarks.report import aims, table
from benchmarks.systems import BOUND, CACHED, NUMPYRO_RUN, NUMPYRO_STEP, PYRO, RUN, STEP, SYSTEMS
from benchmarks.systems.by_hand import ByHand
from benchmarks.worker import First, Turn
from benchmarks.workloads import FAMILIES, make
from benchmarks.workloads.base import Workload
from sgc.emit.backends.inductor_backend import Inductor
from sgc.emit.backends.registry import registered

SMALL: dict[str, dict[str, int]] = {
    "BetaBernoulli": {},
    "Autoencoder": {"hidden": 16, "batch": 4},
    "BeliefNet": {"batch": 4},
    "GammaFamily": {"batch": 4},
    "RegressionNormal": {},
    "RegressionMultivariate": {},
    "GaussianChain": {"steps": 6},
    "DiscreteChain": {"steps": 6},
    "Topics": {"documents": 4, "length": 5},
    "DeepMarkov": {"batch": 4},
    "AttendInferRepeat": {"batch": 4},
}
DRAWS = 200

Sample = dict[str, np.ndarray]
"""The loss, and the gradient of each parameter along one fixed direction: an array over draws of each."""


def along(gradients: dict[str, Any]) -> dict[str, float]:
    """Each gradient times a direction that depends on its name alone."""
    products = {}
    for name, gradient in gradients.items():
        direction = np.random.default_rng(list(name.encode())).normal(size=tuple(gradient.shape))
        products[name] = float((np.asarray(gradient) * direction).sum())
    return products


def gathered(draws: list[tuple[float, dict[str, Any]]]) -> Sample:
    rows = [{"the loss": loss, **along(gradients)} for loss, gradients in draws]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def in_pyro(workload: Workload) -> Sample:
    pyro.clear_param_store()
    model, guide = workload.pyro()
    args = [torch.tensor(array) for array in workload.data]
    elbo, store = TraceGraph_ELBO(), pyro.get_param_store()

    def draw() -> tuple[float, dict[str, Any]]:
        loss = elbo.loss_and_grads(model, guide, *args)
        found = {name: leaf.grad for name, leaf in store.named_parameters() if leaf.grad is not None}
        for _, leaf in store.named_parameters():
            leaf.grad = None
        return loss, workload.gradients_by_hand(found)

    return gathered([draw() for _ in range(DRAWS)])


def by_hand(workload: Workload) -> Sample:
    system = ByHand(workload)
    first = workload.unconstrained()
    system.names, params = list(first), [torch.tensor(value) for value in first.values()]

    def draw() -> tuple[float, dict[str, Any]]:
        loss, gradients = system.loss_and_gradients(params, system.args)
        return float(loss), dict(zip(first, gradients, strict=True))

    return gathered([draw() for _ in range(DRAWS)])


def in_numpyro(workload: Workload) -> Sample:
    jax = pytest.importorskip("jax")
    from numpyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO
    from numpyro.optim import Adam

    args = [jax.numpy.asarray(array) for array in workload.data]
    model, guide = workload.numpyro()
    loss = TraceGraph_ELBO() if workload.discrete else Trace_ELBO()
    svi = SVI(model, guide, Adam(1e-3), loss)
    params = svi.optim.get_params(svi.init(jax.random.key(0), *args).optim_state)

    def value(params: Any, key: Any) -> Any:
        return loss.loss(key, svi.constrain_fn(params), model, guide, *args)

    keys = jax.random.split(jax.random.key(1), DRAWS)
    losses, gradients = jax.jit(jax.vmap(jax.value_and_grad(value), in_axes=(None, 0)))(params, keys)
    draws = []
    for i in range(DRAWS):
        found = {name: torch.tensor(np.asarray(gradient[i])) for name, gradient in gradients.items()}
        draws.append((float(losses[i]), workload.gradients_by_hand(found)))
    return gathered(draws)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("library", [in_pyro, in_numpyro])
def test_by_hand_is_the_same_estimator(library: Callable[[Workload], Sample], family: str) -> None:
    pyro.set_rng_seed(0)
    workload = make(family, SMALL[family])
    ours, theirs = by_hand(workload), library(workload)
    common = [name for name in ours if name in theirs]
    if library is in_pyro:
        assert set(common) == set(ours)  # every parameter is compared
    assert "the loss" in common
    for name in common:
        error = np.hypot(ours[name].std(), theirs[name].std()) / DRAWS**0.5
        difference = abs(ours[name].mean() - theirs[name].mean())
        assert difference <= 5 * error + 1e-4 * abs(ours[name].mean()), (name, difference, error)
    assert ours["the loss"].std() > 0


def outcome(step: float, loss: float, first: float = 1.0) -> Outcome:
    cold = First(first, 10.0)
    return Outcome(cold, None, [Turn(step, 100, loss, 1.0), Turn(2 * step, 100, loss, 1.0), Turn(step, 50, loss, 1.0)])


def test_losses_that_differ_are_reported() -> None:
    same = disagreements({"one": outcome(1.0, 7.0), "other": outcome(1.0, 7.1), "broken": Outcome(failure="no")})
    assert not same
    (line,) = disagreements({"one": outcome(1.0, 7.0), "other": outcome(1.0, 8.0)})
    assert "one and other differ: 7.0000 and 8.0000" in line
    assert len(disagreements({"one": outcome(1.0, 7.0), "other": outcome(1.0, float("nan"))})) == 1


def test_the_error_of_the_mean_counts_the_spread_between_turns() -> None:
    mean, error = Outcome(turns=[Turn(1.0, 2, 0.0, 0.0), Turn(1.0, 2, 2.0, 0.0)]).loss
    assert mean == 1.0
    assert error == pytest.approx(np.array([0.0, 0.0, 2.0, 2.0]).std(ddof=1) / 2)


def test_aims_are_computed() -> None:
    outcomes = {
        STEP: outcome(1e-4, 7.0, first=6.0),
        RUN: outcome(1e-5, 7.0),
        PYRO: outcome(2e-3, 7.0),
        NUMPYRO_STEP: outcome(5e-5, 7.0, first=3.0),
        NUMPYRO_RUN: Outcome(failure="no NumPyro"),
        BOUND: outcome(1e-4, 7.0),
    }
    text = aims({"vae": outcomes, "gaussian_chain_20": outcomes})
    assert "| 20.00 (≥ 10: met) | 0.50 (≥ 1: missed) |  | 1.00 (≤ 1.1: met) | 2.00 (≤ 1: missed) |" in text
    assert "| 20.00 (≥ 50: missed) |" in text
    assert text.splitlines()[-1] == "| met | 1 of 2 | 0 of 2 | 0 of 0 | 2 of 2 | 0 of 2 |"
    shown = table(WORKLOADS["vae"], outcomes)
    assert f"| {PYRO} | 2000 | 2000 - 4000 | 1.0 | 1.0 |" in shown
    assert f"{NUMPYRO_RUN} fails: `no NumPyro`" in shown


def test_the_overhead_is_measured_without_a_compiler() -> None:
    assert set(overhead.NAMES) <= set(WORKLOADS)
    with registered(Inductor(overhead.nothing)):
        for call in overhead.calls("beta_bernoulli").values():
            assert 0 < overhead.microseconds(call, 1e-3) < 1e5


def test_loss_and_gradients_alone() -> None:
    """Each system is called, from no gradients, as often as its turn lasts."""
    with registered(Inductor(overhead.nothing)):
        found = loss.calls("beta_bernoulli")
        assert list(found) == [loss.PYRO, loss.JIT, loss.SGC]
        times = loss.microseconds(found, rounds=2, seconds=1e-3)
    assert all(len(turns) == 2 and min(turns) > 0 for turns in times.values())


def test_kernels_are_counted_by_kind() -> None:
    found = profile.kernels(lambda: torch.mm(torch.ones(3, 3), torch.randn(3, 3)), 1)
    assert found["matrix products"][1] == 1
    for kernel, kind in (
        ("graph_3_cpp_fused_add_mm_rand_0", "fused loops"),
        ("aoti_torch_cpu_addmm_out", "matrix products"),
        ("aten::_standard_gamma", "random draws"),
        ("aten::_standard_gamma_grad", "other kernels"),
        ("aten::empty_strided", "memory, copies"),
        ("aten::linalg_cholesky_ex", "other kernels"),
    ):
        assert profile.kind_of(kernel) == kind


def test_the_catalogue_names_what_exists() -> None:
    assert {entry.family for entry in WORKLOADS.values()} == set(FAMILIES)
    assert set(SYSTEMS) >= CACHED
    for entry in WORKLOADS.values():
        workload = make(entry.family, entry.sizes)
        assert set(workload.unconstrained()) == set(workload.values)


def test_smoke(tmp_path: Path) -> None:
    """The command itself: processes, turns, table. A system that does not exist here is a line, not a crash."""
    written = tmp_path / "table.md"
    systems = [word for name in (PYRO, NUMPYRO_STEP) for word in ("--system", name)]
    command = [sys.executable, "-m", "benchmarks", "--quick", *systems, "--output", str(written)]
    root = Path(__file__).parents[1]
    hidden = tmp_path / "hidden"  # as where the extra is not installed
    hidden.mkdir()
    (hidden / "numpyro.py").write_text("raise ImportError('hidden by the test')\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(hidden), str(root)])}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    text = written.read_text()
    assert "## Beta-Bernoulli" in text
    assert f"| {PYRO} |" in text and f"| {NUMPYRO_STEP} | fails |" in text
    assert f"{NUMPYRO_STEP} fails: `ImportError: hidden by the test`" in text or "No module named 'jax'" in text
