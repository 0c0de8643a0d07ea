"""A few random programs of fixed seeds against eager Pyro, and tests of what makes, compares and shrinks them."""

from __future__ import annotations

import itertools
import linecache
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pyro
import pytest
import torch
from pyro.ops.provenance import detach_provenance, get_provenance, track_provenance

from sgc.graph.cost_sums import DownstreamCostNode
from sgc.graph.nodes import BaselineNode
from sgc.passes.estimators.score_function import ScoreTermNode
from tests.fuzz.__main__ import main
from tests.fuzz.compare import Verdict, compare
from tests.fuzz.estimators import compare_estimators, tidied, with_estimators
from tests.fuzz.families import FAMILIES, FLOWS, Family
from tests.fuzz.grammar import Generator, generate
from tests.fuzz.objectives import OBJECTIVES
from tests.fuzz.shrink import SIMPLE, shrunk
from tests.fuzz.tree import Expression, Program, imports

pytestmark = pytest.mark.cpu  # sources make their tensors where the default device is, seeds are the CPU's

FINE = ("agrees", "Pyro refuses", "not finite")


@pytest.mark.parametrize("seed", range(36))
def test_eager_backend(seed: int) -> None:
    verdict = compare(generate(seed), "eager")
    assert verdict.outcome in FINE, f"{verdict}\n{generate(seed).source()}"


@pytest.mark.parametrize("seed", range(300, 308))
def test_plates_that_grow(seed: int) -> None:
    program = generate(seed, grown=True)
    verdict = compare(program, "eager")
    assert verdict.outcome in FINE, f"{verdict}\n{program.source()}"


@pytest.mark.parametrize(("objective", "seed"), list(zip(itertools.cycle([*OBJECTIVES][1:]), range(400, 432))))
def test_other_objectives(objective: str, seed: int) -> None:
    verdict = compare(generate(seed), "eager", objective)
    assert verdict.outcome in FINE, f"{verdict}\n{generate(seed).source()}"


@pytest.mark.parametrize("seed", range(500, 512))
def test_estimators(seed: int) -> None:
    """Each site has one of those that it can have; what is joint over a plate is refused."""
    program = with_estimators(generate(seed))
    verdict = compare_estimators(program, "eager")
    assert verdict.outcome in FINE or verdict.kind == "EnumerationError", f"{verdict}\n{program.source()}"


@pytest.mark.parametrize("seed", range(100, 112))
def test_rewritten_graphs(seed: int) -> None:
    """What Inductor is given to compile, operator by operator."""
    verdict = compare(generate(seed), "rewritten")
    assert verdict.outcome in FINE, f"{verdict}\n{generate(seed).source()}"


def test_steps_of_many_particles_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewritten graphs run operator by operator also where a loop runs one particle after another."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a graph was compiled")

    monkeypatch.setattr(torch._inductor, "standalone_compile", refuse)
    programs = (p for p in map(generate, range(1500)) if p.optimizer and dict(p.options) == {"num_particles": 5})
    verdicts = [compare(program, "rewritten") for program in itertools.islice(programs, 3)]
    assert {verdict.outcome for verdict in verdicts} == {"agrees"}, verdicts


@pytest.mark.inductor
@pytest.mark.parametrize(("backend", "seed"), [("inductor", 201), ("inductor", 203), ("torchscript", 202)])
def test_compiled(backend: str, seed: int) -> None:
    verdict = compare(generate(seed), backend)
    assert verdict.outcome in FINE, f"{verdict}\n{generate(seed).source()}"


# -- the comparison finds faults, and the shrinking shows them


def short(text: str, first: int) -> Iterator[Program]:
    """Short programs with discrete sites, whose source has this in it, from a seed on."""
    for program in map(generate, range(first, 3000)):
        source = program.source()
        discrete = any(family in source for family in ("Bernoulli(", "Categorical(", "Poisson("))
        if text in source and discrete and not program.optimizer and 35 < program.size()[0] < 60:
            yield program


def first_failure(programs: Iterable[Program]) -> tuple[Program, Verdict]:
    for program in itertools.islice(programs, 20):
        verdict = compare(program, "eager")
        if verdict.outcome == "fails":
            return program, verdict
    raise AssertionError("no program fails")


def small_failure(programs: Iterable[Program]) -> str:
    """The source of the shrunk first failure."""
    program, verdict = first_failure(programs)

    def fails(candidate: Program) -> bool:
        now = compare(candidate, "eager")
        return (now.outcome, now.kind) == (verdict.outcome, verdict.kind)

    return shrunk(program, fails).source()


