from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from smoothloss_trainer import shipped
from smoothloss_trainer.checkpoint import load_checkpoint
from smoothloss_trainer.config import LossConfig, Recipe
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.loop import train
from smoothloss_trainer.losses import build_loss
from smoothloss_trainer.recipe import load_recipe
from smoothloss_trainer.run import RunDirectory
from smoothloss_trainer.tasks import Batch
from smoothloss_trainer.tasks.captioning import CaptioningTask
from smoothloss_trainer.tasks.captioning import task as captioning_task
from smoothloss_trainer.tasks.captioning.data import CaptionSet
from smoothloss_trainer.tasks.captioning.features import LabelFeatures
from smoothloss_trainer.vocabulary import PAD

Make = Callable[..., Recipe]


@pytest.mark.parametrize("attention", [False, True])
def test_a_batch_encodes_each_image_once(make_captioning: Make, attention: bool) -> None:
    task = CaptioningTask(make_captioning(model={"attention": attention}))
    plan = task.train_plan(0)
    assert len(plan) == 15 and all(len(numbers) == 10 for numbers in plan)
    batch = task.train_batch(plan[0])
    assert batch.source[0].shape[0] == 2 and batch.source[0].shape[-1] == 4
    assert batch.source_index is not None and batch.source_index.tolist() == [0] * 5 + [1] * 5
    assert batch.references is not None and not torch.equal(batch.references[0], batch.references[5])
    images = task.train.images(plan[0])
    for row, number in enumerate(plan[0]):
        assert task.train.owner[number] == images[row // 5]
        said = task.vocabulary.decode(batch.target[row].tolist())
        assert said in task.dataset.captions[images[row // 5]]
        assert set(said) <= set(task.vocabulary.decode(batch.references[row].tolist()))


def test_a_training_that_tests_nothing_reads_no_test_image(make_captioning: Make) -> None:
    whole, blind = (CaptioningTask(make_captioning(training={"test": test})) for test in (True, False))
    images = set(whole.dataset.splits["test"])
    assert images and whole.test_splits and not blind.test_splits
    assert not images & set(blind.dataset.captions) and not blind.dataset.splits["test"]
    assert blind.vocabulary.words == whole.vocabulary.words
    for part in ("train", "validation"):
        assert blind.fingerprint(part) == whole.fingerprint(part)
    assert blind.references("test") == {}


def test_references_of_a_row_are_the_captions_of_its_image(make_captioning: Make) -> None:
    task = CaptioningTask(make_captioning(data={"max_words": 5}))
    references = task.training_references()
    assert len(references) == len(task.dataset.splits["train"])
    numbers = task.train_plan(0)[3]
    batch = task.train_batch(numbers)
    assert batch.inputs is not None
    for row, own in enumerate(references.select(batch.inputs).tolist()):
        said = [task.vocabulary.decode(tokens) for tokens in own]
        captions = task.dataset.captions[task.train.owner[numbers[row]]]
        assert said == [words[:5] for words in captions]
        assert batch.target[row, : int(batch.lengths[row])].tolist() in own


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("name", ["mle", "seq_lazy"])
def test_padding_does_not_influence_the_loss(make_captioning: Make, attention: bool, name: str) -> None:
    task = CaptioningTask(make_captioning(model={"attention": attention}))
    torch.manual_seed(0)
    model = task.build_model()
    batch = task.train_batch(task.train_plan(0)[0])
    wide = replace(batch, target=torch.nn.functional.pad(batch.target, (0, 3), value=PAD))
    loss = build_loss(LossConfig(name=name, alpha=0.3, tau=1e-3), None, len(task.vocabulary))  # type: ignore[arg-type]

    def value(one: Batch) -> torch.Tensor:
        model.zero_grad()
        result = loss(model, one, torch.Generator().manual_seed(0))
        result.backward()
        return torch.cat([result.detach()[None], model.classifier.weight.grad.flatten()])  # type: ignore[union-attr]

    torch.testing.assert_close(value(wide), value(batch), rtol=1e-5, atol=1e-7)


def test_validation_and_generation_cover_their_split(make_captioning: Make) -> None:
    task = CaptioningTask(make_captioning())
    sentences = sum(len(task.dataset.captions[image]) for image in task.dataset.splits["validation"])
    assert sum(len(batch.target) for batch in task.validation_batches()) == sentences
    names = [name for names, _ in task.sources("test", 3) for name in names]
    assert names == task.dataset.splits["test"]
    with pytest.raises(RecipeError, match="split must be one of"):
        next(iter(task.sources("dev", 3)))


def test_right_captions_score_best(make_captioning: Make) -> None:
    task = CaptioningTask(make_captioning())
    references = task.references("test")
    right = task.score("test", {image: captions[0] for image, captions in references.items()})
    wrong = task.score("test", dict.fromkeys(references, "we see a dog"))
    assert float(right["bleu_4"]) == pytest.approx(100.0)
    assert float(right[task.metric]) > 2 * float(wrong[task.metric])


def test_wrong_sizes_are_refused(make_captioning: Make) -> None:
    with pytest.raises(RecipeError, match=r"must be a multiple of data\.captions_per_image, got 12 with"):
        CaptioningTask(make_captioning(training={"batch_size": 12}))
    recipe = make_captioning()
    recipe.data.images = {"test": 0}
    with pytest.raises(RecipeError, match="no image in test"):
        CaptioningTask(recipe)


@pytest.mark.parametrize("attention", [False, True])
def test_it_learns_to_name_what_is_there(make_captioning: Make, tmp_path: Path, attention: bool) -> None:
    loss = {"name": "tok_seq_lazy", "alpha": 0.2, "token_alpha": 0.2, "tau": 0.2, "embeddings": {"dim": 8, "epochs": 3}}
    recipe = make_captioning(
        model={"attention": attention, "hidden": 32, "embedding": 32},
        loss=loss,
        optimizer={"lr": 0.01},
        training={"epochs": 6, "validate_every": 6},
    )
    run = RunDirectory(tmp_path / "run")
    scores = train(recipe, run)
    assert scores["test"]["bleu_1"] > 60  # type: ignore[operator]
    assert scores["test"]["cider"] > 60  # type: ignore[operator]
    written = json.loads((run.path / "hypotheses.test.json").read_text())
    for_server = json.loads((run.path / "captions.test.json").read_text())
    assert for_server == [{"image_id": int(image), "caption": text} for image, text in written.items()]
    assert [row["image_id"] for row in for_server] == list(range(136, 144))


def test_recipes_are_the_base_with_another_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOOTHLOSS_DATA", "/data")
    recipes = {name: load_recipe(name, here=False) for name in shipped.names() if name.startswith("coco_")}
    assert len(recipes) >= 16
    rewarded = [name for name in recipes if name.startswith(("coco_labels/seq_", "coco_labels/tok_seq_cider"))]
    assert len([name for name in rewarded if not name.endswith("_space")]) == 5
    for one, other in (
        *(("coco_labels/mle", name) for name in ("coco_labels/tok_seq_lazy", *rewarded)),
        ("coco_labels/attention_mle", "coco_labels/attention_tok_seq_lazy"),
        ("coco_labels/short_mle", "coco_labels/short_tok_seq_lazy"),
        ("coco_boxes/mle", "coco_boxes/tok_seq_lazy"),
    ):
        assert recipes[one].loss.name == "mle" and recipes[other].loss.samples_sequences
        same = replace(recipes[other], loss=recipes[one].loss, name=recipes[one].name)
        assert same == recipes[one]
    assert recipes["coco_labels/attention_mle"].model.attention and not recipes["coco_labels/mle"].model.attention


def test_real_boxes_go_through_the_recipe(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOOTHLOSS_DATA", str(data_dir))
    task = CaptioningTask(load_recipe("coco_boxes/tok_seq_lazy"))
    sizes = {split: len(images) for split, images in task.dataset.splits.items()}
    assert sizes == {"train": 3761, "validation": 601, "test": 590}
    values, present = task.train_batch(task.train_plan(0)[0]).source
    assert values.shape[0] == 10 and values.shape[2] == 85 and len(present.sum(1).unique()) > 1
    real = values[present]
    assert (real[:, :80].sum(1) == 1).all() and ((real[:, 80:] >= 0) & (real[:, 80:] <= 1)).all()
    assert not values[~present].any()


QUICK = ["--training.max_steps", "2", "--loss.name", "mle", "--decoding.beam_size", "1", "--data.min_count", "1"]


@pytest.mark.parametrize("attention", ["false", "true"])
@pytest.mark.parametrize("features", ["features.npy", "features.npz", "files"])
def test_the_recipe_for_features_needs_paths_alone(
    karpathy: Path, tmp_path: Path, features: str, attention: str
) -> None:
    paths = ["--data.captions", f"{karpathy}/dataset.json", "--data.features", f"{karpathy}/{features}"]
    small = ["--model.embedding", "8", "--model.hidden", "8", "--model.attention", attention]
    recipe = load_recipe("coco_features/mle", [*paths, *small, *QUICK])
    assert "test" in train(recipe, RunDirectory(tmp_path / "run"))


def test_own_images_from_captions_to_scores(karpathy: Path, tmp_path: Path) -> None:
    entries = json.loads((karpathy / "dataset.json").read_text())["images"]
    names = [f"picture {number}" for number in range(len(entries))]
    said = [(n, " ".join(sentence["tokens"])) for n, entry in enumerate(entries) for sentence in entry["sentences"]]
    content = {
        "images": [{"id": n, "file_name": f"{names[n]}.jpg", "split": e["split"]} for n, e in enumerate(entries)],
        "annotations": [{"image_id": n, "caption": f"{text.capitalize()}."} for n, text in said],
    }
    (tmp_path / "captions.json").write_text(json.dumps(content))
    np.save(tmp_path / "features.npy", np.load(karpathy / "features.npy")[::-1, 0])
    (tmp_path / "features.ids.json").write_text(json.dumps(names[::-1]))
    paths = ["--data.captions", f"{tmp_path}/captions.json", "--data.features", f"{tmp_path}/features.npy"]
    recipe = load_recipe("own_images", [*paths, *QUICK])
    task = CaptioningTask(recipe)
    rows = np.load(karpathy / "features.npy")[:, 0]
    np.testing.assert_array_equal(task.source(["3", "40"])[0].numpy(), rows[[3, 40]])
    assert "test" in train(recipe, RunDirectory(tmp_path / "run"))


def test_a_feature_that_breaks_in_training_keeps_the_checkpoint(
    karpathy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captioning_task, "FEATURES_READ", 1)  # before training; it is not the one that breaks
    shutil.copytree(karpathy / "files", tmp_path / "files")
    paths = ["--data.captions", f"{karpathy}/dataset.json", "--data.features", f"{tmp_path}/files"]
    often = ["--training.checkpoint_every", "1", "--training.epochs", "1", "--training.batch_size", "5"]
    recipe = load_recipe("coco_features/mle", [*paths, *QUICK[2:], *often])
    task = CaptioningTask(recipe)
    victim = next(
        image for image in task.train.images(task.train_plan(0)[3]) if image != task.dataset.split("train")[0]
    )
    (tmp_path / "files" / f"{victim}.npz").write_bytes(b"PK")
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(RecipeError, match=rf"data\.features: cannot read .*{victim}\.npz"):
        train(recipe, run)
    tensors, state = load_checkpoint(run.last)
    assert state["progress"]["step"] == 3 and "model.classifier.weight" in tensors


def test_real_captions_have_karpathys_splits(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOOTHLOSS_DATA", str(data_dir))
    task = CaptioningTask(load_recipe("coco_labels/short_mle"))
    sizes = {split: len(images) for split, images in task.dataset.splits.items()}
    assert sizes == {"train": 30504, "validation": 1000, "test": 5000}
    assert sum(map(len, task.references("test").values())) == 25010
    assert not {*task.dataset.splits["train"]} & {*task.dataset.splits["test"]}
    assert len(task.vocabulary) == 5714


def test_a_fingerprint_holds_images_captions_and_features(make_captioning: Make) -> None:
    def fingerprints(change: Callable[[CaptionSet], object] = lambda data: None) -> dict[str, str]:
        task = CaptioningTask(make_captioning())
        change(task.dataset)
        return {part: task.fingerprint(part) for part in ("train", "validation", "test", "vocabulary.target")}

    first = fingerprints()
    assert fingerprints() == first
    assert len(set(first.values())) == 4

    def rewrite(data: CaptionSet) -> None:
        data.captions[data.splits["test"][-1]][-1] = ["other"]

    def relabel(data: CaptionSet) -> None:
        assert isinstance(data.features, LabelFeatures)
        labels = data.features.labels.setdefault(data.splits["test"][-1], [])
        labels[:] = [] if labels else [0]

    for change in (rewrite, relabel, lambda data: data.splits["test"].reverse()):
        found = fingerprints(change)
        assert {part for part in first if found[part] != first[part]} == {"test"}


def test_images_beside_captions_or_features_are_found(karpathy: Path, make_captioning: Make, tmp_path: Path) -> None:
    content = json.loads((karpathy / "dataset.json").read_text())
    tests = [image for image in content["images"] if image["split"] == "test"]
    names = ["a b.jpg", "sub/ü.png", "other/c.jpg", "missing.jpg", "x" * 300]
    for image, name in zip(tests, names, strict=False):
        image["filename"] = name
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "dataset.json").write_text(json.dumps(content))
    shutil.copy(karpathy / "features.npy", tmp_path / "features.npy")
    places = {"a b.jpg": "text", "ü.png": "images/sub", "c.jpg": "images"}
    for name, place in places.items():
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / name).touch()
    data = {"captions": f"{tmp_path}/text/dataset.json", "format": "karpathy", "features": f"{tmp_path}/features.npy"}
    task = CaptioningTask(make_captioning(data=data))
    ids = [str(image["cocoid"]) for image in tests]
    assert [each.file for each in task.inputs("test")][:6] == [*names, None]
    found = [task.picture(name) for name in ids[:4]]
    assert found == [tmp_path / "text/a b.jpg", tmp_path / "images/sub/ü.png", tmp_path / "images/c.jpg", None]
    assert task.picture(ids[5]) is None
    assert task.sizes() == {"train": 30, "validation": 6, "test": 8}
