"""The directory where Inductor keeps what it compiles, which must be there before torch's compiler is imported."""

from __future__ import annotations

import atexit
import getpass
import os
import shutil
import tempfile
import warnings
from functools import cache
from pathlib import Path

from sgc.errors import CacheWarning

_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def make_directory() -> None:
    """Make the directory that the user has chosen, or torch's own choice; where that fails, take a temporary one."""
    try:
        place = os.path.abspath(os.environ.get(_VARIABLE) or _usual())
    except (KeyError, OSError):
        return  # the user has no name: torch finds another
    try:
        os.makedirs(place, exist_ok=True)
    except OSError as error:
        os.environ[_VARIABLE] = temporary_directory()
        warnings.warn(
            f"what is compiled cannot be kept in {place} ({error}). It is compiled anew in each process: set "
            f"{_VARIABLE} to a directory that can be written",
            CacheWarning,
            stacklevel=2,
        )


def cache_directory() -> str:
    """Where what is compiled is kept: what the user has chosen, or torch's own choice."""
    try:
        return os.path.abspath(os.environ.get(_VARIABLE) or _usual())
    except (KeyError, OSError):  # the user has no name
        return os.path.join(tempfile.gettempdir(), "torchinductor_sgc")


def kept(name: str) -> Path:
    """A file of sgc's own, beside what Inductor keeps."""
    return Path(cache_directory(), "sgc", name)


def write_at_once(path: Path, text: str) -> None:
    """Write a file that nobody sees half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.write_text(text)
    unfinished.replace(path)


def _usual() -> str:
    return os.path.join(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}")


@cache
def temporary_directory() -> str:
    """Removed when the process ends."""
    made = tempfile.mkdtemp(prefix="sgc_")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made
