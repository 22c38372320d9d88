from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from smoothloss.trainer.config import DecodingConfig, Recipe
from smoothloss.trainer.errors import RecipeError
from smoothloss.trainer.evaluation import choose_device, evaluate_split, generate, negative_log_likelihood, search_split
from smoothloss.trainer.losses import encode
from smoothloss.trainer.tasks import Task, pad_rows, shift_right, task_class
from smoothloss.trainer.vocabulary import EOS, PAD

CPU = torch.device("cpu")


@pytest.fixture
def task(make_recipe: Callable[..., Recipe]) -> Task:
    recipe = make_recipe(decoding={"batch_size": 7})
    return task_class(recipe.task)(recipe)


def test_the_validation_loss_is_per_token_over_all_batches(task: Task) -> None:
    model = task.build_model()
    logits, targets = [], []
    with torch.no_grad():
        for batch in task.validation_batches():
            hidden = model.eval().decode(encode(model, batch), batch.decoder_inputs)
            logits.append(model.classifier(hidden).flatten(0, 1))
            targets.append(batch.target.flatten())
    expected = torch.nn.functional.cross_entropy(torch.cat(logits), torch.cat(targets), ignore_index=PAD)
    assert negative_log_likelihood(model, task.validation_batches(), CPU) == pytest.approx(float(expected), rel=1e-6)


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
