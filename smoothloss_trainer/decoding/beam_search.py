"""Batched beam search for any model that steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from smoothloss_trainer.decoding.constraints import Constraints
from smoothloss_trainer.decoding.hypothesis import Hypothesis, Stepper
from smoothloss_trainer.tasks import State, select_rows
from smoothloss_trainer.vocabulary import BOS, EOS, PAD


@dataclass
class _Search:
    """The inputs still being searched: B inputs, K beams."""

    numbers: Tensor  # (B,) which input of the call this is
    state: State  # rows B*K
    tokens: Tensor  # (B, K, t) live hypotheses
    scores: Tensor  # (B, K) their log-probabilities; -inf: none
    finished: Tensor  # (B, K, max_length + 1) finished hypotheses, EOS included, then PAD
    finished_scores: Tensor  # (B, K) as ranked, best first; -inf: none

    def keep(self, rows: Tensor) -> _Search:
        """The search of these inputs only."""
        beams = self.scores.shape[1]
        flat = (rows[:, None] * beams + torch.arange(beams, device=rows.device)).view(-1)
        parts = (self.tokens, self.scores, self.finished, self.finished_scores)
        return _Search(self.numbers[rows], select_rows(self.state, flat), *(part[rows] for part in parts))


@torch.inference_mode()
def beam_search(
    model: Stepper,
    memory: State,
    batch_size: int,
    *,
    beam_size: int,
    max_length: int,
    length_penalty: float = 0.0,
    suppress_unk: bool = False,
    no_repeat_ngram_size: int = 0,
    device: torch.device | str = "cpu",
) -> list[list[Hypothesis]]:
    """For each input up to ``beam_size`` hypotheses, best first.

    Each step ranks all continuations of an input's live hypotheses. Those among the first ``beam_size`` that end are
    finished; the best ``beam_size`` that do not end live on. An input is done when it has ``beam_size`` finished
    hypotheses none of which a live one beats as it stands. After ``max_length`` tokens only EOS may follow. A
    hypothesis is ranked by log-probability / length ** length_penalty, EOS counted in both; what :class:`Constraints`
    forbid is never written. With ``beam_size`` 1 this is greedy search. The other inputs of a batch have no influence.

    Args:
        model: Gives the first state and the steps. It should be in evaluation mode.
        memory: ``model.encode``'s result, first dimension the inputs.
        batch_size: Number of inputs.
        beam_size: Hypotheses kept per input.
        max_length: Longest output, EOS not counted.
        length_penalty: Exponent of the length; 0 ranks by log-probability.
        suppress_unk: Never write UNK.
        no_repeat_ngram_size: No n-gram of this size may occur twice in an output; 0 allows repeats.
        device: Where the model is.

    Raises:
        ValueError: when an option is out of range.
    """
    if beam_size < 1:
        raise ValueError(f"beam_size must be at least 1, got {beam_size}")
    if length_penalty < 0:
        raise ValueError(f"length_penalty must not be negative, got {length_penalty}")
    constraints = Constraints(max_length, suppress_unk, no_repeat_ngram_size)
    search = _start(model, memory, batch_size, beam_size, max_length, torch.device(device))
    results: list[list[Hypothesis]] = [[] for _ in range(batch_size)]
    for length in range(1, max_length + 2):
        if not len(search.numbers):
            break
        done = _advance(model, search, constraints, length, length_penalty)
        if bool(done.any()):
            _collect(search.keep(done.nonzero().view(-1)), results)
            search = search.keep((~done).nonzero().view(-1))
    return results


def greedy_search(
    model: Stepper, memory: State, batch_size: int, *, max_length: int, device: torch.device | str = "cpu"
) -> list[Hypothesis]:
    """The most probable next token at every step: :func:`beam_search` with one beam."""
    found = beam_search(model, memory, batch_size, beam_size=1, max_length=max_length, device=device)
    return [hypotheses[0] for hypotheses in found]


def _start(model: Stepper, memory: State, inputs: int, beams: int, max_length: int, device: torch.device) -> _Search:
    rows = torch.arange(inputs, device=device)
    state = select_rows(model.initial_state(memory), rows.repeat_interleave(beams))
    scores = torch.full((inputs, beams), float("-inf"), device=device)
    finished = torch.full((inputs, beams, max_length + 1), PAD, device=device)
    tokens = torch.full((inputs, beams, 1), BOS, device=device)
    search = _Search(rows, state, tokens, scores, finished, scores.clone())
    search.scores[:, 0] = 0.0  # all beams are the same at first: only one may branch
    return search


def _advance(model: Stepper, search: _Search, constraints: Constraints, length: int, penalty: float) -> Tensor:
    """One token more; ``length`` counts it. Returns (B,) which inputs are done."""
    inputs, beams = search.scores.shape
    logits, state = model.step(search.tokens[:, :, -1].reshape(-1), search.state)
    log_prob = torch.log_softmax(logits.float(), -1)
    log_prob = constraints.apply(log_prob, search.tokens.view(inputs * beams, length)).view(inputs, beams, -1)
    vocabulary = log_prob.shape[-1]
    # At most `beams` candidates end (one per beam), so 2 * beams hold `beams` that do not.
    candidates = (search.scores[..., None] + log_prob).view(inputs, -1)
    scores, chosen = candidates.topk(min(2 * beams, candidates.shape[-1]), -1)
    parent, token = chosen // vocabulary, chosen % vocabulary
    tokens = torch.cat((search.tokens.gather(1, parent[..., None].expand(-1, -1, length)), token[..., None]), -1)
    ends = token == EOS
    _finish(search, tokens[:, :beams], scores[:, :beams].masked_fill(~ends[:, :beams], float("-inf")), length, penalty)
    search.scores, order = scores.masked_fill(ends, float("-inf")).topk(beams, -1)
    search.tokens = tokens.gather(1, order[..., None].expand(-1, -1, length + 1))
    rows = torch.arange(inputs, device=order.device)[:, None] * beams + parent.gather(1, order)
    search.state = select_rows(state, rows.view(-1))
    done: Tensor = search.finished_scores[:, -1] >= search.scores[:, 0] / length**penalty
    return done


def _finish(search: _Search, tokens: Tensor, scores: Tensor, length: int, penalty: float) -> None:
    """Put newly ended hypotheses (score -inf: not ended) among the finished ones of their inputs."""
    beams = search.scores.shape[1]
    padded = torch.full_like(search.finished[:, :1].expand(-1, tokens.shape[1], -1), PAD)
    padded[..., :length] = tokens[..., 1:]
    ranked, order = torch.cat((search.finished_scores, scores / length**penalty), -1).topk(beams, -1)
    both = torch.cat((search.finished, padded), 1)
    search.finished_scores = ranked
    search.finished = both.gather(1, order[..., None].expand(-1, -1, both.shape[-1]))


def _collect(search: _Search, results: list[list[Hypothesis]]) -> None:
    rows = zip(search.numbers.tolist(), search.finished.tolist(), search.finished_scores.tolist(), strict=True)
    for number, hypotheses, scores in rows:
        for tokens, score in zip(hypotheses, scores, strict=True):
            if score > float("-inf"):
                results[number].append(Hypothesis(tokens[: tokens.index(EOS)], score))
