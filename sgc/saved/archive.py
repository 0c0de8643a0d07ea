"""The container of a file: a zip archive of uncompressed entries that ends with the SHA-256 of everything before."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sgc.errors import SavedProgramError

_MARK = b"sgc sha256 "
_DIGITS = 64
_BEGIN = b"PK\x03\x04"
_NAME = re.compile(r"manifest\.json|(programs/\d{1,9}\.json)|(tensors/\d{1,9})", re.ASCII)
_CHUNK = 1 << 20
_PLAIN_FLAGS = 0x800
"""The one flag that an entry may have: that its name is UTF-8."""


def write_archive(path: Path, entries: Iterable[tuple[str, bytes]]) -> None:
    """Write a file that is there whole or not at all; what was there before stays until then.

    :raises OSError: if it cannot be written.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "There is no such directory to save into", str(path.parent))
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive:
            for name, content in entries:
                archive.writestr(zipfile.ZipInfo(name), content)
            archive.comment = _MARK + b"0" * _DIGITS
        with unfinished.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            digest = _digest(file, size - _DIGITS)
            file.seek(size - _DIGITS)
            file.write(digest)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_archive(path: Path) -> dict[str, bytes]:
    """The entries of a file by their names. They take the memory that the file takes on disk, no more.

    :raises sgc.errors.SavedProgramError: if :func:`write_archive` has not written it, or not as it is now.
    :raises OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        begins = file.read(len(_BEGIN)) == _BEGIN
        file.seek(max(0, size - _DIGITS - len(_MARK)))
        mark, digest = file.read(len(_MARK)), file.read()
        if mark != _MARK:
            why = "another program has written it"
            why = f"its end is missing, or {why}" if begins else why
            raise SavedProgramError(f"{path} is no file of sgc.save: {why}", remedy=_REMEDY)
        if not begins or digest != _digest(file, size - _DIGITS):
            raise SavedProgramError(f"{path} is damaged: its contents are not those that were written", remedy=_REMEDY)
        with as_written(path), zipfile.ZipFile(file) as archive:
            return dict(_entries(archive, size))


_REMEDY = "pass the path of a file that sgc.save has written; copy it again from where it was written"


@contextmanager
def as_written(path: Path) -> Iterator[None]:
    """What is read of a file in here is as sgc writes it.

    :raises sgc.errors.SavedProgramError: if not. The file is whole: somebody else has written it.
    """
    try:
        yield
    except SavedProgramError:
        raise
    except _OF_OTHER_CONTENTS as error:
        raise SavedProgramError(
            f"{path} is not as sgc.save writes it ({type(error).__name__}: {error})", remedy=_REMEDY
        ) from error


_OF_OTHER_CONTENTS = (
    AttributeError,
    ArithmeticError,
    AssertionError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What Python, zipfile and torch raise where data are not what they are taken for."""


def _entries(archive: zipfile.ZipFile, size: int) -> Iterator[tuple[str, bytes]]:
    infos = archive.infolist()
    if len({info.filename for info in infos}) != len(infos):
        raise ValueError("two entries have one name")
    if sum(info.file_size for info in infos) > size:
        raise ValueError("the entries are larger than the file")
    for info in infos:
        if not _NAME.fullmatch(info.filename):
            raise ValueError(f"no entry has the name {info.filename!r}")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & ~_PLAIN_FLAGS:
            raise ValueError(f"{info.filename} is compressed or encrypted")
        yield info.filename, archive.read(info)


def _digest(file: BinaryIO, length: int) -> bytes:
    """The SHA-256 of the first bytes of a file, in hexadecimal digits."""
    file.seek(0)
    digest = hashlib.sha256()
    while length:
        chunk = file.read(min(length, _CHUNK))
        if not chunk:
            break
        digest.update(chunk)
        length -= len(chunk)
    return digest.hexdigest().encode()
