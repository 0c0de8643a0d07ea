"""Applies the workarounds to a compilation: changes of its graph, options of Inductor's, and patches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from sgc.emit.inductor.compilation import Compilation
from sgc.emit.inductor.workarounds.all_workarounds import WORKAROUNDS
from sgc.native.private_attributes import entered


def rewritten(compilation: Compilation) -> dict[str, Any]:
    """Change the graph of a compilation, in place, and give the options of Inductor's that it needs."""
    options: dict[str, Any] = {}
    for workaround in WORKAROUNDS:
        if workaround.concerns(compilation):
            options |= workaround.options
            if workaround.rewrite is not None:
                workaround.rewrite(compilation.module)
    return options


@contextmanager
def patched(compilation: Compilation) -> Iterator[None]:
    """Replace private attributes of torch while a graph that was rewritten is compiled."""
    with ExitStack() as stack:
        for workaround in WORKAROUNDS:
            if workaround.patch is not None and workaround.concerns(compilation):
                patch = workaround.patch(compilation.module)
                stack.enter_context(entered(workaround.name, patch, right_without=not workaround.wrong_without))
        yield
