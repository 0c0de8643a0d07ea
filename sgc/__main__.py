"""The commands: ``python -m sgc explain``, ``python -m sgc doctor``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import sgc

_EXPLAIN = """\
Trace a model and a guide, and say what is made of them: how each gradient is estimated and why, the parameters, the
constants, what the compiled program relies on. Nothing is compiled and no step is taken.

model and guide are written package.module:name; the module is imported from the current directory or Python's path, and
the name may have dots (package.module:vae.guide). They are functions, or objects that can be called.

--args gives the arguments of both, in one of two ways:
  --args 'torch.randn(10, 3), flag=True'   as they would stand in a call; torch can be used
  --args package.module:make_args          a function without arguments; a tuple or list that it returns is the
                                           arguments, a mapping the keyword arguments, anything else the one argument
"""

_STATUSES = """\
exit status: 0 if it was explained; 1 if the program cannot be compiled, raises an error, or a picture cannot be drawn;
2 if the command line is wrong: no such module or name, nothing that can be called, an option or arguments that raise, a
file that cannot be written."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m sgc", description="The stochastic graph compiler for Pyro.")
    parser.add_argument("--version", action="version", version=f"sgc {sgc.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    explain = commands.add_parser(
        "explain",
        help="say what is made of a model and a guide",
        description=_EXPLAIN,
        epilog=_STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    explain.add_argument("model", help="package.module:name")
    explain.add_argument("guide", help="package.module:name")
    explain.add_argument("--args", default="", metavar="ARGS", help="the arguments of both (see above); default: none")
    explain.add_argument("--num-particles", type=int, default=1, metavar="N", help="as in sgc.compile")
    explain.add_argument("--vectorize-particles", action="store_true", help="as in sgc.compile")
    explain.add_argument(
        "--max-plate-nesting", type=int, metavar="N", help="as in sgc.compile; default: found by a run"
    )
    explain.add_argument("--objective", default="elbo", metavar="NAME", help="as in sgc.compile; default: elbo")
    explain.add_argument("--html", metavar="FILE", help="write the tables as a page, too")
    explain.add_argument("--draw", metavar="FILE", help="draw the graph, too: FILE.svg, .png or .pdf; needs Graphviz")
    explain.add_argument("--unfold", action="store_true", help="draw each step of what is repeated")
    commands.add_parser("doctor", help="say how sgc fares on this machine")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status."""
    options = _parser().parse_args(arguments)
    if options.command == "doctor":
        from sgc import doctor

        return doctor.main()
    from sgc.explain_command import explain

    return explain(options)


def _until_nobody_reads() -> int:
    """As :func:`main`; quietly over where what reads the output ends first, as ``head`` does."""
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its exit
        return 0
    return status


if __name__ == "__main__":
    sys.exit(_until_nobody_reads())
