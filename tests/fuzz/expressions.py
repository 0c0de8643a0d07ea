"""Random expressions: samples read in many ways, arithmetic, indexing and networks."""

from __future__ import annotations

from tests.fuzz.families import DISCRETE, EVENT, MATRICES
from tests.fuzz.leaves import Leaves
from tests.fuzz.scope import Scope, Variable
from tests.fuzz.tree import Expression

CLASSES = 3
"""How many values an index has."""


class Writer(Leaves):
    """Makes expressions of every kind."""

    def of_kind(self, kind: str, scope: Scope, depth: int = 2) -> Expression:
        """An expression of a kind: a tensor that broadcasts against the plates, with the kind's event dims."""
        simple = kind.rstrip("0123456789")
        size = int(kind[len(simple) :] or 0)
        if simple == "condition":
            return self.condition(scope, depth)
        if simple == "tril":
            return self.tril(scope)
        if not size:
            return {"real": self.real, "positive": self.positive, "unit": self.unit, "index": self.index}[simple](
                scope, depth
            )
        return self.vector(simple, size, scope, depth)

    def real(self, scope: Scope, depth: int = 2) -> Expression:
        variables = scope.variables
        if depth <= 0 or self.chance(0.15):
            if variables and self.chance(0.55):
                return self.read_as_real(self.random.choice(variables), scope)
            if self.chance(0.35):
                return self.datum("real", self.values(-1.0, 1.0, scope), scope)
            if self.chance(0.25):
                return Expression("real", f"torch.tensor({self.number(-1, 1)})")
            return self.parameter("real", scope, -0.5, 0.7)
        below = depth - 1
        choice = self.random.choices(
            ["sum", "product", "curve", "where", "table", "network", "minimum", "norm", "leaf"],
            [4, 3, 3, 2, 4, 2, 1, 1, 5],
        )[0]
        if choice == "sum":
            sign = self.random.choice("+-")
            return Expression("real", f"($0 {sign} $1)", (self.real(scope, below), self.real(scope, below)))
        if choice == "product":
            return Expression("real", f"({self.number(0.2, 0.9)} * $0)", (self.real(scope, below),))
        if choice == "curve":
            curve = self.random.choice(
                ["torch.tanh($0)", "torch.sin($0)", "$0.sigmoid()", "F.softplus($0)", "$0.clamp(-2, 2)"]
            )
            return Expression("real", curve, (self.real(scope, below),))
        if choice == "where":
            self.features.add("where")
            parts = (self.condition(scope, 0), self.real(scope, below), self.real(scope, below))
            return Expression("real", "torch.where($0, $1, $2)", parts)
        if choice == "minimum":
            function = self.random.choice(["torch.minimum", "torch.maximum"])
            return Expression("real", f"{function}($0, $1)", (self.real(scope, below), self.real(scope, below)))
        if choice == "norm":
            return Expression("real", "($0 * $1.tanh())", (self.real(scope, below), self.real(scope, below)))
        if choice == "table":
            return self.looked_up(scope)
        if choice == "network":
            return self.network(scope, below)
        return self.real(scope, 0)

    def read_as_real(self, variable: Variable, scope: Scope) -> Expression:
        """A number for each row, from a sample of any support."""
        name, support = variable.name, variable.support
        outer = variable.plates == scope.plates[: len(variable.plates)]
        if support in EVENT or variable.pair:
            ways = [
                "$[..., 0]",
                "$[..., -1]",
                "$.mean(-1)",
                "$.sum(-1).tanh()",
                "torch.stack([$[..., 1], $[..., 0]]).mean(0)",
            ]
            if support in ("onehot", "simplex"):
                ways.append(f"($ @ torch.linspace(-1, 1, {EVENT[support]}))")
            inner = self.random.choice(ways)
        elif support in MATRICES:
            inner = "$[..., -1, 0]"
        elif support in ("positive", "above"):
            inner = self.random.choice(["torch.log1p($)", "$.sqrt()", "(1 / (1 + $))"])
        elif support in DISCRETE:
            inner = self.random.choice(["(0.5 * $)", "(1.0 - 0.3 * $)", "(1.0 * $).sqrt()"])
        else:
            inner = self.random.choice(["$", "$", "(0.5 * $)"])
        if variable.pair and support == "positive":
            inner = f"({inner.replace('$', '$')}).tanh()"
        if variable.pair and support in DISCRETE:
            inner = inner.replace("$", f"(1.0 * {name})")
        if not outer:
            inner = f"(1.0 * {inner}).mean()"
        return self.read("real", variable, inner)

    def looked_up(self, scope: Scope) -> Expression:
        """A row of a table, chosen by a sample."""
        self.features.add("table")
        chosen = self.index(scope, 1)
        table = Expression("table", "torch.tensor([-0.5, 0.2, 0.9])")
        if self.chance(0.6):
            table = Expression(
                "table", f'pyro.param("t{len(self.parameters)}{scope.side[0]}", torch.tensor([-0.5, 0.2, 0.9]))'
            )
            self.parameters.append(("table", "", table))
        way = self.random.choice(
            [
                "$0[$1]",
                "$0[$1]",
                "torch.take($0, $1)",
                "$0.index_select(0, $1.flatten()).reshape($1.shape)",
                "(F.one_hot($1, 3).to($0.dtype) @ $0)",
                "$0[..., $1]",
                "F.embedding($1, $0.unsqueeze(-1)).squeeze(-1)",
                "($0 + torch.zeros($1.shape + (3,))).gather(-1, $1.unsqueeze(-1)).squeeze(-1)",
                "($0 * (torch.arange(3) == $1.unsqueeze(-1))).sum(-1)",
                "Vindex",
                "two",
            ]
        )
        if way in ("Vindex", "two"):
            other = self.index(scope, 1)
            square = Expression("square", f"torch.linspace(-1, 1, {CLASSES**2}).reshape({CLASSES}, {CLASSES})")
            if self.chance(0.5):
                square = Expression("square", f'pyro.param("s{len(self.parameters)}{scope.side[0]}", {square})')
                self.parameters.append(("square", "", square))
            text = "Vindex($0)[$1, $2]" if way == "Vindex" else "$0[$1, $2]"
            return Expression("real", text, (square, chosen, other))
        return Expression("real", way, (table, chosen))

    def network(self, scope: Scope, depth: int) -> Expression:
        self.features.add("network")
        hidden = self.random.choice(["nn.Tanh()", "nn.ReLU()", "nn.Dropout(0.4)", "nn.LayerNorm(2)", "nn.Softplus()"])
        kind = self.random.choice(["linear", "two", "two", "norm", "pyro", "positive"])
        name = f"net{len(self.definitions)}"
        code = f"{name} = nn.Linear(1, 1)"
        if kind == "two":
            code = f"{name} = nn.Sequential(nn.Linear(1, 2), {hidden}, nn.Linear(2, 1))"
        elif kind == "pyro":
            code = f"{name} = PyroModule[nn.Linear](1, 1)"
        elif kind == "positive":
            positive = "PyroParam(torch.ones(1, 1), constraints.positive)"
            code = f"{name} = PyroModule[nn.Linear](1, 1)\n{name}.weight = {positive}"
        within = self.real(scope, depth)
        if kind == "norm" and scope.vectorised:
            self.features.add("batch norm")
            full = Expression("real", f"($0 + torch.zeros({self.shape(scope)}))", (within,))
            self.definitions[name] = f"{name} = nn.BatchNorm1d(1)"
            return Expression("real", f"{name}($0.reshape(-1, 1)).reshape($0.shape)", (full,))
        self.definitions[name] = code
        return Expression("real", f"{name}($0.unsqueeze(-1)).squeeze(-1)", (within,))

    def positive(self, scope: Scope, depth: int = 2) -> Expression:
        below = depth - 1
        variables = scope.visible(lambda v: v.support in ("positive", "above", "unit") and not v.pair)
        variables = [v for v in variables if v.plates == scope.plates[: len(v.plates)]]
        if depth > 0 and self.chance(0.35):
            if variables and self.chance(0.5):
                return self.read("positive", self.random.choice(variables), "(0.2 + $)")
            if self.chance(0.2):
                parts = (self.condition(scope, 0), self.positive(scope, 0), self.positive(scope, 0))
                return Expression("positive", "torch.where($0, $1, $2)", parts)
            if self.chance(0.2):
                chosen = self.index(scope, 0)
                return Expression("positive", "torch.tensor([0.5, 1.0, 1.6])[$0]", (chosen,))
            way = self.random.choice(["F.softplus($0)", "(0.3 * $0.tanh()).exp()", "(0.4 + $0.tanh() ** 2)"])
            return Expression("positive", way, (self.real(scope, below),))
        if self.chance(0.35):
            return Expression("positive", f"torch.tensor({self.number(0.4, 1.6)})")
        constraint = self.random.choice(["positive", "softplus_positive", "greater_than(0.1)", "interval(0.1, 3.0)"])
        return self.parameter("positive", scope, 0.5, 1.5, constraint=constraint)

    def unit(self, scope: Scope, depth: int = 2) -> Expression:
        variables = scope.visible(lambda v: v.support in ("unit", "boolean") and not v.pair)
        variables = [v for v in variables if v.plates == scope.plates[: len(v.plates)]]
        if depth > 0 and self.chance(0.4):
            if variables and self.chance(0.5):
                return self.read("unit", self.random.choice(variables), "(0.2 + 0.6 * $)")
            return Expression("unit", "$0.sigmoid()", (self.real(scope, depth - 1),))
        if self.chance(0.35):
            return Expression("unit", f"torch.tensor({self.number(0.2, 0.8)})")
        return self.parameter("unit", scope, 0.3, 0.7, constraint="unit_interval")

    def index(self, scope: Scope, depth: int = 1) -> Expression:
        """Whole numbers below three, of samples where there are any."""
        usable = scope.visible(lambda v: v.support in ("index", "boolean", "count", "binomial") and not v.pair)
        usable = [v for v in usable if v.plates == scope.plates[: len(v.plates)]]
        if usable and self.chance(0.9):
            variable = self.random.choice(usable)
            if variable.support == "index":
                return self.read("index", variable, self.random.choice(["$", "$", "$", "(2 - $)", "(($ + 1) % 3)"]))
            way = "$.long()" if variable.support == "boolean" else "$.clamp(max=2).long()"
            return self.read("index", variable, way)
        shape = scope.shape()
        count = shape.strip("()").rstrip(",").replace(",", " *")
        value = "torch.tensor(1)" if shape == "()" else f"torch.arange({count}).reshape({shape}) % 3"
        return self.datum("index", value, scope)

    def condition(self, scope: Scope, depth: int = 1) -> Expression:
        below = max(depth - 1, 0)
        flags = scope.visible(lambda v: v.support in ("boolean", "index", "count") and not v.pair)
        flags = [v for v in flags if v.plates == scope.plates[: len(v.plates)]]
        if flags and self.chance(0.7):
            way = self.random.choice(["($ > 0)", "$.bool()", "($ == 1)"])
            return self.read("condition", self.random.choice(flags), way)
        if depth > 0 and self.chance(0.3):
            parts = (self.condition(scope, below), self.condition(scope, below))
            return Expression("condition", self.random.choice(["($0 & $1)", "($0 | ~$1)"]), parts)
        return Expression("condition", "($0 > 0.1)", (self.real(scope, below),))

    def vector(self, simple: str, size: int, scope: Scope, depth: int) -> Expression:
        kind = f"{simple}{size}"
        if simple == "simplex":
            if self.chance(0.3):
                text = "torch.tensor([0.2, 0.5, 0.3])" if size == 3 else "torch.tensor([0.4, 0.6])"
                return Expression(kind, text)
            if self.chance(0.4):
                start = Scope(scope.side)
                full = "torch.tensor([0.2, 0.5, 0.3])" if size == 3 else "torch.tensor([0.4, 0.6])"
                return self.parameter(kind, start, 0, 0, size, "simplex", full=full)
            same = scope.visible(lambda v: v.support == "simplex" and v.plates == scope.plates[: len(v.plates)])
            if same and size == 3 and self.chance(0.6):
                return self.read(kind, self.random.choice(same))
            return Expression(kind, "$0.softmax(-1)", (self.vector("vector", size, scope, depth - 1),))
        if simple == "positive":
            if self.chance(0.5):
                return self.parameter(
                    kind, scope, 0.5, 1.5, size, self.random.choice(["positive", "softplus_positive"])
                )
            if depth > 0 and self.chance(0.6):
                return Expression(kind, "(0.1 + F.softplus($0))", (self.vector("vector", size, scope, depth - 1),))
            return Expression(kind, f"torch.linspace(0.5, 1.5, {size})")
        same = scope.visible(lambda v: EVENT.get(v.support) == size and v.plates == scope.plates[: len(v.plates)])
        if same and self.chance(0.4):
            return self.read(kind, self.random.choice(same), "(1.0 * $)")
        if depth <= 0 or self.chance(0.4):
            if self.chance(0.3):
                return Expression(kind, f"torch.linspace(-0.4, 0.6, {size})")
            return self.parameter(kind, scope, -0.4, 0.6, size)
        way = self.random.choice(["shift", "table", "network", "stack"])
        if way == "shift":
            return Expression(
                kind, f"($0.unsqueeze(-1) + torch.linspace(-0.3, 0.3, {size}))", (self.real(scope, depth - 1),)
            )
        if way == "table":
            chosen = self.index(scope)
            name = f"w{len(self.parameters)}{scope.side[0]}"
            init = f"torch.linspace(-1, 1, {3 * size}).reshape(3, {size})"
            table = Expression("matrix", f'pyro.param("{name}", {init})' if self.chance(0.6) else init)
            self.parameters.append(("matrix", "", table))
            return Expression(kind, "$0[$1]", (table, chosen))
        if way == "network":
            name = f"net{len(self.definitions)}"
            self.definitions[name] = f"{name} = nn.Linear(1, {size})"
            return Expression(kind, f"{name}($0.unsqueeze(-1))", (self.real(scope, depth - 1),))
        parts = tuple(self.real(scope, depth - 2) for _ in range(size))
        listed = ", ".join(f"${i}" for i in range(size))
        return Expression(kind, f"torch.stack(torch.broadcast_tensors({listed}), -1)", parts)

    def tril(self, scope: Scope) -> Expression:
        value = "torch.tensor([[1.0, 0.0], [0.3, 0.8]])"
        if self.chance(0.5):
            return Expression("tril", value)
        name = f"l{len(self.parameters)}{scope.side[0]}"
        constraint = self.random.choice(["lower_cholesky", "softplus_lower_cholesky"])
        made = Expression("tril", f'pyro.param("{name}", {value}, constraint=constraints.{constraint})')
        self.parameters.append(("tril", "", made))
        return made
