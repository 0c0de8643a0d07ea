"""What a notebook shows of a graph: a picture where one can be made, else Mermaid, and always the text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sgc.errors import DrawingError
from sgc.graph.drawing.dot_text import as_dot
from sgc.graph.drawing.mermaid_text import as_mermaid
from sgc.graph.drawing.picture_files import rendered
from sgc.graph.drawing.scene import scene_of

if TYPE_CHECKING:
    from sgc.graph.graph import StochasticGraph


@dataclass(frozen=True)
class Picture:
    """A picture of a graph, drawn where a notebook shows it as the value of a cell; elsewhere it is the text."""

    graph: StochasticGraph = field(repr=False)
    unfold: bool = False
    highlight: str | None = None

    def __str__(self) -> str:
        return self.graph.to_text(unfold=self.unfold)

    __repr__ = __str__

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return bundle_of(self.graph, unfold=self.unfold, highlight=self.highlight)


def bundle_of(graph: StochasticGraph, *, unfold: bool = False, highlight: str | None = None) -> dict[str, str]:
    """The same graph by media type, for Jupyter's ``_repr_mimebundle_``.

    JupyterLab shows the first that it knows. Mermaid is given where Graphviz is missing: JupyterLab has drawn
    ``text/vnd.mermaid`` since its version 4.1.
    """
    bundle = {"text/plain": graph.to_text(unfold=unfold)}
    scene = scene_of(graph, unfold=unfold, highlight=highlight)
    try:
        bundle["image/svg+xml"] = rendered(as_dot(scene), "svg").decode()
    except DrawingError:
        bundle["text/vnd.mermaid"] = as_mermaid(scene)
    return bundle
