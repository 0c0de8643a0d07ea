"""Tells Inductor's cache by which version of sgc a program was generated.

Methods of Inductor are replaced while a program is generated, of which its cache knows nothing: it would go on to give
what an earlier version of sgc has generated.
"""

from __future__ import annotations

from pathlib import Path

from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

from sgc.emit.inductor.compilation import Draws
from sgc.native.switches import switched_off


class Generator(CustomGraphPass):
    """A pass that changes nothing. Passes are part of the key.

    :param draws: in which order they are taken.
    :param folder: where the files are that what is generated depends on: all that sgc does with Inductor.
    """

    def __init__(self, folder: Path = Path(__file__).parent, *, draws: Draws = "free") -> None:
        self._draws = draws
        self._folder = folder

    def __call__(self, graph: fx.Graph) -> None:
        pass

    def uuid(self) -> bytes:
        """Another one for other sources, and where workarounds or tunings are switched off."""
        files = tuple(sorted(str(path) for path in self._folder.rglob("*.py")))
        return get_hash_for_files(files, extra=",".join((self._draws, *switched_off())))
