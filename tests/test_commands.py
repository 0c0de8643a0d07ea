"""``python -m sgc``: what it prints, its exit statuses, and errors without a traceback."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sgc
from sgc import __main__ as commands
from sgc import doctor

PROGRAM = """
import pyro
import pyro.distributions as dist
import torch


def model(data, scale=1.0):
    z = pyro.sample("z", dist.Bernoulli(0.5))
    with pyro.plate("rows", len(data)):
        pyro.sample("x", dist.Normal(z, scale), obs=data)


def guide(data, scale=1.0):
    pyro.sample("z", dist.Bernoulli(logits=pyro.param("q", torch.tensor(0.3))))


def branching(data):
    z = pyro.sample("z", dist.Bernoulli(0.5))
    if z > 0:
        pyro.sample("x", dist.Normal(z, 1.0), obs=data.sum())


def failing(data):
    raise KeyError("lost")


def invalid(data):
    pyro.sample("z", dist.Normal(0.0, -1.0))


def twice_four():
    return torch.zeros(4), 2.0


def named():
    return {"data": torch.zeros(5), "scale": 2.0}


def one():
    return torch.zeros(6)


def no_arguments():
    return missing


class Holder:
    model = staticmethod(model)


number = 3
"""

ARGS = ["--args", "torch.zeros(3)"]

MODULES = {
    "coin.py": PROGRAM,
    "broken.py": "import torch\nx = torch.zeros(2) @ torch.zeros(3)\n",
    "unfinished.py": "def model(:\n    pass\n",
    "needing.py": "import no_such_package_of_anybody\n",
    "script.py": "import sys\nsys.exit(3)\n",
}


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with small modules, the current one, in which modules are looked for."""
    for name, text in MODULES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in MODULES:
        sys.modules.pop(name.removesuffix(".py"), None)


