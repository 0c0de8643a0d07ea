"""Has the C++ compiler work on the two halves of a program, and on their headers, at the same time.

Inductor can write its kernels and the program that calls them into two files (``cpp_wrapper_build_separate``), each of
which is compiled with a header of its own, precompiled once on a machine. It compiles one thing after another, in a
function private to it (torch 2.11 to 2.13), which is replaced here while a program is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from sgc.emit.inductor.tuning.tuning import Tuning
from sgc.native.private_attributes import replaced


@contextmanager
def concurrent_builds() -> Iterator[None]:
    """While this is entered, what does not depend on each other is compiled at the same time."""
    headers: list[Future[None]] = []

    def concurrently(build: Callable[..., None]) -> Callable[..., None]:
        def build_concurrently(lock: str, builders: Sequence[Any]) -> None:
            if builders[0].get_target_file_path().endswith((".gch", ".pch")):
                headers.append(executor.submit(build, lock, builders))  # the files that include it come later
                return
            while headers:
                headers.pop().result()
            halves = builders[:-1]  # there are none if there is nothing to link
            started = [executor.submit(build, f"{lock}.{i}", (half,)) for i, half in enumerate(halves)]
            for half in started:
                half.result()
            build(lock, builders)  # what exists is not built again

        return build_concurrently

    with (
        ThreadPoolExecutor() as executor,
        replaced({"torch._inductor.codecache:_worker_compile_cpp": concurrently}),
    ):
        yield


TUNING = Tuning(
    name="parallel_build",
    what="the two halves of a program, and their headers, are compiled at the same time",
    faster="compilation",
    options=lambda compilation: {"cpp_wrapper_build_separate": True},
    patch=concurrent_builds,
)
