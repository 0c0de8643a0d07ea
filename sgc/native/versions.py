"""What shared libraries depend on besides their own sources: the versions and the processor that they are made for."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch


def hash_of(*parts: str) -> str:
    """A hash of texts, and of the versions, the processor and the variables by which things are compiled here."""
    # Inductor itself sets the variable of its directory when it is first used.
    own = {name: os.environ[name] for name in os.environ if name.startswith("TORCHINDUCTOR_")}
    own.pop("TORCHINDUCTOR_CACHE_DIR", None)
    versions = (torch.__version__, torch.version.git_version, sys.version, platform.machine(), _processor())
    text = repr((versions, torch.backends.cpu.get_cpu_capability(), sorted(own.items()), os.environ.get("CXX"), parts))
    return hashlib.sha256(text.encode()).hexdigest()


def hash_of_files(files: Iterable[Path]) -> str:
    """A hash of what is in some files."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()


@cache
def _processor() -> str:
    """The instructions of the processor, where the system tells them: of two, one may lack some of the other's."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
