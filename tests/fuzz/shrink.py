"""Makes a failing program small: drops statements and options, and simplifies expressions, as long as it fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.fuzz.families import families
from tests.fuzz.tree import Expression, Program, Statement, mentions, with_expressions

SECONDS = 300.0

SIMPLE = {
    "real": "torch.tensor(0.5)",
    "positive": "torch.tensor(1.0)",
    "unit": "torch.tensor(0.5)",
    "index": "torch.tensor(0)",
    "condition": "torch.tensor(True)",
    "tril": "torch.eye(2)",
    "table": "torch.tensor([-0.5, 0.2, 0.9])",
    "vector2": "torch.zeros(2)",
    "vector3": "torch.zeros(3)",
    "positive2": "torch.ones(2)",
    "positive3": "torch.ones(3)",
    "simplex2": "torch.ones(2) / 2",
    "simplex3": "torch.ones(3) / 3",
    "option": "",
    "observation": "",
    "auxiliary": "",
}
"""The simplest expression of a kind."""

AVERAGE = ", infer={'baseline': {\"use_decaying_avg_baseline\": True}}"
"""The simplest baseline."""


def simplest(kind: str) -> Expression | None:
    """What an expression of this kind may become at the least."""
    if kind in SIMPLE:
        return Expression(kind, SIMPLE[kind])
    if kind.startswith("distribution "):
        support, _, pair = kind.removeprefix("distribution ").partition(" ")
        candidates = families(support, "m") or families(support, "o")
        parts = tuple(Expression(k, SIMPLE[k]) for k in candidates[0].kinds)
        return candidates[0].of(parts, vector=bool(pair))
    return None


def shrunk(program: Program, fails: Callable[[Program], bool], seconds: float = SECONDS) -> Program:
    """The smallest program that was reached in time and that still fails in the same way."""
    end = time.monotonic() + seconds
    tried: set[str] = set()
    smaller = True
    while smaller:
        smaller = False
        for candidate in candidates(program):
            if time.monotonic() > end:
                return program
            text = candidate.source()
            if candidate.size() >= program.size() or text in tried:
                continue
            tried.add(text)
            if fails(candidate):
                program, smaller = candidate, True
                break
    return program


def candidates(program: Program) -> Iterator[Program]:
    """Programs that are a little simpler, those that lose most first."""
    for candidate in (*_wholes(program), *_without_statements(program), *_simpler_expressions(program)):
        yield _tidied(candidate)
    yield from _smaller(program)


def _wholes(program: Program) -> Iterator[Program]:
    yield replace(program, optimizer="", options=(), wrappers=(), double=False)
    yield replace(program, optimizer="")
    yield replace(program, wrappers=())
    yield replace(program, options=())
    yield replace(program, double=False)
    yield replace(program, guide=())
    yield replace(program, data=tuple(replace(d, place="global") for d in program.data))
    for i in range(len(program.wrappers)):
        yield replace(program, wrappers=program.wrappers[:i] + program.wrappers[i + 1 :])
    for key, value in program.options:
        rest = tuple(option for option in program.options if option[0] != key)
        yield replace(program, options=rest)
        for name in value if isinstance(value, dict) else ():
            yield replace(program, options=(*rest, (key, {k: v for k, v in value.items() if k != name})))


def _without_statements(program: Program) -> Iterator[Program]:
    """Without one statement, or with a block in place of a plate or handler around it; named ones go on both sides."""
    for victim in sorted(set(program.statements()), key=lambda s: -sum(1 for _ in s.walk())):
        for unwrap in (False, True) if victim.body else (False,):
            model = _dropped(program.model, victim, unwrap=unwrap)
            guide = _dropped(program.guide, victim, unwrap=unwrap)
            wrappers = tuple(w for w in program.wrappers if not (victim.name and victim.name in str(w.header)))
            changed = replace(program, model=model, guide=guide, wrappers=wrappers)
            gone = [s.binds for s in victim.walk() if s.binds] if not unwrap else []
            yield _with_constants(changed, gone)
            if victim.name:  # on one side alone
                yield replace(program, model=_dropped(program.model, replace(victim, name=""), unwrap=unwrap))
                yield replace(program, guide=_dropped(program.guide, replace(victim, name=""), unwrap=unwrap))


def _dropped(statements: tuple[Statement, ...], victim: Statement, *, unwrap: bool) -> tuple[Statement, ...]:
    left: list[Statement] = []
    for s in statements:
        same = s.name == victim.name if victim.name else replace(s, name="") == replace(victim, name="")
        if same and unwrap:
            left += _dropped(s.body, victim, unwrap=unwrap)
        elif not same:
            left.append(replace(s, body=_dropped(s.body, victim, unwrap=unwrap)))
    return tuple(left)


def _with_constants(program: Program, names: list[str]) -> Program:
    """With constants for what reads variables that are gone."""

    def change(expression: Expression) -> Expression:
        if not expression.parts and any(mentions(expression.template, name) for name in names):
            return simplest(expression.kind) or expression
        return expression

    return _changed(program, change)


def _changed(program: Program, change: Callable[[Expression], Expression]) -> Program:
    return replace(
        program,
        model=with_expressions(program.model, change),
        guide=with_expressions(program.guide, change),
        wrappers=with_expressions(program.wrappers, change),
    )


def _simpler_expressions(program: Program) -> Iterator[Program]:
    """With the simplest expression of its kind, or one of its parts, in place of one expression."""
    found = {e: None for s in program.statements() for part in s.parts for e in part.walk()}
    for old in sorted(found, key=lambda e: -sum(1 for _ in e.walk())):
        options = [simplest(old.kind), *(part for part in old.parts if part.kind == old.kind)]
        if old.kind == "option" and "baseline" in old.template:
            options.append(Expression("option", AVERAGE))
        for new in options:
            if new is not None and new != old:
                yield _changed(program, lambda e, old=old, new=new: new if e == old else e)  # type: ignore[misc]


def _smaller(program: Program) -> Iterator[Program]:
    """With fewer rows in a plate."""
    for i, (name, size, drawn) in enumerate(program.sizes):
        for new in (1, 2):
            if new < size:
                entry = (name, new, min(drawn, new))
                yield replace(program, sizes=(*program.sizes[:i], entry, *program.sizes[i + 1 :]))


def _tidied(program: Program) -> Program:
    """Without data and plates that nothing names."""
    text = "\n".join(line for s in program.statements() for line in s.lines(functional=False))
    data = tuple(d for d in program.data if f"<{d.name}>" in text)
    named = text + "".join(str(d.value) for d in data)
    return replace(program, data=data, sizes=tuple(size for size in program.sizes if mentions(named, size[0])))
