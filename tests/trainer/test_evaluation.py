from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from smoothloss_trainer.cli import main
from smoothloss_trainer.config import DecodingConfig, Recipe
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.evaluation import (
    choose_device,
    evaluate_into,
    evaluate_split,
    generate,
    predict,
    result_files,
    search_split,
)
from smoothloss_trainer.losses import encode
from smoothloss_trainer.tasks import Input, Task, pad_rows, shift_right, task_class
from smoothloss_trainer.tasks.translation import TranslationTask
from smoothloss_trainer.vocabulary import EOS, PAD

CPU = torch.device("cpu")


@pytest.fixture
def task(make_recipe: Callable[..., Recipe]) -> Task:
    recipe = make_recipe(decoding={"batch_size": 7})
    return task_class(recipe.task)(recipe)


def test_loss_and_calibration_are_per_token_over_all_batches(task: Task) -> None:
    model = task.build_model()
    with torch.no_grad():
        model.classifier.weight *= 40.0  # of some confidence
    logits, targets = [], []
    with torch.no_grad():
        for batch in task.validation_batches():
            hidden = model.eval().decode(encode(model, batch), batch.decoder_inputs)
            logits.append(model.classifier(hidden).flatten(0, 1))
            targets.append(batch.target.flatten())
    every, target = torch.cat(logits), torch.cat(targets)
    expected = torch.nn.functional.cross_entropy(every, target, ignore_index=PAD)
    confidence, first = every[target != PAD].softmax(-1).max(-1)
    right = first == target[target != PAD]
    gaps = []
    for number in range(15):
        inside = (confidence * 15 >= number) & (confidence * 15 < number + 1 if number < 14 else confidence <= 1)
        if inside.any():
            gaps.append(inside.sum() * (right[inside].double().mean() - confidence[inside].double().mean()).abs())
    assert len(gaps) > 2
    found = predict(model, task.validation_batches(), CPU)
    assert found.loss == pytest.approx(float(expected), rel=1e-6)
    assert found.ece == pytest.approx(float(sum(gaps)) / len(right), rel=1e-5)
    with torch.no_grad():
        model.classifier.weight.fill_(torch.nan)  # of a training that went astray
    assert math.isnan(predict(model, task.validation_batches(), CPU).ece)


@pytest.mark.parametrize(
    "options",
    [
        {"beam_size": 2},
        {"beam_size": 3, "n_best": 3, "suppress_unk": True, "no_repeat_ngram_size": 2},
        {"method": "sample", "n_best": 2, "top_k": 8, "top_p": 0.9, "temperature": 0.8},
    ],
)
def test_every_input_gets_hypotheses_that_do_not_depend_on_the_batch_size(task: Task, options: dict[str, Any]) -> None:
    model = task.build_model().double()
    decoding = DecodingConfig(batch_size=1, max_length=8, **options)
    small = search_split(model, task, "test", decoding, CPU)
    large = search_split(model, task, "test", replace(decoding, batch_size=30), CPU)
    assert small == large
    assert small.keys() == {str(number) for number in range(30)}
    assert {len(hypotheses) for hypotheses in small.values()} == {decoding.n_best}
    texts = generate(model, task, "test", decoding, CPU)
    assert texts == {key: " ".join(task.vocabulary.decode(found[0].tokens)) for key, found in small.items()}


class OneOf:
    """Threads in the place of processes."""

    def __init__(self, rank: int, parts: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.count, self._parts, self._barrier = rank, len(parts), parts, barrier

    def takes(self, number: int) -> bool:
        return number % self.count == self.rank

    def gather(self, part: Any) -> list[Any]:
        self._parts[self.rank] = part
        self._barrier.wait(timeout=60)
        return self._parts


@pytest.mark.parametrize("method", ["beam", "sample"])
def test_processes_share_the_batches_and_write_what_one_would(task: Task, method: Any) -> None:
    model = task.build_model().double()
    decoding = DecodingConfig(method=method, n_best=2, beam_size=2, batch_size=4, max_length=8)
    alone = search_split(model, task, "test", decoding, CPU)
    parts: list[Any] = [None] * 3
    barrier = threading.Barrier(3)

    def work(rank: int) -> dict[str, list[Any]]:
        return search_split(model, task, "test", decoding, CPU, among=OneOf(rank, parts, barrier))  # type: ignore[arg-type]

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(work, range(3)))
    assert found == [alone] * 3
    assert [len(part) for part in parts] == [12, 10, 8]  # of 30 inputs, four at a time


def test_samples_are_seeded(task: Task) -> None:
    model = task.build_model()
    first, same, other = (
        generate(model, task, "test", DecodingConfig(method="sample", max_length=8, seed=seed), CPU)
        for seed in (1, 1, 2)
    )
    assert first == same != other


@pytest.mark.parametrize("method", ["beam", "sample"])
def test_a_model_that_gives_no_number_writes_nothing(task: Task, method: Any) -> None:
    model = task.build_model()
    torch.nn.init.constant_(model.classifier.bias, float("nan"))
    texts = generate(model, task, "test", DecodingConfig(method=method, max_length=3, beam_size=2), CPU)
    assert set(texts.values()) == {""}


