"""What a model is worth: its loss per token on the validation part, and the scores of what it writes.

An evaluated split has these files, all in the order of its inputs:

scores.<split>.json         scores and settings
hypotheses.<split>.json     the best hypothesis of each input by its id
hypotheses.<split>.txt      the same, one a line
nbest.<split>.jsonl         an input a line: its id and its hypotheses with their scores, best first
references.<split>.txt      what `smoothloss score` compares the hypotheses with, one a line; where inputs have several,
                            references.<split>.0.txt and so on, with empty lines where an input has fewer
hypotheses.<split>.detokenized.txt, references.<split>.detokenized.txt      where the task knows raw text
captions.<split>.json       for captioning: the hypotheses as COCO's test server takes them
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import smoothloss.functional as F
from smoothloss._files import write_atomically
from smoothloss_trainer.checkpoint import write_json
from smoothloss_trainer.config import DecodingConfig
from smoothloss_trainer.decoding import Ensemble, Hypothesis, beam_search, sample
from smoothloss_trainer.decoding.sampling import numbers
from smoothloss_trainer.devices import choose_device as choose_device
from smoothloss_trainer.devices import sum_dtype
from smoothloss_trainer.distributed import ALONE, Processes
from smoothloss_trainer.folder import Folder, check_part_name
from smoothloss_trainer.losses import encode
from smoothloss_trainer.run import RunDirectory
from smoothloss_trainer.tasks import Batch, SequenceModel, State, Task
from smoothloss_trainer.vocabulary import PAD

_LINE_ENDS = re.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")  # those of str.splitlines
_UTF8 = ("utf-8", "backslashreplace")  # half a surrogate pair becomes its escape, as in JSON
_NO_SETTINGS = ("validation_beam_size", "batch_size")  # of the decoding: they have no influence on what is written


_BINS = 15  # of confidence, as Guo et al. (2017) have them


@dataclass(frozen=True)
class Prediction:
    """How well a model knows the next token, given those before it.

    Args:
        loss: ``-log p(token)`` per target token, EOS included: the MLE loss, whatever the model was trained with.
        ece: The expected calibration error of its first choice, from 0 to 1 (Guo et al. 2017): the mean over tokens of
            ``|accuracy - confidence|`` of their bin, one of fifteen between 0 and 1 by confidence, the first choice's
            probability.
    """

    loss: float
    ece: float


@torch.inference_mode()
def predict(
    model: SequenceModel,
    batches: Iterable[Batch],
    device: torch.device,
    dtype: torch.dtype | None = None,
    *,
    among: Processes = ALONE,
) -> Prediction:
    """How well a model predicts these batches' targets.

    Args:
        model: The model; it is put into evaluation mode.
        batches: What is predicted.
        device: Where the model is.
        dtype: What it computes in; None: as the batches are.
        among: Processes that share the batches out.
    """
    model.eval()
    # Of each bin: tokens, those whose first choice is right, confidence; and the loss of all.
    sums = torch.zeros(_BINS, 3, dtype=sum_dtype(device), device=device)
    loss = torch.zeros((), dtype=sum_dtype(device), device=device)
    for number, batch in enumerate(batches):
        if not among.takes(number):
            continue
        batch = batch.to(device, dtype)
        hidden, target = model.decode(encode(model, batch), batch.decoder_inputs), batch.target
        linear = model.classifier
        found = F.linear_token_statistics(hidden, linear.weight, target[..., None], linear_bias=linear.bias)
        first = F.linear_token_statistics(hidden, linear.weight, found.argmax[..., None], linear_bias=linear.bias)
        seen = target != PAD
        loss -= found.log_prob[..., 0][seen].sum(dtype=loss.dtype)
        confidence = first.log_prob[..., 0][seen].to(sums.dtype).exp()
        right = (found.argmax == target)[seen].to(sums.dtype)
        place = (confidence * _BINS).long().clamp(0, _BINS - 1)
        sums.index_add_(0, place, torch.stack((torch.ones_like(right), right, confidence), -1))
    total, *bins = among.sum([float(loss), *sums.flatten().tolist()])
    tokens, correct, confident = torch.tensor(bins, dtype=torch.float64).view(_BINS, 3).unbind(-1)
    count = float(tokens.sum())
    return Prediction(total / count, float((correct - confident).abs().sum()) / count)


def search_split(
    model: SequenceModel | Ensemble,
    task: Task,
    split: str,
    decoding: DecodingConfig,
    device: torch.device,
    dtype: torch.dtype | None = None,
    *,
    among: Processes = ALONE,
) -> dict[str, list[Hypothesis]]:
    """``decoding.n_best`` hypotheses at most, best first, for every input of a split by its id, in their order.

    ``among``: processes that share the batches out; what they write does not depend on how many they are.
    """
    search = Search(model, decoding, device, dtype)
    own: dict[str, list[Hypothesis]] = {}
    for number, (ids, source) in enumerate(task.sources(split, decoding.batch_size)):
        if among.takes(number):
            own.update(zip(ids, search(source, len(ids)), strict=True))
        else:
            search.skip(len(ids))
    if among.count > 1:
        plain = {name: [[each.tokens, each.score] for each in ranked] for name, ranked in own.items()}
        found = {name: ranked for part in among.gather(plain) for name, ranked in part.items()}
        own = {name: [Hypothesis(*each) for each in ranked] for name, ranked in found.items()}
    return {each.name: own[each.name] for each in task.inputs(split)}


class Search:
    """A model and how it is decoded, for one batch after another; ``sample`` goes on with one stream of draws.

    Args:
        model: One model or several; it is put into evaluation mode.
        decoding: How.
        device: Where the model is.
        dtype: What it computes in; None: as its input is.
    """

    def __init__(
        self,
        model: SequenceModel | Ensemble,
        decoding: DecodingConfig,
        device: torch.device,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.model, self.decoding, self.device, self.dtype = model.eval(), decoding, device, dtype
        self._generator = torch.Generator(device).manual_seed(decoding.seed)

    @torch.inference_mode()
    def __call__(self, source: Sequence[Tensor], inputs: int) -> list[list[Hypothesis]]:
        """``decoding.n_best`` hypotheses at most, best first, for each of so many inputs."""
        given = (each.to(self.device, self.dtype if each.is_floating_point() else None) for each in source)
        memory = self.model.encode(*given)
        found = _search(self.model, memory, inputs, self.decoding, self._generator, self.device)
        return [ranked[: self.decoding.n_best] for ranked in found]

    def skip(self, inputs: int) -> None:
        """Leave a batch of so many inputs to another process: the draws go on behind it."""
        if self.decoding.method == "sample":
            numbers(inputs, self.decoding.n_best, self.decoding.max_length, self._generator, self.device)


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
    model: SequenceModel | Ensemble,
    task: Task,
    split: str,
    decoding: DecodingConfig,
    device: torch.device,
    dtype: torch.dtype | None = None,
    *,
    among: Processes = ALONE,
) -> dict[str, str]:
    """The best hypothesis, tokens joined by spaces, for every input of a split by its id; see :func:`search_split`."""
    found = search_split(model, task, split, decoding, device, dtype, among=among)
    return {name: _text(task, hypotheses) for name, hypotheses in found.items()}


def _text(task: Task, hypotheses: Sequence[Hypothesis]) -> str:
    # No hypothesis at all: a model that gives no finite number.
    return " ".join(task.vocabulary.decode(hypotheses[0].tokens)) if hypotheses else ""


def result_files(task: Task, split: str) -> list[str]:
    """The names of the files that :func:`evaluate_split` writes, in the order of writing.

    Raises:
        RecipeError: when the split's name cannot be part of a file's name.
    """
    check_part_name(split, "the name of a split")
    nothing = {each.name: "" for each in task.inputs(split)}
    names = [f"hypotheses.{split}.json", f"hypotheses.{split}.txt", f"nbest.{split}.jsonl"]
    names += [name for name, _ in _references(task, split)]
    if task.detokenized(split, nothing) is not None:
        names += [f"{kind}.{split}.detokenized.txt" for kind in ("hypotheses", "references")]
    return [*names, *task.exports(split, nothing), f"scores.{split}.json"]


def evaluate_split(
    folder: Path,
    task: Task,
    model: SequenceModel | Ensemble,
    split: str,
    decoding: DecodingConfig,
    device: torch.device,
    dtype: torch.dtype | None = None,
    *,
    among: Processes = ALONE,
) -> dict[str, float | str]:
    """Generate for a split, score it, and write the files above to the folder; the scores come last.

    Processes ``among`` which the search is shared out, other than the first, write and return nothing.
    """
    found = search_split(model, task, split, decoding, device, dtype, among=among)
    if not among.is_main:
        return {}
    texts = {name: _text(task, hypotheses) for name, hypotheses in found.items()}
    scores = task.score(split, texts)
    write_json(folder / f"hypotheses.{split}.json", texts)
    _write_lines(folder / f"hypotheses.{split}.txt", texts.values())
    nbest = (json.dumps(_n_best(task, *entry), ensure_ascii=False) for entry in found.items())
    write_atomically(folder / f"nbest.{split}.jsonl", "".join(f"{line}\n" for line in nbest).encode(*_UTF8))
    for name, lines in _references(task, split):
        _write_lines(folder / name, lines)
    raw = task.detokenized(split, texts)
    for kind, lines in zip(("hypotheses", "references"), raw or (), strict=False):
        _write_lines(folder / f"{kind}.{split}.detokenized.txt", lines)
    for name, content in task.exports(split, texts).items():
        write_json(folder / name, content)
    settings = {key: value for key, value in asdict(decoding).items() if key not in _NO_SETTINGS}
    write_json(folder / f"scores.{split}.json", {**scores, **settings})
    return scores


def evaluate_into(
    path: Path,
    task: Task,
    model: SequenceModel | Ensemble,
    splits: Sequence[str],
    decoding: DecodingConfig,
    device: torch.device,
) -> Iterator[tuple[str, dict[str, float | str]]]:
    """Evaluate splits into a run's directory or another folder; gives the scores of each by its name.

    Raises:
        RecipeError: when the folder holds a user's file of such a name, or another process writes there.
    """
    names = [name for split in splits for name in result_files(task, split)]
    folder, known = Folder(path, "run"), []
    if not folder.is_marked:
        folder = Folder(path, "evaluation")
        if RunDirectory(path).is_of_earlier_version():  # which has no list of its files
            known = [f"{kind}.{split}.json" for kind in ("scores", "hypotheses", "captions") for split in splits]
            known += [f"nbest.{split}.jsonl" for split in splits]
    with folder.lock():
        folder.claim(names, known)
        folder.tidy()
        for split in splits:
            yield split, evaluate_split(path, task, model, split, decoding, device)


def _references(task: Task, split: str) -> Iterator[tuple[str, list[str]]]:
    """Files of references by name, a line an input."""
    groups = [each.references for each in task.inputs(split)]
    count = max(map(len, groups), default=0)
    for number in range(count):
        name = f"references.{split}.{number}.txt" if count > 1 else f"references.{split}.txt"
        yield name, [group[number] if number < len(group) else "" for group in groups]


def _write_lines(path: Path, texts: Iterable[str]) -> None:
    """Write texts, one a line whatever is in them."""
    lines = (_LINE_ENDS.sub(" ", text) for text in texts)
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode(*_UTF8))


def _n_best(task: Task, name: str, hypotheses: Sequence[Hypothesis]) -> dict[str, Any]:
    listed = [{"text": _text(task, [hypothesis]), "score": hypothesis.score} for hypothesis in hypotheses]
    return {"id": name, "hypotheses": listed}
