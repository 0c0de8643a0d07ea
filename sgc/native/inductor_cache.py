"""Has Inductor compile whatever state its cache is in: damaged, full, or in a place that cannot be written.

Inductor (torch 2.11 to 2.13) keeps what it compiles in files named by a hash of their source, and takes a file that is
there for what its name says. One that a full disk or a killed process has cut short is compiled, imported or loaded as
it is; and a shared library cut short kills the process that uses what is missing. So here a source is read again after
it was written, and a library's own table of contents compared with its length, before either is used: in two functions
of Inductor's, replaced while it compiles, as there is no option for it. What fails, for whatever reason, is compiled
once more in a temporary directory, apart from all that was kept: if it succeeds there, a warning says why it had to.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sgc.errors import CacheWarning, SgcError
from sgc.native.compiler_errors import cause, explained, first_line, is_without_compiler
from sgc.native.directory import temporary_directory
from sgc.native.private_attributes import entered, replaced
from sgc.native.processor import trusted_processor, trusting
from sgc.native.switches import is_on

T = TypeVar("T")


def compiled(attempt: Callable[[], T], again: Callable[[], T]) -> T:
    """What ``attempt`` compiles by Inductor; or, if its cache is at fault, what ``again`` compiles apart from it.

    With that switched off (``without("checked_files")``, for tests of what fails) nothing is compiled a second time.

    :raises sgc.errors.BackendError: if neither can; the text says why, and what to do.
    """
    if not is_on("checked_files"):
        with trusted_processor():
            return attempt()
    try:
        with _checked_files() as unusable:
            done = trusting(attempt, again)
    except Exception as error:
        own = cause(error, SgcError)
        if own is not None:
            raise own from None
        if is_without_compiler(error):
            raise explained(error) from error
        try:
            with _temporary_directory(), _checked_files():
                done = again()
        except Exception as other:
            raise explained(other) from other
        unusable = {first_line(error)}
    for reason in sorted(unusable):
        warnings.warn(_advice(reason), CacheWarning, stacklevel=2)
    return done


def _advice(reason: str) -> str:
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    usual = default_cache_dir()  # where precompiled headers are, whatever the variable says
    place = os.environ.get("TORCHINDUCTOR_CACHE_DIR", usual)
    return (
        f"what is compiled is kept in {place}, headers in {usual}/precompiled_headers, where something cannot be used "
        f"({reason}). It was compiled anew, as it will be in each process: delete what is damaged there, or set "
        "TORCHINDUCTOR_CACHE_DIR to a directory that can be written"
    )


@contextmanager
def _temporary_directory() -> Iterator[None]:
    """While this is entered, Inductor finds nothing kept, of headers neither, and keeps what it makes elsewhere."""
    import torch._inductor.config as inductor_config
    from torch._inductor.runtime.cache_dir_utils import temporary_cache_dir

    with (
        temporary_cache_dir(temporary_directory()),
        inductor_config.patch({"cpp_cache_precompile_headers": False}),
    ):
        yield


@contextmanager
def _checked_files() -> Iterator[set[str]]:
    """While this is entered, Inductor takes no file for what it is not.

    :return: why it could not use what it has compiled anew by itself.
    """
    unusable: set[str] = set()

    def and_read(write: Callable[..., tuple[str, str]]) -> Callable[..., tuple[str, str]]:
        def write_and_read(content: str | bytes, *options: Any, **named: Any) -> tuple[str, str]:
            name, path = write(content, *options, **named)
            # The hash is of the content without what is white at its ends.
            there = Path(path).read_bytes() if isinstance(content, bytes) else Path(path).read_text(errors="replace")
            if there.strip() != content.strip():
                raise _cut_short(path)
            return name, path

        return write_and_read

    def if_whole(load: Callable[..., Any]) -> Callable[..., Any]:
        def load_whole(cls: type, path: str, key: str) -> Any:
            if not is_whole(path):
                raise _cut_short(path)
            return load(cls, path, key)

        return load_whole

    def note(record: logging.LogRecord) -> bool:
        if not record.msg.startswith(_LOGGED):
            return True
        if record.exc_info and record.exc_info[1] is not None:
            unusable.add(first_line(record.exc_info[1]))
        return False

    codecache = "torch._inductor.codecache"
    checks = replaced({f"{codecache}:write": and_read, f"{codecache}:CppCodeCache._load_library": if_whole})
    with (
        log_filtered("torch._inductor.codecache", note),
        log_filtered("torch._inductor.output_code", note),
        # Without it a program is compiled as well, but a damaged file may end the process.
        entered("checked_files", checks, right_without=True),
    ):
        yield unusable


_LOGGED = ("fx graph cache unable to load compiled graph", "Failed to load artifact")
"""What Inductor logs, with a traceback, of what it compiles anew by itself, and before it raises."""


@contextmanager
def log_filtered(name: str, wanted: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """While this is entered, a logger of this name logs only what is wanted."""
    logger = logging.getLogger(name)
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


def _cut_short(path: str) -> OSError:
    return OSError(errno.EIO, "The file is not what was written into it", path)


def is_whole(path: str) -> bool:
    """Whether a shared library is as long as it says, on Linux; elsewhere the system looks at that."""
    if sys.platform != "linux":
        return True
    with open(path, "rb") as file:
        start, length = file.read(64), os.fstat(file.fileno()).st_size
        if len(start) < 64 or not start.startswith(b"\x7fELF"):
            return False
        if start[4:6] != b"\x02\x01":  # not of 64 bits, the lowest first
            return True
        _, sections, *_, each, number, _ = struct.unpack_from("<QQIHHHHHH", start, 32)
        if sections + each * number > length:
            return False
        segments, _, _, _, each, number = struct.unpack_from("<QQIHHH", start, 32)
        file.seek(segments)
        table = file.read(each * number)
    if len(table) < each * number:
        return False
    ends = (sum(struct.unpack_from("<Q16xQ", table, each * i + 8)) for i in range(number))
    return all(end <= length for end in ends)
