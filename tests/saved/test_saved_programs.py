"""Programs of the zoo, saved and loaded: loss, gradients, buffers and averages are the same to the last bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import sgc
from sgc.emit.backends.registry import registered
from sgc.errors import SavedProgramError
from tests.backends import UncompiledSteps
from tests.reference.zoo import ZOO, Case

OPAQUE = "a call of Python"
OBJECTS = {"dataset_object"}
"""Programs that are called with an object of a class of their own."""

SAMPLE = [
    *("network_baseline", "decaying_and_network_baseline", "decaying_baseline_in_a_plate", "several_baselines"),
    *("baseline_in_a_subsampled_plate", "trees_of_tensors", "plain_values", "keyword_tensors", "input_with_gradient"),
    *("integer_and_boolean_tensors", "double_precision", "strided_inputs", "own_randomness", *OBJECTS),
]
CHOSEN = [entry for i, entry in enumerate(ZOO) if i % 10 == 0 or entry.name in SAMPLE]


def made(case: Case, **options: Any) -> sgc.LossModule:
    return sgc.compile(case.model, case.guide, backend="eager", **{**case.options, **options})


def evaluated(module: torch.nn.Module, case: Case, seed: int) -> dict[str, Any]:
    """What a call gives and leaves behind."""
    pyro.set_rng_seed(seed)
    arguments = [leaf for leaf in tree_leaves((case.args, case.kwargs)) if isinstance(leaf, Tensor)]
    for tensor in (*arguments, *module.parameters()):
        tensor.grad = None
    loss = module(*case.args, **case.kwargs)
    if loss.requires_grad:
        loss.backward()
    with torch.no_grad():
        alone = module(*case.args, **case.kwargs)
    return {
        "loss": loss.detach(),
        "without gradient": alone,
        "gradients": {name: p.grad for name, p in module.named_parameters()},
        "of arguments": [tensor.grad for tensor in arguments],
        "state": {name: value.clone() for name, value in module.state_dict().items()},
        "random": torch.get_rng_state(),
    }


def assert_same(one: Any, other: Any, where: str = "") -> None:
    assert type(one) is type(other) or isinstance(one, Tensor), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key, value in one.items():
            assert_same(value, other[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for i, value in enumerate(one):
            assert_same(value, other[i], f"{where}[{i}]")
    elif isinstance(one, Tensor):
        assert one.shape == other.shape and one.dtype == other.dtype, where
        assert torch.equal(one.nan_to_num(), other.nan_to_num()), where
    else:
        assert one == other, where


@pytest.mark.parametrize("name", [entry.name for entry in CHOSEN])
def test_loss_gradients_and_state_are_equal_to_the_last_bit(name: str, tmp_path: Path) -> None:
    (entry,) = (entry for entry in ZOO if entry.name == name)
    pyro.set_rng_seed(0)
    case = entry.make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = made(case)
        evaluated(module, case, 1)
        try:
            sgc.save(module, tmp_path / "loss.sgc")
        except SavedProgramError as error:
            assert name in OBJECTS or (OPAQUE in str(error) and error.site in module.graph.sites())
            assert "no file holds" in str(error)
            return
        loaded = sgc.load(tmp_path / "loss.sgc")
        assert name not in OBJECTS
        assert str(loaded.graph) == str(module.graph)
        assert list(loaded.graph.edges) == list(module.graph.edges)
        assert [n for n, _ in loaded.named_parameters()] == [n for n, _ in module.named_parameters()]
        for seed in (2, 3):
            assert_same(evaluated(loaded, case, seed), evaluated(module, case, seed))
        if not case.options.get("vectorize_particles"):
            assert_same(dict(sorted(drawn(loaded, case).items())), dict(sorted(drawn_by_pyro(case).items())))


def drawn(loaded: sgc.LoadedLoss, case: Case) -> dict[str, Tensor]:
    pyro.set_rng_seed(4)
    return loaded.sample(*case.args, **case.kwargs)


def drawn_by_pyro(case: Case) -> dict[str, Tensor]:
    pyro.set_rng_seed(4)
    with torch.no_grad():
        trace = pyro.poutine.trace(case.guide).get_trace(*case.args, **case.kwargs)
    sites = {name: trace.nodes[name] for name in trace.stochastic_nodes}
    return {name: site["value"] for name, site in sites.items() if not isinstance(site["fn"], _Subsample)}


DATA = torch.tensor([0.4, -0.3, 1.2, 0.1])


def model(data: Tensor) -> None:
    loc = pyro.sample("loc", pyro.distributions.Normal(0.0, 1.0))
    with pyro.plate("data", len(data)):
        z = pyro.sample("z", pyro.distributions.Bernoulli(0.4))
        pyro.sample("x", pyro.distributions.Normal(loc + z, 1.0), obs=data)


def guide(data: Tensor) -> None:
    pyro.sample("loc", pyro.distributions.Normal(pyro.param("mean", torch.tensor(0.1)), 0.3))
    logits = pyro.param("logits", torch.zeros(4))
    with pyro.plate("data", len(data)):
        infer = {"baseline": {"use_decaying_avg_baseline": True}}
        pyro.sample("z", pyro.distributions.Bernoulli(logits=logits.expand(len(data))), infer=infer)


def trained(module: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = module(DATA)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


OPTIMIZERS: dict[str, Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]] = {
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.05),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9, nesterov=True),
    "AdamW of two groups": lambda parameters: torch.optim.AdamW(
        [{"params": [p], "lr": 0.01} for p in parameters], amsgrad=True
    ),
}


@pytest.mark.parametrize(
    "options", [{}, {"num_particles": 3}, {"num_particles": 6}, {"num_particles": 6, "validate": False}]
)
def test_training_goes_on_from_a_file_as_if_it_had_never_stopped(options: Any, tmp_path: Path) -> None:
    """What was saved goes on training, and what was loaded does so too, from the same random state."""
    module = sgc.compile(model, guide, backend="eager", **options).initialize(DATA)
    start = {name: value.clone() for name, value in module.state_dict().items()}
    for name, make in OPTIMIZERS.items():
        module.load_state_dict(start)
        pyro.set_rng_seed(5)
        optimizer = make(module.parameters())
        trained(module, optimizer, 5)
        between = torch.get_rng_state()
        sgc.save(module, tmp_path / "half.sgc", optimizer=optimizer)
        expected = trained(module, optimizer, 5)

        loaded = sgc.load(tmp_path / "half.sgc")
        another = make(loaded.parameters())
        assert loaded.optimizer_state is not None
        another.load_state_dict(loaded.optimizer_state)
        torch.set_rng_state(between)
        assert trained(loaded, another, 5) == expected, name
        assert_same(dict(loaded.state_dict()), dict(module.state_dict()), name)


@pytest.mark.parametrize("folder", ["missing", "missing/below", "file"])
def test_a_directory_that_is_not_there_is_named(folder: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    module = sgc.compile(lambda: None, lambda: None, backend="eager").initialize()
    with pytest.raises(FileNotFoundError, match="no such directory to save into") as caught:
        sgc.save(module, tmp_path / folder / "loss.sgc")
    assert caught.value.filename == str(tmp_path / folder)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_an_svi_is_saved_with_its_optimizer(backend: str, tmp_path: Path) -> None:
    """Whole steps as well as an optimizer in Python; who compiles a step is nothing to the file."""
    elbo = sgc.infer.TraceGraph_ELBO(backend=backend, rng="torch")
    svi = sgc.SVI(model, guide, lambda parameters: torch.optim.Adam(parameters, lr=0.05), elbo)
    with registered(UncompiledSteps()):
        for _ in range(5):
            svi.step(DATA)
        assert (svi.stepper.compiled.built > 0) is (backend == "inductor")
        sgc.save(svi, tmp_path / "half.sgc")
        loaded = sgc.load(tmp_path / "half.sgc")
        optimizer = torch.optim.Adam(loaded.parameters(), lr=0.7)
        optimizer.load_state_dict(loaded.optimizer_state or {})
        random = torch.get_rng_state()
        expected = [svi.step(DATA) for _ in range(5)]
    torch.set_rng_state(random)
    torch.testing.assert_close(trained(loaded, optimizer, 5), expected)


def test_what_was_loaded_and_trained_is_saved_again(tmp_path: Path) -> None:
    module = sgc.compile(model, guide, backend="eager").initialize(DATA)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    trained(module, optimizer, 2)
    sgc.save(module, tmp_path / "one.sgc", optimizer=optimizer)
    loaded = sgc.load(tmp_path / "one.sgc")
    trained(loaded, torch.optim.SGD(loaded.parameters(), lr=0.01), 3)
    sgc.save(loaded, tmp_path / "two.sgc")
    again = sgc.load(tmp_path / "two.sgc")
    assert again.optimizer_state is None
    assert (tmp_path / "two.sgc").stat().st_size < (tmp_path / "one.sgc").stat().st_size
    assert_same(dict(again.state_dict()), dict(loaded.state_dict()))
    case = Case(model, guide, (DATA,))
    assert_same(evaluated(again, case, 4), evaluated(loaded, case, 4))


def test_a_saved_loss_takes_over_values_of_the_loss_module_and_the_other_way_round(tmp_path: Path) -> None:
    module = sgc.compile(model, guide, backend="eager").initialize(DATA)
    sgc.save(module, tmp_path / "loss.sgc")
    loaded = sgc.load(tmp_path / "loss.sgc")
    trained(module, torch.optim.Adam(module.parameters(), lr=0.05), 3)
    loaded.load_state_dict(module.state_dict())
    assert_same(dict(loaded.state_dict()), dict(module.state_dict()))
    trained(loaded, torch.optim.Adam(loaded.parameters(), lr=0.05), 3)
    module.load_state_dict(loaded.state_dict())
    assert torch.equal(pyro.param("mean"), dict(loaded.named_parameters())["param_store.mean"])


def test_the_same_loss_gives_the_same_file_and_nothing_else_changes(tmp_path: Path) -> None:
    module = sgc.compile(model, guide, backend="eager").initialize(DATA)
    module(DATA)
    random, state = torch.get_rng_state(), {name: value.clone() for name, value in module.state_dict().items()}
    sgc.save(module, tmp_path / "one.sgc")
    sgc.save(module, tmp_path / "two.sgc")
    sgc.load(tmp_path / "one.sgc")
    assert torch.equal(torch.get_rng_state(), random)
    assert_same(dict(module.state_dict()), state)
    assert len(module.specializations) == 1 and not module.misses()
    assert (tmp_path / "one.sgc").read_bytes() == (tmp_path / "two.sgc").read_bytes()


def test_a_file_that_cannot_be_made_leaves_the_one_before(tmp_path: Path) -> None:
    module = sgc.compile(model, guide, backend="eager").initialize(DATA)
    sgc.save(module, tmp_path / "loss.sgc")
    before = (tmp_path / "loss.sgc").read_bytes()

    def opaque() -> None:
        pyro.sample("angle", pyro.distributions.VonMises(0.0, 1.0))

    with pytest.raises(SavedProgramError, match=OPAQUE) as caught:
        sgc.save(sgc.compile(opaque, opaque_guide, backend="eager").initialize(), tmp_path / "loss.sgc")
    assert caught.value.site == "angle" and "VonMises" in str(caught.value) and caught.value.source is not None
    assert (tmp_path / "loss.sgc").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["loss.sgc"]


def opaque_guide() -> None:
    pyro.sample("angle", pyro.distributions.VonMises(pyro.param("m", torch.tensor(0.0)), 1.0))
