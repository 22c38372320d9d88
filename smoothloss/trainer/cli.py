"""The command line: ``smoothloss train | evaluate | average | features | score | reproduce | table | demo``."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from smoothloss.rewards.bleu import Smoothing

DESCRIPTION = """\
Train sequence models with token-level and sequence-level loss smoothing.

  smoothloss train recipes/translation/mle.yaml              train what a recipe describes
  smoothloss train RECIPE --training.epochs 3 --resume       override any key; go on after a crash
  smoothloss train RECIPE --help                             every key of the recipe's task, with its meaning
  smoothloss evaluate runs/mle --split test --beam_size 5    score a run's best checkpoint
  smoothloss evaluate runs/a runs/b --out runs/a+b           score the ensemble of several
  smoothloss average runs/mle --last 3                       average the last models that a run kept
  smoothloss features IMAGES --out features.npy              what a ResNet sees of your images, for captioning
  smoothloss score output.txt reference.txt --tokenize 13a   BLEU, ROUGE-L and CIDEr-D of text or COCO captions
  smoothloss report runs/mle runs/tok --out report.html      runs side by side: curves, scores, examples, settings
  smoothloss reproduce recipes/tables/multi30k.yaml          all runs of a table, and the table
  smoothloss table build VECTORS --vocabulary V.json --out table.safetensors
  smoothloss table show runs/tok/table.safetensors --vocabulary runs/tok/vocabulary.target.json dog
  smoothloss demo                                            a few minutes from nothing to a report

`python -m smoothloss` tells what of the library works on this machine."""

TRAIN_EPILOG = """\
A recipe is a YAML file; `base: other.yaml` inherits from another one. Any key can be given on the command line as
--section.key value, for example --training.batch_size 32 or --loss.alpha 0.5; `smoothloss train RECIPE --help` lists
them. Paths may use environment variables such as ${SMOOTHLOSS_DATA}.