@pytest.mark.parametrize("method", ["beam", "sample"])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_what_is_written_agrees_with_teacher_forcing(tmp_path: Path, task: Task, method: Any, penalty: float) -> None:
    model = task.build_model()
    decoding = DecodingConfig(method=method, max_length=8, n_best=4, beam_size=5, length_penalty=penalty)
    scores = evaluate_split(tmp_path, task, model, "test", decoding, CPU)
    written = json.loads((tmp_path / "scores.test.json").read_text())
    assert (written["bleu"], written["n_best"], written["method"]) == (scores["bleu"], 4, method)
    texts = json.loads((tmp_path / "hypotheses.test.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "nbest.test.jsonl").read_text().splitlines()]
    assert {line["id"]: line["hypotheses"][0]["text"] for line in lines} == texts
    sources = {ids[0]: source for ids, source in task.sources("test", 1)}
    for line in lines:
        assert len(line["hypotheses"]) == 4
        found = [hypothesis["score"] for hypothesis in line["hypotheses"]]
        assert found == sorted(found, reverse=True)
        target = pad_rows([[*task.vocabulary.encode(h["text"].split()), EOS] for h in line["hypotheses"]])
        with torch.no_grad():
            memory = model.encode(*(tensor.expand(4, *tensor.shape[1:]) for tensor in sources[line["id"]]))
            log_prob = model.classifier(model.decode(memory, shift_right(target))).log_softmax(-1)
        total = log_prob.gather(2, target[..., None])[..., 0].masked_fill(target == PAD, 0.0).sum(1)
        torch.testing.assert_close(torch.tensor(found), total / (target != PAD).sum(1) ** penalty)


def test_devices_are_checked() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in ("cpu", "cuda")
    for name in ("abacus", "cuda:99"):
        with pytest.raises(RecipeError, match=name):
            choose_device(name)


def test_what_is_written_is_in_input_order_and_a_line_an_input(tmp_path: Path, task: Task) -> None:
    model = task.build_model()
    evaluate_split(tmp_path, task, model, "test", DecodingConfig(max_length=8, n_best=2, beam_size=2), CPU)
    names = [each.name for each in task.inputs("test")]
    assert next(iter(task.sources("test", 7)))[0] != names[:7], "decoded in another order"
    texts = json.loads((tmp_path / "hypotheses.test.json").read_text())
    assert list(texts) == names
    assert [json.loads(line)["id"] for line in (tmp_path / "nbest.test.jsonl").read_text().splitlines()] == names
    assert (tmp_path / "hypotheses.test.txt").read_text().split("\n") == [*texts.values(), ""]
    references = (tmp_path / "references.test.txt").read_text().splitlines()
    assert references == [each.references[0] for each in task.inputs("test")]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(result_files(task, "test"))


def test_what_is_written_can_be_scored_as_it_is(tmp_path: Path, task: Task, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(1)
    scores = evaluate_split(tmp_path, task, task.build_model(), "test", DecodingConfig(max_length=8), CPU)
    files = [str(tmp_path / f"{kind}.test.txt") for kind in ("hypotheses", "references")]
    assert main(["score", *files, "--out", str(tmp_path / "s.json")]) == 0
    assert json.loads((tmp_path / "s.json").read_text())["scores"]["bleu"] == pytest.approx(scores["bleu"])


class Several(TranslationTask):
    """Inputs with two references or one, with all sorts of line ends in them, and outputs like them."""

    def inputs(self, split: str) -> list[Input]:
        names = [each.name for each in super().inputs(split)]
        return [Input(name, [f"first\u2028{name}", "se\rcond"][: 1 + int(name) % 2]) for name in names]

    def detokenized(self, split: str, hypotheses: dict[str, str]) -> tuple[list[str], list[str]]:
        return ["a\nb\x85c \u00a0d" for _ in hypotheses], ["\udc80" for _ in hypotheses]


def test_several_references_have_a_file_each_and_a_text_is_one_line(
    tmp_path: Path, make_recipe: Callable[..., Recipe]
) -> None:
    task = Several(make_recipe())
    evaluate_split(tmp_path, task, task.build_model(), "validation", DecodingConfig(max_length=3, beam_size=1), CPU)
    first, second = ((tmp_path / f"references.validation.{number}.txt").read_text().split("\n") for number in (0, 1))
    assert len(first) == len(second) == 21
    assert (first[2], second[2], second[3]) == ("first 2", "", "se cond")
    outputs, raw = (
        (tmp_path / f"{kind}.validation.detokenized.txt").read_text().split("\n")
        for kind in ("hypotheses", "references")
    )
    assert (set(outputs[:20]), set(raw[:20])) == ({"a b c \u00a0d"}, {"\\udc80"})
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(result_files(task, "validation"))


def test_evaluation_leaves_a_users_files_alone(tmp_path: Path, task: Task) -> None:
    model, decoding = task.build_model(), DecodingConfig(max_length=2, beam_size=1)
    (tmp_path / "notes").write_text("mine")
    for _ in range(2):
        assert [split for split, _ in evaluate_into(tmp_path, task, model, ["test"], decoding, CPU)] == ["test"]
    (tmp_path / "scores.validation.json").write_text("mine")
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(RecipeError, match=r"scores\.validation\.json is not of smoothloss and in the way"):
        list(evaluate_into(tmp_path, task, model, ["test", "validation"], decoding, CPU))
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_run_of_an_earlier_version_is_evaluated_in_place(tmp_path: Path, task: Task) -> None:
    (tmp_path / "checkpoints").mkdir()
    for name in ("recipe.yaml", "vocabulary.target.json", "scores.test.json", "hypotheses.test.json"):
        (tmp_path / name).touch()
    model, decoding = task.build_model(), DecodingConfig(max_length=2, beam_size=1)
    for _ in range(2):
        list(evaluate_into(tmp_path, task, model, ["test"], decoding, CPU))
    assert "bleu" in json.loads((tmp_path / "scores.test.json").read_text())
    (tmp_path / "hypotheses.validation.txt").write_text("mine")
    with pytest.raises(RecipeError, match=r"hypotheses\.validation\.txt is not of smoothloss"):
        list(evaluate_into(tmp_path, task, model, ["validation"], decoding, CPU))
