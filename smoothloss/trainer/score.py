"""``smoothloss score``: candidates and references in files, scores as a table and as JSON."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import smoothloss
from smoothloss.trainer.checkpoint import write_json
from smoothloss.trainer.errors import RecipeError
from smoothloss.trainer.files import existing_file, read_json, read_lines
from smoothloss.trainer.java_metrics import JavaMetric, java_scores, missing
from smoothloss.trainer.metrics import Scores, score_texts
from smoothloss.trainer.tokenizers import Tokenizer, tokenizer

TITLES = {f"bleu_{n}": f"BLEU-{n}" for n in range(1, 5)}
TITLES |= {"rouge_l": "ROUGE-L", "cider": "CIDEr-D", "bleu": "BLEU (sacrebleu)", "sentence_bleu": "sentence BLEU"}
TITLES |= {"meteor": "METEOR", "spice": "SPICE"}
Documents = list[list[str]]


@dataclass(frozen=True)
class Texts:
    """What is scored.

    Args:
        ids: A name for each candidate.
        candidates: B texts.
        references: The references of each, one at least.
    """

    ids: list[str]
    candidates: list[str]
    references: Documents


def is_json(path: str) -> bool:
    """Whether a file's name says that it holds JSON."""
    return path.removesuffix(".gz").endswith(".json")


def read_files(candidates: str, references: Sequence[str]) -> Texts:
    """Candidates and references, text or JSON as their names say.

    Raises:
        RecipeError: when a file is missing or broken, they are of different kinds, or do not fit.
    """
    if len({is_json(path) for path in (candidates, *references)}) > 1:
        raise RecipeError("candidates and references must be all .json (or .json.gz), or all text")
    if not is_json(candidates):
        return _read_parallel(candidates, references)
    if len(references) > 1:
        raise RecipeError(f"references in JSON must be one file, got {len(references)}")
    return _matched(_candidates_by_id(candidates), documents_by_id(references[0]), references[0])


def _read_parallel(candidates: str, references: Sequence[str]) -> Texts:
    """Text files, one text a line. As in sacrebleu, an empty line of a reference file is no reference."""
    lines = _lines(candidates, "candidates")
    columns = [_lines(path, "references") for path in references]
    for path, column in zip(references, columns, strict=True):
        if len(column) != len(lines):
            raise RecipeError(
                f"{path} has {len(column)} lines and {candidates} has {len(lines)}; they must be the same"
            )
    groups = [[text for text in row if text.strip()] for row in zip(*columns, strict=True)]
    bare = [number for number, group in enumerate(groups, 1) if not group]
    if bare:
        raise RecipeError(f"{len(bare)} candidates have no reference, such as that of line {bare[0]}")
    return Texts([str(number) for number in range(1, len(lines) + 1)], lines, groups)


def _lines(path: str, key: str) -> list[str]:
    return read_lines(existing_file(path, key), key)


def _candidates_by_id(path: str) -> dict[str, str]:
    """COCO results ``[{"image_id": ..., "caption": ...}]``, or ``{id: text}``, or ``{id: [text]}``."""
    content = read_json(path, "candidates")
    if isinstance(content, list):
        pairs = _pairs(content, path, "results with image_id and caption")
    else:
        pairs = [(name, text) for name, texts in documents_by_id(path, "candidates").items() for text in texts]
    if not pairs:
        raise RecipeError(f"{path} has no candidate")
    several = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if several:
        raise RecipeError(f"{path} has {len(several)} ids with more than one candidate, such as {several[0]}")
    return dict(pairs)


def documents_by_id(path: str, key: str = "references") -> dict[str, list[str]]:
    """COCO annotations ``{"annotations": [{"image_id": ..., "caption": ...}]}``, or ``{id: [texts]}``.

    Raises:
        RecipeError: when the file is something else.
    """
    content = read_json(path, key)
    found: dict[str, list[str]] = {}
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        for name, text in _pairs(content["annotations"], path, "annotations with image_id and caption"):
            found.setdefault(name, []).append(text)
        return found
    if not isinstance(content, dict):
        raise RecipeError(f"{path} holds neither COCO annotations nor a mapping of ids to texts")
    for name, texts in content.items():
        found[name] = [texts] if isinstance(texts, str) else texts
        if not isinstance(found[name], list) or not all(isinstance(text, str) for text in found[name]):
            raise RecipeError(f"{path} has no list of texts for the id {name}")
    return found


def _pairs(entries: list[Any], path: str, expected: str) -> list[tuple[str, str]]:
    try:
        pairs = [(str(entry["image_id"]), entry["caption"]) for entry in entries]
    except (KeyError, TypeError):
        pairs = [("", None)]
    if not all(isinstance(text, str) for _, text in pairs):
        raise RecipeError(f"{path} does not hold {expected}")
    return pairs


