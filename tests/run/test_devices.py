"""Programs on another device than the CPU; see :mod:`tests.second_device`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from tests.reference.pyro_side import Outcome, Program
from tests.reference.test_zoo import SEED, assert_equal
from tests.reference.zoo import ZOO as CPU_ZOO
from tests.second_device import MadeOnDevice, device, unavailable

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

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
NAMES = [e.name for i, e in enumerate(CPU_ZOO) if (i % 5 == 0 or e.name in FEATURES) and e.name not in NO_KERNEL]


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
