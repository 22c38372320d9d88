"""Distil a language model: what a teacher's cached distributions teach a student that labels alone do not.

A teacher reads all training text. What it says of each position of some of these sentences is cached, once as its K
likeliest words, once as counts of words drawn from it. Students a quarter as wide then read those sentences and learn
from the labels, from either cache with each treatment of the mass that it leaves out, from a mix of both, or from
labels smoothed over the neighbours that words have in the teacher's embedding. The table says how well each predicts
text that none of them has seen.

Every step leaves a file in --out, so the same command goes on where it was stopped, and a second one with other
--seeds or --rows may work beside it.
"""

from __future__ import annotations

import math
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import smoothloss
import smoothloss.functional as F
from smoothloss import SimilarityTable, targets
from smoothloss._files import write_atomically
from smoothloss.distillation import Teacher, TeacherCache, fingerprint, write_from
from smoothloss_trainer.checkpoint import (
    flatten_optimizer,
    load_checkpoint,
    restore_optimizer,
    save_checkpoint,
    with_prefix,
    without_prefix,
    write_json,
)
from smoothloss_trainer.cli.options import Parser, whole
from smoothloss_trainer.cli.run import explain
from smoothloss_trainer.demo.grammar import make_captions
from smoothloss_trainer.demo.scenes import make_scene
from smoothloss_trainer.errors import RecipeError, RunError, one_line
from smoothloss_trainer.files import existing_file, read_json, read_lines
from smoothloss_trainer.vocabulary import EOS, PAD, SPECIAL_TOKENS, Vocabulary

BATCH, RATE, DROPOUT, CLIP = 32, 2e-3, 0.1, 1.0
DRAWS = 12
LABEL_SHARE = 0.5  # of the label mix
NEIGHBOURS, TAU, ALPHA = 64, 0.1, 0.3  # of similarity smoothing
CHECKPOINT_STEPS = 200
DEMO_SCENES = 300  # of five captions each, when no text is given

# ---- text


