"""What is written for TensorBoard, read again by tensorboard itself; and what is said where it is not installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import sgc
from sgc.errors import ArgumentError
from tests.training.programs import DATA, fresh


def scalars(directory: Path) -> dict[str, dict[int, float]]:
    """The scalars in the event files of a directory, by tag and step."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(directory))
    events.Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_losses_and_what_is_monitored_are_written(tmp_path: Path, uncompiled: None) -> None:
    pytest.importorskip("tensorboard")
    svi, writer = fresh(), sgc.TensorBoard(tmp_path, every=2)
    result = svi.run([DATA] * 5, epochs=2, monitor=sgc.Monitor(5, variance_samples=3), callbacks=[writer])
    written = scalars(tmp_path)
    assert result.monitored is not None
    steps = {step: result.losses[step - 2 : step].mean().item() for step in (2, 4, 6, 8, 10)}
    assert written["loss/step"] == pytest.approx(steps)
    assert written["loss/epoch"] == pytest.approx({5: result.epoch_losses[0].item(), 10: result.epoch_losses[1].item()})
    assert written["gradient norm"] == pytest.approx(
        dict(zip((5, 10), result.monitored.gradient_norm.tolist(), strict=True))
    )
    assert written["share of/z"] == pytest.approx(
        dict(zip((5, 10), result.monitored.shares["z"].tolist(), strict=True))
    )
    assert {"gradient norm of/q", "gradient norm of/loc_loc", "variance"} <= written.keys()


def test_a_further_run_goes_on_in_the_same_directory(tmp_path: Path, uncompiled: None) -> None:
    pytest.importorskip("tensorboard")
    svi, writer = fresh(), sgc.TensorBoard(tmp_path, every=2)
    svi.run(4, DATA, callbacks=[writer])
    svi.run(4, DATA, callbacks=[writer])
    assert list(scalars(tmp_path)["loss/step"]) == [2, 4, 6, 8]


def test_what_was_written_before_an_error_is_there(tmp_path: Path, uncompiled: None) -> None:
    pytest.importorskip("tensorboard")

    def fail(run: sgc.TrainingRun) -> None:
        if run.step == 5:
            raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        fresh().run(9, DATA, callbacks=[fail, sgc.TensorBoard(tmp_path, every=2)])
    assert list(scalars(tmp_path)["loss/step"]) == [2, 4]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ArgumentError, match="needs the package tensorboard") as caught:
        sgc.TensorBoard()
    assert "remedy: pip install tensorboard" in str(caught.value)


class Written:
    """Stands for torch's writer where tensorboard is not installed: it keeps what it is given."""

    def __init__(self, log_dir: str | None) -> None:
        self.log_dir = log_dir or "runs/now"
        self.scalars: list[tuple[str, float, int]] = []
        self.is_closed = False

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars.append((tag, value, step))

    def close(self) -> None:
        self.is_closed = True


def test_torchs_writer_is_given_the_losses_and_closed(monkeypatch: pytest.MonkeyPatch, uncompiled: None) -> None:
    made: list[Written] = []

    def make(log_dir: str | None) -> Written:
        made.append(Written(log_dir))
        return made[-1]

    module: Any = type(sys)("torch.utils.tensorboard")
    module.SummaryWriter = make
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    writer, svi = sgc.TensorBoard(every=3), fresh()
    losses = torch.cat(
        [svi.run(6, DATA, monitor=6, callbacks=[writer]).losses, svi.run(3, DATA, callbacks=[writer]).losses]
    )
    assert [one.log_dir for one in made] == ["runs/now", "runs/now"] and all(one.is_closed for one in made)
    written = [entry for one in made for entry in one.scalars]
    means = losses.reshape(3, 3).mean(1).tolist()
    assert [(step, value) for tag, value, step in written if tag == "loss/step"] == [
        (step, pytest.approx(mean)) for step, mean in zip((3, 6, 9), means, strict=True)
    ]
    assert [step for tag, _, step in written if tag == "gradient norm"] == [6]
