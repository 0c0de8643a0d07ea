"""What is written in C++ because every step passes through it: the guards, and the calls of compiled programs.

It is compiled once on a machine, by the compiler that Inductor uses, and kept where Inductor keeps what it compiles.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

from sgc.native.compiler_errors import has_compiler
from sgc.native.inductor_cache import compiled
from sgc.native.processor import trusted_processor

_C = ("cstdint", "cstring")
_HEADERS = ("Python.h", *_C, "algorithm", "exception", "memory", "stdexcept", "string", "utility", "vector")
_SOURCES = ("objects.cpp", "reads.cpp", "conditions.cpp", "program.cpp", "step.cpp")
_lock = threading.Lock()


@cache
def is_available() -> bool:
    """Whether there is a C++ compiler to make it. On Windows nobody has tried."""
    return sys.platform != "win32" and has_compiler()


def library() -> Any:
    """The extension module; the first call compiles it where that has not been done.

    :raises sgc.errors.BackendError: if it cannot be compiled; the text says why.
    """
    with _lock:
        return _library()


def start() -> None:
    """Compile it in the background, where that has not been done: :func:`library` will be asked for."""
    if is_available():
        with _lock:
            _started()


@cache
def _library() -> Any:
    path = _started()()._name
    spec = importlib.util.spec_from_file_location("sgc_native", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def _started() -> Callable[[], Any]:
    texts = [f"#include <{name}>" for name in _HEADERS]
    texts += [(Path(__file__).parent / name).read_text() for name in _SOURCES]
    return shared_library("\n".join(texts), "-O1")


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
