"""Random sites: latent in model and guide, observed, with masks, baselines and data of every support."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from tests.fuzz.expressions import Writer
from tests.fuzz.families import EVENT, FLOWS, LATENT, OBSERVED, Family, families
from tests.fuzz.scope import Plate, Scope, Variable
from tests.fuzz.tree import Data, Expression, Statement, mentions

NOTHING = Expression("option", "")
SUPPORT_WEIGHTS = {"real": 6, "boolean": 6, "index": 4, "count": 3, "positive": 3, "vector": 3, "unit": 2, "simplex": 2}


@dataclass
class Sides:
    """What has been written of model and guide at one level, and what each may read there."""

    model: Scope
    guide: Scope
    model_statements: list[Statement] = field(default_factory=list)
    guide_statements: list[Statement] = field(default_factory=list)

    def inside(self, plate: Plate) -> Sides:
        plates = (*self.model.plates, plate)
        return Sides(replace(self.model, plates=plates), replace(self.guide, plates=plates))


class Sites:
    """Writes sites of one program."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.writer = Writer(self.random)
        self.chance = self.writer.chance
        self.sizes: list[tuple[str, int, int]] = []
        self.wrappers: list[Statement] = []
        self.sites = 0
        self.nesting = 0
        self.differs: list[str] = []
        self.vectorised = False

    def name(self, scope: Scope, letter: str) -> tuple[str, str]:
        """The name of a new site, as source, and that of its variable."""
        self.sites += 1
        variable = f"{letter}{self.sites}"
        loops = [p for p in scope.plates if p.sequential]
        if not loops:
            return f'"{variable}"', variable
        return 'f"' + variable + "".join(f"_{{i_{p.name}}}" for p in loops) + '"', variable

    def site(self, sides: Sides, observed: bool = False) -> None:
        """A site: observed, latent in model and guide, or latent in the model alone."""
        place = "o" if observed else "m"
        supports = OBSERVED if observed else LATENT
        supports = [s for s in supports if families(s, place, expands=bool(sides.model.vectorised) or self.vectorised)]
        support = self.random.choices(supports, [SUPPORT_WEIGHTS.get(s, 0.7) for s in supports])[0]
        family = self.choose(support, place, sides.model)
        if observed:
            name, _ = self.name(sides.model, "y")
            pair = family.can_be_vector and self.chance(0.2)
            distribution = self.distribution(family, sides.model, pair)
            obs = self.observation(support, pair, sides.model)
            if self.chance(0.1) and not sides.model.plates and not self.vectorised:
                data = f"model = poutine.condition(model, data={{{name}: $0}})"
                self.wrappers.append(Statement(data, (self.constant(obs),)))
                statement = Statement(f"pyro.sample({name}, $0)", (distribution,), name=name)
            else:
                option = Expression("observation", ", obs=$0", (obs,))
                statement = Statement(f"pyro.sample({name}, $0$1)", (distribution, option), name=name)
            sides.model_statements.append(statement)
            return
        own = self.choose(support, "g", sides.guide)
        pair = family.can_be_vector and own.can_be_vector and self.chance(0.15)
        name, variable = self.name(sides.model, "z")
        only_model = family.rsample and family.places != "m" and not family.loses and self.chance(0.07)
        prior = self.distribution(family, sides.model, pair, sampled=only_model)
        sides.model_statements.append(
            Statement(f"{variable} = pyro.sample({name}, $0)", (prior,), name=name, binds=variable)
        )
        tainted = self.depends(prior, sides.model) if only_model else False
        if not only_model:
            posterior = self.distribution(own, sides.guide, pair, sampled=True)
            # Pyro tracks a site whose sample is not reparameterised in the guide, or in the model.
            tainted = not (own.rsample and family.rsample) or self.depends(posterior, sides.guide)
            # One that is pathwise in the guide alone has a baseline that Pyro trains and sgc does not.
            may = not own.rsample or (self.chance(0.05) and family.rsample)
            infer = self.baseline(sides.guide) if may else NOTHING
            if own.differs:
                self.differs.append(own.name)
            sides.guide_statements.append(
                Statement(f"{variable} = pyro.sample({name}, $0$1)", (posterior, infer), name=name, binds=variable)
            )
            sides.guide = sides.guide.with_variable(Variable(variable, support, pair, sides.guide.plates, tainted))
        sides.model = sides.model.with_variable(Variable(variable, support, pair, sides.model.plates, tainted))

    def choose(self, support: str, place: str, scope: Scope) -> Family:
        candidates = families(support, place, expands=bool(scope.vectorised) or self.vectorised)
        return self.random.choices(candidates, [f.weight for f in candidates])[0]

    def depends(self, expression: Expression, scope: Scope) -> bool:
        """Whether it reads what depends on a scored site."""
        return any(v.tainted and mentions(str(expression), v.name) for v in scope.variables)

    def distribution(self, family: Family, scope: Scope, pair: bool, sampled: bool = False) -> Expression:
        """A distribution of the family, perhaps masked; ``sampled``: it is drawn from on this side."""
        readable = scope.without_taint() if (sampled and family.loses) or family.loses_scored else scope
        parts = tuple(self.writer.of_kind(kind, readable) for kind in family.kinds)
        for flow in FLOWS:
            if mentions(family.template, flow):
                self.writer.definitions[flow] = FLOWS[flow]
        made = family.of(parts, vector=pair)
        if self.chance(0.07):
            self.writer.features.add("masked distribution")
            return Expression(made.kind, "$0.mask($1)", (made, self.writer.condition(readable, 0)))
        return made

    def observation(self, support: str, pair: bool, scope: Scope) -> Expression:
        """Data that have the support."""
        event = [2] if pair else [EVENT[support]] if support in EVENT else []
        shape = scope.shape(*event)
        count = shape.strip("()").rstrip(",").replace(",", " *") or "1"
        ranges = {"real": (-1, 1), "positive": (0.3, 2), "above": (1.2, 3), "unit": (0.2, 0.8)}
        values = self.writer.values
        text = ""
        if support in ranges:
            text = values(*ranges[support], scope, *event)
        elif support in ("boolean", "count", "binomial"):
            top = {"boolean": 2, "count": 3, "binomial": 4}[support]
            text = f"(torch.arange({count}).reshape({shape}) % {top}).to(torch.get_default_dtype())"
        elif support == "index":
            text = f"torch.arange({count}).reshape({shape}) % 3"
        elif support == "simplex":
            text = f"torch.linspace(-1, 1, {count}).reshape({shape}).softmax(-1)"
        elif support == "onehot":
            plain = scope.shape()
            rows = plain.strip("()").rstrip(",").replace(",", " *") or "1"
            text = f"torch.eye(3)[torch.arange({rows}).reshape({plain}) % 3]"
        elif support == "counts":
            text = f"torch.tensor([1.0, 2.0, 1.0]) + torch.zeros({shape})"
        elif support in ("angle", "torus", "vector"):
            text = f"torch.linspace(-2, 2, {count}).reshape({shape})"
        elif support in ("circle", "sphere"):
            text = f"F.normalize(torch.linspace(-2, 1, {count}).reshape({shape}), dim=-1)"
        else:
            size = {"series": (2, 1), "path": (3,)}.get(support, (2, 2))
            base = {
                "precision": "torch.tensor([[1.0, 0.2], [0.2, 0.8]])",
                "cholesky": "torch.tensor([[1.0, 0.0], [0.6, 0.8]])",
                "correlation": "torch.tensor([[1.0, 0.3], [0.3, 1.0]])",
                "series": "torch.tensor([[0.3], [-0.5]])",
                "path": "torch.tensor([-0.7, 0.2, 1.1])",
            }[support]
            text = f"{base} + torch.zeros({scope.shape(*size)})"
            return self.writer.datum(f"data {support}", text, scope, len(size))
        return self.writer.datum(f"data {support}", text, scope, len(event))

    def constant(self, expression: Expression) -> Expression:
        """Data of a handler around the program, which can name no argument."""
        for i, d in enumerate(self.writer.data):
            if f"<{d.name}>" in expression.template:
                self.writer.data[i] = Data(d.name, d.value, "global")
        return expression

    def baseline(self, scope: Scope) -> Expression:
        """None, or options of every kind."""
        writer, parts, options = self.writer, [], []
        kind = self.random.choices(["none", "average", "network", "value"], [5, 4, 2, 2])[0]
        if kind == "none":
            return NOTHING
        writer.features.add(f"baseline {kind}")
        if kind == "average" or self.chance(0.3):
            options.append('"use_decaying_avg_baseline": True')
            if self.chance(0.5):
                options.append('"baseline_beta": 0.7')
        full = f"torch.zeros({writer.shape(scope)})"
        if kind == "network":
            name = f"net{len(writer.definitions)}"
            flat = bool(scope.vectorised or self.vectorised) and self.chance(0.5)
            writer.definitions[name] = f"{name} = nn.Linear(1, 1)"
            call = f"lambda h: {name}(h).squeeze(-1)"
            if flat:
                writer.definitions[name] = f"{name} = nn.Sequential(nn.Linear(1, 1), nn.Flatten(-2, -1))"
                call = name
            options.append(f'"nn_baseline": {call}, "nn_baseline_input": ($0 + {full}).unsqueeze(-1)')
            parts.append(writer.real(scope, 1))
        elif kind == "value":
            if self.chance(0.5):
                options.append(f'"baseline_value": pyro.param("b{self.sites}", {full})')
            else:
                name = f"net{len(writer.definitions)}"
                writer.definitions[name] = f"{name} = nn.Linear(1, 1)"
                options.append(f'"baseline_value": {name}(($0 + {full}).unsqueeze(-1)).squeeze(-1)')
                parts.append(writer.real(scope, 1))
        return Expression("option", ", infer={'baseline': {" + ", ".join(options) + "}}", tuple(parts))
