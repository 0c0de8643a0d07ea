"""sgc, the stochastic graph compiler for Pyro.

What is here is imported when it is first asked for: ``import sgc`` costs what ``import pyro`` costs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sgc import errors, infer
    from sgc.api import capture, compile
    from sgc.config import Renyi
    from sgc.graph.graph import StochasticGraph
    from sgc.infer.svi import SVI
    from sgc.runtime.loss_module import LossModule
    from sgc.saved.loaded_loss import LoadedLoss
    from sgc.saved.loading import load
    from sgc.saved.packaging import package
    from sgc.saved.saving import save
    from sgc.training.callbacks.callback import Callback, TrainingRun
    from sgc.training.callbacks.early_stopping import EarlyStopping
    from sgc.training.callbacks.monitor import Monitor
    from sgc.training.callbacks.tensorboard import TensorBoard

__all__ = [
    "SVI",
    "Callback",
    "EarlyStopping",
    "LoadedLoss",
    "LossModule",
    "Monitor",
    "Renyi",
    "StochasticGraph",
    "TensorBoard",
    "TrainingRun",
    "capture",
    "compile",
    "errors",
    "infer",
    "load",
    "package",
    "save",
]
__version__ = "0.1.0"

_MODULES = {
    "SVI": "sgc.infer.svi",
    "Callback": "sgc.training.callbacks.callback",
    "EarlyStopping": "sgc.training.callbacks.early_stopping",
    "Monitor": "sgc.training.callbacks.monitor",
    "TensorBoard": "sgc.training.callbacks.tensorboard",
    "TrainingRun": "sgc.training.callbacks.callback",
    "LoadedLoss": "sgc.saved.loaded_loss",
    "LossModule": "sgc.runtime.loss_module",
    "Renyi": "sgc.config",
    "StochasticGraph": "sgc.graph.graph",
    "capture": "sgc.api",
    "compile": "sgc.api",
    "load": "sgc.saved.loading",
    "package": "sgc.saved.packaging",
    "save": "sgc.saved.saving",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'sgc' has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name) if name in _MODULES else import_module(f"sgc.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
