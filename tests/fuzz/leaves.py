"""The smallest random expressions: parameters, data, and numbers in the shape of the plates around them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tests.fuzz.scope import NESTING, Scope, Variable
from tests.fuzz.tree import Data, Expression


@dataclass
class Leaves:
    """Makes leaves, and notes the data and networks that they name."""

    random: random.Random
    data: list[Data] = field(default_factory=list)
    definitions: dict[str, str] = field(default_factory=dict)
    parameters: list[tuple[str, str, Expression]] = field(default_factory=list)
    features: set[str] = field(default_factory=set)
    grown: bool = False
    """Whether plates are larger in further calls: no parameter has values for rows then, and no data are global."""
    particles: int = 1
    """How many vectorised particles there are, in dim -1 - NESTING."""

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def number(self, low: float, high: float) -> str:
        return f"{self.random.uniform(low, high):.1f}"

    def shape(self, scope: Scope) -> str:
        """The shape of a cost at a site: the drawn rows of its plates, behind the particles."""
        own = scope.shape(drawn=True)
        if self.particles == 1:
            return own
        ones = "1, " * (NESTING - len(scope.vectorised))
        return f"({self.particles}, {ones}{own.strip('()')})"

    def values(self, low: float, high: float, scope: Scope, *event: int) -> str:
        """Equally spaced numbers in the shape of the plates."""
        shape = scope.shape(*event)
        if shape == "()":
            return f"torch.tensor({self.number(low, high)})"
        count = shape.strip("()").rstrip(",").replace(",", " *")
        return f"torch.linspace({low}, {high}, {count}).reshape({shape})"

    def parameter(
        self, kind: str, scope: Scope, low: float, high: float, event: int = 0, constraint: str = "", full: str = ""
    ) -> Expression:
        """``pyro.param``, new or one that was there before, as one value or one for each row."""
        local = bool(scope.plates) and self.chance(0.5) and not self.grown
        place = scope.row(1 if event else 0) if local else ""
        same = [e for key, where, e in self.parameters if key == kind + scope.side and where == scope.shape() + place]
        if same and self.chance(0.3):
            return self.random.choice(same)
        name = f"{scope.side[0]}{len(self.parameters)}"
        init = full or self.values(low, high, scope if local else Scope(scope.side), *([event] if event else []))
        limited = f", constraint=constraints.{constraint}" if constraint else ""
        subsampled = any(p.rows for p in scope.vectorised) and not any(p.sequential for p in scope.plates)
        if local and subsampled and self.chance(0.5):  # Pyro takes the drawn rows itself
            self.features.add("param event_dim")
            text = f'pyro.param("{name}", {init}{limited}, event_dim={1 if event else 0})'
        else:
            text = f'pyro.param("{name}", {init}{limited}){place}'
        made = Expression(kind, text)
        self.parameters.append((kind + scope.side, scope.shape() + place, made))
        return made

    def datum(self, kind: str, value: str, scope: Scope, event_dims: int = 0) -> Expression:
        """Data for these plates, given to the program or standing in it."""
        name = f"x{len(self.data)}"
        place = self.random.choice(["positional"] * 5 + ["dict", "list", "global"])
        place = "positional" if self.grown and place == "global" else place
        self.data.append(Data(name, Expression(kind, value), place))
        return Expression(kind, f"<{name}>{scope.row(event_dims)}")

    def read(self, kind: str, variable: Variable, how: str = "$") -> Expression:
        return Expression(kind, how.replace("$", variable.name), variable=variable.name if how == "$" else "")
