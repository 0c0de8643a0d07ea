"""Tensors that are bound anew from call to call: two compilations, and Pyro's losses and gradients at each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.contrib.gp as gp
import pytest
import torch
from torch import Tensor, nn

import sgc
from tests.guards.test_moving_numbers import compare, guide, observe

CENTRES = torch.zeros(3)


class Kept:
    shared = torch.zeros(3)

    def __init__(self) -> None:
        self.own = torch.zeros(3)
        self.entries = [torch.zeros(3), {"a": torch.zeros(3), "b": "text"}]
        self.pair = (torch.zeros(3), 2.0)

    def model(self) -> None:
        listed: Any = self.entries
        observe(self.own + 2 * self.shared + 3 * listed[0] + 5 * listed[1]["a"] + self.pair[0] * self.pair[1])

    def model_of_globals(self) -> None:
        observe(CENTRES)


class Slotted:
    __slots__ = ("centres",)

    def __init__(self) -> None:
        self.centres = torch.zeros(3)

    def model(self) -> None:
        observe(self.centres)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.centres = torch.zeros(3)

    def model(self) -> None:
        observe(self.inner.centres)  # type: ignore[arg-type]


def places() -> Iterator[Any]:
    kept, network, slotted = Kept(), Network(), Slotted()

    def closing() -> tuple[Callable[[], None], Callable[[Tensor], None]]:
        held = torch.zeros(3)

        def model() -> None:
            observe(held)

        def change(t: Tensor) -> None:
            nonlocal held
            held = t

        return model, change

    yield "attribute", kept.model, lambda t: setattr(kept, "own", t)
    yield "of a class", kept.model, lambda t: setattr(Kept, "shared", t)
    yield "in a list", kept.model, lambda t: kept.entries.__setitem__(0, t)
    yield "in a dictionary", kept.model, lambda t: kept.entries[1].__setitem__("a", t)  # type: ignore[union-attr]
    yield "in a tuple", kept.model, lambda t: setattr(kept, "pair", (t, 2.0))
    yield "global", kept.model_of_globals, lambda t: globals().update(CENTRES=t)
    yield "slot", slotted.model, lambda t: setattr(slotted, "centres", t)
    yield "module", network.model, lambda t: setattr(network.inner, "centres", t)
    yield "closure", *closing()


@pytest.mark.parametrize(("model", "change"), [pytest.param(*rest, id=name) for name, *rest in places()])
def test_places_of_a_tensor(model: Callable[..., None], change: Callable[[Tensor], None]) -> None:
    module = sgc.compile(model, guide, backend="eager")
    try:
        for i in range(5):
            change(torch.full((3,), float(i)))
            compare(module, model)
            compare(module, model)
        assert len(module.specializations) <= 2, module.misses()
    finally:
        change(torch.zeros(3))


def test_what_a_tensor_guard_asks() -> None:
    kept = Kept()
    module = sgc.compile(kept.model, guide, backend="eager")
    known = [
        torch.ones(3),
        torch.full((3,), 2.0),
        torch.ones(1),
        torch.ones(3, dtype=torch.float64),
        torch.ones(6)[::2],
    ]
    for specializations, tensor in enumerate(known, 1):
        kept.own = tensor
        compare(module, kept.model)
        assert len(module.specializations) == specializations, module.misses()
    kept.own = torch.full((3,), 7.0)
    compare(module, kept.model)
    assert len(module.specializations) == len(known)


def test_a_tensor_that_is_found_in_two_places() -> None:
    kept = Kept()
    module = sgc.compile(kept.model, guide, backend="eager")
    for own, first in ((0, 0), (1, 1), (2, 2), (3, 4), (5, 6), (7, 7), (8, 9)):
        tensors = [torch.full((3,), float(number)) for number in range(10)]
        kept.own, kept.entries[0] = tensors[own], tensors[first]
        compare(module, kept.model)
    assert len(module.specializations) <= 4, module.misses()


def test_a_tensor_that_stays_in_one_place_and_moves_in_another() -> None:
    fixed = torch.ones(3)
    kept = Kept()

    def model() -> None:
        observe(kept.own - 2 * fixed)

    module = sgc.compile(model, guide, backend="eager")
    for number in (0.0, 3.0, 4.0):
        kept.own = torch.full((3,), number)
        compare(module, model)
    for _ in range(2):
        kept.own = fixed
        compare(module, model)
        kept.own = torch.full((3,), 5.0)
        compare(module, model)
    assert len(module.specializations) <= 4, module.misses()


def test_a_tensor_that_is_only_asked_for_its_shape() -> None:
    kept = Kept()

    def model() -> None:
        observe(float(kept.own.shape[0]))

    module = sgc.compile(model, guide, backend="eager")
    for shape in (3, 3, 3, 4, 4, 3):
        kept.own = torch.randn(shape)
        compare(module, model)
    assert len(module.specializations) <= 3, module.misses()


def test_a_moving_tensor_is_written_into() -> None:
    kept = Kept()

    def model() -> None:
        kept.own.add_(1.0)
        observe(kept.own)

    module = sgc.compile(model, guide, backend="eager")
    for i in range(4):
        kept.own = moved = torch.full((3,), float(i))
        pyro.set_rng_seed(0)
        module()
        assert torch.equal(moved, torch.full((3,), i + 1.0))
    assert len(module.specializations) == 2, module.misses()


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_steps_of_svi_with_a_tensor_that_moves(backend: Any) -> None:
    def losses(make: Callable[..., Any], elbo: Any) -> list[float]:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        kept = Kept()
        svi = make(kept.model, guide, pyro.optim.Adam({"lr": 0.05}), elbo)
        found = []
        for i in range(8):
            kept.own = torch.full((3,), 0.2 * (i // 2))
            found.append(svi.step())
        if isinstance(svi, sgc.SVI):
            assert len(svi.loss_module.specializations) == 2
        return found

    expected = losses(pyro.infer.SVI, pyro.infer.TraceGraph_ELBO())
    found = losses(sgc.SVI, sgc.infer.TraceGraph_ELBO(backend=backend))
    assert found == pytest.approx(expected, rel=1e-4)


def test_minibatches_of_a_gaussian_process() -> None:
    torch.manual_seed(0)
    inputs, outputs = torch.randn(5, 8, 1), torch.randn(5, 8)

    def losses(make: Callable[..., Any], elbo: Any) -> list[float]:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        kernel = gp.kernels.RBF(1)
        points = torch.linspace(-1, 1, 3).unsqueeze(-1)
        process = gp.models.VariationalSparseGP(
            inputs[0], outputs[0], kernel, points, gp.likelihoods.Gaussian(), num_data=40
        )
        svi = make(process.model, process.guide, pyro.optim.Adam({"lr": 0.01}), elbo)
        found = []
        for x, y in zip(inputs, outputs, strict=True):
            process.set_data(x, y)
            found.append(svi.step())
        if isinstance(svi, sgc.SVI):
            assert len(svi.loss_module.specializations) == 2, svi.loss_module.misses()
        return found

    expected = losses(pyro.infer.SVI, pyro.infer.TraceGraph_ELBO())
    assert losses(sgc.SVI, sgc.infer.TraceGraph_ELBO(backend="eager")) == pytest.approx(expected, rel=1e-4)
