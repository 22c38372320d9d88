from __future__ import annotations

from pathlib import Path

import pytest
import torch

from smoothloss_trainer.checkpoint import average_checkpoints, load_model, save_checkpoint, with_prefix
from smoothloss_trainer.decoding import beam_search
from smoothloss_trainer.tasks import select_rows
from smoothloss_trainer.tasks.translation.data import source_tensors
from smoothloss_trainer.tasks.translation.model import AttentiveModel, TranslationModel
from smoothloss_trainer.vocabulary import BOS, PAD

SIZES = {"embedding": 6, "encoder": 5, "decoder": 8, "attention": 7}
SOURCE = [[4, 5, 6, 7], [8], [9, 10]]


@pytest.fixture(params=["gru", "lstm", "lstm-2-layers", "gru-tied"])
def model(request: pytest.FixtureRequest) -> AttentiveModel:
    torch.manual_seed(3)
    cell = "gru" if request.param.startswith("gru") else "lstm"
    layers, tie = 2 if "layers" in request.param else 1, "all" if "tied" in request.param else "none"
    config = TranslationModel(cell=cell, dropout=0.5, layers=layers, tie=tie, **SIZES)
    model = AttentiveModel(config, 15 if tie == "all" else 12, 15).double()
    for parameter in model.parameters():  # far from linear, so that a mistake shows
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def test_steps_equal_teacher_forcing(model: AttentiveModel) -> None:
    memory = model.encode(*source_tensors(SOURCE))
    inputs = torch.tensor([[BOS, 4, 5], [BOS, 6, 7], [BOS, 8, 9]])
    expected = model.classifier(model.decode(memory, inputs))
    state = model.initial_state(memory)
    for position, tokens in enumerate(inputs.unbind(1)):
        logits, state = model.step(tokens, state)
        torch.testing.assert_close(logits, expected[:, position])


def test_a_sentence_does_not_see_its_batch(model: AttentiveModel) -> None:
    together = model.encode(*source_tensors(SOURCE))
    inputs = torch.tensor([[BOS, 4, 5]])
    for number, tokens in enumerate(SOURCE):
        alone = model.decode(model.encode(*source_tensors([tokens])), inputs)
        row = select_rows(together, torch.tensor([number]))
        torch.testing.assert_close(model.decode(row, inputs), alone)


def test_a_position_sees_no_later_word(model: AttentiveModel) -> None:
    memory = model.encode(*source_tensors(SOURCE))
    inputs = torch.tensor([[BOS, 4, 5]] * 3)
    changed = inputs.clone()
    changed[:, 2] = 9
    before, after = model.decode(memory, inputs), model.decode(memory, changed)
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.equal(before[:, 2], after[:, 2])


def test_every_source_word_matters_and_every_parameter_learns(model: AttentiveModel) -> None:
    inputs = torch.tensor([[BOS, 4, 5]])
    base = model.decode(model.encode(*source_tensors([[4, 5, 6]])), inputs)
    for position in range(3):
        tokens = [4, 5, 6]
        tokens[position] = 11
        assert not torch.allclose(model.decode(model.encode(*source_tensors([tokens])), inputs), base)
    model.classifier(base).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_beam_search_gives_the_same_at_any_batch_size(model: AttentiveModel) -> None:
    sources = [[4 + (7 * n + k) % 8 for k in range(n % 5 + 1)] for n in range(12)]
    options = {"beam_size": 3, "max_length": 7, "length_penalty": 1.0}
    together = beam_search(model, model.encode(*source_tensors(sources)), 12, **options)
    for number, tokens in enumerate(sources):
        alone = beam_search(model, model.encode(*source_tensors([tokens])), 1, **options)[0]
        assert [one.tokens for one in alone] == [one.tokens for one in together[number]]


def test_dropout_is_for_training_only(model: AttentiveModel) -> None:
    memory, inputs = model.encode(*source_tensors(SOURCE)), torch.tensor([[BOS, 4, 5]] * 3)
    assert torch.equal(model.decode(memory, inputs), model.decode(memory, inputs))
    model.train()
    assert not torch.equal(model.decode(memory, inputs), model.decode(memory, inputs))


def test_layers_are_the_encoders() -> None:
    one, two = (AttentiveModel(TranslationModel(cell="lstm", layers=layers, **SIZES), 12, 15) for layers in (1, 2))
    assert (one.encoder.num_layers, two.encoder.num_layers) == (1, 2)
    encoder = 4 * SIZES["encoder"] * (2 * SIZES["encoder"] + SIZES["encoder"] + 2) * 2
    assert sum(p.numel() for p in two.parameters()) - sum(p.numel() for p in one.parameters()) == encoder


@pytest.mark.parametrize(("tie", "saved"), [("none", 0), ("decoder", 15 * 6), ("all", 2 * 15 * 6)])
def test_tied_weights_are_one_and_learn_from_all_sides(tie: str, saved: int) -> None:
    models = [AttentiveModel(TranslationModel(tie=name, **SIZES), 15, 15) for name in ("none", tie)]
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in models]
    assert sizes[0] - sizes[1] == saved
    model = models[1]
    hidden = model.decode(model.encode(*source_tensors([[4]])), torch.tensor([[BOS, 5]]))
    (gradient,) = torch.autograd.grad(hidden.sum(), model.target_embedding.weight, retain_graph=True)
    assert bool(gradient[4].any()) == (tie == "all"), "what the source says"
    (gradient,) = torch.autograd.grad(model.classifier(hidden).sum(), model.target_embedding.weight)
    assert bool(gradient[9].any()) == (tie != "none"), "what the classifier could have said"


def test_nothing_depends_on_the_padding_row_of_tied_weights() -> None:
    model = AttentiveModel(TranslationModel(tie="all", **SIZES), 15, 15).eval()
    inputs = torch.tensor([[BOS, 4, 5], [BOS, 6, PAD], [BOS, PAD, PAD]])
    before = model.decode(model.encode(*source_tensors(SOURCE)), inputs)
    with torch.no_grad():
        model.classifier.weight[PAD] = 7.0
    after = model.decode(model.encode(*source_tensors(SOURCE)), inputs)
    assert torch.equal(before[inputs != PAD], after[inputs != PAD])
    assert not torch.equal(before[inputs == PAD], after[inputs == PAD])


def test_tied_models_survive_checkpoints_and_their_mean(tmp_path: Path) -> None:
    torch.manual_seed(1)
    models = [AttentiveModel(TranslationModel(tie="all", **SIZES), 15, 15) for _ in range(3)]
    files = [tmp_path / f"{number}.safetensors" for number in range(2)]
    for model, file in zip(models, files, strict=False):
        save_checkpoint(file, with_prefix("model", model.state_dict()), {})
    save_checkpoint(tmp_path / "mean.safetensors", average_checkpoints(files), {})
    load_model(tmp_path / "mean.safetensors", models[2])
    expected = (models[0].classifier.weight + models[1].classifier.weight) / 2
    torch.testing.assert_close(models[2].classifier.weight, expected)
    assert models[2].source_embedding.weight is models[2].classifier.weight is models[2].target_embedding.weight


def test_vocabularies_of_two_sizes_share_no_embedding() -> None:
    with pytest.raises(ValueError, match="tie all needs vocabularies of one size, got 12 and 15"):
        AttentiveModel(TranslationModel(tie="all", **SIZES), 12, 15)
