"""Pictures: what is drawn of six programs, how files are written, what a notebook is given, and what is refused."""

from __future__ import annotations

import random
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import sgc
from sgc.errors import ArgumentError, DrawingError
from sgc.graph.drawing.scene import Look, scene_of
from sgc.graph.program import SiteKind
from sgc.training.loss_curve import loss_curve
from tests.drawing.goldens import GOLDENS, texts
from tests.drawing.models import MODELS, captured, six_steps
from tests.programs import local_switches

CAN_DRAW = shutil.which("dot") is not None


@pytest.mark.parametrize("name", MODELS)
def test_what_is_drawn_is_what_was_looked_at(name: str) -> None:
    """After a change that is meant: ``python -m tests.drawing``, and look at the pictures."""
    for ending, text in texts(captured(name)).items():
        assert text == (GOLDENS / f"{name}.{ending}").read_text(encoding="utf-8"), f"{name}.{ending}"


def test_each_kind_of_node_has_a_look_of_its_own() -> None:
    scene = scene_of(captured("belief_net"))
    looks = {node.lines[0]: node.look for node in scene.nodes}
    assert looks["top"] is Look.LATENT and looks["x"] is Look.OBSERVED
    assert looks["log p(x)"] is Look.COST and looks["score_term(top)"] is Look.SCORE
    assert looks["baseline(top)"] is Look.BASELINE and looks["loss"] is Look.OBJECTIVE
    legend = [words for _, _, words in scene.legend()]
    assert "latent site, score function" in legend and "latent site, pathwise" not in legend
    assert len(set(legend)) == len(legend)


def test_a_highlighted_site_keeps_its_costs_and_its_baseline() -> None:
    graph = captured("belief_net")
    kept = {node.lines[0] for node in scene_of(graph, highlight="top").nodes if not node.faded}
    assert kept == {"top", *graph.downstream_costs("top"), "score_term(top)", "baseline(top)", "loss"}
    assert "log p(x)" not in kept
    assert graph.to_dot(highlight="top") != graph.to_dot()
    with pytest.raises(KeyError, match="the latent sites are"):
        graph.to_mermaid(highlight="x")


def test_a_highlighted_step_is_told_apart_from_the_others() -> None:
    scene = scene_of(captured("hidden_markov_model"), highlight="z_12")
    kept = {node.lines[0]: node for node in scene.nodes if not node.faded}
    assert kept["z_12"].members == ("z_12",)
    assert "t = 12 … 29" in kept["log p(x_t)"].lines[1:] and len(scene.nodes) < 40


def test_everything_is_drawn_where_it_is_asked_for() -> None:
    graph = six_steps()
    assert len(scene_of(graph).nodes) < len(scene_of(graph, unfold=True).nodes)
    names = {node.name for node in scene_of(graph, unfold=True).nodes}
    assert set(graph.sites()) | set(graph.costs()) <= names
    assert "what is alike" in str(graph) and "what is alike" not in graph.to_text(unfold=True)
    assert "z_4: latent Categorical" in graph.to_text(unfold=True)


@pytest.mark.parametrize("name", MODELS)
def test_parts_of_a_graph_are_printed_and_drawn(name: str) -> None:
    """Whatever is taken out, what is left is shown."""
    graph = captured(name)
    for seed in range(12):
        rng = random.Random(seed)
        part = graph.subgraph(rng.sample(list(graph), rng.randint(0, len(graph))))
        text = part.to_text(unfold=True)
        assert all(f"  {site}: " in text for site in part.sites())
        drawn = {key for node in scene_of(part).nodes for key in node.members}
        assert {*part.sites(SiteKind.LATENT), *part.costs()} <= drawn <= set(graph)
        assert part.to_dot() and part.to_mermaid(unfold=True) and str(part)


def test_sizes_that_differ_from_call_to_call_are_shown_by_their_names() -> None:
    loss_module = sgc.compile(*local_switches(), backend="eager")
    for size in (3, 4, 5):
        loss_module(torch.zeros(size))
    boxes = {box.label for node in scene_of(loss_module.graph).nodes for box in node.boxes}
    assert boxes == {"data: n"}
    lines = {node.name: node.lines for node in scene_of(loss_module.graph).nodes}
    assert lines["z"] == ("z", "Bernoulli [n]") and "data" not in lines


