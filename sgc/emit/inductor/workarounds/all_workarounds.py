"""All workarounds, in the order in which they are applied.

Each file says what torch does wrong and what is done about it. Where one errs no more in any release of torch that sgc
works with, its file is deleted, and its line here.

Not among them: what is done about files of Inductor's cache that were cut short, as that is done for libraries of sgc's
own, too (:mod:`sgc.native.inductor_cache`); and that a matrix without a factor is NaN where nothing is checked
(:mod:`sgc.emit.rewrites.singular_matrices`), which is what sgc says that it is, on TorchScript too.
"""

from __future__ import annotations

from sgc.emit.inductor.workarounds import (
    assertion_texts,
    bernoulli_draws,
    boolean_masks,
    complex_numbers,
    deep_recursion,
    lost_renames,
    negative_indices,
    order_of_draws,
    own_memory,
    permutations,
    pieces_returned,
    pieces_written_into,
    pieces_written_over,
    reads_before_writes,
    rrelu_slopes,
    scaled_sums,
    single_indices,
    tuned_beforehand,
    unchecked_calls,
)
from sgc.emit.inductor.workarounds.workaround import Workaround

WORKAROUNDS: tuple[Workaround, ...] = tuple(
    module.WORKAROUND
    for module in (
        # changes of the graph
        own_memory,
        assertion_texts,
        single_indices,
        negative_indices,
        scaled_sums,
        complex_numbers,
        permutations,
        bernoulli_draws,
        order_of_draws,  # numbers all draws, and replaces methods
        # methods of Inductor's that are replaced
        deep_recursion,
        rrelu_slopes,
        boolean_masks,
        pieces_written_over,
        pieces_returned,
        pieces_written_into,
        lost_renames,
        reads_before_writes,
        unchecked_calls,
        # options
        tuned_beforehand,
    )
)
