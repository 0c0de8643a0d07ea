"""Runs the tests on other versions of torch, each in a virtual environment of its own.

``python -m tests.versions 2.11.0 2.12.0 --environments DIR [-- arguments of pytest]``
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
COUNTS = ("passed", "failed", "error", "errors", "skipped", "xfailed")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.versions", description=__doc__.splitlines()[0])
    parser.add_argument("versions", nargs="+", help="of torch")
    parser.add_argument("--environments", type=Path, required=True, help="where the virtual environments are kept")
    parser.add_argument("--workers", default="2", help="processes of pytest")
    own, _, rest = _split(sys.argv[1:])
    options = parser.parse_args(own)
    rows = []
    for version in options.versions:
        python = environment(options.environments / f"torch-{version}", version)
        rows.append((version, *tests(python, options.workers, rest or ["tests"])))
    print("\n| torch | result |\n| --- | --- |")
    for version, result, _ in rows:
        print(f"| {version} | {result} |")
    return int(any(status for *_, status in rows))


def _split(arguments: list[str]) -> tuple[list[str], str, list[str]]:
    if "--" not in arguments:
        return arguments, "", []
    at = arguments.index("--")
    return arguments[:at], "--", arguments[at + 1 :]


def environment(folder: Path, version: str) -> Path:
    """The interpreter of an environment with this torch and what the tests need, made if it is not there."""
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        constraints = folder / "constraints.txt"
        lines = (ROOT / "constraints.txt").read_text().splitlines()
        # Another torch has other requirements: what it requires itself is not pinned.
        free = re.compile("(torch|setuptools|sympy|filelock|fsspec|typing-extensions|jinja2|networkx)==")
        constraints.write_text("\n".join(line for line in lines if not free.match(line)))
        install = [python, "-m", "pip", "install", "--quiet", "-c", constraints]
        # torch may be newer than what pyproject.toml allows: the package itself is taken from the source tree.
        needed = ["pyro-ppl", "networkx", "setuptools", "scikit-learn", "matplotlib", "tqdm", "pytest", "pytest-xdist"]
        subprocess.run([*install, f"torch=={version}", *needed], check=True)
        (folder / "complete").touch()
    return python


def tests(python: Path, workers: str, arguments: list[str]) -> tuple[str, int]:
    """What pytest counts, and its status; what fails is printed."""
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [python, "-m", "pytest", "-q", "-n", workers, "-W", "ignore", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=surroundings, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    for line in lines:
        if line.startswith(("FAILED", "ERROR")):
            print(line, flush=True)
    summary = next((line for line in reversed(lines) if any(f" {count}" in line for count in COUNTS)), "")
    return summary.strip("= ") or (done.stderr.strip().splitlines() or ["no result"])[-1], done.returncode


if __name__ == "__main__":
    sys.exit(main())