def test_names_cannot_break_the_texts() -> None:
    def model() -> None:
        import pyro
        import pyro.distributions as dist

        z = pyro.sample('a "quoted" <b> & \\n #1; `c`', dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.0))

    def guide() -> None:
        import pyro
        import pyro.distributions as dist

        pyro.sample('a "quoted" <b> & \\n #1; `c`', dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    graph = sgc.capture(model, guide)
    assert '"a \\"quoted\\" <b> &amp; \\\\n #1; `c`' in graph.to_dot()
    assert '"a #34;quoted#34; #60;b#62; #38; \\n #35;1; #96;c#96;<br/>' in graph.to_mermaid()


def test_the_texts_are_well_formed() -> None:
    for name in MODELS:
        graph = captured(name)
        dot, mermaid = graph.to_dot(), graph.to_mermaid()
        bare = re.sub(r'"(\\.|[^"\\])*"', "", dot)
        assert bare.count("{") == bare.count("}") and bare.count("[") == bare.count("]")
        nodes = set(re.findall(r"^ +(n\d+) \[", dot, re.MULTILINE))
        assert {end for edge in re.findall(r"(n\d+) -> (n\d+)", dot) for end in edge} <= nodes
        opened = len(re.findall(r"^ *subgraph ", mermaid, re.MULTILINE))
        assert opened == len(re.findall(r"^ *end$", mermaid, re.MULTILINE))
        used = {*re.findall(r":::(\w+)$", mermaid, re.MULTILINE), *re.findall(r"^ *class \w+ (\w+)$", mermaid, re.M)}
        assert used == set(re.findall(r"^ *classDef (\w+) ", mermaid, re.MULTILINE))


# -- files


@pytest.mark.skipif(not CAN_DRAW, reason="Graphviz is not installed")
@pytest.mark.parametrize(("ending", "begins"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_pictures_are_written(ending: str, begins: bytes, tmp_path: Path) -> None:
    pytest.importorskip("graphviz")
    path = tmp_path / f"coin.{ending}"
    try:
        assert captured("coin").draw(path) == path
    except DrawingError as error:
        assert not path.exists()
        pytest.skip(str(error))  # a Graphviz without this format
    assert path.read_bytes().startswith(begins)


@pytest.mark.parametrize("name", ["coin.jpg", "coin", ".svg"])
def test_other_files_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"ends in \.svg, \.png or \.pdf"):
        captured("coin").draw(tmp_path / name)
    assert not list(tmp_path.iterdir())


def without_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "graphviz", None)


def without_dot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("graphviz")
    monkeypatch.setenv("PATH", "")


def with_another_dot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, mode: int) -> None:
    pytest.importorskip("graphviz")
    folder = tmp_path.with_name(f"{tmp_path.name}_programs")
    folder.mkdir()
    (folder / "dot").write_text(text)
    (folder / "dot").chmod(mode)
    monkeypatch.setenv("PATH", str(folder))


def with_dot_that_cannot_be_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_another_dot(monkeypatch, tmp_path, "no program", 0o755)


def with_dot_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_another_dot(monkeypatch, tmp_path, "#!/bin/sh\necho no memory >&2\nexit 1\n", 0o755)


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        (without_package, r"pip install 'sgc\[draw\]'"),
        (without_dot, "apt-get install graphviz"),
        (with_dot_that_cannot_be_run, "cannot be run"),
        (with_dot_that_fails, r"cannot make this picture \(\.svg\): no memory"),
    ],
)
def test_what_is_missing_is_said_and_nothing_is_written(
    missing: Callable[[pytest.MonkeyPatch, Path], None], says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    graph = captured("coin")
    missing(monkeypatch, tmp_path)
    path = tmp_path / "coin.svg"
    path.write_text("before")
    with pytest.raises(DrawingError, match=says) as caught:
        graph.draw(path)
    assert "to_mermaid" in str(caught.value) and path.read_text() == "before"
    bundle = graph._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/vnd.mermaid"} and bundle["text/plain"] == str(graph)


# -- notebooks


def test_a_picture_is_the_value_of_a_cell() -> None:
    graph = captured("coin")
    plain, faded = graph.picture()._repr_mimebundle_(), graph.picture(highlight="z")._repr_mimebundle_()
    assert plain == graph._repr_mimebundle_() and repr(graph.picture()) == str(graph)
    (kind,) = plain.keys() - {"text/plain"}
    assert faded["text/plain"] == str(graph) and faded[kind] != plain[kind]
    with pytest.raises(KeyError, match="'x' is not a latent site; the latent sites are: z"):
        graph.picture(highlight="x")


def test_a_notebook_is_given_a_picture_or_mermaid_and_the_text() -> None:
    model, guide = local_switches()
    loss_module = sgc.compile(model, guide, backend="eager")
    assert loss_module._repr_mimebundle_() == {"text/plain": repr(loss_module)}
    bundle = loss_module.initialize(torch.zeros(3))._repr_mimebundle_()
    assert bundle == loss_module.graph._repr_mimebundle_()
    assert set(bundle) - {"text/plain"} in ({"image/svg+xml"}, {"text/vnd.mermaid"})


def test_a_notebook_is_given_tables_of_runs_and_comparisons() -> None:
    model, guide = local_switches()
    svi = sgc.SVI(model, guide, lambda parameters: torch.optim.SGD(parameters, lr=0.01))
    verification = svi.loss_module.verify(torch.zeros(3))
    bundle = verification._repr_mimebundle_()
    assert bundle["text/plain"] == str(verification)
    assert bundle["text/html"].count("<tr>") == len(verification._rows()) + 1 and "log p(x)" in bundle["text/html"]


def test_the_table_of_a_run() -> None:
    from sgc.training.losses import RunResult

    result = RunResult(torch.arange(1000.0), 2.5)
    bundle = result._repr_mimebundle_()
    assert bundle["text/plain"] == str(result)
    assert "999.0000" in bundle["text/html"] and "<polyline" in bundle["text/html"]
    assert "<polyline" not in RunResult(torch.empty(0), 0.1)._repr_mimebundle_()["text/html"]
    assert loss_curve(torch.full((5,), float("nan"))) == ""
    assert loss_curve(torch.tensor([1.0, float("nan"), float("inf"), 1.0])).count(",") == 3
