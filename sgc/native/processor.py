"""Lets Inductor take the vector instructions from the processor, instead of compiling a program for each to try it.

Before its first compilation Inductor (``torch._inductor.cpu_vec_isa``) compiles and loads a program for each width of
vectors, and for each extension of the widest, seconds in all. Its option ``cpp.vec_isa_ok`` spares the widths alone.
What the processor has it asks before each trial; left to be tried is whether the compiler knows these instructions. A
compiler that does not fails at the first program: then the trials are made after all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from sgc.native.private_attributes import entered, replaced
from sgc.native.switches import is_on

T = TypeVar("T")


@contextmanager
def trusted_processor() -> Iterator[None]:
    """Compile without trials, unless the user has decided about them (``TORCHINDUCTOR_VEC_ISA_OK``)."""
    import torch._inductor.config as inductor_config

    if inductor_config.cpp.vec_isa_ok is not None or not is_on("trusted_processor"):
        yield
        return
    untried = replaced({"torch._inductor.cpu_vec_isa:VecISA.check_build": lambda _: lambda self, code: True})
    with (
        inductor_config.patch({"cpp.vec_isa_ok": True}),
        entered("trusted_processor", untried, right_without=True),
    ):
        yield


def trusting(attempt: Callable[[], T], again: Callable[[], T]) -> T:
    """What ``attempt`` compiles without trials; or what ``again`` compiles with them, if the compiler fails.

    :raises Exception: of several kinds, Inductor's.
    """
    import torch._inductor.config as inductor_config
    from torch._inductor.utils import clear_caches

    try:
        with trusted_processor():
            return attempt()
    except BaseException as error:
        clear_caches()  # they keep what was to load the program that has failed
        refused = "CppCompileError" in f"{type(error).__name__}: {error}"
        if not refused or inductor_config.cpp.vec_isa_ok is not None:
            raise
    forget()  # the compiler may be too old for this processor
    try:
        return again()
    except BaseException:
        clear_caches()
        raise


def forget() -> None:
    """Forget what was taken from the processor."""
    from torch._inductor import cpu_vec_isa

    cpu_vec_isa.valid_vec_isa_list.cache_clear()
    for kind in vars(cpu_vec_isa).values():
        # Some answers are kept by the method that gives them.
        if isinstance(kind, type) and issubclass(kind, cpu_vec_isa.VecISA):
            for answer in vars(kind).values():
                if hasattr(answer, "cache_clear"):
                    answer.cache_clear()
    for known in cpu_vec_isa.supported_vec_isa_list:
        for flag in ("_is_avx512_bf16_supported", "_is_amx_fp16_supported"):
            vars(known).pop(flag, None)
