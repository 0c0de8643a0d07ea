"""sgc, the stochastic graph compiler for Pyro."""

from sgc import errors
from sgc.graph.graph import StochasticGraph
from sgc.run.compile import capture, compile
from sgc.run.loss import LossModule

__all__ = ["LossModule", "StochasticGraph", "capture", "compile", "errors"]
__version__ = "0.1.0"
