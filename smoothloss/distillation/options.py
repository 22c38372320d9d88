"""The options of a divergence: named once, checked once, documented once, as `smoothloss.options` does for losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypedDict, get_args, get_type_hints

from torch import Tensor

from smoothloss import options
from smoothloss._validation import check_choice, check_number
from smoothloss.backends import Implementation
from smoothloss.backends.common import RowOptions, replaced
from smoothloss.options import Memory, Options
from smoothloss.targets.shares import check_temperature

__all__ = ["Call", "Divergence", "DivergenceOptions", "LinearDivergenceOptions", "Missing", "check"]

Divergence = Literal["forward_kl", "reverse_kl", "jensen_shannon"]
Missing = Literal["bucket", "uniform", "renormalize", "drop"]
# Asked for here, once: the compiler of torch 2.6 does not follow get_args.
_DIVERGENCE, _MISSING = get_args(Divergence), get_args(Missing)


class DivergenceOptions(TypedDict, total=False):
    """What every divergence takes.

    Attributes:
        divergence: "forward_kl" KL(q || p), "reverse_kl" KL(p || q), or "jensen_shannon".
        beta: of Jensen-Shannon, in [0, 1]: ``beta KL(q || m) + (1 - beta) KL(p || m)``, ``m = beta q + (1 - beta) p``.
            At 0 and 1, where that is 0 whatever p is, it is KL(q || p) and KL(p || q): what its direction tends to.
        temperature: T, in [1e-10, 1e10], divides the logits of both sides, and the loss is multiplied by T^2. The
            teacher's K probabilities become ``softmax(log_probs / T)`` of the mass that they have, and what is left
            stays what it is (as in `targets.top_k`); with "bucket" the rest is one more class here too:
            ``softmax([log_probs, log_rest] / T)``.
        missing: "bucket" compares the two rests as one more class; "uniform" spreads the teacher's rest evenly over all
            V classes; "renormalize" divides it out on both sides (in forward KL on the teacher's alone, as a target: p
            stays a distribution over all V classes); "drop" leaves it out, and what remains of the sum is no
            divergence: it can be negative, and need not be least where p is q.
        logit_scale, softcap: the student's logits are ``softcap * tanh(logit_scale * input / softcap)``.
        prior: ``(V,)`` probabilities by which "uniform" spreads the teacher's rest instead of evenly (unigram
            frequencies, for example), see `smoothloss.options`. In forward KL, where that rest is mass of a target:
            the other divergences would need the student's mean of ``log prior``, which no statistic has.
        reduction: "mean", over the positions that have a teacher, by weight where there are weights (nan when there are
            none), "sum" or "none".
        impl: see `smoothloss.options`. Jensen-Shannon with "uniform" has no kernel where classes are split.
        group: see `smoothloss.options`; a teacher's classes are those of all processes, its columns the same on each.
            A DTensor says the same without it. Two collectives forward and at most one back, but for Jensen-Shannon
            with "uniform": four forward.
    """

    divergence: Divergence
    beta: float
    temperature: float
    missing: Missing
    logit_scale: float
    softcap: float | None
    prior: Tensor | None
    reduction: str
    impl: Implementation
    group: Any


class LinearDivergenceOptions(DivergenceOptions, total=False):
    """What divergences on hidden states take, besides `DivergenceOptions`.

    Attributes:
        chunk_bytes: see `smoothloss.options`.
        memory: see `smoothloss.options`; of forward KL other than "bucket". All others compute the logits again in the
            backward, whatever it says.
    """

    chunk_bytes: int | None
    memory: Memory


class Call(NamedTuple):
    """The checked options of a call.

    Attributes:
        options: what losses have too; its `row` is what the student's logits go through:
            ``softcap * tanh(logit_scale * z / softcap) / temperature``.
    """

    divergence: Divergence
    beta: float
    temperature: float
    missing: Missing
    options: Options


_OWN: dict[str, Any] = {"divergence": "forward_kl", "beta": 0.5, "temperature": 1.0, "missing": "bucket"}
DEFAULTS = options.DEFAULTS | _OWN
LOGITS = tuple(get_type_hints(DivergenceOptions))
LINEAR = tuple(get_type_hints(LinearDivergenceOptions))


def check(given: Mapping[str, Any], names: tuple[str, ...]) -> Call:
    """Return the options of a call.

    Args:
        given: what the caller gave of them.
        names: of the options that there are, `LOGITS` or `LINEAR`.

    Raises:
        TypeError, ValueError: naming the option, what was got and what was expected.
    """
    options.check_names(given, names)
    divergence, beta, temperature, missing = (given.get(name, default) for name, default in _OWN.items())
    check_choice(divergence, "divergence", _DIVERGENCE)
    check_choice(missing, "missing", _MISSING)
    beta = check_number(beta, "beta", 0.0, 1.0)
    temperature = check_temperature(temperature)
    if divergence == "jensen_shannon" and missing == "uniform" and beta in (0.0, 1.0):  # which have kernels
        divergence = "reverse_kl" if beta else "forward_kl"
    if given.get("prior") is not None and (divergence, missing) != ("forward_kl", "uniform"):
        raise ValueError(
            f"prior: got one beside divergence={divergence!r}, missing={missing!r}, expected None: it spreads the rest"
            " of 'forward_kl' with 'uniform', and nothing else is spread"
        )
    shared = options.check({name: value for name, value in given.items() if name not in _OWN}, names)
    scale, cap = shared.row.logit_scale / temperature, shared.row.softcap / temperature
    shared = replaced(Options, shared, row=RowOptions(logit_scale=scale, softcap=cap))
    return Call(divergence, beta, temperature, missing, shared)
