"""Says why nothing could be compiled on this machine, and what to do about it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from typing import TypeVar

from sgc.errors import BackendError

E = TypeVar("E", bound=BaseException)

_EAGER = 'or use backend="eager", which needs no compiler'
_INSTALL = "apt-get install g++; macOS: xcode-select --install"

_LONGEST = 4000
"""Characters of an error that are shown; that of a C++ compiler may have a million."""

_IN_GENERATED_CODE = re.compile(r"\.(?:cpp|h):\d+:\d+: (?:fatal )?error:")
_MISSING_HEADER = re.compile(r"fatal error: '?(\S+?)'?(?:: No such file| file not found)")


def explained(error: BaseException) -> BackendError:
    """What an error of Inductor's means for the user."""
    from torch._inductor.exc import CppCompileError

    if is_without_compiler(error):
        return _no_compiler()
    refused = cause(error, CppCompileError)
    if refused is not None:
        return _refused(refused)
    denied = cause(error, OSError)
    if denied is not None:
        return BackendError(
            f"what is compiled cannot be kept in {_place(denied)}: {first_line(denied)}",
            remedy="make room there and let it be written, delete it if it is damaged, set TORCHINDUCTOR_CACHE_DIR and "
            f"TMPDIR to directories that can be written, {_EAGER}",
        )
    text = _text(error)
    if "triton" in text.lower():
        return BackendError(f"Inductor needs Triton for CUDA: {text}", remedy=f"pip install triton, {_EAGER}")
    return BackendError(f"Inductor failed: {text}", remedy=f"please report it, {_EAGER}")


def has_compiler() -> bool:
    """Whether there is a C++ compiler that starts."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return bool(get_cpp_compiler())
    except (InvalidCxxCompiler, OSError):  # the second, if it is a file that cannot be run
        return False


def is_without_compiler(error: BaseException) -> bool:
    """Whether an error is raised because there is none."""
    from torch._inductor.exc import InvalidCxxCompiler

    chosen = os.environ.get("CXX")
    return cause(error, InvalidCxxCompiler) is not None or any(
        chosen is not None and each.filename == chosen for each in _causes(error) if isinstance(each, OSError)
    )


def cause(error: BaseException, kinds: type[E] | tuple[type[E], ...]) -> E | None:
    """The first error of some kinds among one and its causes."""
    return next((each for each in _causes(error) if isinstance(each, kinds)), None)


def first_line(error: BaseException) -> str:
    """The error that all others come from, or what the C++ compiler complains of, in one line."""
    from torch._inductor.exc import CppCompileError

    refused = cause(error, CppCompileError)
    if refused is not None:
        return _complaints(refused)[0]
    root = cause(error, OSError) or error
    return (_text(root).splitlines() or [""])[0]


def _causes(error: BaseException) -> Iterator[BaseException]:
    ahead: list[BaseException | None] = [error]
    seen: set[int] = set()
    while ahead:
        each = ahead.pop(0)
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        ahead += [getattr(each, "inner_exception", None), each.__cause__]
        ahead += [] if each.__suppress_context__ else [each.__context__]


def _no_compiler() -> BackendError:
    chosen = os.environ.get("CXX")
    problem = "Inductor needs a C++ compiler and found none"
    if chosen:
        problem += f" that works: the environment variable CXX is {chosen!r}"
    return BackendError(problem, remedy=f"install one (Debian, Ubuntu: {_INSTALL}), {_EAGER}")


def _refused(error: BaseException) -> BackendError:
    output = _output(error)
    complaints = "\n".join(_complaints(error))[:_LONGEST]
    problem = f"the C++ compiler {_compiler(error)} fails:\n{complaints}"
    missing = _MISSING_HEADER.search(output)
    if missing is not None:
        own = f"python{sys.version_info.major}.{sys.version_info.minor}-dev, g++"
        return BackendError(problem, remedy=f"install what {missing[1]} belongs to (Debian, Ubuntu: {own}), {_EAGER}")
    if "No space left on device" in output:
        return BackendError(problem, remedy=f"make room, set TORCHINDUCTOR_CACHE_DIR and TMPDIR, {_EAGER}")
    if _IN_GENERATED_CODE.search(output) is not None:
        return BackendError(
            problem,
            remedy="it refuses what Inductor has written: set CXX to another or a newer one, and please report it, "
            f"{_EAGER}",
        )
    return BackendError(
        problem, remedy=f"see that it works, install one (Debian, Ubuntu: {_INSTALL}), set CXX to another, {_EAGER}"
    )


def _compiler(error: BaseException) -> str:
    command = getattr(error, "cmd", None)
    return str(command[0]) if command else ""


def _output(error: BaseException) -> str:
    return str(getattr(error, "output", "") or error)


def _complaints(error: BaseException) -> list[str]:
    """The lines of a compiler's output that say what is wrong; the last ones, if none does."""
    lines = [line for line in _output(error).splitlines() if line.strip()]
    wrong = [line for line in lines if re.search(r"\berror\b|No space left|[Kk]illed|cannot", line)]
    return wrong or lines[-5:] or ["it says nothing"]


def _place(error: OSError) -> str:
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    kept = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if kept is not None:
        return kept
    return str(error.filename) if error.filename else default_cache_dir()


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:_LONGEST]
