"""What objects of torch's, Pyro's and Python's own classes hold that a program may keep and somebody may change.

Their code is a library's and names nothing of the user's, but a distribution that is kept as a prior, a transform or a
handler is what its attributes are. What a distribution computes from these when it is first asked (``logits`` of
``probs``) is one of them once it is there: a run before the capture has made it compute what the program asks for.
"""

from __future__ import annotations

import argparse
import inspect
import types
from collections.abc import Iterator
from typing import Any

from pyro.infer.reparam.reparam import Reparam
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch.distributions import Distribution, Transform
from torch.distributions.constraints import Constraint

MATHEMATICAL = (Distribution, Transform, Constraint, Reparam)
"""Their objects are made of others of these; the classes of torch's and Pyro's have subclasses of users'."""

NAMESPACES = (types.SimpleNamespace, argparse.Namespace)
"""Objects that are dictionaries written with dots: an attribute that is added counts too."""

_CACHES = frozenset(("_inv", "_cached_x_y"))
"""Of a transform: what it has computed last, and its inverse, a weak reference."""


def attributes(value: Any) -> Iterator[str]:
    """The attributes of a handler or a mathematical object that say what it is."""
    if isinstance(value, Messenger):
        names = inspect.signature(type(value)).parameters.keys() & vars(value).keys()
        yield from sorted(name for name in names if not is_of_a_run(vars(value)[name]))
    else:
        yield from (name for name in list(vars(value)) if not is_cache(value, name))


def is_cache(value: Any, name: str) -> bool:
    """Whether an attribute of an object is what a transform has computed last."""
    return name in _CACHES and isinstance(value, Transform)


def is_of_a_run(value: Any) -> bool:
    """Whether a value is, or holds, what Pyro makes anew in each run and keeps in a guide: traces and plates."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple, set)) else [value]
    return any(isinstance(part, (Trace, Messenger)) for part in parts)
