"""All that is only speed, each with the name that it is switched off by (:func:`sgc.native.switches.without`).

``python -m benchmarks.tuning`` measures what each gains.
"""

from __future__ import annotations

from sgc.emit.inductor.tuning import (
    dispatched_draws,
    headers_when_needed,
    lean_wrapper,
    operator_types,
    options,
    parallel_build,
    plain_strides,
)
from sgc.emit.inductor.tuning.tuning import Tuning

_ELSEWHERE = (
    # What asks its switch by itself, since it is no part of the compilation of one graph.
    Tuning(
        name="trusted_processor",
        what="vector instructions are taken from the processor, not tried (`sgc/native/processor.py`)",
        faster="compilation",
    ),
    Tuning(
        name="cpp_entry",
        what="programs are called from C++, past torch's Python (`sgc/emit/inductor/cpp_entry.py`)",
        faster="steps",
    ),
)

TUNINGS: tuple[Tuning, ...] = (
    options.FEWER_CHECKS,
    options.FEWER_FUSIONS_TRIED,
    options.POOLED_BUFFERS,
    options.ONE_PIECE,
    options.NO_VECTORS,
    lean_wrapper.TUNING,
    dispatched_draws.TUNING,
    parallel_build.TUNING,
    plain_strides.TUNING,
    operator_types.TUNING,
    headers_when_needed.TUNING,
    options.COMBINED_KERNELS,
    options.UNTUNED_KERNELS,
    *_ELSEWHERE,
)