def run(*arguments: str, directory: Path, into: str = "cat") -> subprocess.CompletedProcess[str]:
    """What a shell gives, with the output piped into another command."""
    path = os.pathsep.join([str(Path(commands.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    command = f"{shlex.join([sys.executable, '-W', 'ignore', '-m', 'sgc', *arguments])} | {into}"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_shell_is_told_what_is_wrong_without_a_traceback(modules: Path) -> None:
    done = run("explain", "coin:branching", "coin:guide", "--args", "torch.zeros(3)", directory=modules)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("python -m sgc explain: DataDependenceError: at site 'z'")
    assert "coin.py:19: if z > 0:" in done.stderr and "remedy: " in done.stderr and "Traceback" not in done.stderr


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        commands.main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"sgc {sgc.__version__}\n"


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ("coin.py:model", "; write coin:name for the file coin.py\n"),
        ("coin.model", "'coin.model' is not of the form package.module:name; did you mean coin:model?\n"),
        ("coin:model:guide", "is not of the form package.module:name\n"),
    ],
)
def test_other_ways_to_name_a_model_get_a_hint(
    target: str, hint: str, modules: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, told = explained(capsys, target, "coin:guide", *ARGS)
    assert status == 2 and told.endswith(hint)


def explained(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = commands.main(["explain", *arguments])
    shown = capsys.readouterr()
    return status, shown.out, shown.err


@pytest.mark.parametrize(
    ("given", "plate"),
    [
        (["--args", "data=torch.ones(3)"], "rows: 3"),
        (["--args", "*[torch.ones(2), 1.5],"], "rows: 2"),
        (["--args", "coin:twice_four"], "rows: 4"),
        (["--args", "coin:named"], "rows: 5"),
        (["--args", "coin:one"], "rows: 6"),
        (["--args", "torch.zeros(3)", "--num-particles", "2", "--vectorize-particles"], "num_particles_vectorized: 2"),
        ([*ARGS, "--objective", "Trace_ELBO", "--max-plate-nesting", "1"], "3 of 3"),
    ],
)
def test_arguments_are_an_expression_or_a_function(
    modules: Path, capsys: pytest.CaptureFixture[str], given: list[str], plate: str
) -> None:
    Path("plates.py").write_text(
        "import pyro, torch, pyro.distributions as dist\n"
        "def model(data, scale=1.0):\n"
        "    with pyro.plate('rows', len(data)):\n"
        "        pyro.sample('x', dist.Normal(pyro.sample('z', dist.Bernoulli(0.5)), scale), obs=data)\n"
        "def guide(data, scale=1.0):\n"
        "    with pyro.plate('rows', len(data)):\n"
        "        pyro.sample('z', dist.Bernoulli(logits=pyro.param('q', torch.tensor(0.3))))\n"
    )
    try:
        status, out, _ = explained(capsys, "plates:model", "plates:guide", *given)
    finally:
        sys.modules.pop("plates", None)
    assert status == 0 and plate in out


def test_tables_are_printed(modules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, told = explained(capsys, "coin:model", "coin:guide", *ARGS)
    assert status == 0 and told == "" and out.startswith("latent sites\n")
    assert "score function" in out and "coin.py:14: pyro.sample(" in out


def test_a_name_may_have_dots(modules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explained(capsys, "coin:Holder.model", "coin:guide", "--args", "torch.zeros(3)")[0] == 0


def test_a_page_and_a_picture_are_written(modules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["coin:model", "coin:guide", "--args", "torch.zeros(3)"]
    status, out, _ = explained(capsys, *given, "--html", "page.html")
    page = Path("page.html").read_text()
    assert status == 0 and out.startswith("latent sites")
    assert page.startswith("<!doctype html>") and page.count("<table") == out.count("\n\n") + 1
    if shutil.which("dot") is None:
        pytest.skip("Graphviz is not there")
    assert explained(capsys, *given, "--draw", "graph.svg")[0] == 0
    assert "<svg" in Path("graph.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["coin:modl", "coin:guide"], 2, "the module coin has no 'modl'; did you mean 'model'?"),
        (["coin:Holder.modl", "coin:guide"], 2, "coin:Holder has no 'modl'; did you mean 'model'?"),
        (["coins:model", "coin:guide"], 2, "there is no module coins, neither in "),
        (["coin.model", "coin:guide"], 2, "'coin.model' is not of the form package.module:name"),
        (["coin:number", "coin:guide"], 2, "coin:number is of type int, which cannot be called"),
        (["coin:Holder", "coin:guide"], 2, "coin:Holder is a class: name an object of it, made in its module"),
        (["broken:model", "coin:guide"], 2, "broken.py:2: x = torch.zeros(2) @ torch.zeros(3)"),
        (["unfinished:model", "coin:guide"], 2, "unfinished.py:1: def model(:"),
        (["needing:model", "coin:guide"], 2, "needing.py:1: import no_such_package_of_anybody"),
        (["script:model", "coin:guide"], 2, "ends the process when it is imported (status 3)"),
        (["coin:model", "coin:guide", "--args", "torch.zeros(3"], 2, "does not stand for the arguments of a call"),
        (["coin:model", "coin:guide", "--args", "nothing"], 2, "NameError: name 'nothing' is not defined"),
        (["coin:model", "coin:guide", "--args", "coin:no_arguments"], 2, "return missing"),
        (["coin:model", "coin:guide", "--args", "coin:number"], 2, "cannot be called"),
        (["coin:model", "coin:guide"], 1, "called without arguments: --args gives them"),
        (["coin:failing", "coin:guide", *ARGS], 1, "KeyError: 'lost'\n  --> "),
        (["coin:invalid", "coin:guide", *ARGS], 1, 'pyro.sample("z", dist.Normal(0.0, -1.0))'),
        (
            ["coin:model", "coin:guide", *ARGS, "--num-particles", "0"],
            2,
            "num_particles must be a positive integer, not 0",
        ),
        (["coin:model", "coin:guide", *ARGS, "--objective", "IWAE"], 2, "objective must be one of"),
        (["coin:model", "coin:guide", *ARGS, "--html", "no/such/page.html"], 2, "cannot write no/such/page.html"),
        (["coin:model", "coin:guide", *ARGS, "--draw", "graph.gif"], 1, ".svg"),
    ],
)
def test_what_is_wrong_is_told(
    modules: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, text: str
) -> None:
    found, _, told = explained(capsys, *arguments)
    assert found == status and text in told and "Traceback" not in told
    assert told.startswith("python -m sgc explain: ")


def test_a_wrong_command_line_has_argparses_status(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["explain"], ["improve"]):
        with pytest.raises(SystemExit) as left:
            commands.main(arguments)
        assert left.value.code == 2
    with pytest.raises(SystemExit) as left:
        commands.main(["explain", "--help"])
    shown = capsys.readouterr().out
    assert left.value.code == 0 and "exit status: 0 if" in shown and "package.module:make_args" in shown


def test_the_doctor_is_a_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "names", lambda: ("eager",))
    assert commands.main(["doctor"]) == 0
    assert "versions:" in capsys.readouterr().out


def test_an_output_that_nobody_reads_is_no_error(modules: Path) -> None:
    done = run("explain", "coin:model", "coin:guide", *ARGS, directory=modules, into="true")
    assert done.returncode == 0 and done.stderr == ""
