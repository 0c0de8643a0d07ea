"""The keys of the nodes of a stochastic computation graph, which several parts of sgc spell."""

from __future__ import annotations

from sgc.graph.program import InputKind

ELBO = "elbo"
SURROGATE = "surrogate"
LOSS = "loss"
SURROGATE_LOSS = "surrogate_loss"
LOG_WEIGHT = "log_weight"
BOUNDS = "bounds"
BOUND = "bound"
OTHERS_BOUNDS = "bounds_of_others"
NORMALISED_WEIGHT = "normalised_weight"
GAIN = "gain"

_PREFIX = {
    InputKind.PARAMETER: "param",
    InputKind.DATA: "data",
    InputKind.BUFFER: "buffer",
    InputKind.CONSTANT: "constant",
}


def input_key(kind: InputKind, name: str) -> str:
    """The key of an input of the program."""
    return f"{_PREFIX[kind]} {name}"


def cost_key(site: str, sign: int) -> str:
    """The key of the cost node of a site in the model (+1) or in the guide (-1)."""
    return f"log p({site})" if sign > 0 else f"-log q({site})"


def marginal_cost(eliminated: tuple[str, ...]) -> str:
    """The key of a marginal cost, by the first and the last of the sites that are summed out."""
    return f"log sum({' … '.join(dict.fromkeys((eliminated[0], eliminated[-1])))})"


def expected_cost(cost: str) -> str:
    """The key of the expectation of a cost over the enumerated values of the guide."""
    return f"expected {cost}"


def probability(site: str) -> str:
    """The key of the probabilities of an enumerated site's values."""
    return f"q({site})"


def marginal_probability(site: str, number: int) -> str:
    """The key of probabilities in which an enumerated site is summed out."""
    return f"sum over {site} ({number})"


def weight(site: str) -> str:
    """The key of the probability of the enumerated values that a score function is multiplied by."""
    return f"weight({site})"


def expectation(site: str, number: int) -> str:
    """The key of the expectation of costs over the values of an enumerated site."""
    return f"E_{site} ({number})"


def expectation_term(key: str) -> str:
    """The key of the surrogate term of an expectation."""
    return f"expectation_term({key})"


def closed_form(site: str) -> str:
    """The key of ``KL(q || p)`` of a site, before it is decided whether it stands for the two densities."""
    return f"closed_form({site})"


def divergence(site: str) -> str:
    """The key of the cost node that stands for both densities of a site, where these have a closed form."""
    return f"-KL(q({site}) || p({site}))"


def divergence_term(site: str) -> str:
    """The key of the surrogate term of that cost."""
    return f"divergence_term({site})"


def score_part(part: str, site: str) -> str:
    """The key of ``score_function``, ``masked_score_function`` or ``entropy_term`` of a guide site."""
    return f"{part}({site})"


def score_function(site: str) -> str:
    """The key of the score function of a guide site."""
    return score_part("score_function", site)


def masked_score_function(site: str) -> str:
    """The key of the score function without the entries that a mask below ``to_event`` hides."""
    return score_part("masked_score_function", site)


def baseline_input(site: str) -> str:
    """The key of what the user gave as a baseline."""
    return f"baseline_input({site})"


def plate_rows(site: str, plate: str) -> str:
    """The key of the rows of its data that a plate around a site has in a step."""
    return f"rows of {plate} ({site})"


def partial_sum(number: int) -> str:
    """The key of a sum of costs that downstream costs share."""
    return f"partial_sum_{number}"


def downstream(site: str) -> str:
    """The key of the downstream cost of a site."""
    return f"downstream({site})"


def all_costs(site: str) -> str:
    """The key of the sum of all costs, as it would be at a site without Rao-Blackwellisation."""
    return f"all_costs({site})"


def baseline(site: str) -> str:
    """The key of the baseline of a site."""
    return f"baseline({site})"


def centred_cost(site: str) -> str:
    """The key of the downstream cost of a site without its baseline."""
    return f"centred_cost({site})"


def detached(key: str) -> str:
    """The key of a node's value through which no gradient passes."""
    return f"detached {key}"


def cost_term(site: str) -> str:
    """The key of the surrogate term of a model site's cost."""
    return f"cost_term({site})"


def entropy_term_of(site: str) -> str:
    """The key of the surrogate term of a guide site's entropy term."""
    return f"entropy_term_of({site})"


def score_term(site: str) -> str:
    """The key of the surrogate term of a site's score function."""
    return f"score_term({site})"


def baseline_term(site: str) -> str:
    """The key of the surrogate term that trains a site's baseline."""
    return f"baseline_term({site})"


def mean_over_particles(key: str) -> str:
    """The key of the mean of a node over all particles."""
    return f"mean {key}"
