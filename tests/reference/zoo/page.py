"""Writes the page of supported programs: ``python -m tests.reference.zoo.page > docs/supported.md``."""

from __future__ import annotations

from tests.reference.objectives import COMPARISONS
from tests.reference.zoo import ZOO

_HEAD = """# What is supported

Each line is a program of `tests/reference/zoo`, an unmodified Pyro model and guide. The tests run every one of the
{count} through Pyro's `TraceGraph_ELBO` and through sgc under one seed, on the eager backend, and require: the same
loss, the same gradient of every parameter, the same buffers and baseline averages afterwards, and the provenance sets
that Pyro's `TrackNonReparam` finds. Those marked *compiled* run on Inductor as well, with `rng="torch"`.

Where sgc's gradient is not Pyro's, on purpose, the line says why; [another page](pyro-differences.md) explains.

{others} more, at the end of the page, are programs as people write them, under [other objectives](#other-objectives).
This page is generated: `python -m tests.reference.zoo.page > docs/supported.md`.
"""

_OBJECTIVES = """## Other objectives

Each of these is a program of `tests/reference/objectives`, trained with the class of that name, from `pyro.infer` and
from `sgc.infer`. The tests require the same losses of three steps, the same gradients, the same parameters afterwards,
and that `verify` finds no difference, in double precision. Many programs of the zoo above are compared under
`Trace_ELBO`, `TraceMeanField_ELBO` and `RenyiELBO`, too.
"""


_COMPILED = " (*compiled*)"


def page() -> str:
    """The page's text."""
    topics: dict[str, list[str]] = {}
    for entry in ZOO:
        compiled = _COMPILED if entry.inductor else ""
        differs = f" **Differs:** {entry.differs}." if entry.differs else ""
        topics.setdefault(entry.topic, []).append(f"- {entry.about}{compiled}: `{entry.name}`.{differs}")
    others: dict[str, list[str]] = {}
    for one in COMPARISONS:
        others.setdefault(one.topic, []).append(f"- {one.about}{_COMPILED if one.inductor else ''}: `{one.name}`.")
    sections = [f"## {topic}\n\n" + "\n".join(lines) + "\n" for topic, lines in topics.items()]
    of_objectives = [f"### {topic}\n\n" + "\n".join(lines) + "\n" for topic, lines in others.items()]
    return "\n".join([_HEAD.format(count=len(ZOO), others=len(COMPARISONS)), *sections, _OBJECTIVES, *of_objectives])


if __name__ == "__main__":
    print(page(), end="")
