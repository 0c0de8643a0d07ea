"""Stand-ins for ``pyro.infer``: change the import, and the program is compiled.

``TraceGraph_ELBO``, ``JitTraceGraph_ELBO`` and ``SVI`` take what Pyro's take; ``TrackNonReparam`` is Pyro's own
handler, whose sets ``StochasticGraph.provenance(node, reparameterized=False)`` gives without running anything.
"""

from pyro.infer.tracegraph_elbo import TrackNonReparam

from sgc.infer.elbo import JitTraceGraph_ELBO, TraceGraph_ELBO
from sgc.infer.svi import SVI

__all__ = ["SVI", "JitTraceGraph_ELBO", "TraceGraph_ELBO", "TrackNonReparam"]
