"""The captioning task: what the training loop needs to know about images and their captions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from smoothloss.rewards import References
from smoothloss_trainer.config import Recipe
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.files import expand_path
from smoothloss_trainer.metrics import caption_scores, score_texts
from smoothloss_trainer.tasks import Batch, Input, Picture, SequenceModel, Task, check_fits, check_vocabulary
from smoothloss_trainer.tasks.captioning.data import (
    CaptionBatches,
    CaptioningData,
    CaptionSet,
    check_files,
    find_image,
    load_captions,
)
from smoothloss_trainer.tasks.captioning.extract import read_extraction
from smoothloss_trainer.tasks.captioning.model import CaptioningModel, build_captioner
from smoothloss_trainer.tasks.captioning.reader import CaptionReader, source_tensors
from smoothloss_trainer.vocabulary import Vocabulary

FEATURES_READ = 64  # images of a part whose features its fingerprint holds, evenly spread


class CaptioningTask(Task):
    """Images with several captions each, scored by CIDEr and BLEU.

    A batch holds ``training.batch_size`` captions, ``data.captions_per_image`` of each image; an image is encoded once.
    The splits are ``validation`` and ``test``.
    """

    data_config: ClassVar[type] = CaptioningData
    model_config: ClassVar[type] = CaptioningModel
    metric = "cider"
    reader = CaptionReader
    test_splits: Sequence[str] = ("test",)

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Refuse a batch that is no whole number of images, and data without features."""
        data = recipe.data
        if recipe.training.batch_size % data.captions_per_image:
            sizes = f"{recipe.training.batch_size} with data.captions_per_image {data.captions_per_image}"
            raise RecipeError(f"training.batch_size must be a multiple of data.captions_per_image, got {sizes}")
        cls.check_data(data)

    @classmethod
    def check_data(cls, data: Any) -> None:
        """Refuse data whose keys contradict each other."""
        check_files(data)

    def __init__(self, recipe: Recipe, vocabularies: dict[str, Vocabulary] | None = None) -> None:
        data = recipe.data
        self.recipe = recipe
        self.dataset = self.load(recipe)
        if not recipe.training.test:
            self.test_splits = ()
            self.dataset.drop_test()
        self.vocabularies = vocabularies or {"target": Vocabulary.build(self.target_sentences(), data.min_count)}
        check_vocabulary(self.vocabulary, data.min_count)
        self.train = self._batches("train")
        self.validation = self._batches("validation")

    def load(self, recipe: Recipe) -> CaptionSet:
        """Captions, splits and features."""
        return load_captions(recipe.data, test=recipe.training.test)

    def _batches(self, split: str) -> CaptionBatches:
        images, data = self.dataset.splits[split], self.recipe.data
        return CaptionBatches(images, self.dataset.captions, self.vocabulary, data.max_words)

    def build_model(self) -> SequenceModel:
        """The LSTM of Show and Tell, or top-down attention."""
        config, sizes = self.recipe.model, (self.dataset.features.size, len(self.vocabulary))
        check_fits(lambda: build_captioner(config, *sizes))
        return build_captioner(config, *sizes)

    def source(self, images: Sequence[str], multiple: int = 1) -> tuple[Tensor, ...]:
        """What the model's encoder reads of these images."""
        return source_tensors(self.dataset.features, images, self.recipe.model, multiple)

    def notes(self) -> dict[str, Any]:
        """How the features were extracted from images, where their file says so."""
        path = getattr(self.recipe.data, "features", None)
        extraction = None if path is None else read_extraction(expand_path(path))
        return {} if extraction is None else {"extraction": extraction}

    def target_sentences(self) -> Iterator[Sequence[str]]:
        """The captions of the training images."""
        return (caption for image in self.dataset.splits["train"] for caption in self.dataset.captions[image])

    def train_plan(self, epoch: int) -> Sequence[Sequence[int]]:
        """Shuffled images, so many captions of each."""
        config, each = self.recipe.training, self.recipe.data.captions_per_image
        return self.train.plan(config.batch_size // each, each, self.recipe.seed, epoch)

    def train_batch(self, examples: Sequence[int]) -> Batch:
        """The captions of these numbers with their images."""
        return self._batch(self.train, examples, self.recipe.training.pad_to_multiple_of)

    def _batch(self, part: CaptionBatches, numbers: Sequence[int], multiple: int = 1) -> Batch:
        images = part.images(numbers)
        return part.batch(numbers, self.source(images, multiple), images, multiple)

    def training_references(self) -> References:
        """The captions of every training image, as they are trained on."""
        return self.train.packed_references()

    def validation_batches(self) -> Iterable[Batch]:
        """All captions of the validation images."""
        each = max(1, self.recipe.decoding.batch_size // self.recipe.data.captions_per_image)
        return (self._batch(self.validation, numbers) for numbers in self.validation.chunks(each))

    def sources(self, split: str, batch_size: int) -> Iterator[tuple[list[str], tuple[Tensor, ...]]]:
        """The images of a split; ids are image ids."""
        images = self.dataset.split(split)
        for start in range(0, len(images), batch_size):
            chosen = images[start : start + batch_size]
            yield chosen, self.source(chosen)

    def references(self, split: str) -> dict[str, list[str]]:
        """The reference captions of a split's images, tokens joined by spaces."""
        captions = self.dataset.captions
        return {image: [" ".join(words) for words in captions[image]] for image in self.dataset.split(split)}

    def score(self, split: str, hypotheses: dict[str, str]) -> dict[str, float | str]:
        """BLEU-1 to 4 and CIDEr, times 100."""
        return dict(caption_scores(hypotheses, self.references(split)))

    def statistics(self, split: str, hypotheses: dict[str, str]) -> Tensor:
        """The CIDEr of each image, and one to count it."""
        references = self.references(split)
        scores = score_texts([hypotheses[image] for image in references], list(references.values()))
        cider = scores.sentences["cider"]
        return torch.stack((cider, torch.ones_like(cider)), -1)

    @staticmethod
    def metric_of(totals: Tensor) -> Tensor:
        """The mean CIDEr, times 100."""
        return totals[..., 0] / totals[..., 1]

    def inputs(self, split: str) -> list[Input]:
        """The images of a split with their captions."""
        files = self.dataset.files
        return [Input(image, captions, file=files.get(image)) for image, captions in self.references(split).items()]

    def sizes(self) -> dict[str, int]:
        """Images of each part."""
        return {split: len(images) for split, images in self.dataset.splits.items()}

    def picture(self, name: str) -> Path | Picture | None:
        """The file of an image, where it lies beside the captions or the features."""
        file = self.dataset.files.get(name)
        return None if file is None else find_image(self.recipe.data, file)

    def examples(self, part: str) -> Iterator[bytes]:
        """The images of a split with their captions, then the features of some of them: all would take long."""
        images = self.dataset.split(part)
        for image in images:
            texts = [" ".join(words) for words in self.dataset.captions[image]]
            yield "\n".join([image, *texts]).encode("utf-8", "surrogatepass")
        for image in images[:: max(1, len(images) // FEATURES_READ)]:
            yield self.dataset.features.identity(image)

    def exports(self, split: str, hypotheses: dict[str, str]) -> dict[str, Any]:
        """``captions.<split>.json`` as COCO's server takes it: ``[{"image_id": 42, "caption": "a dog"}, ...]``."""
        rows = [{"image_id": int(i) if i.isdecimal() else i, "caption": text} for i, text in hypotheses.items()]
        return {f"captions.{split}.json": rows}
