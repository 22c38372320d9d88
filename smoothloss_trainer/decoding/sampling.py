"""Batched sampling from any model that steps: plain, with a temperature, top-k, nucleus."""

from __future__ import annotations

import torch
from torch import Tensor

from smoothloss_trainer.decoding.constraints import Constraints
from smoothloss_trainer.decoding.hypothesis import Hypothesis, Stepper
from smoothloss_trainer.devices import sum_dtype
from smoothloss_trainer.tasks import State, select_rows
from smoothloss_trainer.vocabulary import BOS, EOS, PAD


@torch.inference_mode()
def sample(
    model: Stepper,
    memory: State,
    batch_size: int,
    *,
    max_length: int,
    num_samples: int = 1,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    length_penalty: float = 0.0,
    suppress_unk: bool = False,
    no_repeat_ngram_size: int = 0,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> list[list[Hypothesis]]:
    """For each input ``num_samples`` outputs drawn token by token from the model, best score first.

    Each token is drawn as :func:`draw` says from what :class:`Constraints` leave; after ``max_length`` tokens only EOS
    may follow. Whatever the distribution drawn from, the score is that of the beam search: the model's own
    log-probability / length ** length_penalty, EOS counted in both. All random numbers are drawn at the start, so that
    on the CPU the samples of consecutive calls with one generator do not depend on how the inputs are batched.

    Args:
        model: Gives the first state and the steps. It should be in evaluation mode.
        memory: ``model.encode``'s result, first dimension the inputs.
        batch_size: Number of inputs.
        max_length: Longest output, EOS not counted.
        num_samples: Outputs per input, drawn independently.
        temperature: See :func:`draw`.
        top_k: See :func:`draw`.
        top_p: See :func:`draw`.
        length_penalty: Exponent of the length in the score; 0 leaves the log-probability.
        suppress_unk: Never write UNK.
        no_repeat_ngram_size: No n-gram of this size may occur twice in an output; 0 allows repeats.
        generator: Source of the random numbers, on the model's device; None: torch's own.
        device: Where the model is.

    Raises:
        ValueError: when an option is out of range.
    """
    _check(num_samples, temperature, top_k, top_p, length_penalty)
    constraints = Constraints(max_length, suppress_unk, no_repeat_ngram_size)
    samples = batch_size * num_samples
    live = torch.arange(samples, device=device)
    state = select_rows(model.initial_state(memory), live // num_samples)
    uniform = numbers(batch_size, num_samples, max_length, generator, device)
    tokens = torch.full((samples, max_length + 2), PAD, device=device)
    tokens[:, 0] = BOS
    total = torch.zeros(samples, device=device)
    for length in range(1, max_length + 2):
        logits, state = model.step(tokens[live, length - 1], state)
        log_prob = torch.log_softmax(logits.float(), -1)
        allowed = constraints.apply(log_prob, tokens[live, :length])
        token = draw(allowed, uniform[live, length - 1], temperature=temperature, top_k=top_k, top_p=top_p)
        tokens[live, length] = token
        total[live] += allowed.gather(1, token[:, None])[:, 0]
        going = (token != EOS).nonzero().view(-1)
        if not len(going):
            break
        live, state = live[going], select_rows(state, going)
    scores = total / ((tokens != PAD).sum(1) - 1) ** length_penalty
    return _ranked(tokens[:, 1:].view(batch_size, num_samples, -1), scores.view(batch_size, num_samples))


def numbers(
    batch_size: int, num_samples: int, max_length: int, generator: torch.Generator | None, device: torch.device | str
) -> Tensor:
    """The random numbers of a batch's samples, one for each token: all that :func:`sample` takes of the generator."""
    shape = (batch_size * num_samples, max_length + 1)
    return torch.rand(shape, dtype=sum_dtype(torch.device(device)), generator=generator, device=device)


def draw(log_prob: Tensor, uniform: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """A token (N,) per row of ``log_prob`` (N, V): the distribution function inverted at ``uniform``.

    The distribution is ``softmax(log_prob / temperature)``; of it the ``top_k`` most probable tokens are kept (0: all),
    and of these as few of the most probable as make up ``top_p`` of their mass; what is kept is renormalised.

    Args:
        log_prob: (N, V) logits or log-probabilities; -inf is never drawn.
        uniform: (N,) float64 in [0, 1), one number per draw.
        temperature: Positive; below 1 sharpens.
        top_k: Tokens kept.
        top_p: Share of the mass kept, in (0, 1]; at least one token is.

    Source: Fan, Lewis and Dauphin 2018, "Hierarchical neural story generation" (top-k); Holtzman et al. 2020, "The
    curious case of neural text degeneration" (nucleus).
    """
    scaled = log_prob.to(uniform.dtype) / temperature
    probability, order = scaled.softmax(-1).sort(stable=True, dim=-1, descending=True)
    mass = probability.cumsum(-1)  # sorted, so that each choice is a prefix of the row
    most = min(top_k or mass.shape[-1], mass.shape[-1])
    last = torch.searchsorted(mass, top_p * mass[:, most - 1 : most]).clamp(max=most - 1)
    rank = torch.searchsorted(mass, uniform[:, None] * mass.gather(1, last), right=True)
    return order.gather(1, torch.minimum(rank, last))[:, 0]


def _check(num_samples: int, temperature: float, top_k: int, top_p: float, length_penalty: float) -> None:
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if top_k < 0:
        raise ValueError(f"top_k must not be negative, got {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")
    if length_penalty < 0:
        raise ValueError(f"length_penalty must not be negative, got {length_penalty}")


def _ranked(tokens: Tensor, scores: Tensor) -> list[list[Hypothesis]]:
    """The samples of each input, best first; those without a finite score (a model that gives none) left out."""
    ranked, order = scores.sort(stable=True, dim=-1, descending=True)
    tokens = tokens.gather(1, order[..., None].expand_as(tokens))
    return [
        [
            Hypothesis(sequence[: sequence.index(EOS)], score)
            for sequence, score in zip(*pair, strict=True)
            if score > float("-inf")
        ]
        for pair in zip(tokens.tolist(), ranked.tolist(), strict=True)
    ]
