"""A scene in DOT, the language of Graphviz (https://graphviz.org/doc/info/lang.html)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sgc.graph.drawing import colours
from sgc.graph.drawing.boxes import Box
from sgc.graph.drawing.scene import Line, Look, Scene, SceneEdge, SceneNode

_SHAPES: Mapping[Look, Mapping[str, str]] = {
    Look.PARAMETER: {"shape": "plaintext", "margin": "0.03"},
    Look.DATA: {"shape": "plaintext", "margin": "0.03"},
    Look.LATENT: {"shape": "ellipse", "style": "filled", "penwidth": "1.6"},
    Look.OBSERVED: {"shape": "ellipse", "style": "filled", "fillcolor": colours.OBSERVED, "peripheries": "2"},
    Look.DETERMINISTIC: {"shape": "box", "style": "filled", "fillcolor": colours.PLAIN},
    Look.SUBSAMPLE: {"shape": "ellipse", "style": "dashed"},
    Look.COST: {"shape": "diamond", "style": "filled", "fillcolor": colours.COST, "margin": "0.0"},
    Look.SCORE: {"shape": "hexagon", "style": "filled,dashed", "fillcolor": colours.PLAIN, "margin": "0.05"},
    Look.BASELINE: {"shape": "box", "style": "filled,rounded", "fillcolor": colours.BASELINE},
    Look.OBJECTIVE: {"shape": "box", "style": "bold,filled", "fillcolor": colours.PLAIN, "peripheries": "2"},
}
_IN_A_ROW = 6
"""The most entries of the legend in a row."""


def as_dot(scene: Scene) -> str:
    """A digraph with clusters for boxes and a legend."""
    return "\n".join(_lines(scene)) + "\n"


def _lines(scene: Scene) -> Iterator[str]:
    identity = {node.name: f"n{place}" for place, node in enumerate(scene.nodes)}
    yield 'digraph "stochastic computation graph" {'
    yield "  graph [rankdir=TB, nodesep=0.25, ranksep=0.4, fontname=Helvetica, fontsize=10]"
    yield f'  node [fontname=Helvetica, fontsize=11, color="{colours.INK}", fontcolor="{colours.INK}"]'
    yield f'  edge [fontname=Helvetica, fontsize=9, color="{colours.INK}", fontcolor="{colours.INK}", arrowsize=0.7]'
    yield from _within(scene, (), identity, [0])
    for edge in scene.edges:
        yield f"  {identity[edge.source]} -> {identity[edge.target]}{_attributes(_edge(edge, scene))}"
    yield from _legend(scene, identity)
    yield "}"


def _within(scene: Scene, path: tuple[Box, ...], identity: Mapping[str, str], count: list[int]) -> Iterator[str]:
    """The nodes in a box, and the boxes in it."""
    indent = "  " * (len(path) + 1)
    depth = len(path)
    inner: dict[Box, None] = {}
    for node in scene.nodes:
        if node.boxes[:depth] == path:
            if len(node.boxes) == depth:
                yield f"{indent}{identity[node.name]}{_attributes(_node(node, scene))}"
            else:
                inner[node.boxes[depth]] = None
    for box in inner:
        yield f"{indent}subgraph cluster_{count[0]} {{"
        count[0] += 1
        ground = f', style="rounded,filled,dashed", fillcolor="{colours.LOOP}"' if box.is_loop else ", style=rounded"
        yield f'{indent}  graph [label={_quoted(box.label)}, labelloc=b, labeljust=r, color="{colours.PLATE}"{ground}]'
        yield from _within(scene, (*path, box), identity, count)
        yield f"{indent}}}"


def _node(node: SceneNode, scene: Scene) -> dict[str, str]:
    attributes = {"label": "\n".join(node.lines), **_look(node.look, node.estimator, scene), "tooltip": node.tooltip}
    if node.faded:
        faint = {"color": colours.FAINT, "fontcolor": colours.FAINT}
        attributes |= {**faint, "fillcolor": colours.PLAIN} if "fillcolor" in attributes else faint
    return attributes


def _look(look: Look, estimator: str | None, scene: Scene) -> dict[str, str]:
    attributes = dict(_SHAPES[look])
    if look is Look.LATENT:
        attributes["fillcolor"] = colours.of_estimator(estimator, scene.estimators)
    if look in (Look.SCORE, Look.BASELINE):
        attributes["color"] = colours.of_estimator(estimator, scene.estimators, strong=True)
    return attributes


def _edge(edge: SceneEdge, scene: Scene) -> dict[str, str]:
    attributes = {"label": f" {edge.label} "} if edge.label else {}
    if edge.line is not Line.FLOW:
        attributes["style"] = edge.line.value
        attributes["color"] = colours.of_estimator(edge.estimator, scene.estimators, strong=True)
    if edge.faded:
        attributes |= {"color": colours.FAINT, "fontcolor": colours.FAINT}
    return attributes


def _legend(scene: Scene, identity: Mapping[str, str]) -> Iterator[str]:
    """The looks in rows, below the loss where there is one."""
    entries: list[str] = []
    yield "  subgraph cluster_legend {"
    yield f'    graph [label={_quoted(scene.note)}, labelloc=b, color="#dddddd", style=rounded]'
    yield "    node [fontsize=9, height=0.3]"
    for look, estimator, words in scene.legend():
        entries.append(f"legend_{len(entries)}")
        yield f"    {entries[-1]}{_attributes({'label': words, **_look(look, estimator, scene)})}"
    yield "  }"
    below = [identity[node.name] for node in scene.nodes if node.look is Look.OBJECTIVE]
    row = -(-len(entries) // -(-len(entries) // _IN_A_ROW)) if entries else 0
    for above, entry in zip(below * row + entries, entries, strict=False):
        yield f"  {above} -> {entry} [style=invis]"


def _attributes(attributes: Mapping[str, str]) -> str:
    return f" [{', '.join(f'{name}={_quoted(value)}' for name, value in attributes.items())}]" if attributes else ""


def _quoted(text: str) -> str:
    """A string of DOT; a backslash or an ampersand in it means nothing."""
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;").replace("\n", "\\n")
    return f'"{text}"'
