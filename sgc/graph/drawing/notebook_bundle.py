"""What a notebook shows of a graph: a picture where one can be made, else Mermaid, and always the text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sgc.errors import DrawingError
from sgc.graph.drawing.dot_text import as_dot
from sgc.graph.drawing.mermaid_text import as_mermaid
from sgc.graph.drawing.picture_files import rendered
from sgc.graph.drawing.scene import scene_of

if TYPE_CHECKING:
    from sgc.graph.graph import StochasticGraph


def bundle_of(graph: StochasticGraph) -> dict[str, str]:
    """The same graph by media type, for Jupyter's ``_repr_mimebundle_``.

    JupyterLab shows the first that it knows. Mermaid is given where Graphviz is missing: JupyterLab has drawn
    ``text/vnd.mermaid`` since its version 4.1.
    """
    bundle = {"text/plain": str(graph)}
    scene = scene_of(graph)
    try:
        bundle["image/svg+xml"] = rendered(as_dot(scene), "svg").decode()
    except DrawingError:
        bundle["text/vnd.mermaid"] = as_mermaid(scene)
    return bundle
