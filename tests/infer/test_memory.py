"""Fresh closures, cleared stores and long runs neither pile up nor meet a stale graph."""

from __future__ import annotations

import gc
import linecache
import warnings
import weakref
from collections.abc import Iterable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch

import sgc.infer
from sgc.errors import RespecializationWarning
from sgc.infer import compiled_loss as module_under_test
from sgc.runtime.generated_sources import known_sources


def closure(shift: float, name: str = "x") -> tuple[object, object]:
    """Programs that differ in the shift are one program; those with different names of a site are not."""

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample(name, dist.Normal(z, 1.0), obs=torch.tensor(shift))

    def guide() -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 1.0))

    return model, guide


def checked_losses(elbo: sgc.infer.TraceGraph_ELBO, programs: Iterable[tuple[Any, Any]]) -> list[weakref.ref[Any]]:
    """The losses are Pyro's; gives references to the models, to see which are kept."""
    models = []
    for program in programs:
        pyro.set_rng_seed(0)
        ours = elbo.loss(*program)
        pyro.set_rng_seed(0)
        assert ours == pytest.approx(pyro.infer.TraceGraph_ELBO().loss(*program), rel=1e-6)
        models.append(weakref.ref(program[0]))
        del program
    gc.collect()
    return models


def test_fresh_closures_are_not_mistaken_and_not_kept() -> None:
    elbo = sgc.infer.TraceGraph_ELBO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RespecializationWarning)
        shifts = range(module_under_test._KEPT + 4)
        models = checked_losses(elbo, (closure(float(shift), f"x{shift}") for shift in shifts))
    assert len(elbo._compiled) == module_under_test._KEPT
    assert [model() is None for model in models[:4]] == [True] * 4
    del elbo
    gc.collect()
    assert all(model() is None for model in models)


def test_fresh_closures_of_one_program_are_not_kept() -> None:
    elbo = sgc.infer.TraceGraph_ELBO()
    models = checked_losses(elbo, (closure(float(shift)) for shift in range(6)))
    assert sum(model() is not None for model in models) <= 3
    assert len(elbo._compiled) <= 3


def test_many_pairs_are_pointed_out_once() -> None:
    elbo = sgc.infer.TraceGraph_ELBO()
    with pytest.warns(RespecializationWarning, match="outside of the training loop") as caught:
        for number in range(4 * module_under_test._KEPT):
            elbo.compiled(*closure(0.0, f"x{number}"))
    assert len(caught) == 1


def test_a_cleared_store_is_noticed_and_compiles_nothing_anew() -> None:
    elbo, program = sgc.infer.TraceGraph_ELBO(), closure(1.0)
    for value in (0.5, 0.5, 0.5):
        pyro.clear_param_store()
        elbo.loss_and_grads(*program)
        assert pyro.param("loc").item() == value
        assert pyro.get_param_store()._params["loc"].grad is not None
    assert len(elbo.compiled(*program).specializations) == 1


def test_steps_do_not_grow_the_heap() -> None:
    elbo, program = sgc.infer.TraceGraph_ELBO(backend="eager"), closure(1.0)
    for _ in range(5):
        elbo.loss_and_grads(*program)
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(200):
        elbo.loss_and_grads(*program)
    gc.collect()
    assert len(gc.get_objects()) - before < 100


def test_generated_sources_go_with_their_program() -> None:
    elbo = sgc.infer.TraceGraph_ELBO()
    gc.collect()
    before = known_sources()
    elbo.loss_and_grads(*closure(1.0))
    elbo.loss(*closure(2.0))
    new = known_sources() - before
    assert len(new) >= 4
    linecache.checkcache()
    del elbo
    gc.collect()
    assert not known_sources() & new
    assert not new & set(linecache.cache)
