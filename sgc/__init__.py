"""sgc, the stochastic graph compiler for Pyro."""

from sgc import errors, infer
from sgc.api import capture, compile
from sgc.graph.graph import StochasticGraph
from sgc.infer.svi import SVI
from sgc.runtime.loss_module import LossModule

__all__ = ["SVI", "LossModule", "StochasticGraph", "capture", "compile", "errors", "infer"]
__version__ = "0.1.0"
