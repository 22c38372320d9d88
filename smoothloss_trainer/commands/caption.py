"""``smoothloss caption``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from smoothloss_trainer.commands.decoding import decoding_of
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.evaluation import Search
from smoothloss_trainer.models import is_run, open_readers
from smoothloss_trainer.new_input import Form, Sink, find_outputs
from smoothloss_trainer.tasks.captioning.reader import CaptionReader


def run(options: argparse.Namespace) -> None:
    """Caption images, or features of images."""
    runs, inputs = _runs_and_inputs(options.words)
    decoding = decoding_of(runs[0], options, n_best=1)
    sink = Sink(options.out)
    reader, model, device = open_readers(runs, options.device)
    if not isinstance(reader, CaptionReader):
        raise RecipeError(f"{runs[0]} is a run of the task {reader.recipe.task}: see smoothloss translate")
    how = {name: getattr(options, name) for name in ("weights", "grid", "size")}
    names = reader.open(inputs, how, str(device))
    several = decoding.n_best > 1
    columns = {"names": options.names or several or options.scores, "scores": options.scores}
    form = Form(reader.text, **columns, json=options.json, several=several)
    size = decoding.batch_size
    batches = ([(name, name) for name in names[start : start + size]] for start in range(0, len(names), size))
    for found in find_outputs(batches, reader.tensors, Search(model, decoding, device)):
        sink.write([line for name, hypotheses in found for line in form.lines(name, hypotheses)])
    sink.close()


def _runs_and_inputs(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The first word is a run, and so are those after it that name one; the others are the input."""
    count = 1
    while count < len(words) and is_run(words[count]):
        count += 1
    if count == len(words):
        raise RecipeError("there is nothing to caption: after the run, name images, a folder of them, or features")
    return list(words[:count]), list(words[count:])
