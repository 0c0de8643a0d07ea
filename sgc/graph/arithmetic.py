"""What the rules of nodes are written in: values of other nodes, and torch's functions of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import fx

Value = fx.Node
"""What stands for a node's value while a module is emitted."""


class Arithmetic(Protocol):
    """The values of nodes in one run of the program, for the rule of one node; the emitter's are nodes of its module.

    What ``call`` makes belongs to the node whose rule is at work.
    """

    def value(self, key: str) -> Value:
        """The value of a node in this run."""

    def in_every_run(self, key: str) -> list[Value]:
        """The values of a node in all runs of the emitted module."""

    def signed(self, key: str) -> Value:
        """The value of a node with its sign in the ELBO."""

    def is_subtracted(self, key: str) -> bool:
        """Whether sums take a node's value with a minus."""

    def total(self, key: str) -> Value:
        """The sum of all elements of a node's value, a scalar."""

    def of_program(self, name: str) -> Value:
        """The value of an fx node of the program in this run."""

    def average(self, key: str) -> Value:
        """The running average of a baseline, which may be written into."""

    def once(self, name: str, make: Callable[[], Value]) -> Value:
        """What ``make`` gives, made once for all runs."""

    def call(self, function: Callable[..., Any], *args: Any, name: str = "", **options: Any) -> Value:
        """A function of values, by default under the name of the node; ``options`` are its keyword arguments."""
