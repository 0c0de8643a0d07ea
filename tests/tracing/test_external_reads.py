"""What a program asks of the world is refused with its line, or guarded: clocks, iterators, files, variables."""

from __future__ import annotations

import contextvars
import cProfile
import datetime
import functools
import itertools
import os
import random
import secrets
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import sgc
from sgc.errors import CaptureError
from tests.programs import model_reading
from tests.programs import switch_guide as guide

DATA = torch.tensor(0.3)


def model_of(read: Callable[[], Any]) -> Callable[[], None]:
    return model_reading(lambda: 0.1 * float(read()))


def refused(read: Callable[[], Any]) -> CaptureError:
    module = sgc.compile(model_of(read), guide, backend="eager")
    with pytest.raises(CaptureError) as caught:
        module()
    assert not module.specializations and "remedy" in str(caught.value)
    return caught.value


CLOCKS: list[Callable[[], Any]] = [
    lambda: int(time.time()) // 10**8,
    lambda: time.time_ns() // 10**17,
    lambda: perf_counter() * 0,
    lambda: datetime.datetime.now().year,
    lambda: datetime.date.today().year,
    lambda: datetime.datetime.now(datetime.UTC).year,
    lambda: time.localtime().tm_year,
    lambda: uuid.uuid1().version,
    lambda: uuid.uuid4().version,
    lambda: len(os.urandom(3)),
    lambda: len(secrets.token_bytes(3)),
    lambda: secrets.randbits(3) * 0,
    lambda: random.SystemRandom().getrandbits(3) * 0,
    lambda: random.SystemRandom().random() * 0,
]


@pytest.mark.parametrize("read", CLOCKS, ids=map(str, range(len(CLOCKS))))
def test_clocks_and_the_systems_random_bytes_are_refused_whatever_they_give(read: Callable[[], Any]) -> None:
    assert read.__code__.co_firstlineno == refused(read).source.line  # type: ignore[union-attr]


def test_numpys_generators_that_ask_the_system_for_a_seed_are_named() -> None:
    for make in (np.random.RandomState, np.random.default_rng):
        assert "without a seed, numpy.random.RandomState" in str(refused(lambda make=make: make().random()))


def test_a_clock_is_refused_under_a_profiler_that_goes_on() -> None:
    profiler = cProfile.Profile()
    profiler.enable()
    try:
        refused(time.time)
        len("seen")
    finally:
        profiler.disable()
    assert any("len" in str(entry.code) for entry in profiler.getstats())
    assert sys.getprofile() is None


def constant() -> Iterator[float]:
    for _ in range(9):
        yield 0.5


def by_next(items: Iterator[float]) -> float:
    return next(items)


def by_for(items: Iterator[float]) -> float:
    for item in items:
        return item
    raise AssertionError


def by_method(items: Any) -> float:
    return float(items.__next__())


ITERATORS: list[tuple[str, Callable[[], Any]]] = [
    ("a generator that repeats itself", constant),
    ("repeat", lambda: itertools.repeat(0.5, 9)),
    ("a list's iterator", lambda: iter([0.5] * 9)),
    ("map", lambda: map(float, [0.5] * 9)),
    ("zip", lambda: (pair[0] for pair in zip([0.5] * 9, range(9), strict=True))),
    ("chain", lambda: itertools.chain([0.5] * 5, [0.5] * 5)),
]


@pytest.mark.parametrize("make", [row[1] for row in ITERATORS], ids=[row[0] for row in ITERATORS])
@pytest.mark.parametrize("take", [by_next, by_for, by_method])
def test_an_iterator_that_goes_on_is_refused_though_its_items_are_equal(
    make: Callable[[], Any], take: Callable[[Any], float]
) -> None:
    assert "item" in str(refused(functools.partial(take, make())))


def test_next_is_refused_with_its_line_and_taken_no_further() -> None:
    items = iter([0.5] * 9)

    def read() -> float:
        return next(items)

    error = refused(read)
    assert error.source is not None and error.source.text == "return next(items)"
    assert len(list(items)) == 8  # the eager run before the capture has taken one


def test_a_batch_of_a_data_loader_is_refused() -> None:
    batches = iter(torch.utils.data.DataLoader(torch.full((9,), 0.5), batch_size=1))  # type: ignore[arg-type]
    refused(lambda: by_for(batches))


def test_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "rate"
    file.write_text("0.5\n" * 9)
    assert str(file) in str(refused(lambda: file.read_text().split()[0]))
    refused(lambda: by_for(iter(file.open())))
    with file.open() as opened:
        refused(opened.readline)
    with file.open() as opened:
        assert "items" in str(refused(lambda: opened.readline()))


