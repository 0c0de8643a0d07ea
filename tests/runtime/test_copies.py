"""Copies and pickles of a loss module: they compute the same, compile for themselves, and share no tensor."""

from __future__ import annotations

import copy
import functools
import gc
import os
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints
from torch.optim.swa_utils import AveragedModel

import sgc
import sgc.infer
from sgc.errors import CopyError

X = torch.tensor([0.1, 0.9, -0.4])


class Model(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = PyroModule[nn.Linear](1, 1)

    def forward(self, x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.net(x[:, None])[:, 0] * z, 1.0), obs=x)


class Guide(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.loc = PyroParam(torch.tensor(0.3))

    def forward(self, x: Tensor) -> None:
        pyro.sample("z", dist.Normal(self.loc, 1.0))


def guide(x: Tensor) -> None:
    """One whose parameter is in Pyro's store."""
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 1.0))


def pickled(module: Any) -> Any:
    return pickle.loads(pickle.dumps(module))


def loss_of(module: Any) -> float:
    pyro.set_rng_seed(3)
    loss: Tensor = module(X)
    loss.backward()
    return loss.item()


@pytest.mark.parametrize("called", [True, False])
@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, copy.copy])
@pytest.mark.parametrize(
    "make",
    [
        lambda model, guide: sgc.compile(model, guide, backend="eager"),
        lambda model, guide: sgc.infer.TraceGraph_ELBO(backend="eager")(model, guide),
    ],
)
def test_a_copy(make: Callable[..., Any], copied: Callable[[Any], Any], called: bool) -> None:
    module = make(Model(), Guide())
    loss = loss_of(module) if called else None
    other = copied(module)
    assert other.specializations == ()
    assert list(other.state_dict()) == list(module.state_dict())
    assert loss_of(other) == (loss if called else loss_of(module))
    shared = copied is copy.copy
    assert (other.model.net.weight is module.model.net.weight) == shared
    if not shared:
        with torch.no_grad():
            other.model.net.weight.add_(1.0)
        assert loss_of(other) != loss_of(module)
        assert loss_of(module) == (loss if called else loss_of(module))


def store_model(x: Tensor) -> None:
    z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample("x", dist.Normal(z, 1.0).expand(x.shape).to_event(1), obs=x)


def store_guide(x: Tensor) -> None:
    q = pyro.param("q", torch.tensor(0.3), constraint=constraints.unit_interval)
    pyro.sample("z", dist.Bernoulli(q), infer={"baseline": {"use_decaying_avg_baseline": True}})


def in_store(backend: Any = "eager") -> sgc.LossModule:
    """A program whose parameter and average are in Pyro's store."""
    return sgc.compile(store_model, store_guide, backend=backend).initialize(X)


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def train(module: nn.Module, steps: int = 3) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        module(X).backward()
        optimizer.step()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.inductor)])
def test_a_deep_copy_keeps_its_values(backend: str) -> None:
    module = in_store(backend)
    train(module)
    best, kept = copy.deepcopy(module), tensors(module)
    assert same(tensors(best), kept)  # before it is called
    assert best.specializations == ()
    train(module)
    assert not same(tensors(module), kept)
    with torch.no_grad():
        assert best(X).isfinite()
    assert same(tensors(best), kept)
    trained, in_pyro = tensors(module), pyro.param("q").item()
    train(best)
    assert not same(tensors(best), kept)
    assert same(tensors(module), trained)
    assert pyro.param("q").item() == in_pyro
    with best.param_store_scope():
        assert pyro.param("q").item() != in_pyro
    assert pyro.param("q").item() == in_pyro
    assert best.verify(X)


def test_a_copy_trains_as_the_original() -> None:
    module = in_store()
    train(module)
    other = copy.deepcopy(module)
    pyro.set_rng_seed(7)
    train(module)
    pyro.set_rng_seed(7)
    train(other)
    assert same(tensors(module), tensors(other))


