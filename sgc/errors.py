"""Every error and warning that sgc raises: what went wrong, at which site, on which line, and the remedy."""

from __future__ import annotations

import linecache
import os
import sys
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class SourceLine:
    """A line of the user's program: where a site was declared or an error arose.

    ``kept`` is the line itself, of a program that was loaded where its source need not be.
    """

    file: str
    line: int
    function: str = ""
    kept: str = field(default="", compare=False, repr=False)

    @property
    def text(self) -> str:
        """The line itself, stripped; empty where the file cannot be read (a REPL, say)."""
        return self.kept or linecache.getline(self.file, self.line).strip()

    @property
    def place(self) -> str:
        """The file and the line in words: of an installed package without where it is, of a notebook the cell."""
        return f"{_cell(self.file) or self.file.rpartition(_INSTALLED)[2]}:{self.line}"

    def __str__(self) -> str:
        return f"{self.place}: {self.text}" if self.text else self.place


_INSTALLED = f"{os.sep}site-packages{os.sep}"


def _cell(file: str) -> str | None:
    """``cell In[3]`` of the file that stands for it in a notebook; None of any other."""
    ipython = sys.modules.get("IPython")
    shell: Any = ipython.get_ipython() if ipython is not None else None
    name_of = getattr(getattr(shell, "compile", None), "format_code_name", None)
    label = name_of(file) if name_of is not None else None
    return f"cell {label[1]}" if label is not None and label[0] == "Cell" else None


class SgcError(Exception):
    """Base of all errors of sgc.

    :param problem: what went wrong, one sentence.
    :param site: the name of the Pyro site concerned, if there is one.
    :param source: the user's own line, if it is known.
    :param remedy: what to write instead.
    """

    def __init__(
        self,
        problem: str,
        *,
        site: str | None = None,
        source: SourceLine | None = None,
        remedy: str = "",
    ) -> None:
        self.problem = problem
        self.site = site
        self.source = source
        self.remedy = remedy
        lines = [f"at site '{site}': {problem}" if site else problem]
        if source is not None:
            lines.append(f"  --> {source}")
        if remedy:
            lines.append(f"  remedy: {remedy}")
        super().__init__("\n".join(lines))


class DataDependenceError(SgcError, RuntimeError):
    """The program reads the value of a sample in Python, so that its structure depends on that sample."""


class CaptureError(SgcError, RuntimeError):
    """The program uses something that cannot be captured."""


class EstimatorError(SgcError, ValueError):
    """A site asks for an estimator that is unknown, or that cannot be had there."""


class EnumerationError(SgcError, NotImplementedError, ValueError):
    """A site that cannot be enumerated, or densities that enumerated sites cannot be summed out of."""


class ReparameterizationError(SgcError, NotImplementedError):
    """A site of the guide needs a score function, which the objective does not have."""


class BaselineError(SgcError, ValueError):
    """A baseline with unrecognised or wrong options, a forbidden combination, a wrong shape or a biased input."""


class SiteMismatchError(SgcError, ValueError):
    """Model and guide do not declare the same latent sites."""


class GraphError(SgcError, ValueError):
    """A stochastic computation graph breaks one of its own laws (see :mod:`sgc.graph.verify`)."""


class ModuleError(SgcError, ValueError):
    """An emitted fx module breaks a law of its own (see :mod:`sgc.emit.fx.module_laws`)."""


class BackendError(SgcError, RuntimeError):
    """The chosen backend is unknown or cannot work on this machine."""


class DrawingError(SgcError, RuntimeError):
    """A picture cannot be made, because Graphviz or the package that calls it is missing, or fails."""


class ArgumentError(SgcError, TypeError):
    """An argument of sgc's own functions is of the wrong kind."""


class OptimizerError(SgcError, ValueError):
    """An ``SVI`` cannot step an optimizer of this kind; the text names what was given and what is expected."""


class NanLossError(SgcError, ArithmeticError):
    """The loss of a training step is NaN; the text gives the step's number and the costs that are not finite."""


class InvalidValueError(SgcError, ValueError):
    """A parameter or a value is not what its distribution allows, at random numbers that Pyro does not draw."""


class CopyError(SgcError, TypeError):
    """A loss module that cannot be copied or pickled, because a function holds tensors that it trains."""


class SavedProgramError(SgcError, ValueError):
    """A file that :func:`sgc.load` cannot read, or a program that no file can hold."""


class RespecializationWarning(UserWarning):
    """The same loss module keeps compiling anew; the text says which guard keeps missing."""


class BaselineWarning(UserWarning):
    """A baseline, or an option of one, that is without effect; the text gives the site, the reason and the remedy."""


class MeanFieldWarning(UserWarning):
    """A closed form that ``TraceMeanField_ELBO`` takes, as Pyro does, is not the expectation of the two densities."""


class SideEffectWarning(UserWarning):
    """The program does something in Python that a compiled program will not do again."""


class NotInitializedWarning(UserWarning):
    """The parameters of a loss module are asked for before the call that makes them."""


class ReplacedParameterWarning(UserWarning):
    """A parameter is another tensor than before, and something, most likely an optimizer, holds the one before."""


class StandInWarning(UserWarning):
    """A class of :mod:`sgc.infer` runs a program in another way than asked for: by eager Pyro, or without Inductor."""


class CacheWarning(UserWarning):
    """What was compiled before cannot be used, or what is compiled now cannot be kept; the text names the directory."""


class WorkaroundWarning(UserWarning):
    """A workaround or tuning that this release of torch has no place for was left out; results are right without it."""
