"""The benchmark of trainings: all libraries train one problem, runs end at the target, the table says what came out."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro
import pytest

from benchmarks import training
from benchmarks.evaluation import Evaluator
from benchmarks.problems import PROBLEMS
from benchmarks.problems.base import Course, Method, Problem
from benchmarks.trainers import TRAINERS, Trainer
from benchmarks.training_runs import Block, Plan, Row, Run, Training
from benchmarks.training_table import cells
from sgc.emit.backends.registry import registered
from tests.backends import RunGraphs

RATE = 0.05


def method(problem: Problem, library: str, words: str) -> Method:
    (found,) = (method for method in problem.methods if method.library == library and method.words == words)
    return found


def trained(problem: Problem, library: str, words: str, blocks: int) -> Trainer:
    trainer = TRAINERS[library](problem, method(problem, library, words))
    trainer.prepare(RATE)
    trainer.restart(3, RATE)
    for _ in range(blocks):
        trainer.advance()
    return trainer


def test_what_the_command_line_names_is_there() -> None:
    assert set(training.WORKLOADS) == set(PROBLEMS)
    assert set(training.LIBRARIES) == set(TRAINERS)
    for make in PROBLEMS.values():
        names = [method.name for method in make.methods]
        assert len(names) == len(set(names))


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_evaluator_reads_all_parameters(name: str) -> None:
    """Other parameters have another ELBO; the first ones have the first one again."""
    problem = PROBLEMS[name](True)
    evaluator = Evaluator(problem)
    first = evaluator.elbo(problem.values)
    assert math.isfinite(first)
    read = {name.replace("$$$", ".") for name in pyro.get_param_store()}
    assert read <= set(problem.values)
    moved = {name: value * 1.3 + 0.2 if name in read else value for name, value in problem.values.items()}
    assert evaluator.elbo(moved) != pytest.approx(first)
    assert evaluator.elbo(problem.values) == first


def test_the_libraries_take_the_same_steps() -> None:
    """Where nothing is random: the parameters after 20 steps, by sgc, Pyro and its compiled class."""
    problem = PROBLEMS["hmm"](True)
    with registered(RunGraphs(rewritten=False)):
        ours = trained(problem, "sgc", "summed out of the model", 1).parameters()
    assert np.abs(ours["locs"] - problem.values["locs"]).max() > 0.1
    for library in ("Pyro", "Pyro Jit"):
        theirs = trained(problem, library, "summed out of the model", 1).parameters()
        assert set(theirs) == set(ours)
        for name, value in ours.items():
            np.testing.assert_allclose(theirs[name], value, atol=1e-3, err_msg=f"{library}, {name}")


def test_numpyro_has_the_same_problem() -> None:
    pytest.importorskip("numpyro")
    pytest.importorskip("funsor")
    problem = PROBLEMS["hmm"](True)
    theirs = trained(problem, "NumPyro", "summed out of the model", 1).parameters()
    ours = trained(problem, "Pyro", "summed out of the model", 1).parameters()
    for name, value in ours.items():
        np.testing.assert_allclose(theirs[name], value, atol=1e-3)


@pytest.mark.parametrize("words", ["score function, decaying average", "summed out of the model"])
def test_sgc_starts_again_from_the_first_values(words: str) -> None:
    """The same parameters with the same seed, others with another one; averages and the optimizer are new."""
    problem = PROBLEMS["mixture"](True)
    with registered(RunGraphs(rewritten=False)):
        trainer = trained(problem, "sgc", words, 1)
        ends = []
        for seed in (1, 1, 2):
            trainer.restart(seed, RATE)
            assert all(trainer.advance() > 0 for _ in range(2))
            ends.append(trainer.parameters()["locs_loc"].tolist())
    assert ends[0] == ends[1] != ends[2]


class Answers:
    """In the place of a process: the blocks take a second each, and move one parameter to its value."""

    def __init__(self, *_: object) -> None:
        self.blocks = 0

    def ask(self, what: str, argument: object) -> object:
        if what == "start":
            return 5.0
        if what == "restart":
            self.blocks = 0
            return None
        self.blocks += 1
        return Block(1.0, {"locs": np.linspace(-self.blocks, self.blocks, 4, dtype=np.float32)})

    def close(self) -> None:
        pass


def test_a_run_ends_at_the_target_or_at_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.training_runs.Worker", Answers)
    runner = Training("hmm", True)
    way = method(runner.problem, "Pyro", "summed out of the model")
    block = runner.problem.course.block
    locs = {"locs": np.linspace(-2, 2, 4, dtype=np.float32)}
    at_two = Evaluator(runner.problem).elbo({**runner.problem.values, **locs})

    def ends(blocks: int, limit: float, target: float) -> Run:
        row = runner.row(way, [0, 1], [Plan(RATE, blocks, limit, target)])
        assert row.start == 5.0 and row.runs[0].steps == row.runs[1].steps
        return row.runs[1]

    assert at_two > runner.first
    assert ends(10, 60.0, at_two) == Run(1, 2 * block, 2.0, at_two, True)
    assert ends(3, 60.0, math.inf).steps == 3 * block
    stopped = ends(10, 3.5, math.inf)
    assert stopped.seconds == 4.0 and not stopped.reached


def row(library: str, times: list[float], never: int = 0, start: float = 2.0) -> Row:
    runs = [Run(seed, 100, seconds, -1.0, True) for seed, seconds in enumerate(times)]
    runs += [Run(len(times) + seed, 400, 9.0, -3.0, False) for seed in range(never)]
    return Row(Method(library, "by some estimator", "drawn"), start, runs)


def test_the_table_compares_medians_with_the_best_of_sgc() -> None:
    best, other = row("sgc", [1.0, 2.0, 3.0]), row("Pyro", [30.0, 40.0, 20.0], start=0.5)
    mostly, seldom = row("NumPyro", [1.0, 4.0], never=1, start=8.0), row("sgc", [0.1], never=2)
    failing = Row(Method("Pyro Jit", "by some estimator", "drawn"), failure="ValueError: no")
    rows = [best, other, mostly, seldom, failing]
    assert cells(best, rows)[1:] == (
        ["3 of 3", "100", "20000", "2.00", "1.00 - 3.00", "1.00", "2.0", "4.0", "1.00", "-1.000"]
    )
    assert cells(other, rows)[4:10] == ["30.00", "20.00 - 40.00", "15.00", "0.5", "30.5", "7.62"]
    assert cells(mostly, rows)[1:7] == ["2 of 3", "100", "23333", "4.00", "1.00 - 4.00 or never", "2.00"]
    assert cells(seldom, rows)[1:] == (["1 of 3", "", "20111", "not reached", "", "", "2.0", "", "", "-3.000"])
    assert cells(failing, rows)[1] == "fails"
    assert cells(other, [other])[6] == ""  # nothing to compare with


def test_the_target_is_a_part_of_the_way() -> None:
    course = Course(learning_rate=0.1, block=10, blocks=3, reference=-1.0, fraction=0.75)
    assert course.target(-5.0) == -2.0 and course.steps == 30


def test_smoke(tmp_path: Path) -> None:
    """The command itself, with a library that does not exist here: a line, not a crash."""
    written, hidden, root = tmp_path / "table.md", tmp_path / "hidden", Path(__file__).parents[1]
    hidden.mkdir()
    (hidden / "numpyro.py").write_text("raise ImportError('hidden by the test')\n")
    words = ["--quick", "--workload", "hmm", "--library", "Pyro", "--library", "NumPyro", "--method", "summed out"]
    command = [sys.executable, "-m", "benchmarks.training", *words, "--output", str(written)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(hidden), str(root)])}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    text = written.read_text()
    assert "| Pyro: summed out of the model | 1 of 1 | 20 |" in text
    assert "NumPyro: summed out of the model fails: `ImportError: hidden by the test`" in text or "jax" in text
