"""The similarity table of a run: word vectors found or trained, the table built, and shown."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from tqdm import tqdm

from smoothloss._files import write_atomically
from smoothloss._tensor_file import open_tensors
from smoothloss.embeddings import load_vectors, train_glove
from smoothloss.embeddings.files import split_member
from smoothloss.similarity import SimilarityTable
from smoothloss_trainer.config import EmbeddingsConfig, LossConfig
from smoothloss_trainer.errors import RecipeError, one_line
from smoothloss_trainer.files import existing_file, existing_input, expand_path
from smoothloss_trainer.vocabulary import SPECIAL_TOKENS, Vocabulary

_log = logging.getLogger(__name__)

GLOVE_VERSION = 1  # part of the cache's key: another way of training is another file


def cache_directory() -> Path:
    """Where trained vectors are kept between runs: ``$SMOOTHLOSS_CACHE``, or ``~/.cache/smoothloss``."""
    return Path(os.environ.get("SMOOTHLOSS_CACHE") or Path.home() / ".cache" / "smoothloss")


def build_table(
    config: LossConfig, vocabulary: Vocabulary, sentences: Iterable[Sequence[str]], *, seed: int
) -> SimilarityTable:
    """The similarity table that a recipe asks for.

    Args:
        config: The recipe's ``loss:`` section.
        vocabulary: The target vocabulary; its counts are the frequencies of Eq. 13.
        sentences: The training part's target text, for GloVe.
        seed: Seeds GloVe.

    Raises:
        RecipeError: when the file of vectors is missing or broken, or has no word of the vocabulary.
    """
    return table_of(config, word_vectors(config.embeddings, vocabulary, sentences, seed=seed), vocabulary)


def table_of(config: LossConfig, vectors: torch.Tensor, vocabulary: Vocabulary) -> SimilarityTable:
    """The similarity table of these vectors ``(V, d)`` with a recipe's settings."""
    settings = {"tau": config.token_tau, "beta": config.beta, "tail": config.tail}
    return _similarities(vectors, vocabulary, config.neighbours, **settings)


def _similarities(vectors: torch.Tensor, vocabulary: Vocabulary, neighbours: int, **settings: Any) -> SimilarityTable:
    return SimilarityTable.from_embeddings(
        vectors,
        k=min(neighbours, len(vocabulary)),
        counts=torch.tensor(vocabulary.counts, dtype=torch.float64),
        exclude=SPECIAL_TOKENS,
        **settings,
    )


def word_vectors(
    config: EmbeddingsConfig, vocabulary: Vocabulary, sentences: Iterable[Sequence[str]], *, seed: int
) -> torch.Tensor:
    """(V, d) vectors, read from ``config.path`` or trained on the text; zeros where a word has none.

    Raises:
        RecipeError: as :func:`build_table`.
    """
    if config.path is None:
        return _trained_vectors(config, vocabulary, list(sentences), seed)
    return read_vectors(config.path, vocabulary, "loss.embeddings.path")


def read_vectors(path: str, vocabulary: Vocabulary, key: str) -> torch.Tensor:
    """(V, d) vectors of a file, in every format of :func:`.load_vectors`; zeros where a word has none.

    Args:
        path: The file, or ``archive.zip:name``.
        vocabulary: The target vocabulary.
        key: The recipe key or the argument that an error names.

    Raises:
        RecipeError: when the file is missing or broken, or has no word of the vocabulary.
    """
    file, member = split_member(expand_path(path))
    existing_input(str(file), key)
    named = file if member is None else Path(f"{file}:{member}")
    try:
        vectors = load_vectors(named, vocabulary.words).vectors
    except (ValueError, OSError) as error:
        raise RecipeError(f"{key}: {' '.join(str(error).split()).removeprefix('path: ')}") from None
    if not bool(vectors[len(SPECIAL_TOKENS) :].any()):
        raise RecipeError(f"{key}: {path} has a vector for no word of the target vocabulary")
    return vectors