def test_a_cost_that_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A score function that is multiplied by one of its downstream costs only."""
    right = DownstreamCostNode.compute

    def wrong(self: DownstreamCostNode, run: Any) -> Any:
        return right(replace(self, terms=self.terms[:1]), run)

    monkeypatch.setattr(DownstreamCostNode, "compute", wrong)
    _, verdict = first_failure(short("pyro.plate", 1714))  # with no plate there is one term
    assert verdict.kind == "wrong gradient"


def test_an_average_with_another_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    right = BaselineNode.compute

    def wrong(self: BaselineNode, run: Any) -> Any:
        return right(replace(self, beta=0.5 * self.beta), run)

    monkeypatch.setattr(BaselineNode, "compute", wrong)
    source = small_failure(short("use_decaying_avg_baseline", 326))
    assert "use_decaying_avg_baseline" in source
    assert len(source.splitlines()) <= 12, source


def test_a_raw_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("internal")

    monkeypatch.setattr(DownstreamCostNode, "compute", broken)
    _, verdict = first_failure(short("pyro.plate", 1714))
    assert verdict.kind == "raises KeyError"


def test_the_smallest_program_is_found() -> None:
    program = next(generate(seed) for seed in range(1000) if "dist.Gumbel" in generate(seed).source())
    small = shrunk(program, lambda candidate: "dist.Gumbel" in candidate.source())
    (line,) = (line for line in small.source().splitlines() if "dist." in line and "import" not in line)
    assert line.strip().endswith("dist.Gumbel(torch.tensor(0.5), torch.tensor(1.0)))")
    assert len(small.source().splitlines()) <= 9


def test_a_weight_that_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A score function below an enumerated site, without the probabilities of the values above it."""
    right = ScoreTermNode.compute
    monkeypatch.setattr(ScoreTermNode, "compute", lambda self, run: right(replace(self, weight=None), run))
    drawn = (with_estimators(program) for program in map(generate, range(190, 3000)))
    programs = (p for p in drawn if "enumerate" in str(p.options) and "score function" in str(p.options))
    verdicts = (compare_estimators(p, "eager") for p in programs)
    assert any(
        verdict == replace(verdict, outcome="fails", kind="differs") for verdict in itertools.islice(verdicts, 30)
    )


def test_estimators_of_sites_that_are_gone_are_left_out() -> None:
    program = replace(generate(0), options=(("estimators", {"gone": "enumerate"}), ("num_particles", 2)))
    assert tidied(program).options == (("num_particles", 2),)


def test_what_pyro_refuses_is_no_failure() -> None:
    program = generate(0)
    broken = replace(program, wrappers=(replace(program.model[0], header="undefined", parts=(), body=()),))
    assert compare(broken, "eager") == Verdict("Pyro refuses", "NameError", "name 'undefined' is not defined")


def test_nothing_is_left_behind() -> None:
    double = next(program for program in map(generate, range(100)) if program.double)
    compare(double, "eager")
    assert torch.get_default_dtype() is torch.float32
    assert not pyro.get_param_store()
    assert f"<program {double.seed}>" not in linecache.cache


def test_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    arguments = ["fuzz", "--programs", "2", "--from", "7", "--seed", "3", "--output"]
    monkeypatch.setattr("sys.argv", [*arguments, str(tmp_path)])
    monkeypatch.setattr("sgc.runtime.specializing.compiler.emit_surrogate", lambda *_, **__: 1 / 0)
    main()
    said = capsys.readouterr().out
    assert "to 9: 2 fails" in said
    sources = sorted(path.name for path in tmp_path.iterdir())
    assert sources == [f"eager_{n}_raises_ZeroDivisionError.py" for n in (3000007, 3000008)]


# -- the grammar


def test_programs_follow_from_their_seed() -> None:
    assert generate(5) == generate(5)
    assert len({generate(seed).source() for seed in range(50)}) == 50


def test_the_grammar_reaches_everything() -> None:
    features: set[str] = set()
    text = []
    for seed in range(2500):
        generator = Generator(seed)
        program = generator.program()
        features |= generator.writer.features
        text += [part.template for s in program.statements() for top in s.parts for part in top.walk()]
    templates = set(text)
    assert not [f.key for f in FAMILIES if not any(f.template in t or pair(f) == t for t in templates)]
    assert features >= {
        *("plate", "sequential plate", "subsampled plate", "param event_dim", "markov"),
        *("poutine.scale", "poutine.mask", "masked distribution", "blocked", "partly"),
        *("baseline average", "baseline network", "baseline value", "auxiliary"),
        *("factor", "guide factor", "deterministic", "where", "table", "network", "batch norm"),
        *("local written", "local changed", "local plain", "do", "lift", "reparam"),
    }


def pair(family: Family) -> str:
    parts = tuple(Expression(kind, SIMPLE[kind]) for kind in family.kinds)
    return family.of(parts, vector=True).template if family.can_be_vector else family.template


PROVENANCE = frozenset({"z"})


def distribution(family: Family, tainted: int | None) -> Any:
    """The family at simple parameters in a batch of three, one of them with a provenance."""
    made = str(family.of(tuple(Expression(kind, f"v{i}") for i, kind in enumerate(family.kinds)), vector=False))
    names: dict[str, Any] = {}
    torch.manual_seed(3)
    exec("\n".join([*imports(made + " T torch"), *(code for name, code in FLOWS.items() if name in made)]), names)
    for i, kind in enumerate(family.kinds):
        value = eval(SIMPLE[kind], names)
        value = value.expand(3) + 0.0 if kind in ("real", "positive", "unit") else value
        names[f"v{i}"] = track_provenance(value, PROVENANCE) if i == tainted else value
    return eval(made, names)


UNTRIED = ("dist.Delta", "dist.MixtureSameFamily", "dist.TransformedDistribution")
"""A log density beside a value; parameters of several shapes; a planar flow scores its own samples only."""


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.kinds and not f.loses], ids=lambda f: f.key)
def test_samplers_keep_provenance(family: Family) -> None:
    """Those that are not marked as losing it: else a difference would be eager Pyro's fault."""
    if family.template.startswith(UNTRIED) or not set("mg") & set(family.places):
        pytest.skip("no sampler to try")
    for i in range(len(family.kinds)):
        torch.manual_seed(1)
        plain = distribution(family, None)()
        torch.manual_seed(1)
        drawn = distribution(family, i)()
        assert get_provenance(drawn) == PROVENANCE
        assert torch.equal(detach_provenance(drawn), plain)
        if not family.loses_scored:
            assert get_provenance(distribution(family, i).log_prob(plain)) == PROVENANCE
