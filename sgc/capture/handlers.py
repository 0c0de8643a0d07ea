"""The Pyro side of the capture: an effect handler that gives each sample an fx node of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, fx
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from sgc.capture import tracer
from sgc.capture.leaves import opaque_call
from sgc.capture.source import current_line
from sgc.errors import DataDependenceError, SourceLine

DATA_DEPENDENT = (
    DataDependenceError,
    GuardOnDataDependentSymNode,
    DataDependentOutputException,
    DynamicOutputShapeException,
)


@dataclass(frozen=True)
class Statement:
    """What is known of a sample statement only while it runs."""

    source: SourceLine | None
    value: Tensor | None
    node: fx.Node | None
    subsample: bool
    opaque: bool


class SiteRecorder(Messenger):
    """Marks each sample's value and notes where it was declared.

    It stands outermost, where Pyro's own ``TrackNonReparam`` stands, and so sees the same statements.
    """

    def __init__(self) -> None:
        super().__init__()
        self.statements: dict[str, Statement] = {}
        self._opaque: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or msg["value"] is not None:
            return
        fn, args, kwargs = msg["fn"], msg["args"], msg["kwargs"]
        before = tracer.last_node()
        try:
            msg["value"] = fn(*args, **kwargs)
        except DATA_DEPENDENT:
            if not isinstance(fn, torch.distributions.Distribution):
                raise
            tracer.erase_after(before)
            self._opaque.add(msg["name"])
            msg["value"] = opaque_call((fn, args, kwargs), reparameterized=fn.has_rsample)

    def _pyro_post_sample(self, msg: Any) -> None:
        name, value = msg["name"], msg["value"]
        known = self.statements.get(name)
        if known is not None and known.value is value:
            return
        node = None
        if isinstance(value, Tensor):
            if msg["is_observed"]:
                node = tracer.node_of(value)
            else:
                value, node = tracer.mark(value, name)
                msg["value"] = value
        self.statements[name] = Statement(
            source=current_line(),
            value=value if isinstance(value, Tensor) else None,
            node=node,
            subsample=isinstance(msg["fn"], _Subsample),
            opaque=name in self._opaque,
        )
