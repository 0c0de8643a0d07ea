"""Runs that end early, by NaN or Ctrl-C, and runs that go on."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from sgc.errors import NanLossError
from tests.programs import local_switches
from tests.training.programs import DATA, adam, make_svi


def rooted(shift: Tensor) -> None:
    """NaN for a draw below minus ``shift``."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal((z + shift).sqrt(), 1.0, validate_args=False), obs=torch.tensor(1.0))


def drawing(shift: Tensor) -> None:
    pyro.sample("z", dist.Normal(pyro.param("mean", torch.tensor(0.0)), 1.0))


@pytest.mark.cpu
@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_a_nan_leaves_a_run_where_single_steps_would_be(uncompiled: None) -> None:
    found = []
    for run in (False, True):
        pyro.clear_param_store()
        pyro.set_rng_seed(4)
        svi = make_svi(adam, program=(rooted, drawing))
        shift, losses = torch.tensor(1.8), []
        with pyro.validation_enabled(False):
            if run:
                with pytest.raises(NanLossError):
                    svi.run(1000, shift)
                losses, random = svi.result.losses.tolist(), torch.get_rng_state()
            while not run:
                random = torch.get_rng_state()
                losses.append(svi.step(shift))
                if math.isnan(losses[-1]):
                    losses.pop()
                    break
        found.append((losses, random, pyro.param("mean").item()))
    assert len(found[0][0]) > 10  # the stretch with the NaN had good steps before it
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])
    assert found[0][2] == found[1][2]


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_a_nan_at_the_first_step_can_be_followed_by_good_ones(uncompiled: None) -> None:
    pyro.clear_param_store()
    svi = make_svi(adam, program=(rooted, drawing))
    with pyro.validation_enabled(False):
        with pytest.raises(NanLossError, match="step 1"):
            svi.run(3, torch.tensor(math.nan))
        assert pyro.param("mean").item() == 0.0
        assert svi.run(3, torch.tensor(50.0)).losses.isfinite().all()
    assert pyro.param("mean").item() != 0.0


def test_ctrl_c_twice_is_not_postponed(uncompiled: None, interruptible: None) -> None:
    pyro.clear_param_store()
    svi = make_svi(adam)
    handler = signal.getsignal(signal.SIGINT)

    def batches() -> Iterator[Tensor]:
        yield DATA
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second Ctrl-C did nothing")

    with pytest.raises(KeyboardInterrupt):
        svi.run(batches())
    assert len(svi.result.losses) == 1
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_run_is_resumed_with_batches_of_another_shape(uncompiled: None) -> None:
    pyro.clear_param_store()
    svi = make_svi(adam, program=local_switches())
    svi.run(4, DATA)
    state = svi.state_dict()
    expected = svi.run(4, DATA[:2]).losses
    pyro.clear_param_store()
    resumed = make_svi(adam, program=local_switches()).initialize(DATA[:2])
    resumed.load_state_dict(state)
    assert torch.equal(resumed.run(4, DATA[:2]).losses, expected)