def test_what_a_program_writes_is_no_input(tmp_path: Path) -> None:
    log = (tmp_path / "log").open("a")

    def read() -> float:
        with (tmp_path / "other").open("a") as other:
            other.write("x")
        log.write("a run\n")
        return 0.5

    with log:
        assert sgc.compile(model_of(read), guide, backend="eager").initialize().specializations


def test_a_file_that_is_read_at_first_is_none_later(tmp_path: Path) -> None:
    file = tmp_path / "rate"
    file.write_text("0.5")

    @functools.cache
    def read() -> float:
        return float(file.read_text())

    assert sgc.compile(model_of(read), guide, backend="eager").initialize().specializations


# -- what is guarded

LEVEL = contextvars.ContextVar("LEVEL", default=1.0)


def losses(module: sgc.LossModule, model: Callable[[], None]) -> tuple[float, float]:
    pyro.set_rng_seed(3)
    ours = module().item()
    pyro.set_rng_seed(3)
    return ours, pyro.infer.TraceGraph_ELBO().loss(model, guide)


def of_variables() -> tuple[Callable[[], Any], Callable[[], Any]]:
    prefix = "SGC_TEST"
    return lambda: os.environ.get(f"{prefix}_RATE", 1.0), lambda: os.environ.update({f"{prefix}_RATE": "2.0"})


def of_contexts() -> tuple[Callable[[], Any], Callable[[], Any]]:
    return LEVEL.get, lambda: LEVEL.set(LEVEL.get() + 1.0)


def of_an_attribute_of_a_context() -> tuple[Callable[[], Any], Callable[[], Any]]:
    held = {"level": LEVEL}
    return lambda: held["level"].get(3.0), lambda: LEVEL.set(LEVEL.get() + 1.0)


def of_an_optimizer() -> tuple[Callable[[], Any], Callable[[], Any]]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    return lambda: optimizer.param_groups[0]["lr"], lambda: optimizer.param_groups[0].update(lr=2.0)


def of_a_scheduler() -> tuple[Callable[[], Any], Callable[[], Any]]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    optimizer.step()
    return lambda: scheduler.get_last_lr()[0], scheduler.step


def of_a_mode() -> tuple[Callable[[], Any], Callable[[], Any]]:
    net = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
    return lambda: 1.0 if net[1].training else 2.0, net.eval


def of_a_rate() -> tuple[Callable[[], Any], Callable[[], Any]]:
    net = nn.Dropout(0.25)
    return lambda: net.p, lambda: setattr(net, "p", 0.5)


def of_a_thread() -> tuple[Callable[[], Any], Callable[[], Any]]:
    local = threading.local()
    local.rate = 1.0
    return lambda: local.rate, lambda: setattr(local, "rate", 2.0)


@pytest.mark.parametrize(
    "case",
    [
        of_variables,
        of_contexts,
        of_an_attribute_of_a_context,
        of_an_optimizer,
        of_a_scheduler,
        of_a_mode,
        of_a_rate,
        of_a_thread,
    ],
)
def test_a_change_is_seen(case: Callable[[], tuple[Callable[[], Any], Callable[[], Any]]]) -> None:
    read, change = case()
    model = model_of(read)
    module = sgc.compile(model, guide, backend="eager")
    ours, before = losses(module, model)
    assert ours == pytest.approx(before, rel=1e-6) and losses(module, model)[0] == ours
    assert len(module.specializations) == 1
    change()
    ours, after = losses(module, model)
    assert ours == pytest.approx(after, rel=1e-6) != pytest.approx(before)


def test_a_training_loop_that_sets_the_rate_compiles_once() -> None:
    """The rate is looked at by the loop, and by nothing that model and guide run."""

    class Trainer:
        def __init__(self) -> None:
            self.module = sgc.compile(self.model, guide, backend="eager").initialize()
            self.optimizer = torch.optim.SGD(self.module.parameters(), lr=0.1)

        def model(self) -> None:
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Bernoulli(0.5)), 1.0), obs=DATA)

        def step(self, rate: float) -> None:
            self.optimizer.param_groups[0]["lr"] = rate
            self.optimizer.zero_grad()
            self.module().backward()
            self.optimizer.step()

    trainer = Trainer()
    for rate in (0.1, 0.05, 0.02):
        trainer.step(rate)
    assert len(trainer.module.specializations) <= 2  # the optimizer is a new attribute of the model's object
