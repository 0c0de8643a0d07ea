"""Every program of the zoo against Pyro's TraceGraph_ELBO under one seed."""

from __future__ import annotations

import warnings

import pyro
import pytest
import torch
from pyro.infer.enum import get_importance_trace
from pyro.infer.tracegraph_elbo import TrackNonReparam
from pyro.ops.provenance import get_provenance
from torch import Tensor

import sgc
from tests.reference.pyro_side import Outcome, Program
from tests.reference.zoo import ZOO, Entry

BY_NAME = {entry.name: entry for entry in ZOO}
SEED = 7
RELATIVE = 1e-6 if torch.get_default_device().type == "cpu" else 2e-5
"""How far eager backend and Pyro may be apart: on a GPU Pyro's GRUs and LSTMs are cuDNN's, sgc's are torch's own."""


def program_of(entry: Entry) -> Program:
    pyro.set_rng_seed(0)
    return Program(entry.make())


def close(ours: Tensor, theirs: Tensor, relative: float) -> bool:
    """Equal up to a rounding error relative to the tensor's largest entry."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    if not theirs.is_floating_point():
        return torch.equal(ours, theirs)
    if theirs.numel() == 0:
        return True
    return bool((ours - theirs).abs().max() <= relative * max(1.0, float(theirs.abs().max())))


def assert_equal(ours: Outcome, theirs: Outcome, relative: float, *, gradients: bool) -> None:
    assert abs(ours.loss - theirs.loss) <= relative * max(1.0, abs(theirs.loss))
    if gradients:
        for mine, yours in zip(ours.gradients, theirs.gradients, strict=True):
            assert (mine is None) == (yours is None)
            assert mine is None or yours is None or close(mine, yours, relative)
    for mine, yours in zip(ours.buffers, theirs.buffers, strict=True):
        assert close(mine, yours, relative)
    assert ours.averages.keys() == theirs.averages.keys()
    if gradients:
        for name, average in theirs.averages.items():
            assert close(ours.averages[name], average, relative)


@pytest.mark.parametrize("name", BY_NAME)
def test_eager_backend(name: str) -> None:
    program = program_of(BY_NAME[name])
    theirs = program.pyro(SEED)
    ours, module = program.sgc(SEED, backend="eager")
    assert_equal(ours, theirs, RELATIVE, gradients=not BY_NAME[name].differs)
    check_provenance(BY_NAME[name], program, module.graph)


def check_provenance(entry: Entry, program: Program, graph: sgc.StochasticGraph) -> None:
    """The provenance sets are those that Pyro finds; where Pyro loses some, ours hold theirs.

    Pyro also tracks a site that the guide reparameterises if the model's distribution there does not; to no
    effect, for its score function is zero.
    """
    scored = {name for name in graph.sites() if not getattr(graph.payload(name), "has_rsample", True)}
    case = program.case
    if case.options.get("vectorize_particles"):
        return
    with warnings.catch_warnings(), TrackNonReparam():
        warnings.simplefilter("ignore")
        traces = get_importance_trace("dense", float("inf"), case.model, case.guide, case.args, case.kwargs)
    for trace, key in zip(traces, ("log p({})", "-log q({})"), strict=True):
        for name, site in trace.nodes.items():
            if site["type"] == "sample":
                theirs = get_provenance(site["log_prob_sum"]) & scored
                ours = graph.provenance(key.format(name), reparameterized=False)
                assert ours >= theirs if entry.differs else ours == theirs, (key.format(name), ours, theirs)


@pytest.mark.inductor
@pytest.mark.parametrize("name", [entry.name for entry in ZOO if entry.inductor])
def test_inductor_backend(name: str) -> None:
    program = program_of(BY_NAME[name])
    theirs = program.pyro(SEED)
    ours, _ = program.sgc(SEED, backend="inductor", rng="torch")
    assert_equal(ours, theirs, 1e-4, gradients=not BY_NAME[name].differs)


def test_most_gradients_are_equal_to_the_last_bit() -> None:
    """Only the order of sums may differ from Pyro's; in most programs nothing does."""
    exact = total = 0
    for entry in ZOO[::6]:
        if entry.differs:
            continue
        pyro.clear_param_store()
        program = program_of(entry)
        theirs, (ours, _) = program.pyro(SEED), program.sgc(SEED, backend="eager")
        pairs = zip(ours.gradients, theirs.gradients, strict=True)
        total += 1
        exact += all(mine is None or yours is None or torch.equal(mine, yours) for mine, yours in pairs)
    assert exact >= 0.75 * total
