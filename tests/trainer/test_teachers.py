from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from smoothloss.similarity import SimilarityTable
from smoothloss_trainer import loss_inputs
from smoothloss_trainer.config import LossConfig, Recipe, TeacherConfig
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.loop import train
from smoothloss_trainer.losses import build_loss, decode, decode_samples, encode
from smoothloss_trainer.run import RunDirectory
from smoothloss_trainer.tasks import Batch, SequenceModel, task_class
from smoothloss_trainer.teachers import Teachers
from smoothloss_trainer.vocabulary import PAD

Make = Callable[..., Recipe]
NAMES = ["mle", "label_smoothing", "tok", "seq", "seq_lazy", "tok_seq", "tok_seq_lazy", "raml"]


@pytest.fixture
def setting(make_recipe: Make) -> tuple[SequenceModel, list[SequenceModel], Batch, SimilarityTable]:
    """Return a model without dropout, two teachers, one of another size, a batch with padding, and a table."""
    torch.manual_seed(1)
    task = task_class("translation")(make_recipe(model={"dropout": 0.0}))
    other = task_class("translation")(make_recipe(model={"encoder": 20, "decoder": 24}))
    vectors = torch.randn(len(task.vocabulary), 5, generator=torch.Generator().manual_seed(2))
    table = SimilarityTable.from_embeddings(vectors, k=len(task.vocabulary) - 1, tau=0.5)
    teachers = [each.build_model().eval() for each in (task, other)]
    for teacher in teachers:  # of an opinion
        torch.nn.init.normal_(teacher.classifier.weight, std=2.0)
    return task.build_model(), teachers, task.train_batch(range(12)), table


def settings(name: str, share: float, **others: Any) -> LossConfig:
    """Return the settings of a loss that smooths enough to be seen, with a share of the teachers'."""
    smoothing = {"alpha": 0.4, "token_alpha": 0.3, "tau": 2.0, "num_samples": 2, "label_smoothing": 0.1}
    return LossConfig(name=name, teacher=TeacherConfig(share=share), **{**smoothing, **others})  # type: ignore[arg-type]


def value(setting: Any, config: LossConfig, teachers: list[SequenceModel], classes: int) -> Tensor:
    """Return a batch's loss."""
    model, _, batch, table = setting
    taught = Teachers(teachers, classes) if teachers else None
    loss = build_loss(config, table, table.num_tokens, teachers=taught)
    return loss(model, batch, torch.Generator().manual_seed(7))


def cross_entropy(setting: Any, config: LossConfig, classes: int) -> Tensor:
    """Return ``-sum_v q_v log p_v``, q the mean of what the teachers predict, of each sequence with its share."""
    model, teachers, batch, table = setting
    loss = build_loss(config, table, table.num_tokens)

    def log_prob(each: SequenceModel) -> Tensor:
        if loss.sampler is None or config.is_lazy:
            return torch.log_softmax(each.classifier(decode(each, batch)), -1)[None]
        hidden = decode_samples(each, encode(each, batch), batch.target, drawn.tokens)
        return torch.log_softmax(each.classifier(hidden), -1)

    shares, sequences = torch.ones(1), batch.target[None]
    if loss.sampler is not None:
        generator = torch.Generator().manual_seed(7)
        drawn = loss.sampler(batch.target, batch.lengths, config.num_samples, generator=generator)
        alpha = 1.0 if config.name == "raml" else config.alpha
        shares = torch.tensor([1 - alpha] + [alpha / config.num_samples] * config.num_samples)
        sequences = torch.cat((batch.target[None], drawn.tokens))
    with torch.no_grad():
        known = torch.stack([log_prob(teacher).exp() for teacher in teachers]).mean(0)
        top, indices = known.topk(classes)
        rest = (1 - top.sum(-1, keepdim=True)) / table.num_tokens
        known = torch.zeros_like(known).scatter(-1, indices, top) + rest
    each = -(shares[:, None, None] * (known * log_prob(model)).sum(-1)) * (sequences != PAD)
    return each.sum() / (batch.target != PAD).sum()


@pytest.mark.parametrize("classes", [3, None])
@pytest.mark.parametrize("name", NAMES)
def test_the_teachers_mean_is_a_part_of_the_target(setting: Any, name: str, classes: int | None) -> None:
    model, teachers, _, table = setting
    classes, share = classes or table.num_tokens, 0.3
    found = value(setting, settings(name, share), teachers, classes)
    own = value(setting, settings(name, share), [], classes)
    expected = (1 - share) * own + share * cross_entropy(setting, settings(name, share), classes)
    torch.testing.assert_close(found, expected, rtol=5e-6, atol=0)
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(each, parameters) for each in (found, expected)]
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=5e-7)
    assert all(parameter.grad is None for teacher in teachers for parameter in teacher.parameters())


