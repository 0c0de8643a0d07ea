"""How much memory this process holds, in bytes."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

MIB = 2**20


def resident() -> int:
    """Now; the peak where the system does not say."""
    return _status("VmRSS") or _maximum()


def peak() -> int:
    """The most so far."""
    # A process that was forked from a large one inherits its ru_maxrss; VmHWM is its own.
    return _status("VmHWM") or _maximum()


def _maximum() -> int:
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else 1024 * used


def _status(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), None)
