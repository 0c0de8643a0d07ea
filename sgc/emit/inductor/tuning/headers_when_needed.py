"""Has the C++ compiler look at headers only where it compiles something.

Inductor (torch 2.11 to 2.13) names the precompiled header of a program by a hash of all that it includes, for which it
runs the compiler's preprocessor, twice for a program in two files: 0.3 s each, also where the program lies compiled in
its cache. There is no option for it; the function that precompiles a header is replaced while a program is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sgc.emit.inductor.tuning.tuning import Tuning
from sgc.native.private_attributes import replaced

_MAIN, _KERNELS = "main.cpp", "optimized.cpp"
"""How Inductor names the sources of a program: what calls the kernels, and these."""


@contextmanager
def headers_when_needed() -> Iterator[None]:
    """While this is entered, programs that are there are not prepared to be compiled."""
    latest: dict[str, Path] = {}

    def noting(write: Callable[..., tuple[str, str]]) -> Callable[..., tuple[str, str]]:
        def write_and_note(content: str | bytes, extension: str, *options: Any, **named: Any) -> tuple[str, str]:
            name, path = write(content, extension, *options, **named)
            if extension == _MAIN:
                latest.clear()
            latest[extension] = Path(path)
            return name, path

        return write_and_note

    def if_needed(precompile: Callable[..., str]) -> Callable[..., str]:
        def precompile_if_needed(*options: Any, **named: Any) -> str:
            return "" if is_built(latest) else precompile(*options, **named)

        return precompile_if_needed

    codecache = "torch._inductor.codecache"
    with replaced({f"{codecache}:write": noting, f"{codecache}:_precompile_header": if_needed}):
        yield


def is_built(sources: dict[str, Path]) -> bool:
    """Whether all that Inductor makes of these sources is there: the library, and the halves it was linked from."""
    main, kernels = sources.get(_MAIN), sources.get(_KERNELS)
    if main is None:
        return False
    made = [main.with_suffix(".so")]
    if kernels is not None:
        made += [main.with_suffix(".o"), main.parent / kernels.with_suffix(".o").name]
    return all(path.exists() for path in made)


TUNING = Tuning(
    name="headers_when_needed",
    what="for a program that lies compiled in the cache no header is looked at",
    faster="compilation",
    patch=headers_when_needed,
)
