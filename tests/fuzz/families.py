"""The families of distributions that random programs draw from, by the support that their values have."""

from __future__ import annotations

from dataclasses import dataclass

from tests.fuzz.tree import Expression

EVENT = {"simplex": 3, "onehot": 3, "vector": 2, "counts": 3, "circle": 2, "torus": 2, "sphere": 3}
"""The size of the event of a support whose values are vectors."""

MATRICES = ("precision", "cholesky", "correlation", "series", "path")
"""Supports whose values are matrices: they are drawn or observed, and read as the sum of their entries."""

DISCRETE = ("boolean", "index", "count", "binomial", "onehot", "counts")


@dataclass(frozen=True)
class Family:
    """A distribution as source, with the kinds of its parameters.

    ``places`` says where it may stand: ``m`` as a prior, ``g`` in the guide, ``o`` at an observation.
    ``loses`` marks those whose sampler loses the provenance of its parameters in eager Pyro: an autograd function, or a
    tensor made by ``.new``. They are drawn nowhere below a site that is scored; nor do those stand below one whose
    density loses it (``loses_scored``). ``differs``: sgc's gradient is another
    on purpose (docs/pyro-differences.md). Those that do not ``expand`` stand in no plate.
    """

    support: str
    template: str
    kinds: tuple[str, ...] = ()
    places: str = "mgo"
    rsample: bool = True
    loses: bool = False
    loses_scored: bool = False
    differs: bool = False
    expands: bool = True
    weight: float = 1.0

    @property
    def name(self) -> str:
        return self.template.partition("(")[0].removeprefix("dist.")

    @property
    def key(self) -> str:
        """Its name, with what tells it from others of this name."""
        return f"{self.support}: {self.template}"

    def of(self, parameters: tuple[Expression, ...], *, vector: bool) -> Expression:
        """The distribution of these parameters; with ``vector`` of two independent values of this family."""
        template = self.template
        if vector:
            for i in range(len(self.kinds)):
                shift = " + torch.tensor([0.0, 0.2])" if i == 0 else ""
                template = template.replace(f"${i}", f"(${i}.unsqueeze(-1){shift})")
            template = f"{template}.to_event(1)"
        return Expression(f"distribution {self.support}{' pair' * vector}", template, parameters)

    @property
    def can_be_vector(self) -> bool:
        """Whether the parameters of a scalar family can be given a last dim."""
        scalar = self.support not in EVENT and self.support not in MATRICES
        return (
            scalar
            and self.expands
            and bool(self.kinds)
            and set(self.kinds) <= {"real", "positive"}
            and "[" not in self.template
        )


def _family(support: str, template: str, kinds: str = "", places: str = "mgo", **flags: object) -> Family:
    return Family(support, template, tuple(kinds.split()), places, **flags)  # type: ignore[arg-type]


