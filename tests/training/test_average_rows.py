"""Training with an average for each datum: compiled steps, checkpoints, files, and steps that are refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

import sgc
from sgc.emit.backends.registry import registered
from sgc.errors import BaselineError, NanLossError
from tests.backends import RunGraphs, UncompiledSteps
from tests.subsampled import AVERAGE, X, in_store, nested, over_minibatches, over_rows
from tests.training.programs import adam, fresh, is_compiled, make_svi, values

BATCHES = [torch.tensor([6, 0, 4]), torch.tensor([1, 5, 2]), torch.tensor([3])]
"""An epoch, with a ragged last batch."""


def trained(backend: str, program: Any, batches: list[Any], **options: Any) -> tuple[list[float], dict[str, Tensor]]:
    svi = fresh(program=program, backend=backend, **options)
    losses: list[float] = svi.run(batches, epochs=4).losses.tolist()
    return losses, values()


PAIRS = [(torch.tensor([0, 3]), torch.tensor([1, 2, 0])), (torch.tensor([4, 1]), torch.tensor([3, 0, 2]))]
TRAINED: dict[str, tuple[Any, list[Any], dict[str, Any]]] = {
    "ragged": (over_rows(), BATCHES, {}),
    "drawn": (over_rows(size=3), [()] * 4, {}),
    "nested": (nested(), PAIRS, {}),
    "particles": (over_rows(), BATCHES, {"num_particles": 2}),
    "particles in a loop": (over_rows(), BATCHES, {"num_particles": 6}),
    "vectorized": (over_rows(), BATCHES, {"num_particles": 2, "vectorize_particles": True}),
}


def assert_alike(one: Any, other: Any, tolerance: float) -> None:
    (losses, tensors), (others, other_tensors) = one, other
    assert torch.allclose(torch.tensor(losses), torch.tensor(others), atol=tolerance)
    assert tensors.keys() == other_tensors.keys()
    assert sum(name.startswith(AVERAGE) for name in tensors) == 1
    for name, tensor in tensors.items():
        assert torch.allclose(tensor, other_tensors[name], atol=tolerance), name


@pytest.mark.parametrize("name", TRAINED)
def test_whole_steps_are_those_of_the_optimizer_in_python(name: str) -> None:
    program, batches, options = TRAINED[name]
    expected = trained("eager", program, batches, **options)
    with registered(UncompiledSteps()):
        assert_alike(trained("inductor", program, batches, **options), expected, 1e-5)
    with registered(RunGraphs(rewritten=True)):
        assert_alike(trained("inductor", program, batches, **options), expected, 1e-5)


@pytest.mark.inductor
@pytest.mark.parametrize("name", ["ragged", "drawn", "particles in a loop"])
def test_compiled_steps(name: str) -> None:
    program, batches, options = TRAINED[name]
    expected = trained("eager", program, batches, **options)
    assert_alike(trained("inductor", program, batches, **options), expected, 1e-4)


# -- what is kept


@pytest.mark.parametrize("first", [BATCHES[0], BATCHES[2], None])
def test_a_checkpoint_has_all_rows(first: Any, uncompiled: None) -> None:
    svi = fresh(program=over_rows())
    svi.run(BATCHES, epochs=2)
    state = svi.state_dict()
    losses, expected = svi.run(BATCHES, epochs=2).losses.tolist(), values()
    pyro.clear_param_store()
    resumed = make_svi(adam, program=over_rows()).initialize(first)
    resumed.load_state_dict(state)
    assert resumed.run(BATCHES, epochs=2).losses.tolist() == losses
    assert values().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in values().items())


def test_a_file_has_all_rows(tmp_path: Path) -> None:
    module = sgc.compile(*over_rows(), backend="eager")
    for batch in BATCHES * 2:
        module(batch).backward()
    path = tmp_path / "program.sgc"
    sgc.save(module, path)
    pyro.set_rng_seed(3)
    for batch in BATCHES[:2]:
        module(batch).backward()
    loaded = sgc.load(path)
    pyro.set_rng_seed(3)
    for batch in BATCHES[:2]:
        loaded(batch).backward()
    (name,) = (name for name, _ in loaded.named_buffers() if name.startswith("baselines."))
    assert torch.equal(loaded.get_buffer(name), in_store())
    assert "for each of 7 rows of 'data'" in str(loaded.graph)


@pytest.mark.inductor
@pytest.mark.cpu
def test_a_package_writes_its_rows_and_gives_all(tmp_path: Path) -> None:
    from torch._inductor.package import load_package

    module, rows = sgc.compile(*over_minibatches(), backend="eager"), torch.tensor([5, 2])
    for index in ([0, 1], [5, 5], [3, 6]):
        module(X[:2], torch.tensor(index)).backward()
    sgc.package(module, tmp_path / "program.pt2", X[:2], rows)
    package = load_package(str(tmp_path / "program.pt2"), "gradient")
    torch.manual_seed(3)
    written = package(X[:2], rows)["written"]
    torch.manual_seed(3)
    module(X[:2], rows).backward()
    assert torch.allclose(written["baselines.z"], in_store(), atol=1e-5)
    with pytest.raises(RuntimeError, match="the subsample of plate 'data' has rows from 0 to 6"):
        package(X[:2], torch.tensor([0, 7]))


# -- what is refused


GRAPHS = {"as traced": UncompiledSteps, "rewritten": lambda: RunGraphs(rewritten=True)}


@pytest.fixture(params=["eager", *GRAPHS, pytest.param("inductor", marks=pytest.mark.inductor)])
def svi(request: pytest.FixtureRequest) -> Iterator[sgc.SVI]:
    """An SVI over minibatches, after three steps on the rows 0 and 4."""
    graphs = GRAPHS.get(request.param)
    with nullcontext() if graphs is None else registered(graphs()):
        svi = fresh(program=over_minibatches(), backend="eager" if request.param == "eager" else "inductor")
        for _ in range(3):
            svi.step(X[:2], torch.tensor([0, 4]))
        yield svi


@pytest.mark.parametrize("index", [[0, 4], [5, 5], [4, 2]])
def test_a_step_whose_loss_is_nan_leaves_its_rows(svi: sgc.SVI, index: list[int]) -> None:
    before = values()
    with pytest.warns(UserWarning, match="Encountered NaN"):
        assert math.isnan(svi.step(torch.tensor([1.0, float("nan")]), torch.tensor(index)))
    with pytest.raises(NanLossError):
        svi.run([(torch.tensor([float("nan"), 1.0]), torch.tensor(index))] * 3)
    assert before[AVERAGE][0] and before[AVERAGE][4]
    assert all(torch.equal(tensor, before[name]) for name, tensor in values().items())
    svi.step(X[:2], torch.tensor(index))
    assert not torch.equal(in_store(), before[AVERAGE])


@pytest.mark.parametrize("index", [[0, 7], [-8, 1], [3, 10**9]])
def test_rows_that_are_not_there_are_an_error_and_nothing_is_lost(svi: sgc.SVI, index: list[int]) -> None:
    before, state = values(), torch.get_rng_state()
    with pytest.raises(BaselineError, match="the subsample of plate 'data' has rows beyond its 7") as caught:
        svi.step(X[:2], torch.tensor(index))
    assert caught.value.site == "z" and caught.value.source is not None
    assert all(torch.equal(tensor, before[name]) for name, tensor in values().items())
    assert torch.equal(torch.get_rng_state(), state)
    svi.step(X[:2], torch.tensor([-1, 0]))
    assert in_store()[6] != 0


def test_without_validation_too() -> None:
    module = sgc.compile(*over_minibatches(), backend="eager", validate=False)
    module(X[:2], torch.tensor([1, 2])).backward()
    before = in_store()
    with pytest.raises(BaselineError, match="has rows beyond its 7"):
        module(X[:2], torch.tensor([1, 7]))
    assert torch.equal(in_store(), before)


def test_the_step_is_one_call() -> None:
    with registered(UncompiledSteps()):
        svi = fresh(program=over_rows())
        svi.step(BATCHES[0])
        svi.step(BATCHES[1])
        assert is_compiled(svi, BATCHES[0])
