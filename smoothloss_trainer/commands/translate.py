"""``smoothloss translate``."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence

from smoothloss_trainer.commands.decoding import decoding_of
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.evaluation import Search
from smoothloss_trainer.files import STDIN, existing_input
from smoothloss_trainer.models import is_run, open_readers
from smoothloss_trainer.new_input import Form, Item, Sink, find_outputs, line_batches
from smoothloss_trainer.tasks.translation.reader import TranslationReader


def run(options: argparse.Namespace) -> None:
    """Translate the lines of a file or of standard input."""
    runs, file = _runs_and_file(options.words)
    decoding = decoding_of(runs[0], options, n_best=1)
    sink = Sink(options.out)
    source = existing_input(file or STDIN, "FILE")
    reader, model, device = open_readers(runs, options.device)
    if not isinstance(reader, TranslationReader):
        raise RecipeError(f"{runs[0]} is a run of the task {reader.recipe.task}: see smoothloss caption")
    several = decoding.n_best > 1
    text = reader.words if options.tokenized else reader.text
    form = Form(text, names=several or options.scores, scores=options.scores, json=options.json, several=several)
    # Draws depend on the batches: those must not depend on how fast lines come in.
    batches = line_batches(source, decoding.batch_size, eager=decoding.method == "beam")
    tokens = _tokens(reader, batches, options.max_input)
    for found in find_outputs(tokens, reader.tensors, Search(model, decoding, device)):
        sink.write([line for number, hypotheses in found for line in form.lines(number, hypotheses)])
    sink.close()


def _runs_and_file(words: Sequence[str]) -> tuple[list[str], str | None]:
    """The first word is a run, and so are those after it that name one; one more may be the file."""
    runs = [words[0]]
    rest = list(words[1:])
    while rest and is_run(rest[0]):
        runs.append(rest.pop(0))
    if len(rest) > 1:
        raise RecipeError(f"expected runs and one file, got {rest[0]} and {rest[1]}, of which the first is no run")
    return runs, rest[0] if rest else None


def _tokens(
    reader: TranslationReader, batches: Iterable[Sequence[tuple[int, str]]], longest: int
) -> Iterator[list[Item]]:
    for batch in batches:
        inputs: list[Item] = []
        for number, line in batch:
            tokens = reader.tokens(line)
            if len(tokens) > longest:
                problem = f"has {len(tokens)} tokens, and --max_input is {longest}"
                raise RecipeError(f"line {number} {problem}: a line should be a sentence")
            inputs.append((number, tokens))
        yield inputs