@pytest.mark.parametrize("sampler", ["hamming", "edit"])
@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_that_agrees_changes_no_gradient(setting: Any, name: str, sampler: str) -> None:
    """Whatever is read, ground truth or samples, longer ones too: it has to read the same."""
    model, _, _, table = setting
    if sampler == "edit" and name not in ("seq", "tok_seq", "raml"):
        pytest.skip("draws no samples of other lengths")
    config = settings(name, 0.3, sampler=sampler, pool="vocabulary")
    parameters = list(model.parameters())
    alone, taught = (
        torch.autograd.grad(value(setting, config, teachers, table.num_tokens), parameters)
        for teachers in ([], [model])
    )
    for without, with_it in zip(alone, taught, strict=True):
        torch.testing.assert_close(with_it, 0.7 * without, rtol=1e-4, atol=5e-7)


@pytest.mark.parametrize("name", NAMES)
def test_beside_the_other_pass(setting: Any, name: str) -> None:
    """Without dropout the other pass adds no gradient, so that of the teachers has to be what it was."""
    model, teachers, _, table = setting
    parameters = list(model.parameters())
    gradients = [
        torch.autograd.grad(
            value(setting, settings(name, 0.3, consistency=weight), teachers, table.num_tokens), parameters
        )
        for weight in (0.0, 0.7)
    ]
    for without, with_it in zip(*gradients, strict=True):
        torch.testing.assert_close(without, with_it, rtol=1e-4, atol=5e-7)


def test_a_run_learns_from_a_run(make_recipe: Make, tmp_path: Path) -> None:
    train(make_recipe(), RunDirectory(tmp_path / "teacher"))
    before = (tmp_path / "teacher/checkpoints/best.safetensors").read_bytes()
    teacher = {"runs": [str(tmp_path / "teacher")], "share": 1.0}
    short = make_recipe(loss={"teacher": teacher}, training={"max_steps": 7})
    train(short, RunDirectory(tmp_path / "cut"))
    whole = make_recipe(loss={"teacher": teacher})
    (tmp_path / "teacher").rename(tmp_path / "moved")
    whole.loss.teacher.runs = [str(tmp_path / "moved")]
    train(whole, RunDirectory(tmp_path / "cut"), resume=True)
    train(whole, RunDirectory(tmp_path / "whole"))
    cut, uncut = (
        [line["train_loss"] for line in RunDirectory(tmp_path / name).metrics() if "train_loss" in line]
        for name in ("cut", "whole")
    )
    assert cut == uncut and len(uncut) > 5
    assert (tmp_path / "moved/checkpoints/best.safetensors").read_bytes() == before
    # Of the loss, what the teacher itself is unsure of is left.
    assert uncut[-1] < uncut[0]
    other = replace(whole, loss=replace(whole.loss, teacher=TeacherConfig([str(tmp_path / "cut")], 1.0)))
    with pytest.raises(RecipeError, match=r"whole.*the models of loss\.teacher\.runs are not those of when"):
        train(other, RunDirectory(tmp_path / "whole"), resume=True)
    for path in (tmp_path / "whole", tmp_path / "whole/checkpoints/best.safetensors"):
        own = replace(whole, loss=replace(whole.loss, teacher=TeacherConfig([str(path)], 1.0)))
        with pytest.raises(RecipeError, match="is the run that is to be trained"):
            train(own, RunDirectory(tmp_path / "whole"), overwrite=True)
    untaught = make_recipe()
    untaught.loss.teacher = TeacherConfig(share=1.0)
    with pytest.raises(RecipeError, match=r"the models of loss\.teacher\.runs are not those of when"):
        train(untaught, RunDirectory(tmp_path / "whole"), resume=True)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"min_count": 65}}, "cannot be mixed: their (source|target) vocabularies differ"),
        ({"data": {"validation": "TEST"}}, "cannot be mixed"),
    ],
)
def test_a_teacher_of_other_data(
    make_recipe: Make, tmp_path: Path, corpus: Path, sections: dict[str, Any], message: str
) -> None:
    train(make_recipe(training={"max_steps": 2}), RunDirectory(tmp_path / "teacher"))
    if "validation" in sections["data"]:
        sections = {"data": {"validation": f"{corpus}/test"}}
    recipe = make_recipe(loss={"teacher": {"runs": [str(tmp_path / "teacher")]}}, **sections)
    with pytest.raises(RecipeError, match=rf"^loss\.teacher\.runs: .*{message}"):
        loss_inputs.teachers(recipe, task_class("translation")(recipe))


def test_a_teacher_that_is_none(make_recipe: Make, tmp_path: Path) -> None:
    for path, message in ((tmp_path / "no", "is not a run"), (tmp_path, "is not a run")):
        recipe = make_recipe(loss={"teacher": {"runs": [str(path)]}})
        with pytest.raises(RecipeError, match=rf"^loss\.teacher\.runs: .*{message}"):
            loss_inputs.teachers(recipe, task_class("translation")(recipe))
    assert loss_inputs.teachers(make_recipe(), task_class("translation")(make_recipe())) is None
    with pytest.raises(RecipeError, match=r"loss\.teacher\.share must be above 0"):
        make_recipe(loss={"teacher": {"runs": [str(tmp_path)], "share": 0.0}})
