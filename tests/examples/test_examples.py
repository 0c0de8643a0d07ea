"""Every example runs as its user would run it, writes what it says, and improves its ELBO."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import networkx as nx
import pytest

_ROOT = Path(__file__).resolve().parents[2]
_EXAMPLES = _ROOT / "examples"
_OUTPUTS = {
    "sigmoid_belief_net": {"pictures.png", "elbo.png", "graph.graphml", "graph.txt", "state.pt"},
    "vae": {"pictures.png", "elbo.png", "graph.graphml", "graph.txt"},
    "coin": {"posterior.png"},
    "mixture": {"mixture.png"},
    "data_parallel": {"weights.pt"},
}


def _run(name: str, output: Path, *options: str) -> tuple[str, dict[str, Any]]:
    """What the example printed, and its summary."""
    paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, str(_EXAMPLES / f"{name}.py"), "--smoke", "--output", str(output), *options],
        cwd=output.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if "ELBO" in line]
    assert 1 <= len(told) <= 20, "the running ELBO is told once in a tenth of the run, of which there are two at most"
    assert "stochastic computation graph" in done.stdout
    return done.stdout, json.loads((output / "summary.json").read_text())


def test_every_example_is_here() -> None:
    assert {path.stem for path in _EXAMPLES.glob("*.py")} == {*_OUTPUTS, "digits"}


@pytest.mark.parametrize("name", _OUTPUTS)
def test_smoke(name: str, tmp_path: Path) -> None:
    output = tmp_path / "output"
    printed, summary = _run(name, output)

    assert {path.name for path in output.iterdir()} == _OUTPUTS[name] | {"summary.json"}
    assert all(path.stat().st_size > 0 for path in output.iterdir())
    if name == "data_parallel":
        assert summary["largest_difference"] < 1e-5 * summary["largest_weight"]
        assert summary["accuracy_together"] == summary["accuracy_alone"] > 0.85
        return
    assert summary["elbo_after"] > summary["elbo_before"]
    if name == "sigmoid_belief_net":
        _check_sigmoid_belief_net(printed, output, summary)
    elif name == "vae":
        graph = nx.read_graphml(output / "graph.graphml")
        assert graph.nodes["z"]["estimator"] == "pathwise"
        assert not [key for key in graph if key.startswith(("baseline", "downstream", "score_term"))]
    elif name == "coin":
        assert summary["elbo_after"] < summary["log_evidence"] + 0.1
        assert summary["mean"] == pytest.approx(summary["exact_mean"], abs=0.03)
    else:
        assert 1 / 3 < summary["accuracy"] <= 1


def _check_sigmoid_belief_net(printed: str, output: Path, summary: dict[str, Any]) -> None:
    assert "under one seed: equal" in printed
    assert summary["elbo_after"] - summary["elbo_before"] > 10
    graph = nx.read_graphml(output / "graph.graphml")
    for site in ("bottom", "top"):
        assert graph.nodes[site]["estimator"] == "score function"
        assert f"baseline({site})" in graph
    assert "log p(x)" not in nx.descendants(graph, "top")
    assert (output / "graph.txt").read_text().strip() in printed


def test_one_seed_gives_one_result(tmp_path: Path) -> None:
    one = _run("coin", tmp_path / "one", "--seed", "3", "--steps", "20")[1]
    other = _run("coin", tmp_path / "other", "--seed", "3", "--steps", "20")[1]
    assert one == other
