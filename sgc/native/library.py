"""What is written in C++ because every step passes through it: the guards, and the calls of compiled programs.

It is compiled once on a machine, by the compiler that Inductor uses, and kept where Inductor keeps what it compiles.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any

from sgc.native.processor import trusted_processor

_HEADERS = ("Python.h", "cstdint", "cstring", "exception", "stdexcept", "string", "utility", "vector")
_SOURCES = ("objects.cpp", "watch.cpp", "program.cpp")
_lock = threading.Lock()


@cache
def is_available() -> bool:
    """Whether there is a C++ compiler to make it. On Windows nobody has tried."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return sys.platform != "win32" and bool(get_cpp_compiler())
    except InvalidCxxCompiler:
        return False


def library() -> Any:
    """The extension module; the first call compiles it where that has not been done.

    :raises Exception: of several kinds, Inductor's, if there is no C++ compiler.
    """
    with _lock:
        return _library()


@cache
def _library() -> Any:
    texts = [f"#include <{name}>" for name in _HEADERS]
    texts += [(Path(__file__).parent / name).read_text() for name in _SOURCES]
    path = shared_library("\n".join(texts), "-O1")._name
    spec = importlib.util.spec_from_file_location("sgc_native", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shared_library(source: str, *options: str) -> Any:
    """A shared library of some C++, a ``ctypes.CDLL``: compiled by Inductor's compiler, and kept beside its programs.

    :param options: for the compiler, after Inductor's own.
    """
    from torch._inductor.codecache import CppCodeCache

    with trusted_processor():
        return CppCodeCache.load(source, extra_flags=options)
