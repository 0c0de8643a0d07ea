"""What a run shows of itself: a bar on a terminal, ten lines elsewhere, and an ELBO that minibatches do not move."""

from __future__ import annotations

import io
import math
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from sgc.training import loop, progress
from tests.training.programs import DATA, GAUSSIAN, fresh


def still(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.0)


def rows(data: Tensor) -> None:
    """Without a latent site: the loss says how many rows there are."""
    with pyro.plate("rows", len(data)):
        pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), obs=data)


def subsampled(data: Tensor) -> None:
    """Minibatches of 100 data."""
    with pyro.plate("rows", 100, subsample=data.new_tensor(range(len(data))).long()):
        pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), obs=data)
    pyro.factor("of the parameter", -(pyro.param("loc", torch.tensor(0.0)) ** 2))


def nothing(data: Tensor) -> None:
    pass


LOSS = 0.5 * math.log(2 * math.pi)  # of one zero
RAGGED = [torch.zeros(8), torch.zeros(8), torch.zeros(3)]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every running ELBO, after each step."""
    found: list[str] = []

    class Telling(progress.Lines):
        def show(self, taken: int, elbo: Callable[[], str]) -> None:
            found.append(elbo())

    monkeypatch.setattr(progress, "Lines", Telling)
    return found


@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("sized", [True, False])
def test_the_elbo_of_an_epoch_does_not_jump(sized: bool, backend: str, told: list[str], uncompiled: None) -> None:
    class Unsized:
        def __iter__(self) -> Iterator[Tensor]:
            return iter(RAGGED)

    svi = fresh(still, program=(rows, nothing), backend=backend)
    svi.run(RAGGED if sized else Unsized(), epochs=4, progress_bar=True)
    numbers = [float(text.removeprefix("ELBO ")) for text in told]
    assert len(numbers) == 12
    mean = -LOSS * 19 / 3
    assert (
        numbers[2 if sized else 3 :] == pytest.approx([mean] * len(numbers[2 if sized else 3 :]), rel=1e-3) or not sized
    )
    assert numbers[4:] == pytest.approx([mean] * 8, rel=1e-3)


def test_where_a_plate_says_how_many_data_there_are_it_is_of_one(told: list[str], uncompiled: None) -> None:
    fresh(still, program=(subsampled, nothing)).run(RAGGED, epochs=3, progress_bar=True)
    assert told == [f"ELBO {-LOSS:.4g} per datum"] * 9


def test_plates_that_say_different_sizes_say_none(told: list[str], uncompiled: None) -> None:
    def two(data: Tensor) -> None:
        subsampled(data)
        with pyro.plate("others", 50, subsample_size=5):
            pyro.sample("y", dist.Normal(0.0, 1.0).expand([5]), obs=torch.zeros(5))

    fresh(still, program=(two, nothing)).run(RAGGED, progress_bar=True)
    assert all("per datum" not in text and text.startswith("ELBO -") for text in told)


def test_nested_plates_have_the_product_of_their_sizes(told: list[str], uncompiled: None) -> None:
    def nested(data: Tensor) -> None:
        with pyro.plate("outer", 20, subsample_size=2, dim=-2), pyro.plate("inner", 10, subsample_size=5, dim=-1):
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), obs=torch.zeros(2, 5))

    fresh(still, program=(nested, nothing)).run(3, DATA, progress_bar=True)
    assert set(told) == {f"ELBO {-LOSS:.4g} per datum"}


@pytest.mark.parametrize("steps", [1, 5, 10, 37, 1000])
def test_a_line_at_each_tenth(steps: int, uncompiled: None, capsys: pytest.CaptureFixture[str]) -> None:
    """The output of a test is no terminal."""
    fresh(program=GAUSSIAN).run([DATA] * steps, progress_bar=True)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == min(steps, 10)
    shape = re.compile(rf"(\d+)/{steps} steps, \d+\.\d s, ELBO -\S+")
    counts = [int(match[1]) for match in map(shape.fullmatch, lines) if match]
    expected = [-(-tenth * steps // 10) for tenth in range(1, 11)] if steps >= 10 else [*range(1, steps + 1)]
    assert counts == expected


def test_stretches_of_many_steps_are_told_in_no_more_lines(
    uncompiled: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_STRETCH", 100.0)
    fresh(program=GAUSSIAN).run(1300, DATA, progress_bar=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("1300/1300 steps")
    assert len(lines) <= 3


def test_a_run_of_unknown_length_is_told_at_each_doubling(uncompiled: None, capsys: pytest.CaptureFixture[str]) -> None:
    class Stream(torch.utils.data.IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            return iter([DATA] * 20)

    for batches in ((DATA for _ in range(20)), torch.utils.data.DataLoader(Stream(), batch_size=None)):
        fresh(program=GAUSSIAN).run(batches, progress_bar=True)
        counts = [int(line.split(" steps")[0]) for line in capsys.readouterr().err.splitlines()]
        assert counts == [1, 2, 4, 8, 16]


def test_a_terminal_has_a_bar(uncompiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    fresh(program=GAUSSIAN).run(5, DATA, progress_bar=True)
    assert "5/5" in terminal.getvalue() and "\r" in terminal.getvalue()
    assert "ELBO -" in terminal.getvalue()
