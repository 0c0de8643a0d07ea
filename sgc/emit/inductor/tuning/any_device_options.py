"""Options of Inductor for programs on any device."""

from __future__ import annotations

from sgc.emit.inductor.tuning.tuning import Tuning

FEWER_CHECKS = Tuning(
    name="fewer_checks",
    what="inputs and sizes, which the guards have seen, are not asserted at every call",
    faster="steps",
    device="any",
    options=lambda compilation: {"size_asserts": False, "alignment_asserts": False, "scalar_asserts": False},
)

UNROLLED_SUMS = Tuning(
    name="unrolled_sums",
    what="sums of up to 16 terms are written out: over fewer numbers than a vector has, Inductor loops one by one",
    faster="steps",
    device="any",
    options=lambda compilation: {"unroll_reductions_threshold": 17},
)

FEWER_FUSIONS_TRIED = Tuning(
    name="fewer_fusions_tried",
    what="of the kernels that share a buffer, each is tried for fusion only with those next to it",
    faster="compilation",
    device="any",
    options=lambda compilation: {"max_fusion_buffer_group_pairwise_attempts": 8},
)
