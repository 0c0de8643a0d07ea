"""The process that compiles for another one: ``python -m sgc.emit.inductor.background.compile_worker PARENT``.

Each line of its input names a file with a request. It ends when the input does, which is when the process that has
started it ends, in whatever way; and when nothing has been asked of it for a while.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

_PATIENCE = 60.0
"""Seconds without a request after which it ends: it holds some hundred megabytes."""

_LOOK = 1.0
"""Seconds between two looks whether the other process is there: a child of that one may hold its end of the pipe."""


def main() -> None:
    """Answer requests, one after another."""
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    parent = int(sys.argv[1])
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    while True:
        try:
            path = requests.get(timeout=_PATIENCE)
        except queue.Empty:
            return
        task = json.loads(Path(path).read_text())
        Path(path).unlink()
        answer(task)


def answer(task: dict[str, Any]) -> None:
    """Compile what a request asks for, and write the answer, or the error, into the files that it names."""
    from sgc.native.directory import write_at_once

    try:
        compiled(task["request"]).write(Path(task["answer"]))
    except Exception:
        write_at_once(Path(task["failure"]), traceback.format_exc())


def compiled(text: str) -> Any:
    """The :class:`~sgc.emit.inductor.background.compile_request.Answer` to a request."""
    from sgc.emit.inductor.background.compile_request import Answer, apply_settings
    from sgc.emit.inductor.cpp_entry import library_of
    from sgc.native import library
    from sgc.native.switches import without

    request = json.loads(text)
    settings = request["settings"]
    apply_settings(settings)
    with without(*settings["off"]):
        library.start()
        functions = library_of(request["functions"]) if request["functions"] else None
        programs = tuple(map(_program, request["graphs"]))
        return Answer(programs, None if functions is None else functions()._name, library.path())


def _program(data: dict[str, Any]) -> str | None:
    """The library of a graph, compiled; None if it is not recognised."""
    from sgc.emit.inductor.background.graph_as_data import graph_of_data, tensor_of_data
    from sgc.emit.inductor.compile_graph import compile_graph
    from sgc.emit.inductor.cpp_entry import recognised

    examples = [tensor_of_data(example) for example in data["examples"]]
    module = graph_of_data(data["nodes"], examples)
    run = compile_graph(module, examples, data["rng"], in_one_piece=data["in_one_piece"], ordered=True)
    paths: Iterator[str] = (found.__file__ for found in recognised(run, len(examples), data["results"]))
    return next(paths, None)


def _read(requests: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        requests.put(line.rstrip("\n"))
    _end()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        threading.Event().wait(_LOOK)
    _end()


def _end() -> NoReturn:
    """End at once, with the compilers that were started: they are of this process's group, which is its own."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    main()