def test_a_copy_of_what_has_not_been_called_has_its_own_parameters() -> None:
    module = sgc.compile(store_model, store_guide, backend="eager")
    other = copy.deepcopy(module)
    train(module.initialize(X))
    other.initialize(X)
    assert pyro.param("q").item() != pytest.approx(0.3)
    assert other.param_store.q.sigmoid().item() == pytest.approx(0.3)


def test_loss_modules_that_are_copied_together_go_on_sharing() -> None:
    one, other = in_store(), sgc.compile(store_model, store_guide, backend="eager", num_particles=2).initialize(X)
    copied = copy.deepcopy(nn.ModuleList([one, other]))
    train(copied[0])
    assert same(tensors(copied[0]), tensors(copied[1]))
    assert not same(tensors(one), tensors(copied[0]))


@pytest.mark.parametrize("use_buffers", [False, True])
def test_an_averaged_model(use_buffers: bool) -> None:
    module = in_store()
    average = AveragedModel(module, avg_fn=lambda old, new, _: (old + new) / 2, use_buffers=use_buffers)
    values = []
    for _ in range(3):
        train(module, 1)
        average.update_parameters(module)
        values.append(module.param_store.q.item())
    expected = ((values[0] + values[1]) / 2 + values[2]) / 2
    assert average.module.param_store.q.item() == pytest.approx(expected, rel=1e-5)
    assert average(X).isfinite()
    assert average.module.param_store.q.item() == pytest.approx(expected, rel=1e-5)
    assert module.param_store.q.item() == values[2]


