"""Writes the page of supported programs: ``python -m tests.reference.zoo.page > docs/supported.md``."""

from __future__ import annotations

from tests.reference.zoo import ZOO

_HEAD = """# What is supported

Each line is a program of `tests/reference/zoo`, an unmodified Pyro model and guide. The tests run every one of the
{count} through Pyro's `TraceGraph_ELBO` and through sgc under one seed, on the eager backend, and require: the same
loss, the same gradient of every parameter, the same buffers and baseline averages afterwards, and the provenance sets
that Pyro's `TrackNonReparam` finds. Those marked *compiled* run on Inductor as well, with `rng="torch"`.

Where sgc's gradient is not Pyro's, on purpose, the line says why; [another page](pyro-differences.md) explains. This
page is generated: `python -m tests.reference.zoo.page > docs/supported.md`.
"""


def page() -> str:
    """The page's text."""
    topics: dict[str, list[str]] = {}
    for entry in ZOO:
        compiled = " (*compiled*)" if entry.inductor else ""
        differs = f" **Differs:** {entry.differs}." if entry.differs else ""
        topics.setdefault(entry.topic, []).append(f"- {entry.about}{compiled}: `{entry.name}`.{differs}")
    sections = [f"## {topic}\n\n" + "\n".join(lines) + "\n" for topic, lines in topics.items()]
    return "\n".join([_HEAD.format(count=len(ZOO)), *sections])


if __name__ == "__main__":
    print(page(), end="")
