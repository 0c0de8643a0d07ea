"""The long run: ``python -m tests.fuzz --programs 3000 --backend eager --seed 0``."""

from __future__ import annotations

import argparse
import gc
import resource
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.compare import BACKENDS, Verdict, compare
from tests.fuzz.estimators import compare_estimators, tidied, with_estimators
from tests.fuzz.grammar import generate
from tests.fuzz.objectives import OBJECTIVES
from tests.fuzz.shrink import shrunk
from tests.fuzz.tree import Program

SEEDS_APART = 1_000_000
"""How many programs one seed of the command has."""

FOOTER = """
if __name__ == "__main__":
    import sgc

    print(sgc.compile(model, guide, backend="eager", **options).verify(*args))
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--programs", type=int, default=100, help="how many programs")
    parser.add_argument("--backend", choices=BACKENDS, default="eager")
    parser.add_argument("--objective", choices=list(OBJECTIVES), default="elbo")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--from", type=int, default=0, dest="start", help="the number of the first program")
    parser.add_argument("--output", type=Path, default=Path("fuzz-failures"), help="a folder for shrunk failures")
    parser.add_argument(
        "--shrink-seconds", type=float, default=300.0, help="how long one failure may be shrunk; 0: not"
    )
    parser.add_argument("--grown", action="store_true", help="let the plates be larger in further calls")
    parser.add_argument("--refusals", action="store_true", help="shrink and write down what sgc refuses, too")
    parser.add_argument("--estimators", action="store_true", help="draw an estimator for each site; by `verify`")
    options = parser.parse_args()
    if options.estimators and options.objective != "elbo":
        parser.error("estimators are drawn under --objective elbo")
    counts: Counter[str] = Counter()
    begun = time.monotonic()
    gc.freeze()  # what is imported stays: only what programs leave is looked through after each
    for number in range(options.start, options.start + options.programs):
        program = generate(options.seed * SEEDS_APART + number, grown=options.grown)
        if options.estimators:
            program = with_estimators(program)
        verdict = compared(program, options)
        counts[verdict.outcome] += 1
        if verdict.outcome == "sgc refuses":
            counts[f"sgc refuses: {verdict.kind}"] += 1
            if not options.refusals:
                print(f"{number}: {verdict.outcome}, {verdict.kind}: {first_line(verdict)}", flush=True)
        if verdict.outcome == "fails" or (options.refusals and verdict.outcome == "sgc refuses"):
            where = report(program, verdict, options)
            print(f"{number}: {verdict.outcome}, {verdict.kind}: {first_line(verdict)}\n    {where}", flush=True)
        if (number + 1) % 20 == 0:
            print(f"to {number + 1}: {summary(counts, begun)}", flush=True)
    print(f"to {options.start + options.programs}: {summary(counts, begun)}")


def summary(counts: Counter[str], begun: float) -> str:
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    text = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    return f"{text}; {time.monotonic() - begun:.0f} s, at most {memory} MB"


def compared(program: Program, options: argparse.Namespace) -> Verdict:
    if options.estimators:
        return compare_estimators(program, options.backend)
    return compare(program, options.backend, options.objective)


def first_line(verdict: Verdict) -> str:
    return (verdict.detail.splitlines() or [""])[0][:200]


def report(program: Program, verdict: Verdict, options: argparse.Namespace) -> Path:
    """Shrink a program and write its source down."""
    backend, folder, seconds = options.backend, options.output, options.shrink_seconds

    def fails(candidate: Program) -> bool:
        found = compared(candidate, options)
        return (found.outcome, found.kind) == (verdict.outcome, verdict.kind)

    small = shrunk(program, fails, seconds) if seconds and verdict.kind != "slow" else program
    if options.estimators:
        small = tidied(small)
    final = compared(small, options)
    folder.mkdir(parents=True, exist_ok=True)
    prefix = "estimators_" if options.estimators else "" if options.objective == "elbo" else f"{options.objective}_"
    path = folder / f"{prefix}{backend}_{program.seed}_{verdict.kind.replace(' ', '_')}.py"
    said = "\n".join(f"# {line}" for line in final.detail.splitlines()[:12])
    path.write_text(f"# {final.outcome}: {final.kind}\n{said}\n{small.source()}{FOOTER}")
    return path


if __name__ == "__main__":
    main()
