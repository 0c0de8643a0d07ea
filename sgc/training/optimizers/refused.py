"""The errors for what is not an optimizer that an ``SVI`` can step: what was given, and what to give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyro.optim import PyroOptim
from pyro.params.param_store import normalize_param_name
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sgc.errors import OptimizerError

_EXPECTED = (
    "Optimizer should be an instance of pyro.optim.PyroOptim class, a torch.optim.Optimizer, or a callable that makes "
    "a torch optimizer from the parameters"
)
_EXAMPLES = 'pass pyro.optim.Adam({"lr": 0.01}), or lambda parameters: torch.optim.Adam(parameters, lr=0.01)'


def refuse_wrong_kind(optimizer: Any) -> None:
    """Refuse what is neither torch's, nor Pyro's, nor a callable that makes one of torch's.

    :raises OptimizerError: which names what was given.
    """
    if _is_pyros_constructor(optimizer):
        raise OptimizerError(
            f"{_EXPECTED}: pyro.optim.{optimizer.__name__} itself makes one of Pyro's, from options",
            remedy=f'call it: pyro.optim.{optimizer.__name__}({{"lr": 0.01}})',
        )
    if isinstance(optimizer, LRScheduler):
        raise OptimizerError(
            f"{_EXPECTED}, not torch's scheduler {type(optimizer).__name__}",
            remedy="pass the optimizer that the scheduler was made for, and call scheduler.step() between two steps; "
            f'or pass pyro.optim.{type(optimizer).__name__}({{"optimizer": torch.optim.SGD, "optim_args": ...}})',
        )
    if not (isinstance(optimizer, (PyroOptim, Optimizer)) or callable(optimizer)):
        raise OptimizerError(f"{_EXPECTED}, not {_shown(optimizer)}", remedy=_EXAMPLES)


def refuse_all_but_pyros(optimizer: Any, loss: str, compiled: str) -> None:
    """Refuse what Pyro's own ``SVI`` does not take, which steps a loss that is not compiled.

    :param loss: the loss, in words.
    :param compiled: the class of losses that are compiled to take instead.
    :raises OptimizerError: which names what was given.
    """
    refuse_wrong_kind(optimizer)
    if not isinstance(optimizer, PyroOptim):
        raise OptimizerError(
            f"Optimizer should be an instance of pyro.optim.PyroOptim class, not {_shown(optimizer)}: {loss} is not "
            "compiled, and Pyro's SVI, which steps it, takes no other",
            remedy=f'pass pyro.optim.Adam({{"lr": 0.01}}), say; or take {compiled}, with any optimizer',
        )


def refuse_made(made: Any) -> OptimizerError:
    """What to raise where a callable has made no torch optimizer."""
    if isinstance(made, PyroOptim):
        remedy = "pass the pyro.optim optimizer itself, without a callable around it"
    else:
        remedy = "return a torch.optim.Optimizer: lambda parameters: torch.optim.Adam(parameters, lr=1e-3)"
    return OptimizerError(f"the optimizer's factory returned {_shown(made)}", remedy=remedy)


def refuse_module_local(names: Sequence[str]) -> OptimizerError:
    """What to raise where Pyro's optimizer is to train what modules keep to themselves.

    :param names: of these parameters.
    """
    return OptimizerError(
        "an optimizer of pyro.optim trains what is in Pyro's store, and with module_local_params=True that does not "
        f"hold {', '.join(map(normalize_param_name, names))}",
        remedy="pass lambda parameters: torch.optim.Adam(parameters, lr=0.01), or another optimizer of torch's",
    )


def _is_pyros_constructor(optimizer: Any) -> bool:
    if isinstance(optimizer, type):
        return issubclass(optimizer, PyroOptim)
    return str(getattr(optimizer, "__module__", "")).startswith("pyro.optim.") and hasattr(optimizer, "__name__")


def _shown(thing: Any) -> str:
    """What was given, in words."""
    if isinstance(thing, Optimizer):
        return f"torch's {type(thing).__name__}"
    if isinstance(thing, PyroOptim):
        return "an optimizer of pyro.optim"
    if isinstance(thing, type):
        return f"the class {thing.__qualname__}"
    if thing is None or isinstance(thing, (str, int, float)):
        return repr(thing)
    kind = f"{type(thing).__module__}.{type(thing).__qualname__}".removeprefix("builtins.")
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
