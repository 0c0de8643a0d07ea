"""Writes pictures with Graphviz, through the ``graphviz`` package, which calls the program ``dot``."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from sgc.errors import ArgumentError, DrawingError

FORMATS = ("svg", "png", "pdf")
_INSTALL = "apt-get install graphviz, brew install graphviz or conda install graphviz"
_WITHOUT = (
    "or write graph.to_mermaid(), which GitHub and JupyterLab draw, or graph.to_dot(), which others draw; "
    "neither needs anything installed"
)


def format_of(path: str | PathLike[str]) -> str:
    """The format that the ending of a file's name says.

    :raises sgc.errors.ArgumentError: if it is none of :data:`FORMATS`.
    """
    ending = Path(path).suffix.lower().removeprefix(".")
    if ending not in FORMATS:
        said = f"not {ending!r}" if ending else "and this has none"
        raise ArgumentError(
            f"a picture's file ends in .svg, .png or .pdf, {said}: {str(path)!r}",
            remedy="name it graph.svg, say; graph.to_dot() and graph.to_mermaid() give the text of others",
        )
    return ending


def rendered(dot: str, ending: str) -> bytes:
    """A picture of a graph in DOT.

    :raises sgc.errors.DrawingError: if the ``graphviz`` package or Graphviz itself is missing, or Graphviz fails.
    """
    try:
        import graphviz
    except ImportError as error:
        raise DrawingError(
            f"pictures are made by the Python package graphviz, which cannot be imported: {error}",
            remedy=f"pip install 'sgc[draw]' (or graphviz), {_WITHOUT}",
        ) from error
    try:
        return bytes(graphviz.Source(dot).pipe(format=ending, quiet=True))
    except graphviz.ExecutableNotFound as error:
        raise DrawingError(
            "pictures are made by Graphviz, whose program dot is not found on the PATH",
            remedy=f"{_INSTALL}, {_WITHOUT}",
        ) from error
    except OSError as error:
        raise DrawingError(
            f"Graphviz's program dot cannot be run: {error}", remedy=f"{_INSTALL}, {_WITHOUT}"
        ) from error
    except graphviz.CalledProcessError as error:
        said = bytes(error.stderr).decode(errors="replace").strip()
        raise DrawingError(
            f"Graphviz cannot make this picture (.{ending}): {said}",
            remedy=f"take another of .{', .'.join(FORMATS)}, or a newer Graphviz, {_WITHOUT}",
        ) from error
