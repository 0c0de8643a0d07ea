"""Several threads with loss modules, one for each or one for all, and threads that do something else meanwhile."""

from __future__ import annotations

import copy
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import sgc
from sgc.errors import CaptureError
from sgc.runtime.turns import Token, capturing

X = torch.tensor([0.3, -0.2])
BACKENDS = ["eager", pytest.param("inductor", marks=pytest.mark.inductor)]


def program(number: int) -> tuple[Callable[[Tensor], None], Callable[[Tensor], None]]:
    def model(x: Tensor) -> None:
        with pyro.plate(f"plate {number}", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z + number, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        q = pyro.param(f"q{number}", torch.tensor(0.3))
        with pyro.plate(f"plate {number}", len(x)):
            pyro.sample(
                "z", dist.Bernoulli(logits=q.expand(len(x))), infer={"baseline": {"use_decaying_avg_baseline": True}}
            )

    return model, guide


def at_once(functions: Sequence[Callable[[], Any]]) -> None:
    """Each in a thread of its own; the first error is raised here."""
    errors: list[BaseException] = []

    def run(function: Callable[[], Any]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]


def make_svi(number: int, backend: Any) -> sgc.SVI:
    elbo = sgc.infer.TraceGraph_ELBO(backend=backend, rng="torch")
    return sgc.SVI(*program(number), lambda parameters: torch.optim.Adam(parameters, lr=0.02), elbo)


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_trains_its_own(backend: str) -> None:
    svis = [make_svi(number, backend) for number in range(3)]

    def train(svi: sgc.SVI) -> None:
        for _ in range(5):
            svi.step(X)
        svi.run(20, X)
        svi.run([X] * 5, epochs=2)
        svi.evaluate_loss(X)
        assert svi.loss_module.verify(X)  # under one seed, while others draw from torch's generator

    at_once([lambda svi=svi: train(svi) for svi in svis])  # type: ignore[misc]
    for number, svi in enumerate(svis):
        (parameter,) = svi.stepper.optimizing.optimizer.state
        assert svi.stepper.optimizing.optimizer.state[parameter]["step"] == 35
        assert [name for name, _ in svi.loss_module.named_parameters()] == [f"param_store.q{number}"]
    assert make_svi(7, backend).loss_module.verify(X)  # the process is as it was


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_train_one(backend: str) -> None:
    svi = make_svi(0, backend)
    ways: list[Callable[[], Any]] = [
        lambda: [svi.step(X) for _ in range(50)],
        lambda: svi.run(50, X),
        lambda: [svi.step(X[:1]) for _ in range(9)],
    ]
    at_once(ways)
    (state,) = svi.stepper.optimizing.optimizer.state.values()
    assert state["step"] == 109


def test_all_initialize_one_and_differentiate_it() -> None:
    module = sgc.compile(*program(0), backend="eager")
    at_once([lambda: module.initialize(X)] * 3)
    assert len(module.specializations) == 1
    at_once([lambda: [module(X).backward() for _ in range(20)]] * 3)
    assert len(module.specializations) == 1
    assert module.param_store.q0.grad is not None


def test_copies_in_threads_have_their_own_parameters() -> None:
    module = sgc.compile(*program(0), backend="eager").initialize(X)
    copies = [copy.deepcopy(module) for _ in range(3)]

    def train(one: sgc.LossModule, steps: int) -> None:
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
        for _ in range(steps):
            optimizer.zero_grad()
            one(X).backward()
            optimizer.step()

    at_once([lambda one=one: train(one, 10) for one in (module, *copies)])  # type: ignore[misc]
    kept = [one.param_store.q0 for one in (module, *copies)]
    assert len({tensor.data_ptr() for tensor in kept}) == 4
    assert all(not torch.equal(tensor, torch.tensor(0.3)) for tensor in kept)
    assert pyro.get_param_store()._params["q0"] is kept[0]


class Meanwhile:
    """A thread that goes on doing something, until the end of the block."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.errors: list[BaseException] = []
        self._function, self._ended = function, False
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._ended and not self.errors:
            try:
                self._function()
            except BaseException as error:
                self.errors.append(error)
            time.sleep(0.005)

    def __enter__(self) -> Meanwhile:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._thread.join(60)
        assert not self.errors, self.errors[0]


def test_other_threads_use_torch_while_one_captures() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    normal = torch.distributions.Normal

    def use() -> None:
        normal(torch.zeros(3), torch.ones(3)).log_prob(torch.randn(3))
        network(torch.randn(4, 3)).sum().backward()
        torch.empty(0).set_(torch.ones(2))
        torch.manual_seed(0)
        nn.Linear(1, 1).requires_grad_(False).double()

    statistics = network[1].num_batches_tracked
    with Meanwhile(use):
        for number in range(3):
            module = sgc.compile(*program(number), backend="eager")
            try:
                module(X).backward()
            except CaptureError as error:  # the thread may have drawn in each attempt
                raise AssertionError("another thread's draws were taken for the program's") from error
            assert not module.networks  # those of the other thread are no part of the program
    assert statistics > 0


class Tripled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 3 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 3 * gradient


def _dirichlet(x: Tensor) -> Tensor:
    return torch.distributions.Dirichlet(x.expand(2)).rsample()


@pytest.mark.parametrize(
    "use",
    [lambda x: Tripled.apply(x), _dirichlet, lambda x: torch.normal(x, 1.0) + x],
    ids=["a function of its own", "one of torch's", "a draw"],
)
def test_what_another_thread_computes_in_the_midst_of_a_capture_is_not_recorded(use: Callable[[Tensor], Any]) -> None:
    begun, used = threading.Event(), threading.Event()
    model, guide = program(0)

    def waiting(x: Tensor) -> None:
        model(x)
        if x.__class__ is not Tensor:  # as in a capture
            begun.set()
            assert used.wait(60)

    def use_meanwhile() -> None:
        assert begun.wait(60)
        try:
            use(torch.tensor(2.0, requires_grad=True)).sum().backward()
        finally:
            used.set()

    module = sgc.compile(waiting, guide, backend="eager")
    at_once([lambda: module.initialize(X), use_meanwhile])
    alone = sgc.compile(model, guide, backend="eager").initialize(X)
    assert module.code == alone.code


@pytest.mark.parametrize(
    "draw",
    [lambda: torch.manual_seed(1), lambda: torch.default_generator.manual_seed(1), random.random],
    ids=["torch", "torch's generator", "random"],
)
def test_a_program_that_draws_is_refused_also_where_other_threads_draw(draw: Callable[[], Any]) -> None:
    model, guide = program(0)

    def drawing(x: Tensor) -> None:
        draw()
        model(x)

    with Meanwhile(lambda: torch.randn(3)), pytest.raises(CaptureError, match="draws from random|random generator"):
        sgc.compile(drawing, guide, backend="eager")(X)


@pytest.mark.inductor
def test_a_capture_waits_for_the_steps_that_are_one_call() -> None:
    """Their draws and its own, from one seed, do not mix: what a comparison finds is the same each time."""
    trained, other = make_svi(0, "inductor"), sgc.compile(*program(1), backend="eager").initialize(X)
    for _ in range(4):
        trained.step(X)
    ended = threading.Event()

    def train() -> None:
        while not ended.is_set():
            trained.step(X)

    def look() -> None:
        try:
            for _ in range(20):
                with capturing():
                    assert trained.stepper.token.held, "a step is on its way"
                    before = trained.stepper.optimizing.optimizer.state  # type: ignore[attr-defined]
                    count = [entry["step"].item() for entry in before.values()]
                    time.sleep(0.002)
                    assert count == [entry["step"].item() for entry in before.values()], "a step was taken"
            assert other.verify(X)
        finally:
            ended.set()

    at_once([train, look])


def test_a_capture_within_a_turn_waits_for_nothing() -> None:
    """It is the same thread that holds the token."""
    token = Token()

    def capture() -> None:
        with token.turn(), capturing(), capturing():
            assert token.held == []

    at_once([capture] * 3)
    assert token.held == [None]


def test_a_capture_waits_for_a_step_of_another_thread() -> None:
    token, order = Token(), []
    token.held.pop()  # as C++ does

    def end() -> None:
        time.sleep(0.05)
        order.append("the step ends")
        token.held.append(None)

    def capture() -> None:
        with capturing():
            order.append("the capture begins")

    at_once([end, capture])
    assert order == ["the step ends", "the capture begins"]


def test_a_token_is_held_by_one() -> None:
    token, inside, most = Token(), [0], [0]

    def work() -> None:
        for _ in range(20):
            with token.turn():
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.0005)
                inside[0] -= 1

    at_once([work] * 4)
    assert most == [1] and token.held == [None]
    with pytest.raises(ZeroDivisionError), token.turn():
        assert token.held == []
        _ = 1 / 0
    assert token.held == [None]
