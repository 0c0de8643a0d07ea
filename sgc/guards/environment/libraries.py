"""Which classes and modules are a library's, whose code names nothing of the user's, and what code names."""

from __future__ import annotations

import functools
import sys
import types

LIBRARY_ROOTS = ("torch", "pyro", "numpy", "networkx", "sgc")
"""The packages that sgc itself is made of, which a program calls and does not keep its state in."""


def is_of_a_library(module: str) -> bool:
    """Whether a module is sgc's surroundings', Python's own, or installed."""
    root = module.partition(".")[0]
    if root in LIBRARY_ROOTS or root in sys.stdlib_module_names:
        return True
    return "site-packages" in (getattr(sys.modules.get(module), "__file__", None) or "")


def is_installed(cls: type) -> bool:
    """Whether a class is of some library, whose methods name nothing that changes while a program is trained."""
    return is_of_a_library(cls.__module__)


def is_machinery(cls: type) -> bool:
    """Whether a class is of loggers, threads or files, whose state changes by itself and is no program's input."""
    return any(base.__module__.partition(".")[0] in ("logging", "threading", "io", "_io") for base in cls.__mro__)


@functools.lru_cache(maxsize=4096)
def names_in(code: types.CodeType) -> frozenset[str]:
    """The attributes and globals that a function's code, and that of the functions written in it, names."""
    inner = [names_in(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return frozenset(code.co_names).union(*inner)
