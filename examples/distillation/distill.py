"""Distil a language model: what a teacher's cached distributions teach a student that labels alone do not.

A teacher reads all training text. What it says of each position of some of these sentences is cached, once as its K
likeliest words, once as counts of words drawn from it. Students a quarter as wide then read those sentences and learn
from the labels, from either cache with each treatment of the mass that it leaves out, from a mix of both, or from
labels smoothed over all words, or over the neighbours that words have in the teacher's embedding. The table says how
well each predicts text that none of them has read.

Whatever is finished is a file in --out: the same command goes on where it was stopped, and another one with other
--seeds or --rows may work beside it, once the caches are there.
"""

from __future__ import annotations

import random
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from language_model import LanguageModel, Loss, Step, Text, evaluate, say, train
from results import Result, environment, markdown, summary
from torch import Tensor

import smoothloss.functional as F
from smoothloss import SimilarityTable, distillation, targets
from smoothloss._files import write_atomically
from smoothloss.distillation import TeacherCache, fingerprint, write_from
from smoothloss_trainer.checkpoint import write_json
from smoothloss_trainer.cli.options import Parser, whole
from smoothloss_trainer.cli.run import explain
from smoothloss_trainer.demo.grammar import make_captions
from smoothloss_trainer.demo.scenes import make_scene
from smoothloss_trainer.errors import RecipeError, one_line
from smoothloss_trainer.files import existing_file, read_json, read_lines
from smoothloss_trainer.vocabulary import EOS, SPECIAL_TOKENS, Vocabulary

CACHES = ("top_k", "draws")
DRAWS = 12
LABEL_SHARE = 0.5  # of the label mix
NEIGHBOURS, TAU, ALPHA = 64, 0.1, 0.3  # of similarity smoothing
LABEL_SMOOTHING = 0.1  # its control: about what similarity smoothing spreads over all words alike
DEMO_SCENES = 300  # of five captions each, when no text is given

# ---- what students learn from


class Row(NamedTuple):
    """A student: what the table calls it, what its loss needs besides labels, and the loss."""

    title: str
    needs: str | None
    loss: Loss


def from_labels(step: Step) -> Tensor:
    """Maximum likelihood."""
    return F.linear_cross_entropy(step.hidden, step.weight, step.labels, linear_bias=step.bias)


def from_smoothed_labels(step: Step) -> Tensor:
    """Labels that share their mass with all words alike."""
    return F.linear_cross_entropy(
        step.hidden, step.weight, step.labels, label_smoothing=LABEL_SMOOTHING, linear_bias=step.bias
    )


def from_similar_words(step: Step) -> Tensor:
    """Labels that share their mass with words that are alike in the teacher's embedding."""
    return F.linear_cross_entropy(
        step.hidden, step.weight, step.labels, table=step.table, alpha=ALPHA, linear_bias=step.bias
    )


def from_teacher(**divergence: Any) -> Loss:
    """A divergence from what the cache holds."""

    def loss(step: Step) -> Tensor:
        return distillation.linear_loss(step.hidden, step.weight, step.teacher, linear_bias=step.bias, **divergence)

    return loss


def from_both(step: Step) -> Tensor:
    """Cross-entropy against a target that is half the label, half what the cache holds."""
    teacher = targets.top_k(step.teacher.indices, step.teacher.log_probs, missing="drop")
    target = LABEL_SHARE * targets.labels(step.labels) + (1 - LABEL_SHARE) * teacher
    return F.linear_cross_entropy(step.hidden, step.weight, target, linear_bias=step.bias)


ROWS = {
    "labels": Row("labels", None, from_labels),
    "label_smoothing": Row("labels, smoothed evenly", None, from_smoothed_labels),
    "similarity": Row("labels, smoothed by similarity", "table", from_similar_words),
    "top_k-bucket": Row("top k, `bucket`", "top_k", from_teacher(missing="bucket")),
    "top_k-uniform": Row("top k, `uniform`", "top_k", from_teacher(missing="uniform")),
    "top_k-renormalize": Row("top k, `renormalize`", "top_k", from_teacher(missing="renormalize")),
    "top_k-drop": Row("top k, `drop`", "top_k", from_teacher(missing="drop")),
    "top_k-reverse": Row("top k, `bucket`, reverse KL", "top_k", from_teacher(divergence="reverse_kl")),
    "top_k-js": Row("top k, `bucket`, Jensen-Shannon", "top_k", from_teacher(divergence="jensen_shannon")),
    "draws": Row("draws", "draws", from_teacher(missing="drop")),  # nothing is missing: any treatment is the same
    "draws-labels": Row("draws and labels, half each", "draws", from_both),
}


