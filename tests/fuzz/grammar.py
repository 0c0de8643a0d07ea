"""Random programs: sites in plates and handlers, with a guide, from one seed."""

from __future__ import annotations

import re
from dataclasses import replace

from tests.fuzz.families import FLOWS
from tests.fuzz.scope import NESTING, Plate, Scope, Variable
from tests.fuzz.sites import Sides, Sites
from tests.fuzz.tree import Expression, Program, Statement, mentions

OPTIMIZERS = (
    'pyro.optim.Adam({"lr": 0.05})',
    'pyro.optim.SGD({"lr": 0.01, "momentum": 0.9})',
    'pyro.optim.SGD({"lr": 0.01})',
    'pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.9, "clip_norm": 1.0})',
    'pyro.optim.AdamW({"lr": 0.05, "weight_decay": 0.1})',
)


GROWN = (2, 1, 4, 2)
"""By how much plates are larger in further calls, where they are."""


class Generator(Sites):
    """Writes one program; the same seed gives the same program."""

    def program(self, *, grown: bool = False) -> Program:
        self.writer.grown = grown
        particles = self.random.choices([1, 2, 3, 5], [16, 2, 1, 1])[0]  # five are a loop
        self.vectorised = particles > 1 and self.chance(0.5)
        self.writer.particles = particles if self.vectorised else 1
        sides = Sides(Scope("model"), Scope("guide"))
        self.block(sides, self.random.randint(1, 4))
        if not any(", obs=" in line for s in sides.model_statements for line in s.lines(functional=False)):
            self.site(sides, observed=True)
        options: list[tuple[str, object]] = []
        if particles > 1:
            options.append(("num_particles", particles))
        if self.vectorised:
            options += [("vectorize_particles", True), ("max_plate_nesting", NESTING)]
        elif self.chance(0.1):
            options.append(("max_plate_nesting", self.nesting + 1))
        self.whole_program_handlers(sides)
        model, guide = self.registered(sides.model_statements), self.registered(sides.guide_statements)
        return Program(
            self.seed,
            tuple(model),
            tuple(guide),
            tuple(self.writer.data),
            tuple({**FLOWS, **self.writer.definitions}.items()),
            tuple(self.wrappers),
            tuple(options),
            tuple(self.sizes),
            double=self.chance(0.15),
            optimizer=self.random.choice(OPTIMIZERS) if self.chance(0.35) else "",
            differs=tuple(self.differs),
            grown=GROWN if grown and self.sizes else (),
        )

    def registered(self, statements: list[Statement]) -> list[Statement]:
        """The statements, behind ``pyro.module`` for most of the networks that they name."""
        text = "\n".join(line for s in statements for line in s.lines(functional=False))
        names = [n for n in {**FLOWS, **self.writer.definitions} if mentions(text, n)]
        return [*(Statement(f'pyro.module("{n}", {n})') for n in names if self.chance(0.8)), *statements]

    # -- statements

    def block(self, sides: Sides, count: int, depth: int = 0) -> None:
        """Some statements, with plates around some of them."""
        for _ in range(count):
            if self.sites >= 6:
                return
            kind = self.random.choices(
                ["latent", "observed", "plate", "local", "other", "chain"], [6, 3, 4 if depth < 2 else 0, 2, 2, 0.6]
            )[0]
            start = len(sides.model_statements), len(sides.guide_statements)
            before = sides.model, sides.guide
            if kind == "latent":
                self.site(sides)
            elif kind == "observed":
                self.site(sides, observed=True)
            elif kind == "plate":
                self.plate(sides, depth)
            elif kind == "local":
                self.local(sides)
            elif kind == "chain":
                self.chain(sides)
            else:
                self.other(sides)
            if kind != "local":
                self.handled(before[0], sides.model_statements, start[0])
                self.handled(before[1], sides.guide_statements, start[1])

    def handled(self, scope: Scope, statements: list[Statement], start: int) -> None:
        """Perhaps a handler around what was written last."""
        if start == len(statements) or not self.chance(0.15):
            return
        writer = self.writer
        if self.chance(0.5):
            by = writer.positive(scope, 1) if self.chance(0.4) else Expression("positive number", "0.5")
            header = "with poutine.scale(scale=$0):"
        else:
            by = writer.condition(scope, 0) if self.chance(0.7) else Expression("flag", "False")
            header = "with poutine.mask(mask=$0):"
        writer.features.add(header[: header.index("(")].removeprefix("with "))
        statements[start:] = [Statement(header, (by,), tuple(statements[start:]))]

    def plate(self, sides: Sides, depth: int) -> None:
        """A plate in model and guide: vectorised or sequential, with all its rows or some."""
        name = f"p{len(self.sizes)}"
        size = self.random.choice([1, 2, 2, 3, 3, 4])
        drawn = self.random.randint(1, size)
        sequential = self.chance(0.25)
        rows = f"{name}_rows" if drawn < size and self.chance(0.5) and not sequential else ""
        self.sizes.append((name, size, drawn))
        plate = Plate(name, sequential, rows)
        inner = sides.inside(plate)
        dim = len(inner.model.vectorised)
        self.nesting = max(self.nesting, dim)
        subsample = f", subsample_size=@@{name}" if rows else ""
        self.writer.features.add("sequential plate" if sequential else "subsampled plate" if rows else "plate")
        self.block(inner, self.random.randint(1, 3), depth + 1)
        if not inner.model_statements:
            self.site(inner)
        for scope, into, body in (
            (sides.model, sides.model_statements, inner.model_statements),
            (sides.guide, sides.guide_statements, inner.guide_statements),
        ):
            if scope.side == "guide" and not body and not (rows and self.chance(0.5)):
                continue
            where = f", dim=-{dim}" if self.chance(0.3) else ""
            loops = "".join(f"_{{i_{p.name}}}" for p in scope.plates if p.sequential)
            quoted = f'f"{name}{loops}"' if loops else f'"{name}"'
            header = f"with pyro.plate({quoted}, @{name}{subsample}{where}){f' as {rows}' if rows else ''}:"
            if sequential:
                header = f"for i_{name} in pyro.plate({quoted}, @{name}):"
            into.append(Statement(header, body=tuple(body), name=name))
        sides.model = replace(sides.model, variables=inner.model.variables)
        sides.guide = replace(sides.guide, variables=inner.guide.variables)

    def local(self, sides: Sides) -> None:
        """A value that is computed, perhaps written in place, in the model or in the guide."""
        writer = self.writer
        side = "guide" if self.chance(0.3) else "model"
        scope: Scope = getattr(sides, side)
        variable = f"h{self.sites}{side[0]}{len(writer.data)}{len(writer.parameters)}"
        first, second = writer.real(scope, 1), writer.real(scope, 1)
        way = self.random.choice(["plain", "written", "changed", "row"])
        writer.features.add(f"local {way}")
        pair = way == "written"
        if way == "plain":
            statement = Statement(f"{variable} = $0", (first,))
        elif way == "written":
            lines = [  # a network that draws numbers is called once
                "a, b = $0, $1",
                f"{variable} = torch.zeros(torch.broadcast_shapes(a.shape, b.shape) + (2,))",
                f"{variable}[..., 0] = a",
                f"{variable}[..., 1] += b",
            ]
            statement = Statement(
                "\n".join(lines),
                (first, second),
                functional=f"{variable} = torch.stack(torch.broadcast_tensors($0, $1), -1)",
            )
        elif way == "changed":
            change = self.random.choice([("mul_(0.5)", "* 0.5"), ("tanh_()", ".tanh()"), ("add_(1.0)", "+ 1.0")])
            statement = Statement(
                f"{variable} = 1.0 * $0\n{variable}.{change[0]}",
                (first,),
                functional=f"{variable} = (1.0 * $0) {change[1]}".replace(") .", ")."),
            )
        else:
            statement = Statement(f"{variable} = torch.where($0 > 0, $1, $0.detach())", (first, second))
        tainted = any(self.depends(part, scope) for part in (first, second))
        getattr(sides, f"{side}_statements").append(replace(statement, binds=variable))
        setattr(sides, side, scope.with_variable(Variable(variable, "real", pair, scope.plates, tainted)))

    def other(self, sides: Sides) -> None:
        """Deterministic sites, factors, auxiliary and blocked sites, observations in part."""
        writer = self.writer
        kind = self.random.choice(["deterministic", "factor", "guide factor", "auxiliary", "blocked", "partly"])
        writer.features.add(kind)
        name, variable = self.name(sides.model, "d")
        if kind == "deterministic":
            value = writer.real(sides.model, 1)
            sides.model_statements.append(
                Statement(
                    f"{variable} = pyro.deterministic({name}, $0, event_dim=0)", (value,), name=name, binds=variable
                )
            )
            tainted = self.depends(value, sides.model)
            sides.model = sides.model.with_variable(Variable(variable, "real", False, sides.model.plates, tainted))
        elif kind == "factor":
            value = Expression("real", "-($0 ** 2)", (writer.real(sides.model, 1),))
            sides.model_statements.append(Statement(f"pyro.factor({name}, $0)", (value,), name=name))
        elif kind == "guide factor":
            value = writer.real(sides.guide, 1)
            how = self.random.choice(["True", "False"])
            sides.guide_statements.append(Statement(f"pyro.factor({name}, $0, has_rsample={how})", (value,), name=name))
        elif kind == "auxiliary":
            family = self.choose(self.random.choice(["real", "boolean", "index"]), "g", sides.guide)
            made = self.distribution(family, sides.guide, False, sampled=True)
            tainted = not family.rsample or self.depends(made, sides.guide)
            infer = Expression("auxiliary", ', infer={"is_auxiliary": True}')
            sides.guide_statements.append(
                Statement(f"{variable} = pyro.sample({name}, $0$1)", (made, infer), name=name, binds=variable)
            )
            sides.guide = sides.guide.with_variable(
                Variable(variable, family.support, False, sides.guide.plates, tainted)
            )
        elif kind == "blocked":
            made = self.distribution(self.choose("real", "m", sides.model), sides.model, False, sampled=True)
            line = f"{variable} = pyro.sample({name}, $0)"
            inner = Statement(line, (made,), name=name, binds=variable)
            sides.model_statements.append(Statement(f"with poutine.block(hide=[{name}]):", body=(inner,), name=name))
        else:
            plate = sides.model.vectorised
            if not plate or any(p.rows for p in plate):
                return
            prior = self.distribution(self.choose("real", "m", sides.model), sides.model, False)
            obs, seen = (
                self.observation("real", False, sides.model),
                writer.condition(Scope("model", sides.model.plates), 0),
            )
            sides.model_statements.append(
                Statement(
                    f"{variable} = pyro.sample({name}, $0, obs=$1, obs_mask=$2)",
                    (prior, obs, seen),
                    name=name,
                    binds=variable,
                )
            )
            guide = self.distribution(self.choose("real", "g", sides.guide), sides.guide, False, sampled=True)
            hidden = name[:-1] + '_unobserved"'
            sides.guide_statements.append(Statement(f"pyro.sample({hidden}, $0)", (guide,), name=name))

    def chain(self, sides: Sides) -> None:
        """A chain of sites, each of which follows the one before: pyro.markov."""
        if any(p.sequential for p in sides.model.plates):
            return
        self.writer.features.add("markov")
        self.sites += 1
        variable, loop = f"c{self.sites}", f"t{self.sites}"
        name = f'f"{variable}_{{{loop}}}"'
        scored = self.chance(0.5)
        for scope, into in ((sides.model, sides.model_statements), (sides.guide, sides.guide_statements)):
            state = Expression("real", f"(0.7 * {variable})")
            other = self.writer.real(scope, 1)
            family = "dist.Bernoulli(logits=$0 + $1)" if scored else "dist.Normal($0 + $1, 0.8)"
            made = Expression(f"distribution {'boolean' if scored else 'real'}", family, (state, other))
            site = Statement(f"{variable} = pyro.sample({name}, $0)", (made,), name=name, binds=variable)
            into.append(Statement(f"{variable} = torch.tensor(0.0)"))
            into.append(Statement(f"for {loop} in pyro.markov(range(3)):", body=(site,), name=loop))
        for side in ("model", "guide"):
            scope = getattr(sides, side)
            support = "boolean" if scored else "real"
            setattr(sides, side, scope.with_variable(Variable(variable, support, False, scope.plates, True)))

    def whole_program_handlers(self, sides: Sides) -> None:
        """Handlers around model or guide."""
        around = []
        if self.chance(0.05):
            around.append(Statement("model = poutine.scale(model, 0.5)"))
        if self.chance(0.05):
            around.append(Statement("guide = poutine.scale(guide, 0.5)"))
        if self.chance(0.03):
            around.append(Statement("model = poutine.mask(model, mask=torch.tensor(True))"))
        if self.chance(0.05):
            around += self.lifted(sides)
        real = [s for s in sides.model_statements if s.binds.startswith("z") and "distribution real" in kinds(s)]
        if real and self.chance(0.1):
            site = self.random.choice(real)
            data = f"{{{site.name}: torch.tensor(0.5)}}"
            around.append(Statement(f"model = poutine.do(model, data={data})", name=site.name))
            self.writer.features.add("do")
        elif real and self.chance(0.15):
            around += self.decentred(self.random.choice(real), sides)
        self.wrappers += around

    def lifted(self, sides: Sides) -> list[Statement]:
        """A parameter of the model that becomes a latent site."""
        outside = [s for s in sides.model_statements if not s.body]
        text = "\n".join(line for s in outside for line in s.lines(functional=False))
        names = re.findall(r'pyro\.param\("(m\d+)", torch\.tensor\([-\d.]+\)\)', text)
        if not names or self.vectorised:
            return []
        name = self.random.choice(names)
        made = self.distribution(self.choose("real", "g", sides.guide), sides.guide, False, sampled=True)
        sides.guide_statements.append(Statement(f'pyro.sample("{name}", $0)', (made,), name=f'"{name}"'))
        self.writer.features.add("lift")
        prior = f'{{"{name}": dist.Normal(0.0, 1.0)}}'
        return [Statement(f"model = poutine.lift(model, prior={prior})", name=f'"{name}"')]

    def decentred(self, site: Statement, sides: Sides) -> list[Statement]:
        """A reparameterised site; the guide has the auxiliary one."""
        if "dist.Normal(" not in site.parts[0].template or "mask" in site.parts[0].template:
            return []
        for i, own in enumerate(sides.guide_statements):
            if own.name == site.name and own.binds:
                auxiliary = site.name[:-1] + '_decentered"'
                sides.guide_statements[i] = replace(own, header=own.header.replace(site.name, auxiliary))
                self.writer.features.add("reparam")
                centred = self.random.choice(["", "0.5"])
                config = f"{{{site.name}: LocScaleReparam({centred})}}"
                return [Statement(f"model = poutine.reparam(model, config={config})", name=site.name)]
        return []


def kinds(statement: Statement) -> list[str]:
    return [part.kind for part in statement.parts]


def generate(seed: int, *, grown: bool = False) -> Program:
    """The program of a seed.

    :param grown: whether its plates are larger in further calls.
    """
    return Generator(seed).program(grown=grown)