class Autoencoder(nn.Module):
    """Model and guide are its methods; its networks are registered in Pyro's store."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Linear(1, 3)

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(1))
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_methods_of_a_module_with_networks_in_the_store(copied: Callable[[Any], Any]) -> None:
    autoencoder = Autoencoder()
    module = sgc.compile(autoencoder.model, autoencoder.guide, backend="eager").initialize(X)
    train(module)
    other, kept = copied(module), tensors(module)
    assert same(tensors(other), kept) and "networks.decoder.weight" in kept
    train(module)
    other(X)
    assert same(tensors(other), kept)
    assert len([*other.parameters()]) == len([*module.parameters()])
    train(other)
    assert not same(tensors(other), kept)
    assert torch.equal(module.networks["decoder"].weight, autoencoder.decoder.weight)
    with other.param_store_scope():
        stored = pyro.get_param_store()._params["decoder$$$weight"]
    assert stored is other.networks["decoder"].weight


def with_weight(weight: Tensor, x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z * weight, 1.0).expand(x.shape).to_event(1), obs=x)


def plain_guide(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 1.0))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_tensor_in_a_partial_is_copied(copied: Callable[[Any], Any]) -> None:
    weight = torch.tensor(0.5, requires_grad=True)
    module = sgc.compile(functools.partial(with_weight, weight), plain_guide, backend="eager").initialize(X)
    other, kept = copied(module), tensors(module)
    train(module)
    other(X)
    assert same(tensors(other), kept) and len(kept) == 2
    assert weight.item() != 0.5


NETWORK = nn.Linear(1, 1)
FROZEN = nn.Linear(1, 1).requires_grad_(False)


def model_of_global(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(NETWORK(x[:, None])[:, 0] * z, 1.0).to_event(1), obs=x)


def model_of_frozen(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(FROZEN(x[:, None])[:, 0] * z, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_network_that_a_function_keeps(copied: Callable[[Any], Any]) -> None:
    module = sgc.compile(model_of_global, plain_guide, backend="eager").initialize(X)
    with pytest.raises(CopyError, match="the Linear 'linear' cannot be (copied|pickled).*global 'NETWORK'") as caught:
        copied(module)
    assert caught.value.source is not None and caught.value.source.text == "def model_of_global(x: Tensor) -> None:"
    assert "methods of an object that holds it" in caught.value.remedy
    copied(sgc.compile(model_of_frozen, plain_guide, backend="eager").initialize(X))


def test_a_tensor_that_a_function_closes_over() -> None:
    weight = torch.tensor(0.5, requires_grad=True)
    module = sgc.compile(lambda x: with_weight(weight, x), plain_guide, backend="eager").initialize(X)
    with pytest.raises(CopyError, match="the trained tensor 'closed_over_.*the variable 'weight'"):
        copy.deepcopy(module)


def test_a_pickle_beside_the_original_has_its_own_values() -> None:
    module = in_store()
    train(module)
    other, kept = pickled(module), tensors(module)
    assert same(tensors(other), kept)
    train(module)
    with torch.no_grad():
        other(X)
    assert same(tensors(other), kept)
    assert pyro.get_param_store()._params["q"] is module.param_store.q


def test_a_pickle_fills_a_store_without_its_names() -> None:
    module = in_store()
    train(module)
    stored, kept = pickle.dumps(module), tensors(module)
    pyro.clear_param_store()
    other = pickle.loads(stored)
    assert same(tensors(other), kept)
    assert pyro.get_param_store()._params["q"] is other.param_store.q
    assert pyro.param("q").item() == kept["param_store.q"].sigmoid().item()
    train(other)
    assert pyro.get_param_store()._params["q"] is other.param_store.q


LOADING = """
import sys, pyro, torch
module = torch.load(sys.argv[1], weights_only=False)
pyro.set_rng_seed(3)
print(pyro.get_param_store()["q"].item(), module(torch.tensor([0.1, 0.9, -0.4])).item(), len(list(module.parameters())))
"""


def test_another_process_loads_what_was_trained(tmp_path: Path) -> None:
    module = in_store()
    train(module)
    torch.save(module, tmp_path / "module.pt")
    here, root = Path(__file__).parent, Path(sgc.__file__).parents[1]
    command = [sys.executable, "-c", LOADING, str(tmp_path / "module.pt")]
    environment = {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{root}"}
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    q, loss, parameters = map(float, out.stdout.split())
    pyro.set_rng_seed(3)
    assert q == pytest.approx(pyro.param("q").item(), rel=1e-6)
    assert loss == pytest.approx(module(X).item(), rel=1e-5)
    assert parameters == 1


def branching(x: Tensor) -> None:
    z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample("x", dist.Normal(z, 1.0).expand(x.shape).to_event(1), obs=x)
    if z:
        pyro.sample("shift", dist.Bernoulli(0.5))


def branching_guide(x: Tensor) -> None:
    if pyro.sample("z", dist.Bernoulli(0.1)):
        q = pyro.param("q", torch.tensor(0.3), constraint=constraints.unit_interval)
        pyro.sample("shift", dist.Bernoulli(q), infer={"baseline": {"use_decaying_avg_baseline": True}})


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_what_only_a_branch_has_that_was_not_captured_is_copied(copied: Callable[[Any], Any]) -> None:
    pyro.set_rng_seed(0)
    module = sgc.compile(branching, branching_guide, backend="eager", dynamic="speculate").initialize(X)
    assert not dict(module.named_parameters())
    while not dict(module.named_parameters()):
        module(X)
    with torch.no_grad():
        module.param_store.q.fill_(2.0)
    kept = tensors(module)
    assert kept["baselines.shift"] != 0.0
    other = copied(module)
    assert same(tensors(other), kept)
    with other.param_store_scope():
        assert pyro.param("q").item() == pytest.approx(torch.tensor(2.0).sigmoid().item())


def test_state_dicts_of_copies() -> None:
    module = in_store()
    train(module)
    other = copy.deepcopy(module)
    train(module)
    other.load_state_dict(module.state_dict())
    other(X)
    assert other.param_store.q.item() == module.param_store.q.item()


@pytest.mark.parametrize(
    "make", [lambda: pyro.optim.Adam({"lr": 0.1}), lambda: torch.optim.Adam], ids=["Pyro", "torch"]
)
@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_an_svi_has_its_own_parameters(copied: Callable[[Any], Any], make: Callable[[], Any]) -> None:
    elbo = sgc.infer.TraceGraph_ELBO(backend="eager")
    svi = sgc.SVI(store_model, store_guide, make(), elbo)
    for _ in range(3):
        svi.step(X)
    other, kept = copied(svi), tensors(svi.loss_module)
    assert same(tensors(other.loss_module), kept)
    pyro.set_rng_seed(4)
    losses = [svi.step(X) for _ in range(3)]
    assert same(tensors(other.loss_module), kept)
    pyro.set_rng_seed(4)
    theirs = [other.step(X) for _ in range(3)]
    if not isinstance(svi.optim, type):  # a class makes a new optimizer
        assert theirs == losses
        assert same(tensors(other.loss_module), tensors(svi.loss_module))
    else:
        assert theirs[0] == losses[0]
    assert pyro.get_param_store()._params["q"] is svi.loss_module.param_store.q


@pytest.mark.parametrize(
    "make", [lambda: pyro.optim.Adam({"lr": 0.1}), lambda: torch.optim.Adam], ids=["Pyro", "torch"]
)
@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_an_svi_goes_on_from_a_checkpoint_of_its_own(copied: Callable[[Any], Any], make: Callable[[], Any]) -> None:
    svi = sgc.SVI(store_model, store_guide, make(), sgc.infer.TraceGraph_ELBO(backend="eager"))
    svi.run(3, X)
    other = copied(svi)
    other.run(2, X)
    kept, state = tensors(svi.loss_module), other.state_dict()
    assert ("states" not in state["optimizer"]) or state["optimizer"]["states"].keys() == {"q"}
    losses = other.run(4, X).losses
    final = tensors(other.loss_module)
    other.run(2, X)
    other.load_state_dict(state)
    assert torch.equal(other.run(4, X).losses, losses)
    assert same(tensors(other.loss_module), final)
    assert same(tensors(svi.loss_module), kept)
    svi.load_state_dict(state)
    assert torch.equal(svi.run(4, X).losses, losses)


def test_after_the_scope_of_a_copy_nothing_keeps_what_pyros_store_lets_go_of() -> None:
    module = in_store()
    with copy.deepcopy(module).param_store_scope():
        pass
    kept = weakref.ref(pyro.get_param_store()._params["q"])
    del module
    pyro.clear_param_store()
    gc.collect()
    assert kept() is None


def test_in_the_scope_of_a_copy_others_keep_their_parameters() -> None:
    module = in_store()
    one, other = copy.deepcopy(module), copy.deepcopy(module)
    train(one, 2)
    train(other, 4)
    modules = (module, one, other)
    losses, kept = [loss_of(each) for each in modules], [each.param_store.q.item() for each in modules]
    with one.param_store_scope():
        assert [loss_of(each) for each in modules] == losses
        fresh = sgc.compile(store_model, store_guide, backend="eager", num_particles=2).initialize(X)
        with other.param_store_scope(), module.param_store_scope():
            assert torch.equal(pyro.param("q").unconstrained(), module.param_store.q)  # type: ignore[attr-defined]
            assert [loss_of(each) for each in modules] == losses
        assert torch.equal(pyro.param("q").unconstrained(), one.param_store.q)  # type: ignore[attr-defined]
        train(module, 1)
        pyro.clear_param_store()
    assert fresh.param_store.q is module.param_store.q
    assert module.param_store.q.item() != kept[0]
    assert other.param_store.q.item() == kept[2]
    assert one.initialize(X).param_store.q.sigmoid().item() == pytest.approx(0.3)  # it was cleared
    assert pyro.get_param_store()._params["q"] is module.param_store.q


def test_module_hooks_and_modes_are_copied() -> None:
    module = in_store()
    called: list[int] = []
    module.register_forward_hook(lambda *_: called.append(1))
    other = copy.deepcopy(module.eval())
    assert not other.training
    other(X)
    assert called == [1]