# ---- the run


class Run:
    """A folder: what is not in it yet is made when it is asked for."""

    def __init__(self, options: Namespace) -> None:
        self.options, self.out = options, options.out
        self.environment = environment()  # before anything else: a commit made meanwhile is not the one that runs
        train_words, test_words = read_sentences(options)
        self.vocabulary = Vocabulary.build(train_words, options.min_count)
        self.text, self.test = self._text(train_words), self._text(test_words)
        size = min(options.sentences, len(train_words))
        # By length, so that the teacher's batches need little padding when the caches are written.
        self.student_text = Text(sorted(random.Random(0).sample(self.text.sentences, size), key=len))
        (self.out / "rows").mkdir(parents=True, exist_ok=True)
        self.settings = self._settings()

    def _text(self, sentences: list[list[str]]) -> Text:
        return Text([[*self.vocabulary.encode(words), EOS] for words in sentences])

    def _settings(self) -> Result:
        """The settings of the folder, which is refused when it holds a run of another text or other sizes."""
        names = ("width", "teacher_epochs", "epochs", "k", "min_count", "sentences")
        settings: Result = {name: getattr(self.options, name) for name in names}
        settings |= {"draws": DRAWS, "label_share": LABEL_SHARE, "neighbours": NEIGHBOURS, "tau": TAU, "alpha": ALPHA}
        settings["label_smoothing"] = LABEL_SMOOTHING
        settings["classes"] = len(self.vocabulary.words)
        settings["text"] = fingerprint(self.vocabulary.words, self.text.sentences + self.test.sentences)
        path = self.out / "settings.json"
        if not path.exists():
            write_json(path, settings)
        before = read_json(str(path), "--out")
        other = [name for name, value in settings.items() if before.get(name) != value]
        if other:
            raise RecipeError(f"--out: {self.out} holds a run with another {', '.join(other)}: name another folder")
        return settings

    @cached_property
    def teacher(self) -> LanguageModel:
        """The teacher, trained as far as it is not."""
        torch.manual_seed(0)
        model = LanguageModel(len(self.vocabulary.words), self.options.width)
        checkpoint = self.out / "teacher.safetensors"
        train(model, self.text, from_labels, self.options.teacher_epochs, 0, checkpoint=checkpoint)
        if not (self.out / "teacher.json").exists():
            result = evaluate(model, self.test) | {"parameters": model.parameter_count, "environment": self.environment}
            write_json(self.out / "teacher.json", result)
        return model.eval()

    @cached_property
    def similarities(self) -> SimilarityTable:
        """Which words are alike in the teacher's embedding."""
        vectors = self.teacher.embedding.weight
        return SimilarityTable.from_embeddings(vectors, k=NEIGHBOURS, tau=TAU, exclude=SPECIAL_TOKENS)

    def cache(self, name: str) -> TeacherCache:
        """What the teacher says of the students' text, written as far as it is not."""
        text, path = self.student_text, self.out / name
        origin = {
            "fingerprint": fingerprint(self.vocabulary.words, text.sentences),
            "vocabulary_size": len(self.vocabulary.words),
        }
        with suppress(FileNotFoundError, ValueError):  # not there or not complete; what is wrong, the writer will say
            return TeacherCache(path, **origin)
        teacher, kept = self.teacher, {"k": self.options.k} if name == "top_k" else {"draws": DRAWS}
        with one_line():
            return write_from(
                lambda numbers: teacher.logits(text.batch(numbers)[0]),
                text.batches(),
                path,
                lengths=lambda numbers: torch.tensor([len(text.sentences[number]) for number in numbers]),
                shard_bytes=1 << 22,
                **origin,
                **kept,
            )

    def student(self, name: str, seed: int) -> None:
        """Train and evaluate a student, unless that has been done."""
        path = self.out / "rows" / f"{name}.{seed}.json"
        if path.exists():
            return
        row = ROWS[name]
        cache = self.cache(row.needs) if row.needs in CACHES else None
        table = self.similarities if row.needs == "table" else None
        begin = time.process_time()
        torch.manual_seed(seed)
        model = LanguageModel(len(self.vocabulary.words), self.options.width // 4)
        train(model, self.student_text, row.loss, self.options.epochs, seed, cache=cache, table=table)
        result = {"seed": seed, **evaluate(model, self.test), "parameters": model.parameter_count}
        if row.needs == "top_k":
            result["teacher_mass_known"] = known_mass(cache)
        write_json(path, result | {"cpu_seconds": time.process_time() - begin, "environment": self.environment})
        say(f"{name}, seed {seed}: perplexity {result['perplexity']:.2f}")

    def write_table(self) -> str:
        """Write ``table.json`` and ``table.md`` of whatever is finished; return the latter."""
        rows = []
        if (self.out / "teacher.json").exists():
            rows.append(summary("(the teacher itself)", [read_json(str(self.out / "teacher.json"), "--out")], None))
        for name, row in ROWS.items():
            runs = [read_json(str(path), "--out") for path in sorted((self.out / "rows").glob(f"{name}.*.json"))]
            if runs:
                size = self._bytes_a_token(row.needs) if row.needs in CACHES else None
                rows.append(summary(row.title, runs, size))
        write_json(self.out / "table.json", {"settings": self.settings, "rows": rows})
        write_atomically(self.out / "table.md", markdown(rows).encode())
        return markdown(rows)

    def _bytes_a_token(self, name: str) -> float:
        files = sum(file.stat().st_size for file in (self.out / name).iterdir())
        return files / sum(map(len, self.student_text.sentences))


def known_mass(cache: TeacherCache) -> float:
    """The mean mass of the classes that a cache of a top-k keeps."""
    return 1 - float(torch.cat([teacher.log_rest for teacher in cache]).exp().mean())


def read_sentences(options: Namespace) -> tuple[list[list[str]], list[list[str]]]:
    """Training and test sentences, as words: of two files, or captions of the demo's scenes."""
    if options.train is None:
        lines = [line for index in range(DEMO_SCENES) for line in make_captions(make_scene(1, index), 1, index)]
        parts = [lines[: -len(lines) // 5], lines[-len(lines) // 5 :]]
    else:
        names = (options.train, "--train"), (options.test, "--test")
        parts = [read_lines(existing_file(path, key), key) for path, key in names]
    train_words, test_words = ([line.split() for line in part if line.strip()] for part in parts)
    if not train_words or not test_words:
        raise RecipeError(f"{'--test' if train_words else '--train'}: no sentence in it")
    return train_words, test_words


def parse(arguments: Sequence[str] | None) -> Namespace:
    """Return the options."""
    script = "python examples/distillation/distill.py"
    examples = [f"{script} --out build/distillation", f"{script} --train train.txt --test test.txt --out runs/mine"]
    parser = Parser("distill", description=__doc__ or "", examples=examples)
    add: Callable[..., object] = parser.add_argument
    add("--out", type=Path, required=True, help="folder for the teacher, its caches and the table")
    add("--train", help="text, a tokenised sentence a line, plain or .gz; default: captions of the demo")
    add("--test", help="text that nobody trains on")
    add("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="students to train; default: all of these")
    add("--seeds", nargs="+", type=whole(0, 1000), default=[1, 2, 3], help="a student each; default: 1 2 3")
    add("--sentences", type=whole(1), default=12_000, help="that students read, of the teacher's; default: 12000")
    add("--width", type=whole(4), default=256, help="of the teacher, a quarter for students; default: 256")
    add("--k", type=whole(1), default=12, help="words in the cached top k; default: 12")
    add("--teacher_epochs", type=whole(1), default=1, help="default: 1")
    add("--epochs", type=whole(1), default=3, help="of a student; default: 3")
    add("--min_count", type=whole(1), default=5, help="words seen less often are unknown; default: 5")
    options = parser.parse_args(arguments)
    if (options.train is None) != (options.test is None):
        parser.error("--train and --test are given together or not at all")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status. What goes wrong is one line on stderr."""
    options = parse(arguments)
    try:
        run = Run(options)
        for seed in options.seeds:
            for name in options.rows:
                run.student(name, seed)
                table = run.write_table()
        print(table, end="")
    except (Exception, KeyboardInterrupt) as error:
        status, line = explain(error, lambda: "the same command goes on")
        print(f"distill: error: {line}", file=sys.stderr)
        return status
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
