"""Each workaround is needed and enough: its programs err without it, and with it do what eager torch does.

Where torch has mended a defect, the second test of its workaround fails: note the release in its record (``mended``),
or delete its file if no release that sgc works with errs.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor.exc import InductorError

from sgc.emit.differentiate import trace
from sgc.emit.inductor.compile_graph import compile_graph
from sgc.emit.inductor.workarounds import all_workarounds
from sgc.emit.inductor.workarounds.all_workarounds import WORKAROUNDS
from sgc.emit.inductor.workarounds.workaround import MinimalProgram, Workaround
from sgc.native.switches import without

FOLDER = Path(all_workarounds.__file__).parent
ROOT = Path(__file__).resolve().parents[3]
RELEASE = ".".join(torch.__version__.split(".")[:2])
PROGRAMS = [
    pytest.param(workaround, program, id=f"{workaround.name}-{program.function.__name__.strip('_')}")
    for workaround in WORKAROUNDS
    for program in workaround.programs
]


def outcome(run: Callable[..., Any], inputs: list[Tensor]) -> list[Tensor] | None:
    """Results, the inputs afterwards, and the random state; None where that is refused."""
    given = [tensor.clone() for tensor in inputs]
    torch.manual_seed(0)
    try:
        return [*run(*given), *given, torch.rand(3)]
    except (IndexError, RuntimeError):
        return None


def compare(program: MinimalProgram) -> None:
    """Raise if the compiled program does anything else than the eager one."""
    inputs = program.inputs()
    module = trace(program.function, inputs)
    compiled = compile_graph(module, inputs, program.rng, in_one_piece=program.in_one_piece)
    for given in (inputs, program.others() if program.others is not None else inputs):
        ours, expected = outcome(compiled, given), outcome(program.function, given)
        if expected is None or ours is None:
            assert ours is None and expected is None
        else:
            torch.testing.assert_close(ours, expected)


def skip_elsewhere(workaround: Workaround, program: MinimalProgram) -> None:
    if program.device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    if program.device == "cpu" and torch.get_default_device().type != "cpu":
        pytest.skip("is about the CPU")


@pytest.mark.parametrize("workaround", WORKAROUNDS, ids=lambda workaround: workaround.name)
def test_the_record(workaround: Workaround) -> None:
    """It is named for its file, does something, and says where the defect was reported or can be read about."""
    assert (FOLDER / f"{workaround.name}.py").exists()
    assert workaround.seen and workaround.programs
    assert workaround.rewrite or workaround.patch or workaround.options
    for place in workaround.reported.split(", "):
        if not place.startswith("https://github.com/pytorch/pytorch/"):
            page, _, section = place.partition("#")
            titles = re.findall(r"^## (.*)$", (ROOT / page).read_text(), re.MULTILINE)
            assert section in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_file_is_in_the_list() -> None:
    names = {path.stem for path in FOLDER.glob("*.py") if "\nWORKAROUND = " in path.read_text()}
    assert names == {workaround.name for workaround in WORKAROUNDS}


@pytest.mark.inductor
@pytest.mark.parametrize("workaround, program", PROGRAMS)
def test_right_with_it(workaround: Workaround, program: MinimalProgram) -> None:
    skip_elsewhere(workaround, program)
    compare(program)


@pytest.mark.inductor
@pytest.mark.parametrize("workaround, program", PROGRAMS)
def test_wrong_without_it(workaround: Workaround, program: MinimalProgram) -> None:
    """A ``pytest.mark.xfail(strict=True)``, of which a test that is skipped first is none."""
    skip_elsewhere(workaround, program)
    if program.device == "cuda":
        pytest.skip("the GPU would compute nothing afterwards")
    if not workaround.is_needed:
        pytest.skip(f"torch {torch.__version__} does not need it")
    if RELEASE not in workaround.seen:
        pytest.skip(f"not seen to err on torch {RELEASE}")
    if RELEASE in program.right_on:
        with without(workaround.name, "checked_files"):
            compare(program)
        return
    if program.may_crash:
        errs_in_a_process_of_its_own(workaround, program)
        return
    with (
        without(workaround.name, "checked_files"),
        pytest.raises((AssertionError, InductorError, IndexError, RuntimeError)),
    ):
        compare(program)


def errs_in_a_process_of_its_own(workaround: Workaround, program: MinimalProgram) -> None:
    number = list(workaround.programs).index(program)
    lines = (
        "from sgc.native.switches import without",
        "from tests.emit.inductor.test_workarounds import WORKAROUNDS, compare",
        f"(chosen,) = (w for w in WORKAROUNDS if w.name == {workaround.name!r})",
        f"with without(chosen.name, 'checked_files'): compare(chosen.programs[{number}])",
    )
    command = [sys.executable, "-W", "ignore", "-c", "\n".join(lines)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode < 0 or "AssertionError" in done.stderr, done.stderr
