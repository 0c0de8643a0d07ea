"""Writes what is drawn of some programs: the goldens, and with Graphviz their pictures.

python -m tests.drawing                        # the goldens, after a change that is meant
python -m tests.drawing --pictures docs/pictures --format svg belief_net
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyro

from tests.drawing.goldens import GOLDENS, texts
from tests.drawing.models import MODELS


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", default=list(MODELS))
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--format", default="svg")
    args = parser.parse_args()
    for name in args.names:
        pyro.clear_param_store()
        graph = MODELS[name]()
        if args.pictures is not None:
            args.pictures.mkdir(parents=True, exist_ok=True)
            print(graph.draw(args.pictures / f"{name}.{args.format}"))
        else:
            for ending, text in texts(graph).items():
                (GOLDENS / f"{name}.{ending}").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
