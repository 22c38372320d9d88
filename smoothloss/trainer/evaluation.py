"""What a model is worth: its loss per token on the validation part, and the scores of what it writes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import smoothloss.functional as F
from smoothloss._files import write_atomically
from smoothloss.trainer.checkpoint import write_json
from smoothloss.trainer.config import DecodingConfig
from smoothloss.trainer.decoding import Ensemble, Hypothesis, beam_search, sample
from smoothloss.trainer.errors import RecipeError
from smoothloss.trainer.losses import encode
from smoothloss.trainer.tasks import Batch, SequenceModel, State, Task
from smoothloss.trainer.vocabulary import PAD

_NO_SETTINGS = ("validation_beam_size", "batch_size")  # of the decoding: they have no influence on what is written


def choose_device(name: str) -> torch.device:
    """The device a recipe asks for; ``auto`` is a GPU when there is one.

    Raises:
        RecipeError: when it is no device, or CUDA is asked for and missing.
    """
    try:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else torch.device(name)
    except RuntimeError:
        raise RecipeError(f"device must be auto, cpu, cuda or cuda:<number>, got {name!r}") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise RecipeError(f"device is {name!r}, but torch sees {torch.cuda.device_count()} CUDA devices here")
    return device


@torch.inference_mode()
def negative_log_likelihood(model: SequenceModel, batches: Iterable[Batch], device: torch.device) -> float:
    """``-log p(token)`` per target token, EOS included: the MLE loss, whatever the model was trained with."""
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=device)
    count = torch.zeros((), dtype=torch.int64, device=device)
    for batch in batches:
        batch = batch.to(device)
        hidden = model.decode(encode(model, batch), batch.decoder_inputs)
        classifier = model.classifier
        total += F.linear_cross_entropy(
            hidden, classifier.weight, batch.target, linear_bias=classifier.bias, ignore_index=PAD, reduction="sum"
        )
        count += (batch.target != PAD).sum()
    return float(total / count)


def search_split(
    model: SequenceModel | Ensemble, task: Task, split: str, decoding: DecodingConfig, device: torch.device
) -> dict[str, list[Hypothesis]]:
    """``decoding.n_best`` hypotheses at most, best first, for every input of a split by its id."""
    search = Search(model, decoding, device)
    found: dict[str, list[Hypothesis]] = {}
    for ids, source in task.sources(split, decoding.batch_size):
        found.update(zip(ids, search(source, len(ids)), strict=True))
    return found


class Search:
    """A model and how it is decoded, for one batch after another; ``sample`` goes on with one stream of draws.

    Args:
        model: One model or several; it is put into evaluation mode.
        decoding: How.
        device: Where the model is.
    """

    def __init__(self, model: SequenceModel | Ensemble, decoding: DecodingConfig, device: torch.device) -> None:
        self.model, self.decoding, self.device = model.eval(), decoding, device
        self._generator = torch.Generator(device).manual_seed(decoding.seed)

    @torch.inference_mode()
    def __call__(self, source: Sequence[Tensor], inputs: int) -> list[list[Hypothesis]]:
        """``decoding.n_best`` hypotheses at most, best first, for each of so many inputs."""
        memory = self.model.encode(*(tensor.to(self.device) for tensor in source))
        found = _search(self.model, memory, inputs, self.decoding, self._generator, self.device)
        return [ranked[: self.decoding.n_best] for ranked in found]


def _search(
    model: SequenceModel | Ensemble,
    memory: State,
    inputs: int,
    decoding: DecodingConfig,
    generator: torch.Generator,
    device: torch.device,
) -> list[list[Hypothesis]]:
    shared: dict[str, Any] = {"max_length": decoding.max_length, "length_penalty": decoding.length_penalty}
    shared |= {"suppress_unk": decoding.suppress_unk, "no_repeat_ngram_size": decoding.no_repeat_ngram_size}
    if decoding.method == "beam":
        return beam_search(model, memory, inputs, beam_size=decoding.beam_size, **shared, device=device)
    drawn = {"temperature": decoding.temperature, "top_k": decoding.top_k, "top_p": decoding.top_p, **shared}
    return sample(model, memory, inputs, num_samples=decoding.n_best, generator=generator, **drawn, device=device)


def generate(
    model: SequenceModel | Ensemble, task: Task, split: str, decoding: DecodingConfig, device: torch.device
) -> dict[str, str]:
    """The best hypothesis, tokens joined by spaces, for every input of a split by its id."""
    found = search_split(model, task, split, decoding, device)
    return {name: _text(task, hypotheses) for name, hypotheses in found.items()}


def _text(task: Task, hypotheses: Sequence[Hypothesis]) -> str:
    # No hypothesis at all: a model that gives no finite number.
    return " ".join(task.vocabulary.decode(hypotheses[0].tokens)) if hypotheses else ""


def evaluate_split(
    folder: Path,
    task: Task,
    model: SequenceModel | Ensemble,
    split: str,
    decoding: DecodingConfig,
    device: torch.device,
) -> dict[str, float | str]:
    """Generate for a split and score it.

    Writes ``hypotheses.<split>.json`` (text by id), ``nbest.<split>.jsonl`` (a line per input: its id and its
    hypotheses with their scores, best first) and ``scores.<split>.json`` (scores and settings) to the folder.
    """
    found = search_split(model, task, split, decoding, device)
    texts = {name: _text(task, hypotheses) for name, hypotheses in found.items()}
    scores = task.score(split, texts)
    settings = {key: value for key, value in asdict(decoding).items() if key not in _NO_SETTINGS}
    write_json(folder / f"hypotheses.{split}.json", texts)
    lines = (json.dumps(_n_best(task, *entry), ensure_ascii=False) for entry in found.items())
    write_atomically(folder / f"nbest.{split}.jsonl", "".join(f"{line}\n" for line in lines).encode())
    for name, content in task.exports(split, texts).items():
        write_json(folder / name, content)
    write_json(folder / f"scores.{split}.json", {**scores, **settings})
    return scores


def _n_best(task: Task, name: str, hypotheses: Sequence[Hypothesis]) -> dict[str, Any]:
    listed = [{"text": _text(task, [hypothesis]), "score": hypothesis.score} for hypothesis in hypotheses]
    return {"id": name, "hypotheses": listed}
