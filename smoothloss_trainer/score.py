"""``smoothloss score``: scores of what :mod:`.score_inputs` reads, as a table and as JSON."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

import smoothloss
from smoothloss_trainer.checkpoint import write_json
from smoothloss_trainer.errors import RecipeError, RunError
from smoothloss_trainer.java_metrics import JavaMetric, java_scores, missing
from smoothloss_trainer.metrics import Scores, score_texts
from smoothloss_trainer.score_inputs import Documents, Texts, check_streams, read_documents, read_files
from smoothloss_trainer.tokenizers import Tokenizer, tokenizer

TITLES = {f"bleu_{n}": f"BLEU-{n}" for n in range(1, 5)}
TITLES |= {"rouge_l": "ROUGE-L", "cider": "CIDEr-D", "bleu": "BLEU (sacrebleu)", "sentence_bleu": "sentence BLEU"}
TITLES |= {"meteor": "METEOR", "spice": "SPICE"}
# Time grows with the square of a text's length, and no signal is heard meanwhile: up to half a minute for so many.
MOST_TOKENS = 10_000


def score_files(options: argparse.Namespace) -> str:
    """Run the command; returns what it prints.

    Args:
        options: ``candidates``, ``references`` (a list), ``tokenize``, ``lowercase``, ``sentence_bleu`` (a smoothing or
            None), ``df`` and ``out`` (files or None), ``meteor`` and ``spice`` (whether Java computes them too).

    Raises:
        RecipeError: one line that says what does not fit.
        RunError: when a package, Java, or its models are missing.
    """
    java: list[JavaMetric] = [name for name in get_args(JavaMetric) if getattr(options, name)]
    for metric in java:
        reason = missing(metric)
        if reason is not None:  # before minutes of work
            raise RunError(f"--{metric} needs {reason}")
    check_streams([options.candidates, *options.references, *([] if options.df is None else [options.df])])
    texts = read_files(options.candidates, options.references)
    documents = None if options.df is None else read_documents(options.df)
    split = tokenizer(options.tokenize)
    prepare: Tokenizer = (lambda text: split(text.lower())) if options.lowercase else split
    candidates, references = [prepare(text) for text in texts.candidates], _prepared(texts.references, prepare)
    _check_lengths(options.candidates, texts, [[text] for text in candidates])
    _check_lengths(" or ".join(options.references), texts, references)
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


def _prepared(groups: Documents, prepare: Tokenizer) -> Documents:
    return [[prepare(text) for text in group] for group in groups]


def _check_lengths(path: str, texts: Texts, groups: Documents) -> None:
    for name, group in zip(texts.ids, groups, strict=True):
        longest = max((len(text.split()) for text in group), default=0)
        if longest > MOST_TOKENS:
            raise RecipeError(f"{path}: {texts.kind} {name} has {longest} tokens; {MOST_TOKENS} is the most for a text")


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
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        raise RecipeError(f"--out: cannot write {path}: {error.strerror}") from None