The run directory gets the recipe, vocabularies, metrics.jsonl, the checkpoints `last` and `best`, and the test scores
and hypotheses. After a crash, the same command with --resume goes on from the last checkpoint and gives the same losses
as if nothing had happened."""


DECODING_OPTIONS = {
    "beam_size": (int, "hypotheses kept; 1 is greedy search"),
    "length_penalty": (float, "ranks by log-probability / length ** this"),
    "max_length": (int, "longest output in tokens"),
    "n_best": (int, "hypotheses written per input, with their scores"),
    "no_repeat_ngram_size": (int, "no n-gram of this size twice in an output"),
    "temperature": (float, "sample: draws from softmax(logits / temperature)"),
    "top_k": (int, "sample: draws from the so many most probable tokens"),
    "top_p": (float, "sample: draws from the fewest tokens that make up this mass"),
    "seed": (int, "sample: seeds the draws"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 for a user's error, which is one line on stderr."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    if words[:1] == ["train"] and len(words) > 1 and not words[1].startswith("-") and {"-h", "--help"} & set(words[2:]):
        return _run(_train_help, argparse.Namespace(recipe=words[1]))
    options, rest = parser.parse_known_args(words)
    if rest and options.command not in ("train", "reproduce"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.overrides = rest
    return _run(options.function, options)


def _run(function: object, options: argparse.Namespace) -> int:
    try:
        from smoothloss.trainer.errors import RecipeError
    except ImportError as error:
        return _fail(f"the trainer needs the package {error.name}: pip install 'smoothloss[train]'")
    # So that what is to be done on the way out is done: `reproduce` and `demo` end the runs they have started.
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if in_main else None
    try:
        function(options)  # type: ignore[operator]
    except (RecipeError, OSError) as error:
        return _fail(str(error))
    except ImportError as error:
        return _fail(str(error) if "pip install" in str(error) else f"{error}: pip install 'smoothloss[train]'")
    except KeyboardInterrupt:
        return _fail("interrupted; --resume goes on from the last checkpoint", code=130)
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)
    return 0


def _fail(message: str, code: int = 2) -> int:
    sys.stderr.write(f"smoothloss: error: {message}\n")
    return code


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("smoothloss", description=DESCRIPTION, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train", help="train what a recipe describes", epilog=TRAIN_EPILOG, formatter_class=raw, allow_abbrev=False
    )
    train.add_argument("recipe", metavar="RECIPE", help="a YAML file")
    train.add_argument("--out", metavar="DIR", help="run directory (default: runs/<name of the recipe>)")
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the run directory")
    train.add_argument("--overwrite", action="store_true", help="remove the run that is there and start anew")
    train.set_defaults(function=_train)
    _add_evaluate(commands)
    average = commands.add_parser(
        "average", help="average the last validated models of a run (training.keep_checkpoints)"
    )
    average.add_argument("run", metavar="RUN", help="a run directory")
    average.add_argument("--last", type=int, metavar="N", help="how many (default: all that were kept)")
    average.set_defaults(function=_average)
    compare = commands.add_parser("report", help="write an HTML report on runs side by side")
    compare.add_argument("runs", metavar="RUN", nargs="+", help="run directories; the first is the baseline")
    compare.add_argument(
        "--split", help="whose scores and outputs are shown (default: the first run's first test split)"
    )
    compare.add_argument("--out", metavar="FILE", default="report.html", help="default: %(default)s")
    compare.set_defaults(function=_report)
    _add_features(commands)
    _add_score(commands)
    _add_reproduce(commands)
    _add_table(commands)
    demo = commands.add_parser("demo", help="train MLE and lazy Tok-Seq on small scenes, and write an HTML report")
    demo.add_argument("--out", metavar="DIR", default="runs/demo", help="where the runs and the report go")
    demo.set_defaults(function=_demo)
    return parser


def _add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    evaluate = commands.add_parser("evaluate", help="score the best checkpoint of a run, or an ensemble")
    evaluate.add_argument(
        "checkpoints",
        metavar="RUN",
        nargs="+",
        help="run directories, or checkpoint files in them; several: an ensemble",
    )
    evaluate.add_argument("--split", help="validation, or a test split of the recipe (default: all test splits)")
    evaluate.add_argument("--out", metavar="DIR", help="where scores and hypotheses go (default: the run directory)")
    evaluate.add_argument("--device", help="auto, cpu, cuda, cuda:1 (default: the recipe's)")
    decoding = evaluate.add_argument_group("decoding", "in place of what the recipe says (of the first run)")
    decoding.add_argument("--method", choices=("beam", "sample"), help="search for the best outputs, or draw them")
    decoding.add_argument("--suppress_unk", action=argparse.BooleanOptionalAction, help="never write the unknown word")
    for name, (kind, explanation) in DECODING_OPTIONS.items():
        decoding.add_argument(f"--{name}", type=kind, help=explanation)
    evaluate.set_defaults(function=_evaluate)


def _add_features(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    features = commands.add_parser("features", help="extract ResNet features from a folder of images")
    features.add_argument("folder", metavar="FOLDER", help="images, in subfolders too")
    features.add_argument("--out", required=True, metavar="FILE", help=".npy or .h5, for a recipe's data.features")
    where = "a ResNet on the hub of transformers, or a folder with its safetensors (default: microsoft/resnet-152)"
    features.add_argument("--weights", metavar="NAME", default="microsoft/resnet-152", help=where)
    grid = "keep N x N regions for attention; 0 keeps one vector (default: 0)"
    features.add_argument("--grid", type=int, metavar="N", default=0, help=grid)
    side = "side in pixels that images are resized to (default: 224, whose map has 7 x 7 positions)"
    features.add_argument("--size", type=int, metavar="PIXELS", default=224, help=side)
    features.add_argument("--half", action="store_true", help="write float16: half the disk")
    features.add_argument("--batch_size", type=int, default=32, help="images at a time (default: 32)")
    features.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    features.set_defaults(function=_features)


SCORE_EPILOG = """\
Text files hold one text a line, several reference files as many references each; an empty line is none. JSON files hold
COCO results [{"image_id", "caption"}] and annotations, or {id: text} and {id: [texts]}; references of other ids are
left out. All may be .gz.

