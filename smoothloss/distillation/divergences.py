r"""Divergences between a teacher of which K classes are known and a student, and what each of them is exactly.

At a position let q be the teacher's and p the student's distribution over V classes, I the K classes that are known,
``Q = sum_I q``, ``P = sum_I p``, r and s what is left of q and of p: ``r = 1 - Q``, ``s = sum over the others of p``.
With a temperature T, p is ``softmax(z / T)`` and everything is multiplied by ``T^2``, which leaves the gradient of z in
its order of magnitude.

`missing` says what is compared beyond the K classes:

=============  ======================================  ========================================  ==================
missing        the teacher's side                      the student's side                        classes
=============  ======================================  ========================================  ==================
"bucket"       ``q_i``, and r as one more class        ``p_i``, and s as one more class          I and the rest
"uniform"      ``q_i + r/V``, and ``r/V`` elsewhere    p                                         all V
"renormalize"  ``q_i / Q``                             ``p_i / P`` (in forward KL: p, all V)     I
"drop"         ``q_i``                                 ``p_i``                                   I
=============  ======================================  ========================================  ==================

`divergence` says how; a and b stand for the two sides, and the sums go over the classes of the last column:

* "forward_kl": ``sum a (log a - log b)``
* "reverse_kl": ``sum b (log b - log a)``
* "jensen_shannon": ``sum beta a (log a - log m) + (1 - beta) b (log b - log m)``, ``m = beta a + (1 - beta) b``

In forward KL a `prior` may spread r instead: ``q_i + r prior_i`` and ``r prior_v`` elsewhere. So the twelve are ::

    forward_kl      bucket       sum_I q (log q - log p) + r (log r - log s)
                    uniform      sum_V a (log a - log p),  a = q + r/V on I and r/V elsewhere
                    renormalize  sum_I q/Q (log q/Q - log p)
                    drop         sum_I q (log q - log p)
    reverse_kl      bucket       sum_I p (log p - log q) + s (log s - log r)
                    uniform      -H(p) - sum_I p log(q + r/V) - s log(r/V)
                    renormalize  sum_I p/P (log p/P - log q/Q)
                    drop         sum_I p (log p - log q)
    jensen_shannon  bucket       sum_I j(q, p) + j(r, s)
                    uniform      sum_I j(q + r/V, p) + sum over the others of j(r/V, p)
                    renormalize  sum_I j(q/Q, p/P)
                    drop         sum_I j(q, p)

                    where j(a, b) = beta a (log a - log m) + (1 - beta) b (log b - log m)

How they are computed:

* Forward KL but for "bucket" is a target, entries and uniform mass, and one call of the primitive, less the target's
  own entropy: three GEMMs in the linear version.
* Jensen-Shannon with "uniform" needs every single p, and has an operation of its own: `_jensen_shannon`.
* Everything else is a few operations on what `token_statistics` returns: ``log p`` of the K classes, ``log s``, which
  is summed over the rest itself, and ``H(p)``. ``log(1 - P)`` would lose a small rest, and its gradient with it.

What holds in the limits: a class of no probability on the side that weighs adds 0, and so does a rest without classes
(K = V), whatever the teacher says of it. Forward KL is ``inf`` where the student rules out what the teacher does not,
reverse KL where the teacher rules out what the student does not: a teacher whose `log_rest` is -inf (draws, for
example) beside a student that has a rest, unless the rest is divided out or dropped. Jensen-Shannon is always finite.
At beta = 0 and 1 it would be 0 throughout, and is taken for forward and reverse KL of the same two sides, which it
tends to in relation to beta, and to 1 - beta (but in "drop", where P - Q comes to it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from smoothloss._prior import fitted_prior
from smoothloss._validation import check_constant, check_device, check_shape, check_weight
from smoothloss.distillation import _terms, options
from smoothloss.distillation._jensen_shannon import Spread
from smoothloss.distillation._known import Known, known
from smoothloss.distillation._student import OnHidden, OnLogits, Student
from smoothloss.distillation.options import Call, DivergenceOptions, LinearDivergenceOptions
from smoothloss.distillation.teacher import Teacher
from smoothloss.ops.checks import check_index_values, checked_op
from smoothloss.options import takes
from smoothloss.targets.shares import shares as normalised

if TYPE_CHECKING:
    from typing_extensions import Unpack


@takes(DivergenceOptions, options.DEFAULTS)
def loss(
    input: Tensor,
    teacher: Teacher,
    *,
    weight: Tensor | None = None,
    **given: Unpack[DivergenceOptions],
) -> Tensor:
    """Return the divergence of ``softmax(input / temperature)`` from what a teacher knows of its distribution.

    With a teacher that knows all V classes, ``log_q`` ::

        log_p = (input / T).log_softmax(-1);  log_q = (log_q / T).log_softmax(-1)
        forward_kl = (log_q.exp() * (log_q - log_p)).sum(-1) * T**2
        reverse_kl = (log_p.exp() * (log_p - log_q)).sum(-1) * T**2
        log_m = logaddexp(log(beta) + log_q, log(1 - beta) + log_p)
        to_m = beta * log_q.exp() * (log_q - log_m) + (1 - beta) * log_p.exp() * (log_p - log_m)
        jensen_shannon = to_m.sum(-1) * T**2

    With one that knows K of them, `missing` says what becomes of the others; `smoothloss.distillation.divergences` has
    the equations of all twelve.

    Args:
        input: the student's logits ``(..., V)``.
        teacher: at positions ``(...)``. Where it has nothing but empty slots the loss is 0 and the gradient exactly 0,
            whatever the logits are. A constant for the gradient.
        weight: ``(...)``, a factor of each position's loss, a constant for the gradient. Positions of weight 0 are
            ignored.
        given: the options, see `smoothloss.distillation.options.DivergenceOptions`.

    Returns:
        The loss, float32 (float64 for float64 logits): a scalar, or ``(...)`` for ``reduction="none"``.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes that do not fit, an option out of range.
        IndexError: a class of the teacher >= V (on CUDA only under `smoothloss.debug()`).
        RuntimeError: `impl` cannot run here.

    Source: Hinton et al. 2015 (temperature); Agarwal et al. 2024, "On-policy distillation" (Jensen-Shannon).
    """
    call = options.check(given, options.LOGITS)
    return _evaluate(OnLogits(input, call.options), teacher, weight, call)


@takes(LinearDivergenceOptions, options.DEFAULTS)
def linear_loss(
    input: Tensor,
    linear_weight: Tensor,
    teacher: Teacher,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    **given: Unpack[LinearDivergenceOptions],
) -> Tensor:
    """``loss(F.linear(input, linear_weight, linear_bias), teacher, ...)`` that never holds the logits.

    Args:
        input: hidden states ``(..., D)``; under autocast cast as `F.linear` would.
        linear_weight: ``(V, D)``.
        linear_bias: ``(V,)``.
        teacher, weight: as in `loss`.
        given: the options, see `smoothloss.distillation.options.LinearDivergenceOptions`.

    Returns, raises: as `loss`.
    """
    call = options.check(given, options.LINEAR)
    return _evaluate(OnHidden(input, linear_weight, linear_bias, call.options), teacher, weight, call)


def _check_teacher(student: Student, teacher: Teacher, weight: Tensor | None) -> None:
    if not isinstance(teacher, Teacher):
        raise TypeError(f"teacher: got {type(teacher).__name__}, expected a smoothloss.distillation.Teacher")
    positions = tuple(student.input.shape[:-1])
    if tuple(teacher.indices.shape[:-1]) != positions:
        expected = ", ".join(map(str, (*positions, "K")))
        got = tuple(teacher.indices.shape)
        raise ValueError(f"teacher: got indices of shape {got}, expected ({expected}) beside input")
    check_device(teacher.indices, "teacher", student.input, "input")
    check_constant(teacher.log_probs, "teacher.log_probs")
    if teacher.log_rest is not None:
        check_constant(teacher.log_rest, "teacher.log_rest")
    if weight is not None:
        check_weight(weight)
        check_shape(weight, "weight", positions, "one number a position")
        check_device(weight, "weight", student.input, "input")


def _evaluate(student: Student, teacher: Teacher, weight: Tensor | None, call: Call) -> Tensor:
    _check_teacher(student, teacher, weight)
    said = known(teacher, student.num_classes, call.temperature, call.missing, student.dtype)
    if weight is not None:
        said = said.only(weight != 0)
        weight = weight.to(student.dtype).where(said.present, 0.0)
    try:
        total = _total(student, said, weight, call) * call.temperature**2
    except IndexError:
        check_index_values(
            teacher.indices, student.num_classes, "teacher.indices"
        )  # names the offender as it was given
        raise
    if call.options.reduction != "mean":
        return total
    count = said.present.sum() if weight is None else weight.sum()
    # Nothing to average gives nan, as torch does; its gradient is zero and must not become 0 / 0.
    return (total / count.where(count != 0, 1)).masked_fill(count == 0, torch.nan)


def _total(student: Student, said: Known, weight: Tensor | None, call: Call) -> Tensor:
    """Return the loss of each position, or their sum."""
    if call.divergence == "forward_kl" and call.missing != "bucket":
        return _by_target(student, said, weight, call)
    if call.divergence == "jensen_shannon" and call.missing == "uniform":
        losses = _over_all_classes(student, said, call.beta)
    else:
        losses = _by_statistics(student, said, call)
    losses = said.at_positions(losses, 0.0)
    losses = losses if weight is None else losses * weight
    return losses if call.options.reduction == "none" else losses.sum()


def _by_target(student: Student, said: Known, weight: Tensor | None, call: Call) -> Tensor:
    """Return ``sum q (log q - log p)`` of a target: its cross-entropy, less its entropy."""
    q, uniform = said.log_q.exp(), None
    if call.missing == "uniform":
        uniform = said.log_rest.exp()
        negative_entropy = _negative_entropy_of_spread(student, said.indices, q, uniform, call.options.prior)
    else:
        negative_entropy = _terms.negative_entropy(q, said.log_q)
    if weight is not None:
        q, negative_entropy = q * weight.unsqueeze(-1), negative_entropy * weight
        uniform = None if uniform is None else uniform * weight
    if call.options.reduction == "none":
        return student.cross_entropy(said.indices, q, uniform, "none") + negative_entropy
    return student.cross_entropy(said.indices, q, uniform, "sum") + negative_entropy.sum()


def _negative_entropy_of_spread(
    student: Student, indices: Tensor, q: Tensor, uniform: Tensor, prior: Tensor | None
) -> Tensor:
    """Return ``sum a log a`` of ``a = q + uniform * prior``, over distinct classes; None for an even prior."""

    def of(a: Tensor) -> Tensor:
        return _terms.negative_entropy(a, a.log())

    if prior is None:
        share = (uniform / student.num_classes).unsqueeze(-1)
        # An empty slot has what every other class has: of them there are V - K more than there are slots.
        return of(q + share) + (student.num_classes - q.shape[-1]) * of(share)
    prior = fitted_prior(prior, student.input, student.num_classes)
    of_class = prior[indices.clamp(0, student.num_classes - 1).long()].masked_fill(indices < 0, 0.0)
    shares = uniform.unsqueeze(-1) * of_class
    spread = uniform * of(prior) + of(uniform.unsqueeze(-1))  # of all classes, as if none were known
    return of(q + shares) - of(shares) + spread


def _by_statistics(student: Student, said: Known, call: Call) -> Tensor:
    """Return the loss of each position from log-probabilities of the known classes, of the rest, and the entropy."""
    statistics = student.statistics(said.indices, said.present)
    log_q, log_p = said.log_q, said.at_slots(statistics.log_prob, -torch.inf)
    log_rest = said.at_positions(statistics.log_rest, -torch.inf).unsqueeze(-1)
    if call.missing == "uniform":
        log_share = said.log_share(student.num_classes)
        log_q = torch.cat((torch.logaddexp(log_q, log_share), log_share), -1)
        cross = _terms.cross_entropy(log_q, torch.cat((log_p, log_rest), -1))
        return cross - said.at_positions(statistics.entropy, 0.0)
    if call.missing == "bucket":
        log_q = torch.cat((log_q, said.log_rest.unsqueeze(-1)), -1)
        log_p = torch.cat((log_p, log_rest), -1)
    elif call.missing == "renormalize":
        log_p = normalised(log_p, said.filled)
    if call.divergence == "forward_kl":
        return _terms.forward_kl(log_q, log_p)
    if call.divergence == "reverse_kl":
        return _terms.reverse_kl(log_q, log_p)
    return _terms.jensen_shannon(log_q, log_p, call.beta)


def _over_all_classes(student: Student, said: Known, beta: float) -> Tensor:
    """Return the Jensen-Shannon divergence of each position from a teacher whose rest is spread evenly."""
    num_classes, indices = student.num_classes, said.indices
    first = 0 if student.split is None else student.split.start
    if torch.compiler.is_compiling():  # nobody else could say that an index is out of range
        indices = checked_op(indices, num_classes, None)
    check_index_values(indices, num_classes)

    shape = said.present.numel(), indices.shape[-1]
    log_a = torch.logaddexp(said.log_q, said.log_share(num_classes))
    teacher = Spread(indices.reshape(shape), log_a.reshape(shape), said.log_share(num_classes).reshape(-1))
    losses = student.jensen_shannon(teacher, beta)
    if losses is not None:
        return losses.reshape(said.present.shape)

    def terms(log_p: Tensor, indices: Tensor, log_q: Tensor, log_share: Tensor) -> Tensor:
        size = log_p.shape[-1]  # of this process's slice
        place = (indices - first).long()
        place = place.masked_fill((place < 0) | (place >= size), size)
        spread = log_share.expand(-1, size + 1)
        dense = spread.scatter(-1, place, torch.logaddexp(log_q, log_share))[:, :size]
        return _terms.jensen_shannon(dense, log_p, beta)

    shape = said.present.numel(), indices.shape[-1]
    rows = indices.reshape(shape), said.log_q.reshape(shape), said.log_share(num_classes).reshape(-1, 1)
    return student.over_all_classes(terms, said.present.reshape(-1), *rows).reshape(said.present.shape)
