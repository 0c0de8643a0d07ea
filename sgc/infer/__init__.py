"""Stand-ins for ``pyro.infer``: change the import, and the program is compiled.

The ELBO classes and ``SVI`` take what Pyro's take; ``TrackNonReparam`` is Pyro's own
handler, whose sets ``StochasticGraph.provenance(node, reparameterized=False)`` gives without running anything.
"""

from typing import NoReturn

from pyro import infer as _pyros
from pyro.infer.tracegraph_elbo import TrackNonReparam

from sgc.infer.elbo import (
    ImportanceWeightedELBO,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from sgc.infer.svi import SVI

__all__ = [
    "SVI",
    "ImportanceWeightedELBO",
    "JitTraceEnum_ELBO",
    "JitTraceGraph_ELBO",
    "JitTraceMeanField_ELBO",
    "JitTrace_ELBO",
    "RenyiELBO",
    "TraceEnum_ELBO",
    "TraceGraph_ELBO",
    "TraceMeanField_ELBO",
    "Trace_ELBO",
    "TrackNonReparam",
]


def __getattr__(name: str) -> NoReturn:
    # An AttributeError would become "cannot import name", without a word of what to do.
    if name in _pyros.__all__:
        raise ImportError(f"sgc.infer has no {name}, because sgc does not compile it: from pyro.infer import {name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