BLEU-1 to 4, ROUGE-L and CIDEr-D equal coco-caption's, BLEU equals sacrebleu's. Text is split at spaces as it stands
unless --tokenize says otherwise: 13a and intl are sacrebleu's; ptb-like stands in for coco-caption's Java tokeniser,
which lowercases and drops punctuation, and differs from it in 0.08 % of COCO's captions. CIDEr-D takes its document
frequencies from the references that are scored, as coco-caption does, or from --df."""


def _add_score(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    score = commands.add_parser(
        "score", help="BLEU, ROUGE-L and CIDEr-D of candidates in a file", epilog=SCORE_EPILOG, formatter_class=raw
    )
    score.add_argument("candidates", metavar="CANDIDATES", help="text or JSON")
    score.add_argument("references", metavar="REFERENCES", nargs="+", help="text files, or one JSON file")
    score.add_argument("--tokenize", default="none", choices=("none", "13a", "intl", "ptb-like"))
    score.add_argument("--lowercase", action="store_true", help="before it is tokenised")
    smoothings = "none, floor, add-k, exp (sacrebleu's), add-k-all (the paper's reward), coco"
    score.add_argument(
        "--sentence_bleu",
        metavar="SMOOTHING",
        choices=get_args(Smoothing),
        help=f"mean sentence BLEU too: {smoothings}",
    )
    score.add_argument("--meteor", action="store_true", help="METEOR 1.5 too, by pycocoevalcap and Java")
    score.add_argument("--spice", action="store_true", help="SPICE too, by pycocoevalcap, Java 8 and CoreNLP's models")
    score.add_argument("--df", metavar="FILE", help="document frequencies from these references, text or JSON")
    score.add_argument("--out", metavar="FILE", help="JSON with signature, scores and those of every sentence")
    score.set_defaults(function=_score)


def _add_reproduce(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    reproduce = commands.add_parser(
        "reproduce", help="train the runs of a table, as far as they are missing, and write it", allow_abbrev=False
    )
    reproduce.add_argument("table", metavar="TABLE", help="a YAML file, such as recipes/tables/multi30k.yaml")
    reproduce.add_argument("--out", metavar="DIR", help="runs and table (default: runs/<name of the table's file>)")
    reproduce.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="only these, and the baseline")
    reproduce.add_argument("--seeds", nargs="+", type=int, default=[], metavar="SEED", help="instead of the table's")
    reproduce.add_argument("--jobs", type=int, default=1, help="runs side by side, sharing the cores (default: 1)")
    reproduce.add_argument(
        "--no-train", dest="train", action="store_false", help="only write the table of what is there"
    )
    reproduce.set_defaults(function=_reproduce)


def _add_table(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    table = commands.add_parser("table", help="build a similarity table, or look into one")
    actions = table.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = actions.add_parser("build", help="a table from word vectors and a vocabulary; prints the mass it keeps")
    build.add_argument("vectors", metavar="VECTORS", help="GloVe or word2vec text (.gz too), or .npz")
    build.add_argument("--vocabulary", required=True, metavar="V.json", help="vocabulary file of a run")
    build.add_argument("--out", required=True, metavar="FILE", help="the table, .safetensors")
    build.add_argument("--tau", type=float, default=0.1, help="temperature on the full cosine (default: 0.1)")
    build.add_argument("--beta", type=float, default=0.0, help="promotion of rare tokens (default: 0)")
    build.add_argument("--neighbours", type=int, default=64, help="entries kept per row (default: 64)")
    build.add_argument("--tail", default="uniform", choices=("uniform", "renormalize", "exact"))
    build.set_defaults(function=_table_build)
    show = actions.add_parser("show", help="a word's neighbours and their mass")
    show.add_argument("table", metavar="TABLE", help="a table.safetensors")
    show.add_argument("word", metavar="WORD", nargs="+", help="words of the vocabulary")
    show.add_argument("--vocabulary", required=True, metavar="V.json", help="vocabulary file of the same run")
    show.add_argument("--neighbours", type=int, default=10, help="how many to show (default: 10)")
    show.set_defaults(function=_table_show)


def _train_help(options: argparse.Namespace) -> None:
    from smoothloss.trainer.recipes import read_yaml, recipe_parser

    recipe_parser(str(read_yaml(Path(options.recipe)).get("task", ""))).print_help()


def _train(options: argparse.Namespace) -> None:
    from smoothloss.trainer.errors import RecipeError
    from smoothloss.trainer.loop import train
    from smoothloss.trainer.recipes import load_recipe
    from smoothloss.trainer.run import RunDirectory

    if options.resume and options.overwrite:
        raise RecipeError("--resume and --overwrite exclude each other")
    recipe = load_recipe(options.recipe, options.overrides)
    run = RunDirectory(options.out or Path("runs") / recipe.name)
    for split, scores in train(recipe, run, resume=options.resume, overwrite=options.overwrite).items():
        _print_scores(split, scores)


def _evaluate(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from smoothloss.trainer.errors import RecipeError
    from smoothloss.trainer.evaluation import evaluate_into
    from smoothloss.trainer.models import open_checkpoints
    from smoothloss.trainer.recipes import check_decoding

    if options.out is None and (len(options.checkpoints) > 1 or Path(options.checkpoints[0]).is_file()):
        raise RecipeError("evaluating other than a run's best checkpoint needs --out, where the scores go")
    splits = [options.split] if options.split else None
    recipe, task, model, device = open_checkpoints(options.checkpoints, options.device, splits)
    given = {name: getattr(options, name) for name in (*DECODING_OPTIONS, "method", "suppress_unk")}
    decoding = replace(recipe.decoding, **{name: value for name, value in given.items() if value is not None})
    check_decoding(decoding)
    folder = Path(options.out or options.checkpoints[0])
    for split, scores in evaluate_into(folder, task, model, splits or task.test_splits, decoding, device):
        _print_scores(split, scores)


def _average(options: argparse.Namespace) -> None:
    from smoothloss.trainer.models import average_run
    from smoothloss.trainer.run import RunDirectory

    path = average_run(RunDirectory(options.run), options.last)
    sys.stdout.write(f"{path}\n")


def _report(options: argparse.Namespace) -> None:
    from smoothloss.trainer import report
    from smoothloss.trainer.run import RunDirectory

    report.write([RunDirectory(path) for path in options.runs], options.out, split=options.split)
    sys.stdout.write(f"{options.out}\n")


def _print_scores(split: str, scores: dict[str, float | str]) -> None:
    shown = (f"{key} {value:.2f}" if isinstance(value, float) else f"({value})" for key, value in scores.items())
    sys.stdout.write(f"{split}: {'  '.join(shown)}\n")


def _features(options: argparse.Namespace) -> None:
    from smoothloss.trainer.tasks.captioning.extract import Extraction, extract_features

    how = Extraction(**{key: value for key, value in vars(options).items() if key in Extraction.__dataclass_fields__})
    shape = extract_features(options.folder, options.out, how)
    sys.stdout.write(f"{options.out}: {' x '.join(map(str, shape))}\n")


def _score(options: argparse.Namespace) -> None:
    from smoothloss.trainer.score import score_files

    sys.stdout.write(score_files(options) + "\n")


def _reproduce(options: argparse.Namespace) -> None:
    from smoothloss.trainer.reproduce import reproduce

    path = Path(options.table)
    written = reproduce(
        path, Path(options.out or Path("runs") / path.stem), rows=options.rows, seeds=options.seeds, jobs=options.jobs,
        overrides=options.overrides, train=options.train,
    )  # fmt: skip
    sys.stdout.write(written.read_text(encoding="utf-8"))


def _table_build(options: argparse.Namespace) -> None:
    from smoothloss.trainer.table import build_table_file

    sys.stdout.write(build_table_file(options) + "\n")


def _table_show(options: argparse.Namespace) -> None:
    from smoothloss.trainer.table import describe_words

    sys.stdout.write(describe_words(options.table, options.vocabulary, options.word, options.neighbours) + "\n")


def _demo(options: argparse.Namespace) -> None:
    from smoothloss.trainer.demo import run_demo

    run_demo(Path(options.out))


if __name__ == "__main__":
    sys.exit(main())
