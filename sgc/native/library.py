"""What is written in C++ because every step passes through it: the guards, and the calls of compiled programs.

It is compiled once on a machine, by the compiler that Inductor uses, and kept where Inductor keeps what it compiles.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

from sgc.native.compiler_errors import has_compiler
from sgc.native.directory import kept, write_at_once
from sgc.native.inductor_cache import compiled, is_whole
from sgc.native.processor import trusted_processor
from sgc.native.versions import hash_of

_C = ("cstdint", "cstring")
_HEADERS = ("Python.h", *_C, "algorithm", "exception", "memory", "stdexcept", "string", "utility", "vector")
_SOURCES = ("objects.cpp", "reads.cpp", "conditions.cpp", "program.cpp", "step.cpp")
_lock = threading.Lock()


@cache
def is_available() -> bool:
    """Whether it is there, or there is a C++ compiler to make it. On Windows nobody has tried."""
    return sys.platform != "win32" and (bool(_files) or has_compiler())


def library() -> Any:
    """The extension module; the first call compiles it where that has not been done.

    :raises sgc.errors.BackendError: if it cannot be compiled; the text says why.
    """
    with _lock:
        return _library()


def start() -> None:
    """Compile it in the background, where that has not been done: :func:`library` will be asked for."""
    if not _files and is_available():
        with _lock:
            _started()


def path() -> str:
    """The file of the extension module, compiled where that has not been done; it is not loaded.

    :raises sgc.errors.BackendError: if it cannot be compiled; the text says why.
    """
    with _lock:
        return _path()


def _path() -> str:
    if not _files:
        _files.append(_started()()._name)
        with suppress(OSError):  # it is found again without the note
            write_at_once(_note(), _files[-1])
    return _files[-1]


def take_over(path: str) -> None:
    """Take for the extension module a file that another process has compiled of the same sources."""
    with _lock:
        _files.append(path)
        is_available.cache_clear()


def is_there() -> bool:
    """Whether it is known to have been compiled on this machine; this asks neither Inductor nor a compiler."""
    if not _files:
        try:
            path = _note().read_text()
            if is_whole(path):
                take_over(path)
        except OSError:
            return False  # nobody has compiled it yet, or it has been deleted
    return bool(_files)


def _note() -> Path:
    return kept(f"{hash_of(_source())}.path")


_files: list[str] = []


@cache
def _library() -> Any:
    file = _path()
    spec = importlib.util.spec_from_file_location("sgc_native", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def _started() -> Callable[[], Any]:
    return shared_library(_source(), "-O1")


@cache
def _source() -> str:
    texts = [f"#include <{name}>" for name in _HEADERS]
    texts += [(Path(__file__).parent / name).read_text() for name in _SOURCES]
    return "\n".join(texts)


def shared_library(source: str, *options: str) -> Callable[[], Any]:
    """Compile a shared library of some C++ in the background, by Inductor's compiler and kept beside its programs.

    :param options: for the compiler, after Inductor's own.
    :return: a function that waits for it and returns it, a ``ctypes.CDLL``. It raises a
        :class:`~sgc.errors.BackendError` if it cannot be compiled; the text says why.
    """
    from torch._inductor.codecache import CppCodeCache

    compile_anew = partial(CppCodeCache.load, source, extra_flags=options)
    try:
        with trusted_processor():
            load = CppCodeCache.load_async(source, extra_flags=options, submit_fn=_in_background)
    except Exception:
        load = compile_anew  # which meets the same error, where it is waited for
    return lambda: compiled(load, compile_anew)


def _in_background(work: Callable[[], Any]) -> Future[Any]:
    executor = ThreadPoolExecutor(1)
    future = executor.submit(work)
    executor.shutdown(wait=False)  # once the work is done
    return future
