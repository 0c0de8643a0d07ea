"""Programs for inspection, kept and printed: a line of Python for each node."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import fx

from sgc.emit.rewrites.optimize import Optimized, Report

_FREED = re.compile(r";(  \w+ =)+ None( *#.*)?$", re.MULTILINE)
"""What torch adds to let go of values, and where they come from."""


@dataclass(frozen=True)
class Rewritten:
    """What remains of an :class:`~sgc.emit.rewrites.optimize.Optimized` once it is compiled: its program and report.

    The program is a module where the backend runs the one that was differentiated, else text: so no module is kept
    that nothing runs.
    """

    program: fx.GraphModule | str
    report: Report

    @classmethod
    def of(cls, optimized: Optimized, differentiated: fx.GraphModule) -> Rewritten:
        """What remains.

        :param differentiated: the module before the rewrites.
        """
        module = optimized.module
        return cls(module if module is differentiated else program_text(module), optimized.report)

    def __str__(self) -> str:
        return self.program if isinstance(self.program, str) else program_text(self.program)


def program_text(module: fx.GraphModule) -> str:
    """Its Python, without annotations and the ends of lifetimes."""
    source = module.graph.python_code("self").src
    return _FREED.sub("", source).strip()