class Text(NamedTuple):
    """Sentences as tokens, EOS at their ends."""

    sentences: list[list[int]]

    def batch(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Inputs and labels ``(B, T)`` of some sentences; labels are -100 in padding."""
        chosen = [torch.tensor(self.sentences[number]) for number in numbers]
        labels = nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=-100)
        inputs = torch.cat((torch.full((len(chosen), 1), EOS), labels[:, :-1]), 1)
        return inputs.where(inputs >= 0, PAD), labels

    def batches(self, shuffler: random.Random | None = None) -> list[list[int]]:
        """The numbers of all sentences, those of like length together; in their own order without a shuffler."""
        order = list(range(len(self.sentences)))
        if shuffler is not None:
            shuffler.shuffle(order)
            window = 50 * BATCH
            order = [
                number
                for begin in range(0, len(order), window)
                for number in sorted(order[begin : begin + window], key=lambda number: len(self.sentences[number]))
            ]
        cut = [order[begin : begin + BATCH] for begin in range(0, len(order), BATCH)]
        if shuffler is not None:
            shuffler.shuffle(cut)
        return cut


def read_sentences(options: Any) -> tuple[list[list[str]], list[list[str]]]:
    """Training and test sentences, as words."""
    if options.train is None:
        lines = [line for index in range(DEMO_SCENES) for line in make_captions(make_scene(1, index), 1, index)]
        parts = [lines[: -len(lines) // 5], lines[-len(lines) // 5 :]]
    else:
        names = (options.train, "--train"), (options.test, "--test")
        parts = [read_lines(existing_file(path, key), key) for path, key in names]
    train, test = ([line.split() for line in part if line.strip()] for part in parts)
    if not train or not test:
        raise RecipeError(f"{'--test' if train else '--train'}: no sentence in it")
    return train, test


# ---- model


class LanguageModel(nn.Module):
    """An LSTM whose classifier shares the embedding's weights."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.dropout = nn.Dropout(DROPOUT)
        self.bias = nn.Parameter(torch.zeros(words))

    def forward(self, inputs: Tensor) -> Tensor:
        """Hidden states ``(B, T, width)``; the logits are ``F.linear(hidden, embedding.weight, bias)``."""
        return self.dropout(self.lstm(self.dropout(self.embedding(inputs)))[0])

    def logits(self, inputs: Tensor) -> Tensor:
        """``(B, T, V)``."""
        return nn.functional.linear(self(inputs), self.embedding.weight, self.bias)


class Step(NamedTuple):
    """What a loss may look at: ``loss(hidden, weight, ..., linear_bias=bias)`` needs no logits."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    labels: Tensor
    teacher: Teacher | None
    table: SimilarityTable | None


Loss = Callable[[Step], Tensor]


def train(
    model: LanguageModel,
    text: Text,
    loss: Loss,
    epochs: int,
    seed: int,
    cache: TeacherCache | None = None,
    table: SimilarityTable | None = None,
    checkpoint: Path | None = None,
) -> None:
    """Train with Adam, the rate falling to 0; goes on from a checkpoint, and leaves one now and then."""
    shuffler = random.Random(seed)
    steps = [numbers for _ in range(epochs) for numbers in text.batches(shuffler)]
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    model.train()
    for step in range(resume(checkpoint, model, optimizer), len(steps)):
        torch.manual_seed(1_000_003 * seed + step)  # dropout, the same after an interruption
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / len(steps))
        inputs, labels = text.batch(steps[step])
        teacher = None if cache is None else cache.batch(steps[step], pad=(labels.shape[1], None))
        value = loss(Step(model(inputs), model.embedding.weight, model.bias, labels, teacher, table))
        if not value.isfinite():
            raise RunError(f"the loss is {value.item()} at step {step}")
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        if checkpoint is not None and ((step + 1) % CHECKPOINT_STEPS == 0 or step + 1 == len(steps)):
            tensors, rest = flatten_optimizer(optimizer)
            tensors = with_prefix("model", model.state_dict()) | with_prefix("optimizer", tensors)
            save_checkpoint(checkpoint, tensors, {"step": step + 1, "optimizer": rest})
            say(f"{checkpoint.stem}: step {step + 1} of {len(steps)}, loss {value.item():.3f}")


def resume(checkpoint: Path | None, model: LanguageModel, optimizer: torch.optim.Optimizer) -> int:
    """Put back what a checkpoint holds, if there is one; return the number of steps taken."""
    if checkpoint is None or not checkpoint.exists():
        return 0
    tensors, state = load_checkpoint(checkpoint)
    model.load_state_dict(without_prefix("model", tensors))
    restore_optimizer(optimizer, without_prefix("optimizer", tensors), state["optimizer"])
    return int(state["step"])


@torch.no_grad()
def evaluate(model: LanguageModel, text: Text) -> dict[str, float]:
    """Perplexity, mean entropy of what the model predicts (in nats), accuracy, over all positions, EOS included."""
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64)
    for numbers in text.batches():
        inputs, labels = text.batch(numbers)
        real = labels >= 0
        log_p = model.logits(inputs)[real].log_softmax(-1)
        nll = -log_p.gather(-1, labels[real][:, None]).sum()
        right = (log_p.argmax(-1) == labels[real]).sum()
        sums += torch.stack([nll, -(log_p.exp() * log_p).sum(), right, real.sum()])
    nll, entropy, right = (sums[:3] / sums[3]).tolist()
    return {"perplexity": math.exp(nll), "nll": nll, "entropy": entropy, "accuracy": right}


# ---- rows


class Row(NamedTuple):
    """A student: what the table calls it, the cache that it reads, its loss."""

    title: str
    cache: str | None
    loss: Loss


def from_labels(step: Step) -> Tensor:
    """Maximum likelihood."""
    return F.linear_cross_entropy(step.hidden, step.weight, step.labels, linear_bias=step.bias)


def from_similarity(step: Step) -> Tensor:
    """Labels smoothed over words that are alike in the teacher's embedding."""
    return F.linear_cross_entropy(
        step.hidden, step.weight, step.labels, table=step.table, alpha=ALPHA, linear_bias=step.bias
    )


def from_teacher(missing: str, label_share: float = 0.0) -> Loss:
    """Forward KL from the teacher, or a mix of it and of the labels."""

    def loss(step: Step) -> Tensor:
        target = targets.top_k(step.teacher.indices, step.teacher.log_probs, missing=missing)
        if label_share:
            target = label_share * targets.labels(step.labels) + (1 - label_share) * target
        return F.linear_cross_entropy(step.hidden, step.weight, target, linear_bias=step.bias)

    return loss


ROWS = {
    "labels": Row("labels", None, from_labels),
    "uniform": Row("top k, `uniform`", "top_k", from_teacher("uniform")),
    "renormalize": Row("top k, `renormalize`", "top_k", from_teacher("renormalize")),
    "drop": Row("top k, `drop`", "top_k", from_teacher("drop")),
    "draws": Row("draws", "draws", from_teacher("drop")),
    "mix": Row("draws and labels, half each", "draws", from_teacher("drop", LABEL_SHARE)),
    "similarity": Row("labels, smoothed by similarity", None, from_similarity),
}


# ---- the run


class Run:
    """The files of a folder, and what makes them."""

    def __init__(self, options: Any) -> None:
        self.options, self.out = options, options.out
        train_words, test_words = read_sentences(options)
        self.vocabulary = Vocabulary.build(train_words, options.min_count)
        self.text, self.test = self._text(train_words), self._text(test_words)
        size = min(options.sentences, len(train_words))
        # By length, so that the teacher's batches need little padding when the caches are written.
        chosen = sorted(random.Random(0).sample(self.text.sentences, size), key=len)
        self.student_text = Text(chosen)
        self._check_settings()

    @property
    def size(self) -> int:
        """V."""
        return len(self.vocabulary.words)

    def _text(self, sentences: list[list[str]]) -> Text:
        return Text([[*self.vocabulary.encode(words), EOS] for words in sentences])

    def _check_settings(self) -> None:
        """Refuse a folder of another text or of other sizes."""
        names = ("width", "teacher_epochs", "epochs", "k", "min_count", "sentences")
        self.settings = {
            **{name: getattr(self.options, name) for name in names},
            "draws": DRAWS,
            "vocabulary": self.size,
            "text": fingerprint(self.vocabulary.words, self.text.sentences + self.test.sentences),
        }
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / "settings.json"
        if not path.exists():
            write_json(path, self.settings)
        before = read_json(str(path), "--out")
        other = [name for name, value in self.settings.items() if before.get(name) != value]
        if other:
            raise RecipeError(f"--out: {self.out} holds a run with another {', '.join(other)}: name another folder")

    def teacher(self) -> LanguageModel:
        """The teacher, trained as far as it is not."""
        torch.manual_seed(0)
        model = LanguageModel(self.size, self.options.width)
        checkpoint = self.out / "teacher.safetensors"
        train(model, self.text, from_labels, self.options.teacher_epochs, 0, checkpoint=checkpoint)
        path = self.out / "teacher.json"
        if not path.exists():
            write_json(path, evaluate(model, self.test) | {"parameters": parameters(model)})
        return model.eval()

    def caches(self, teacher: LanguageModel) -> dict[str, TeacherCache]:
        """Both caches, written as far as they are not."""

        def write(name: str, **kept: int) -> TeacherCache:
            return write_from(
                lambda numbers: teacher.logits(self.student_text.batch(numbers)[0]),
                self.student_text.batches(),
                self.out / name,
                vocabulary_size=self.size,
                fingerprint=fingerprint(self.vocabulary.words, self.student_text.sentences),
                lengths=lambda numbers: (self.student_text.batch(numbers)[1] >= 0).sum(-1),
                shard_bytes=1 << 22,
                **kept,
            )

        return {"top_k": write("top_k", k=self.options.k), "draws": write("draws", draws=DRAWS)}

    def student(self, name: str, seed: int, caches: dict[str, TeacherCache], table: SimilarityTable) -> None:
        """Train and evaluate the student of a row, unless that has been done."""
        path = self.row_file(name, seed)
        if path.exists():
            return
        begin, row = time.process_time(), ROWS[name]
        torch.manual_seed(seed)
        model = LanguageModel(self.size, max(1, self.options.width // 4))
        cache = None if row.cache is None else caches[row.cache]
        train(model, self.student_text, row.loss, self.options.epochs, seed, cache, table)
        result = evaluate(model, self.test) | {"parameters": parameters(model)}
        result |= {"cpu_seconds": time.process_time() - begin, "environment": environment()}
        write_json(path, {"row": name, "seed": seed, **result})
        say(f"{name}, seed {seed}: perplexity {result['perplexity']:.2f}")

    def row_file(self, name: str, seed: int) -> Path:
        """Where a student's result belongs."""
        return self.out / "rows" / f"{name}-{seed}.json"

    def table(self, caches: dict[str, TeacherCache]) -> None:
        """Write ``table.json`` and ``table.md`` of all students that there are."""
        teacher = read_json(str(self.out / "teacher.json"), "--out")
        sizes = {name: bytes_a_token(cache, self.student_text) for name, cache in caches.items()}
        rows = []
        for name, row in ROWS.items():
            runs = [read_json(str(path), "--out") for path in sorted((self.out / "rows").glob(f"{name}-*.json"))]
            if runs:
                rows.append({"row": name, "title": row.title, "bytes_a_token": sizes.get(row.cache), "runs": runs})
        content = {"settings": self.settings, "teacher": teacher, "top_k_mass": known_mass(caches["top_k"])}
        write_json(self.out / "table.json", content | {"rows": rows})
        text = markdown(teacher, rows)
        write_atomically(self.out / "table.md", text.encode())
        print(text, end="")


def parameters(model: nn.Module) -> int:
    """How many a model has."""
    return sum(parameter.numel() for parameter in model.parameters())


def known_mass(cache: TeacherCache) -> float:
    """The mean mass of the classes that a cache of a top-k keeps."""
    rest = torch.cat([teacher.log_rest for teacher in cache])
    return 1 - float(rest.exp().mean())


def bytes_a_token(cache: TeacherCache, text: Text) -> float:
    """What a cache takes on disk for each position."""
    files = sum(file.stat().st_size for file in cache.path.iterdir())
    return files / sum(map(len, text.sentences))


def environment() -> dict[str, str]:
    """Return what a figure means nothing without."""
    describe = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip()
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "device": names[0].split(": ", 1)[1] if names else platform.machine(),
        "torch": torch.__version__,
        "smoothloss": smoothloss.__version__,
        "commit": commit or "unknown",
    }


def markdown(teacher: dict[str, float], rows: list[dict[str, Any]]) -> str:
    """Return the table; with several seeds mean ± standard deviation."""

    def over_seeds(runs: list[dict[str, Any]], key: str, digits: int) -> str:
        values = [run[key] for run in runs]
        spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.{digits}f}{spread}"

    lines = [
        "| learns from | perplexity | entropy less loss, nats | accuracy | bytes a token | seeds |",
        "|---|---|---|---|---|---|",
    ]
    everything = [{"title": "(the teacher)", "bytes_a_token": None, "runs": [teacher]}, *rows]
    for row in everything:
        runs = [run | {"gap": run["entropy"] - run["nll"], "percent": 100 * run["accuracy"]} for run in row["runs"]]
        size = "" if row["bytes_a_token"] is None else f"{row['bytes_a_token']:.1f}"
        figures = over_seeds(runs, "perplexity", 2), over_seeds(runs, "gap", 2), f"{over_seeds(runs, 'percent', 1)} %"
        lines.append(f"| {' | '.join([row['title'], *figures, size, str(len(runs))])} |")
    return "\n".join([*lines, ""])


def say(line: str) -> None:
    """Tell on stderr how far things are."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None) -> Any:
    """Return the options."""
    parser = Parser(
        "distill",
        description=__doc__,
        examples=[
            "python examples/distillation/distill.py --out build/distillation",
            "python examples/distillation/distill.py --train train.txt --test test.txt --out runs/distillation",
        ],
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the teacher, its caches and the table")
    parser.add_argument("--train", help="text, a tokenised sentence a line, or .gz; default: captions of the demo")
    parser.add_argument("--test", help="text that nobody trains on")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="students to train")
    parser.add_argument("--seeds", nargs="+", type=whole(0, 1000), default=[1, 2, 3], help="one student each")
    parser.add_argument("--sentences", type=whole(1), default=20_000, help="that students read; the teacher reads all")
    parser.add_argument("--width", type=whole(4), default=512, help="of the teacher; students have a quarter of it")
    parser.add_argument("--k", type=whole(1), default=12, help="words of the top-k cache")
    parser.add_argument("--teacher_epochs", type=whole(1), default=1)
    parser.add_argument("--epochs", type=whole(1), default=3, help="of the students")
    parser.add_argument("--min_count", type=whole(1), default=5, help="words seen less often are unknown")
    options = parser.parse_args(arguments)
    if (options.train is None) != (options.test is None):
        parser.error("--train and --test are given together or not at all")
    return options


def run(options: Any) -> None:
    """Do what is not done, and write the table."""
    whole_run = Run(options)
    teacher = whole_run.teacher()
    with one_line():
        caches = whole_run.caches(teacher)
    table = SimilarityTable.from_embeddings(teacher.embedding.weight, k=NEIGHBOURS, tau=TAU, exclude=SPECIAL_TOKENS)
    (whole_run.out / "rows").mkdir(exist_ok=True)
    for seed in options.seeds:
        for name in options.rows:
            whole_run.student(name, seed, caches, table)
            whole_run.table(caches)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status. What goes wrong is one line on stderr."""
    options = parse(arguments)
    try:
        run(options)
    except (Exception, KeyboardInterrupt) as error:
        status, line = explain(error, lambda: "the same command goes on")
        print(f"distill: error: {line}", file=sys.stderr)
        return status
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
