"""What a model is worth: its loss per token on the validation part, and the scores of what it writes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

import smoothloss.functional as F
from smoothloss.trainer.checkpoint import load_checkpoint, without_prefix, write_json
from smoothloss.trainer.config import DecodingConfig, Recipe, RecipeError
from smoothloss.trainer.decoding import beam_search
from smoothloss.trainer.losses import encode
from smoothloss.trainer.run import RunDirectory
from smoothloss.trainer.tasks import Batch, SequenceModel, Task, task_class
from smoothloss.trainer.vocabulary import PAD


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


@torch.inference_mode()
def generate(
    model: SequenceModel, task: Task, split: str, decoding: DecodingConfig, device: torch.device, *, beam_size: int
) -> dict[str, str]:
    """The best hypothesis, tokens joined by spaces, for every input of a split by its id."""
    model.eval()
    texts: dict[str, str] = {}
    for ids, source in task.sources(split, decoding.batch_size):
        memory = model.encode(*(tensor.to(device) for tensor in source))
        found = beam_search(
            model,
            memory,
            len(ids),
            beam_size=beam_size,
            max_length=decoding.max_length,
            length_penalty=decoding.length_penalty,
            device=device,
        )
        for name, hypotheses in zip(ids, found, strict=True):
            # No hypothesis at all: a model that gives no finite number.
            texts[name] = " ".join(task.vocabulary.decode(hypotheses[0].tokens if hypotheses else ()))
    return texts


def open_run(run: RunDirectory, device: str | None = None) -> tuple[Recipe, Task, SequenceModel, torch.device]:
    """A run's recipe, task and best model, ready to evaluate.

    Raises:
        RecipeError: when the directory holds no run, or no best checkpoint yet.
    """
    recipe = run.recipe()
    task = task_class(recipe.task)(recipe, run.vocabularies())
    place = choose_device(device or recipe.device)
    model = task.build_model()
    load_best(run, model)
    return recipe, task, model.to(place), place


def load_best(run: RunDirectory, model: SequenceModel) -> dict[str, Any]:
    """Load the best checkpoint's weights; returns what is known about it: step, epoch, metric."""
    tensors, state = load_checkpoint(run.best)
    model.load_state_dict(without_prefix("model", tensors))
    return state


def evaluate_split(
    run: RunDirectory,
    task: Task,
    model: SequenceModel,
    split: str,
    decoding: DecodingConfig,
    device: torch.device,
) -> dict[str, float | str]:
    """Generate for a split, score it, and write ``scores.<split>.json`` and ``hypotheses.<split>.json`` of the run."""
    texts = generate(model, task, split, decoding, device, beam_size=decoding.beam_size)
    scores = task.score(split, texts)
    settings = {"beam_size": decoding.beam_size, "length_penalty": decoding.length_penalty}
    write_json(run.path / f"hypotheses.{split}.json", texts)
    for name, content in task.exports(split, texts).items():
        write_json(run.path / name, content)
    write_json(run.path / f"scores.{split}.json", {**scores, **settings})
    return scores