def _matched(candidates: dict[str, str], references: dict[str, list[str]], path: str) -> Texts:
    """The candidates with the references of their ids; those of other ids are left out, as in coco-caption."""
    bare = [name for name in candidates if not references.get(name)]
    if bare:
        raise RecipeError(f"{path} has no reference for {len(bare)} of {len(candidates)} candidates, such as {bare[0]}")
    return Texts(list(candidates), list(candidates.values()), [references[name] for name in candidates])


def score_files(options: argparse.Namespace) -> str:
    """Run the command; returns what it prints.

    Args:
        options: ``candidates``, ``references`` (a list), ``tokenize``, ``lowercase``, ``sentence_bleu`` (a smoothing or
            None), ``df`` and ``out`` (files or None), ``meteor`` and ``spice`` (whether Java computes them too).

    Raises:
        RecipeError: one line that says what is missing or does not fit.
    """
    java: list[JavaMetric] = [name for name in get_args(JavaMetric) if getattr(options, name)]
    for metric in java:
        reason = missing(metric)
        if reason is not None:  # before minutes of work
            raise RecipeError(f"--{metric} needs {reason}")
    texts = read_files(options.candidates, options.references)
    documents = None if options.df is None else _documents(options.df)
    split = tokenizer(options.tokenize)
    prepare: Tokenizer = (lambda text: split(text.lower())) if options.lowercase else split
    candidates, references = [prepare(text) for text in texts.candidates], _prepared(texts.references, prepare)
    scores = score_texts(
        candidates,
        references,
        documents=None if documents is None else _prepared(documents, prepare),
        sentence_smoothing=options.sentence_bleu,
    )
    for metric in java:
        corpus, sentences = java_scores(metric, candidates, references)
        scores.corpus[metric], scores.sentences[metric] = 100.0 * corpus, 100.0 * sentences
    line = signature(options, texts, documents)
    if options.out is not None:
        _write(options.out, texts, scores, line)
    return _table(scores, line)


def _documents(path: str) -> Documents:
    return list(documents_by_id(path, "--df").values()) if is_json(path) else [[line] for line in _lines(path, "--df")]


def _prepared(groups: Documents, prepare: Tokenizer) -> Documents:
    return [[prepare(text) for text in group] for group in groups]


def signature(options: argparse.Namespace, texts: Texts, documents: Documents | None) -> str:
    """What the scores depend on besides the texts, in the manner of sacrebleu's signatures.

    Args:
        options: As for :func:`score_files`.
        texts: What was scored.
        documents: The documents of ``--df``, None for the references themselves.
    """
    counts = sorted({len(group) for group in texts.references})
    source = f"{Path(options.df).name}[{len(documents)}]" if documents is not None else f"refs[{len(texts.references)}]"
    parts = {
        "n": len(texts.candidates),
        "nrefs": "-".join(map(str, [counts[0], counts[-1]] if len(counts) > 1 else counts)),
        "case": "lc" if options.lowercase or options.tokenize == "ptb-like" else "mixed",
        "tok": options.tokenize,
        "BLEU-n": "coco,closest",
        "ROUGE-L": "beta1.2",
        "CIDEr-D": f"n4,sigma6,df:{source}",
        "BLEU": "n4,smooth:exp,eff:no",
        **({"sentenceBLEU": f"n4,smooth:{options.sentence_bleu},eff:yes"} if options.sentence_bleu else {}),
        **({"METEOR": "1.5,en,norm"} if options.meteor else {}),
        **({"SPICE": "1.0"} if options.spice else {}),
        "version": f"smoothloss-{smoothloss.__version__}",
    }
    return "|".join(f"{key}:{value}" for key, value in parts.items())


def _table(scores: Scores, line: str) -> str:
    width = max(map(len, TITLES.values()))
    rows = [f"{title:{width}}  {scores.corpus[key]:8.3f}" for key, title in TITLES.items() if key in scores.corpus]
    return "\n".join([f"{'times 100':>{width + 10}}", *rows, line])


def _write(path: str, texts: Texts, scores: Scores, line: str) -> None:
    columns = {name: values.tolist() for name, values in scores.sentences.items()}
    sentences = {
        name: {key: column[row] for key, column in columns.items()} for row, name in enumerate(texts.ids)
    }  # fmt: skip
    try:
        write_json(path, {"signature": line, "scores": scores.corpus, "sentences": sentences})
    except OSError as error:
        raise RecipeError(f"--out: cannot write {path}: {error.strerror}") from None
