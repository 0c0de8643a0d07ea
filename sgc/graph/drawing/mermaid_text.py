"""A scene in Mermaid, which GitHub, JupyterLab and many editors draw (https://mermaid.js.org/syntax/flowchart.html)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sgc.graph.drawing import colours
from sgc.graph.drawing.boxes import Box
from sgc.graph.drawing.scene import Line, Look, Scene, SceneEdge

_SHAPES = {
    Look.PARAMETER: ("[", "]"),
    Look.DATA: ("[", "]"),
    Look.LATENT: ("([", "])"),
    Look.OBSERVED: ("([", "])"),
    Look.DETERMINISTIC: ("[", "]"),
    Look.SUBSAMPLE: ("([", "])"),
    Look.COST: ("{", "}"),
    Look.SCORE: ("{{", "}}"),
    Look.BASELINE: ("(", ")"),
    Look.OBJECTIVE: ("[[", "]]"),
}
_GROUNDS = {Look.OBSERVED: colours.OBSERVED, Look.COST: colours.COST, Look.BASELINE: colours.BASELINE}
_ARROWS = {Line.FLOW: "-->", Line.ESTIMATE: "-.->", Line.PARTICLES: "-.->"}


def as_mermaid(scene: Scene) -> str:
    """A flowchart with subgraphs for boxes and a legend."""
    return "\n".join(_lines(scene)) + "\n"


def _lines(scene: Scene) -> Iterator[str]:
    identity = {node.name: f"n{place}" for place, node in enumerate(scene.nodes)}
    yield "flowchart TB"
    yield from _within(scene, (), identity, [0])
    for edge in scene.edges:
        label = f"|{_quoted(edge.label)}|" if edge.label else ""
        yield f"  {identity[edge.source]} {_ARROWS[edge.line]}{label} {identity[edge.target]}"
    yield f"  subgraph legend [{_quoted(scene.note or 'legend')}]"
    for place, (look, estimator, words) in enumerate(scene.legend()):
        yield f"    legend{place}{_shaped(look, words)}:::{_style(look, estimator, scene)}"
    yield "  end"
    yield from _styles(scene)
    for place, edge in enumerate(scene.edges):
        if edge.faded or edge.line is not Line.FLOW:
            yield f"  linkStyle {place} stroke:{_stroke(edge, scene)}"


def _within(scene: Scene, path: tuple[Box, ...], identity: Mapping[str, str], count: list[int]) -> Iterator[str]:
    """The nodes in a box, and the boxes in it."""
    indent, depth = "  " * (len(path) + 1), len(path)
    inner: dict[Box, None] = {}
    for node in scene.nodes:
        if node.boxes[:depth] == path:
            if len(node.boxes) == depth:
                style = "faded" if node.faded else _style(node.look, node.estimator, scene)
                yield f"{indent}{identity[node.name]}{_shaped(node.look, *node.lines)}:::{style}"
            else:
                inner[node.boxes[depth]] = None
    for box in inner:
        name = f"box{count[0]}"
        count[0] += 1
        yield f"{indent}subgraph {name} [{_quoted(box.label)}]"
        yield from _within(scene, (*path, box), identity, count)
        yield f"{indent}end"
        yield f"{indent}class {name} {'loop' if box.is_loop else 'plate'}"


def _shaped(look: Look, *lines: str) -> str:
    opening, closing = _SHAPES[look]
    return f"{opening}{_quoted(*lines)}{closing}"


def _style(look: Look, estimator: str | None, scene: Scene) -> str:
    name = look.name.lower()
    if estimator is None or look not in (Look.LATENT, Look.SCORE):
        return name
    return f"{name}{scene.estimators.index(estimator)}"


def _styles(scene: Scene) -> Iterator[str]:
    """The styles that are used."""
    used: dict[str, str] = {}
    looks = [(node.look, node.estimator) for node in scene.nodes]
    for look, estimator in (*looks, *((look, estimator) for look, estimator, _ in scene.legend())):
        ground, line = _GROUNDS.get(look, colours.PLAIN), colours.INK
        if look is Look.LATENT:
            ground = colours.of_estimator(estimator, scene.estimators)
        if look is Look.SCORE:
            line = colours.of_estimator(estimator, scene.estimators, strong=True)
        if look in (Look.PARAMETER, Look.DATA):
            ground = line = "none"
        dashed = ",stroke-dasharray:4" if look in (Look.SCORE, Look.SUBSAMPLE) else ""
        used[_style(look, estimator, scene)] = f"fill:{ground},stroke:{line},color:{colours.INK}{dashed}"
    for name, style in used.items():
        yield f"  classDef {name} {style}"
    if any(node.faded for node in scene.nodes):
        yield f"  classDef faded fill:{colours.PLAIN},stroke:{colours.FAINT},color:{colours.FAINT}"
    boxes = {box for node in scene.nodes for box in node.boxes}
    if any(not box.is_loop for box in boxes):
        yield f"  classDef plate fill:none,stroke:{colours.PLATE},color:{colours.INK}"
    if any(box.is_loop for box in boxes):
        yield f"  classDef loop fill:{colours.LOOP},stroke:{colours.PLATE},color:{colours.INK},stroke-dasharray:4"


def _stroke(edge: SceneEdge, scene: Scene) -> str:
    return colours.FAINT if edge.faded else colours.of_estimator(edge.estimator, scene.estimators, strong=True)


def _quoted(*lines: str) -> str:
    """A text of Mermaid; no character in it means anything else than itself."""
    return '"' + "<br/>".join("".join(map(_plain, line)) for line in lines) + '"'


def _plain(character: str) -> str:
    return f"#{ord(character)};" if character in '"#<>&`' else character
