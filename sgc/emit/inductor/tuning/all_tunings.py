"""All that is only speed, each with the name that it is switched off by (:func:`sgc.native.switches.without`).

``python -m benchmarks.tuning`` measures what each gains.
"""

from __future__ import annotations

from sgc.emit.inductor.tuning import dispatched_draws, lean_wrapper, parallel_build, plain_strides
from sgc.emit.inductor.tuning.any_device_options import FEWER_CHECKS, FEWER_FUSIONS_TRIED, UNROLLED_SUMS
from sgc.emit.inductor.tuning.cpu_options import NO_VECTORS, ONE_PIECE, POOLED_BUFFERS, SMALL_STACKS
from sgc.emit.inductor.tuning.gpu_options import COMBINED_KERNELS, UNTUNED_KERNELS
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
    FEWER_CHECKS,
    UNROLLED_SUMS,
    FEWER_FUSIONS_TRIED,
    POOLED_BUFFERS,
    ONE_PIECE,
    SMALL_STACKS,
    NO_VECTORS,
    lean_wrapper.TUNING,
    dispatched_draws.TUNING,
    parallel_build.TUNING,
    plain_strides.TUNING,
    COMBINED_KERNELS,
    UNTUNED_KERNELS,
    *_ELSEWHERE,
)
