"""Draws the pictures of the tutorials' graphs anew, which takes a minute and Graphviz: ``python -m tests.docs``."""

from __future__ import annotations

import tempfile
from contextlib import chdir
from pathlib import Path

import pyro

from tests.docs.pages import run
from tests.docs.pictures import PICTURES, ROOT, graph_of

if __name__ == "__main__":
    for page, (picture, _) in PICTURES.items():
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        with tempfile.TemporaryDirectory() as folder, chdir(Path(folder)):
            names = run(ROOT / page)
        print(graph_of(page, names).draw(ROOT / picture))
