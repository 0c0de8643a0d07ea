"""What is to be compiled in another process, and what came of it.

A request has a key: the same programs, compiled by the same versions on the same processor, have the same one. What was
compiled is noted under it beside Inductor's cache, so that it is loaded at once where it is there already.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from sgc.config import Rng
from sgc.emit.inductor.background.graph_as_data import graph_as_data, tensor_as_data
from sgc.native.directory import kept, write_at_once
from sgc.native.inductor_cache import is_whole
from sgc.native.switches import switched_off
from sgc.native.versions import hash_of, hash_of_files


@dataclass(frozen=True)
class GraphRequest:
    """One graph for Inductor (:func:`sgc.emit.inductor.compile_graph.compile_graph`).

    :param module: it is given all its tensors.
    :param results: how many it returns.
    """

    module: fx.GraphModule
    examples: Sequence[Tensor]
    rng: Rng
    in_one_piece: bool
    results: int

    def as_data(self) -> dict[str, Any]:
        """Plain data.

        :raises NotPlain: if another process could not compile it.
        """
        return {
            "nodes": graph_as_data(self.module),
            "examples": [tensor_as_data(example) for example in self.examples],
            "rng": self.rng,
            "in_one_piece": self.in_one_piece,
            "results": self.results,
        }


@dataclass(frozen=True)
class CompileRequest:
    """Graphs that belong to one program, and the functions of C++ that it calls after them."""

    graphs: tuple[GraphRequest, ...]
    functions: tuple[str, ...] = ()

    def as_text(self) -> str:
        """JSON, the same for the same request in each process.

        :raises NotPlain: if another process could not compile it.
        """
        data = {
            "graphs": [graph.as_data() for graph in self.graphs],
            "functions": list(self.functions),
            "settings": settings(),
        }
        return json.dumps(data, separators=(",", ":"), sort_keys=True)


@dataclass(frozen=True)
class Answer:
    """Where the shared libraries are that were compiled.

    :param programs: one for each graph; None for a graph of which Inductor has made something that is not recognised.
    :param functions: that of the functions, if there are some.
    :param native: that of sgc's own C++ (:mod:`sgc.native.library`).
    """

    programs: tuple[str | None, ...]
    functions: str | None
    native: str

    @classmethod
    def read(cls, path: Path) -> Answer | None:
        """The answer in a file; None if there is none, or a library that it names is not there or cut short."""
        try:
            data = json.loads(path.read_text())
            answer = cls(tuple(data["programs"]), data["functions"], data["native"])
            libraries = [path for path in (*answer.programs, answer.functions, answer.native) if path is not None]
            return answer if all(map(is_whole, libraries)) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, path: Path) -> None:
        """Write it into a file, which is there at once or not at all."""
        text = json.dumps({"programs": self.programs, "functions": self.functions, "native": self.native})
        write_at_once(path, text)


def answer_path(text: str) -> Path:
    """Where the answer to a request of this text is kept."""
    return kept(f"{hash_of(_sources(), text)}.json")


# -- what else a compilation depends on


@dataclass(frozen=True)
class _Setting:
    """A setting of torch's that what is compiled depends on: how it is read, and how it is set."""

    name: str
    read: Any
    write: Any


def _inductor_options() -> str:
    """The options of Inductor that are not at their defaults, as Python: public, of ``torch.utils._config_module``.

    An option that was patched, and put back, counts as changed there. What its default is, is private.
    """
    config: Any = sys.modules.get("torch._inductor.config")
    if config is None:
        return ""
    known = {f"{config.__name__}.{name} = {entry.default!r}" for name, entry in config._config.items()}
    return "\n".join(line for line in config.codegen_config().splitlines() if line not in known)


def _set_inductor_options(text: str) -> None:
    if text:
        import torch._inductor.config

        exec(text, {"torch": torch})


_SETTINGS = (
    _Setting("threads", torch.get_num_threads, torch.set_num_threads),
    _Setting("precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    _Setting(
        "dtype",
        lambda: str(torch.get_default_dtype()).removeprefix("torch."),
        lambda name: torch.set_default_dtype(getattr(torch, name)),
    ),
    _Setting("deterministic", torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    _Setting("inductor", _inductor_options, _set_inductor_options),
)


def settings() -> dict[str, Any]:
    """The present settings, as plain data."""
    return {setting.name: setting.read() for setting in _SETTINGS} | {"off": list(switched_off())}


def apply_settings(values: dict[str, Any]) -> None:
    """Take over the settings of another process; what is switched off is not among them."""
    for setting in _SETTINGS:
        setting.write(values[setting.name])


@cache
def _sources() -> str:
    """A hash of what programs are generated by."""
    root = Path(__file__).parents[3]
    return hash_of_files([*(root / "emit" / "inductor").rglob("*.py"), *(root / "native").glob("*.*")])