TEMPERATURE = "torch.tensor(0.7)"
NOISE = "dist.MultivariateNormal(torch.zeros(1), torch.eye(1))"
FAMILIES = [
    _family("real", "dist.Normal($0, $1)", "real positive", weight=5.0),
    _family("real", "dist.Laplace($0, $1)", "real positive", loses=True),
    _family("real", "dist.StudentT(2.0 + $1, $0, $2)", "real positive positive"),
    _family("real", "dist.Cauchy($0, $1)", "real positive", loses=True),
    _family("real", "dist.Gumbel($0, $1)", "real positive"),
    _family("real", "dist.Logistic($0, $1)", "real positive"),
    _family("real", "dist.SkewLogistic($0, $1, $2)", "real positive positive"),
    _family("real", "dist.SoftLaplace($0, $1)", "real positive"),
    _family("real", "dist.AsymmetricLaplace($0, $1, $2)", "real positive positive"),
    _family("real", "dist.SoftAsymmetricLaplace($0, $1, $2)", "real positive positive", expands=False),
    _family("real", "dist.Stable(1.2 + 0.5 * $0, 0.1, $1, $2)", "unit positive real", weight=0.3),
    _family("real", "dist.Delta($0)", "real", "g"),
    _family("real", "dist.Delta($0, log_density=$1)", "real real", "g"),
    _family("real", "dist.Normal($0, $1).has_rsample_(False)", "real positive", rsample=False, weight=2.0),
    _family(
        "real",
        "dist.MaskedMixture($0, dist.Normal($1, $2), dist.Normal($3, 1.5))",
        "condition real positive real",
    ),
    _family(
        "real",
        "dist.MixtureSameFamily(dist.Categorical(logits=$0), dist.Normal($1, $2.unsqueeze(-1)))",
        "vector3 vector3 positive",
        rsample=False,
    ),
    _family(
        "real",
        "dist.TransformedDistribution(dist.Normal($0, $1), [T.AffineTransform($2, 2.0)])",
        "real positive real",
    ),
    _family("real", "dist.NanMaskedNormal($0, $1)", "real positive", "o"),
    _family("real", "dist.ImproperUniform(constraints.real, (), ())", "", "m"),
    _family("positive", "dist.Gamma($0, $1)", "positive positive", weight=2.0),
    _family("positive", "dist.Exponential($0)", "positive", loses=True),
    _family("positive", "dist.LogNormal($0, $1)", "real positive", weight=2.0),
    _family("positive", "dist.HalfNormal($0)", "positive"),
    _family("positive", "dist.HalfCauchy($0)", "positive", loses=True),
    _family("positive", "dist.Weibull($0, 1.0 + $1)", "positive positive", loses=True),
    _family("positive", "dist.InverseGamma(1.0 + $0, $1)", "positive positive"),
    _family("positive", "dist.Chi2(1.0 + $0)", "positive"),
    _family("positive", "dist.FisherSnedecor(2.0 + $0, 2.0 + $1)", "positive positive"),
    _family("positive", "dist.FoldedDistribution(dist.Normal($0, $1))", "real positive"),
    _family("positive", "dist.GeneralizedPareto(0.0, $0, 0.3)", "positive"),
    _family("positive", "dist.TransformedDistribution(dist.Normal($0, $1), [T.ExpTransform()])", "real positive"),
    _family("positive", "dist.Delta($0)", "positive", "g"),
    _family("positive", "RejectionGamma(1.5 + $0, $1)", "positive positive", "g", differs=True, weight=0.2),
    _family("above", "dist.Pareto(1.0, 1.0 + $0)", "positive", loses=True),
    _family("unit", "dist.Beta($0, $1)", "positive positive", loses=True, weight=2.0),
    _family("unit", "dist.Kumaraswamy($0, $1)", "positive positive"),
    _family("unit", "dist.Uniform(0.0, 1.0)", "", "mg"),
    _family("unit", "dist.ContinuousBernoulli($0)", "unit"),
    _family("unit", f"dist.RelaxedBernoulli({TEMPERATURE}, $0)", "unit"),
    _family("unit", "dist.AffineBeta($0, $1, 0.0, 1.0)", "positive positive", loses=True),
    _family("unit", "dist.TransformedDistribution(dist.Normal($0, $1), [T.SigmoidTransform()])", "real positive"),
    _family("boolean", "dist.Bernoulli($0)", "unit", rsample=False, weight=4.0),
    _family("boolean", "dist.Bernoulli(logits=$0)", "real", rsample=False, weight=4.0),
    _family("boolean", f"dist.RelaxedBernoulliStraightThrough({TEMPERATURE}, logits=$0)", "real", "g", loses=True),
    _family("index", "dist.Categorical($0)", "simplex3", rsample=False, weight=3.0),
    _family("index", "dist.Categorical(logits=$0)", "vector3", rsample=False, weight=3.0),
    _family(
        "index",
        "dist.OrderedLogistic($0, torch.tensor([-0.5, 0.5]))",
        "real",
        rsample=False,
        loses=True,
        loses_scored=True,
    ),
    _family("count", "dist.Poisson($0)", "positive", rsample=False, weight=2.0),
    _family("count", "dist.Geometric($0)", "unit", rsample=False, loses=True),
    _family("count", "dist.NegativeBinomial($0, $1)", "positive unit", rsample=False),
    _family("count", "dist.GammaPoisson($0, $1)", "positive positive", rsample=False),
    _family("count", "dist.ZeroInflatedPoisson($0, gate=$1)", "positive unit", rsample=False),
    _family("count", "dist.ZeroInflatedNegativeBinomial($0, probs=$1, gate=$2)", "positive unit unit", rsample=False),
    _family("count", "dist.ZeroInflatedDistribution(dist.Poisson($0), gate_logits=$1)", "positive real", rsample=False),
    _family("count", "dist.LogNormalNegativeBinomial($0, $1, $2)", "positive real positive", "o", rsample=False),
    _family("binomial", "dist.Binomial(4, $0)", "unit", rsample=False),
    _family("binomial", "dist.Binomial(4, logits=$0)", "real", rsample=False),
    _family("binomial", "dist.BetaBinomial($0, $1, 4)", "positive positive", rsample=False, loses=True),
    _family("binomial", "dist.ExtendedBinomial(4, $0)", "unit", "o", rsample=False),
    _family("binomial", "dist.ExtendedBetaBinomial($0, $1, 4)", "positive positive", "o", rsample=False),
    _family("simplex", "dist.Dirichlet($0)", "positive3", loses=True, weight=2.0),
    _family("simplex", f"dist.RelaxedOneHotCategorical({TEMPERATURE}, logits=$0)", "vector3"),
    _family("simplex", "dist.LogisticNormal($0, $1.unsqueeze(-1))", "vector2 positive"),
    _family(
        "simplex",
        "dist.TransformedDistribution(dist.Normal($0, 0.5).to_event(1), [T.StickBreakingTransform()])",
        "vector2",
    ),
    _family("onehot", "dist.OneHotCategorical($0)", "simplex3", rsample=False),
    _family("onehot", "dist.OneHotCategorical(logits=$0)", "vector3", rsample=False),
    _family("onehot", "dist.OneHotCategoricalStraightThrough(logits=$0)", "vector3", "g"),
    _family(
        "onehot", f"dist.RelaxedOneHotCategoricalStraightThrough({TEMPERATURE}, logits=$0)", "vector3", "g", loses=True
    ),
    _family("vector", "dist.Normal($0, $1.unsqueeze(-1)).to_event(1)", "vector2 positive", weight=2.0),
    _family("vector", "dist.Independent(dist.Laplace($0, 0.7), 1)", "vector2", loses=True),
    _family("vector", "dist.MultivariateNormal($0, $1 @ $1.mT)", "vector2 tril"),
    _family("vector", "dist.MultivariateNormal($0, precision_matrix=$1 @ $1.mT)", "vector2 tril"),
    _family("vector", "dist.MultivariateNormal($0, scale_tril=$1)", "vector2 tril"),
    _family("vector", "dist.LowRankMultivariateNormal($0, $1[:, :1], $2)", "vector2 tril positive2"),
    _family("vector", "dist.MultivariateStudentT(2.0 + $0, $1, $2)", "positive vector2 tril"),
    _family("vector", "dist.OMTMultivariateNormal($0, $1)", "vector2 tril", "g", loses=True),
    _family(
        "vector",
        "dist.AVFMultivariateNormal($0, $1, 0.1 * torch.ones(2, 1, 2))",
        "vector2 tril",
        "g",
        loses=True,
        expands=False,
    ),
    _family(
        "vector",
        "dist.MixtureOfDiagNormals($0.unsqueeze(-2) + torch.eye(2), torch.ones(2, 2), $1)",
        "vector2 vector2",
        "g",
        loses=True,
    ),
    _family("vector", "dist.Delta($0, event_dim=1)", "vector2", "g"),
    _family("vector", "dist.NanMaskedMultivariateNormal($0, $1 @ $1.mT)", "vector2 tril", "o"),
    _family(
        "vector", "dist.TransformedDistribution(dist.Normal($0, 0.8).to_event(1), [bend])", "vector2", "g", loses=True
    ),
    _family("vector", "dist.TransformedDistribution(dist.Normal($0, 0.8).to_event(1), [squash])", "vector2"),
    _family("vector", "dist.TransformedDistribution(dist.Normal($0, 0.8).to_event(1), [flow])", "vector2"),
    _family("vector", "dist.TransformedDistribution(dist.Normal($0, 0.8).to_event(1), [couple])", "vector2"),
    _family("counts", "dist.Multinomial(4, $0)", "simplex3", rsample=False, loses=True),
    _family("counts", "dist.Multinomial(4, logits=$0)", "vector3", rsample=False, loses=True),
    _family("counts", "dist.DirichletMultinomial($0, 4)", "positive3", rsample=False, loses=True),
    _family("angle", "dist.VonMises($0, $1)", "real positive", rsample=False),
    _family("circle", "dist.ProjectedNormal($0)", "vector2"),
    _family(
        "torus",
        "dist.SineBivariateVonMises($0, $1, 1.0 + $2, 1.0 + $3, torch.tensor(0.2))",
        "real real positive positive",
        rsample=False,
        loses=True,
        differs=True,
        expands=False,
        weight=0.3,
    ),
    _family("torus", "dist.SineSkewed(dist.VonMises($0, 2.0).to_event(1), torch.tensor([0.2, -0.3]))", "vector2", "o"),
    _family("sphere", "dist.VonMises3D($0)", "vector3", "o"),
    _family("precision", "dist.Wishart(torch.tensor(3.0), scale_tril=$0)", "tril"),
    _family("cholesky", "dist.LKJCholesky(2, $0)", "positive", rsample=False, loses=True),
    _family(
        "cholesky",
        "dist.TransformedDistribution(dist.Normal($0.unsqueeze(-1), 0.4).to_event(1), [T.CorrCholeskyTransform()])",
        "real",
        "g",
    ),
    _family("correlation", "dist.LKJ(2, $0)", "positive", "mo", rsample=False, loses=True, expands=False),
    _family(
        "series",
        f"dist.GaussianHMM({NOISE}, 0.5 * torch.eye(1), {NOISE}, $0[..., None, None] * torch.eye(1), {NOISE}, "
        "duration=2)",
        "positive",
        "o",
    ),
    _family(
        "path",
        "dist.DiscreteHMM($0, torch.tensor([[0.2, -0.2], [0.1, 0.3]]), "
        "dist.Normal(torch.tensor([-1.0, 1.0]), 1.0), duration=3)",
        "vector2",
        "o",
    ),
]

FLOWS = {
    "bend": "bend = T.planar(2)",
    "squash": "squash = T.spline(2, count_bins=3)",
    "flow": "flow = T.affine_autoregressive(2, hidden_dims=[3])",
    "couple": "couple = T.affine_coupling(2, hidden_dims=[3])",
}
"""Transforms with parameters, made once."""


def families(support: str, place: str, *, expands: bool = False) -> list[Family]:
    """Those of a support that may stand at a place."""
    return [f for f in FAMILIES if f.support == support and place in f.places and f.expands >= expands]


SUPPORTS = list(dict.fromkeys(f.support for f in FAMILIES))
LATENT = [s for s in SUPPORTS if families(s, "m") and families(s, "g")]
OBSERVED = [s for s in SUPPORTS if families(s, "o")]