def _trained_vectors(
    config: EmbeddingsConfig, vocabulary: Vocabulary, sentences: list[Sequence[str]], seed: int
) -> torch.Tensor:
    """GloVe on the text, from the cache when the same text was trained with the same settings before."""
    settings = {**asdict(config), "seed": seed, "version": GLOVE_VERSION}
    del settings["refresh"]  # says nothing about these
    digest = hashlib.sha256(json.dumps([settings, vocabulary.words]).encode())
    for sentence in sentences:
        digest.update(" ".join(sentence).encode() + b"\n")
    cached = cache_directory() / f"glove-{digest.hexdigest()[:24]}.safetensors"
    # A file that cannot be read is written anew.
    with suppress(OSError, SafetensorError, KeyError), open_tensors(cached) as kept:
        return kept.get_tensor("vectors")
    with tqdm(total=config.epochs, desc="GloVe on the target text", dynamic_ncols=True) as bar:

        def report(_: int, loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.4f}")
            bar.update()

        try:
            trained = train_glove(
                sentences,
                vocabulary.words,
                dim=config.dim,
                window=config.window,
                epochs=config.epochs,
                seed=seed,
                on_epoch=report,
            )
        except ValueError as error:
            raise RecipeError(f"loss.embeddings: no GloVe of the target text: {error}") from None
    vectors = torch.as_tensor(trained.vectors).float().contiguous()
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cached, save({"vectors": vectors}))
    except OSError as error:  # a run has its own table; the next one trains the vectors again
        _log.warning("the vectors are not kept for other runs: %s: %s", cached.parent, error.strerror)
    return vectors


def build_table_file(options: argparse.Namespace) -> str:
    """``smoothloss table build``: vectors and a vocabulary to a table on disk. Returns what to tell the user.

    Raises:
        RecipeError: when a file is missing or broken, or a setting is out of range.
    """
    vocabulary = _vocabulary(options.vocabulary)
    vectors = read_vectors(options.vectors, vocabulary, "VECTORS")
    with one_line():
        settings = {"tau": options.tau, "beta": options.beta, "tail": options.tail}
        table = _similarities(vectors, vocabulary, options.neighbours, **settings)
    table.save(options.out)
    found = int(table.has_neighbours.sum())
    lines = [
        f"{options.out}: {table.num_tokens} tokens, {table.num_neighbours} neighbours each, tail {table.tail_mode}",
        f"words with a vector: {found} of {table.num_tokens - len(SPECIAL_TOKENS)}",
        f"mass kept by the neighbours, weighted by frequency: {100 * table.total_kept_mass:.1f} %",
    ]
    return "\n".join(lines)


def describe_words(table_file: str, vocabulary_file: str, words: Sequence[str], neighbours: int) -> str:
    """``smoothloss table show``: the neighbours of words and their mass, one per line.

    Raises:
        RecipeError: when a file is missing or broken, they do not fit, or a word is not in the vocabulary.
    """
    vocabulary = _vocabulary(vocabulary_file)
    with one_line():
        table = SimilarityTable.load(existing_file(table_file, "TABLE"), len(vocabulary))
    unknown = [word for word in words if word not in vocabulary.tokens]
    if unknown:
        raise RecipeError(f"not in the vocabulary: {', '.join(unknown)}")
    return "\n\n".join(_describe(table, vocabulary, word, neighbours) for word in words)


def _describe(table: SimilarityTable, vocabulary: Vocabulary, word: str, neighbours: int) -> str:
    token = vocabulary.tokens[word]
    indices, weights, _ = table.row(token)
    kept = float(table.kept_mass[token])
    seen = f"{word} (seen {vocabulary.counts[token]} times)"
    lines = [f"{seen}: {len(indices)} entries hold {100 * kept:.2f} % of its row"]
    for index, weight in list(zip(indices.tolist(), weights.tolist(), strict=True))[:neighbours]:
        cosine = float(table.unit_vectors[token] @ table.unit_vectors[index])
        lines.append(f"  {100 * weight:6.2f} %  cosine {cosine:5.2f}  {vocabulary.words[index]}")
    return "\n".join(lines)


def _vocabulary(path: str) -> Vocabulary:
    file = existing_file(path, "--vocabulary")
    try:
        return Vocabulary.load(file)
    except RecipeError as error:
        raise RecipeError(f"--vocabulary: {str(error).removeprefix('vocabulary: ')}") from None
