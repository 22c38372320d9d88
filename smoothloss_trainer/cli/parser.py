"""The words of the command line: every command's arguments, help and examples."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import smoothloss
from smoothloss_trainer.cli.options import Parser, Subcommands, add_decoding, add_device, did_you_mean, real, whole

DESCRIPTION = """\
Train sequence models with token-level and sequence-level loss smoothing, and use them.

  smoothloss recipes                                         the recipes and tables that come with the package
  smoothloss train multi30k/mle                              train what a recipe describes
  smoothloss train RECIPE --training.epochs 3 --resume       override any key; go on after a crash
  smoothloss train RECIPE --help                             every key of the recipe's task, with its meaning
  echo "ein Mann fährt Rad" | smoothloss translate runs/mle  translate text from a file or a pipe
  smoothloss caption runs/captions my/images                 caption images, or their features
  smoothloss evaluate runs/mle --split test --beam_size 5    score a run's best checkpoint
  smoothloss evaluate runs/a runs/b --out runs/a+b           score the ensemble of several
  smoothloss average runs/mle --last 3                       average the last models that a run kept
  smoothloss features my/images --out features.npy           what a ResNet sees of your images, for captioning
  smoothloss score output.txt reference.txt --tokenize 13a   BLEU, ROUGE-L and CIDEr-D of text or COCO captions
  smoothloss report runs/mle runs/tok --out report.html      runs side by side: curves, scores, examples, settings
  smoothloss reproduce tables/multi30k                       all runs of a table, and the table
  smoothloss tune multi30k/seq_space                         settings of a recipe, chosen on the validation part
  smoothloss table build VECTORS --vocabulary V.json --out table.safetensors
  smoothloss table show runs/tok/table.safetensors --vocabulary runs/tok/vocabulary.target.json dog
  smoothloss cache inspect teacher                           what a cache of a teacher's probabilities holds
  smoothloss profile multi30k/mle                            where the time of a training step goes
  smoothloss demo                                            a few minutes from nothing to a report

`python -m smoothloss` tells what of the library works on this machine."""

EPILOG = """\
exit status: 0; 2 when something given is wrong; 1 when it is right and still failed (a full disk, a missing package);
130, 143 when Ctrl-C or SIGTERM ended the command. SMOOTHLOSS_TRACEBACK=1 shows where an error comes from."""

TRAIN_EPILOG = """\
A recipe is a YAML file, or the name of one of `smoothloss recipes`; `base: other.yaml` inherits from another one. Any
key can be given on the command line as --section.key value, for example --training.batch_size 32 or --loss.alpha 0.5;
`smoothloss train RECIPE --help` lists them. Relative paths are looked for beside the recipe, then in the working folder
(those of the command line in the latter alone); ${SMOOTHLOSS_DATA} and ~ are filled in.

The run directory gets the recipe, vocabularies, metrics.jsonl, the checkpoints `last` and `best`, and the test scores
and hypotheses. After a crash, the same command with --resume goes on from the last checkpoint and gives the same losses
as if nothing had happened."""

TUNE_EPILOG = """\
The recipe says what may vary in a section of its own:

  base: seq.yaml
  tune:
    trials: 20                        # a first one with the recipe's own settings
    space:
      loss.alpha: [0.05, 0.9]         # from ... to; whole numbers where the key takes whole numbers
      loss.tau: {log: [0.03, 1]}      # the same on a logarithmic scale; log alone: the recipe's value, / 4 to x 4
      loss.pool: {choices: [batch, vocabulary]}

Optuna draws; a trial behind the median of the others is stopped; the test part is not read. The same command goes on
after a kill, and with more --trials. DIR gets tune.md, tune.json, tune.png, report.html and best.yaml, a recipe."""

OUTPUT_EPILOG = """\
One line an input, in the order of the inputs, written as soon as it is there. With --n_best or --scores the lines are
columns separated by tabs: the input's {name}, with --scores the score it is ranked by (log-probability /
length ** length_penalty), the text; with --n_best N there are up to N such lines an input, the best first. With --json
a line is {{"input": {name}, "hypotheses": [{{"text", "score"}}, ...]}}. Nothing of the training data is needed."""

SCORE_EPILOG = """\
Text files hold one text a line, several reference files as many references each; an empty line is none. JSON files hold
COCO results [{"image_id", "caption"}] and annotations, or {id: text} and {id: [texts]}; references of other ids are
left out. A run's nbest.*.jsonl stands for its best outputs. Text and JSON can be scored against each other where their
numbers agree. All may be .gz, a pipe, or - for the standard input.

BLEU-1 to 4, ROUGE-L and CIDEr-D equal coco-caption's, BLEU equals sacrebleu's. Text is split at spaces as it stands
unless --tokenize says otherwise: 13a and intl are sacrebleu's; ptb-like stands in for coco-caption's Java tokeniser,
which lowercases and drops punctuation, and differs from it in 0.08 % of COCO's captions. CIDEr-D takes its document
frequencies from the references that are scored, as coco-caption does, or from --df."""

CACHE_EPILOG = """\
MODULE is looked for from the working folder on. FUNCTION is called without arguments and returns a dict with the
arguments of smoothloss.distillation.write_from: `teacher`, a callable that returns logits (B, T, V) or a Teacher;
`batches`, what it is called with, in the same order each time; `vocabulary_size`; `fingerprint`; and where they are
wanted `lengths`, `ids`, `log_rest`, `num_sequences`, `shard_bytes`."""

SMOOTHINGS = ("none", "floor", "add-k", "exp", "add-k-all", "coco")  # smoothloss.rewards.bleu.Smoothing, torch unread


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The options of a command line; ``command`` names a module of :mod:`smoothloss_trainer.commands`.

    Raises:
        SystemExit: after ``--help`` and ``--version`` (0), and for words that are no command (2), in one line.
    """
    words = list(words)
    parser, commands = build()
    if words[:1] == ["train"] and len(words) > 1 and not words[1].startswith("-") and {"-h", "--help"} & set(words[2:]):
        return argparse.Namespace(command="train", recipe=words[1], describe=True)
    if words and not words[0].startswith("-") and words[0] not in commands:
        parser.error(f"there is no command {words[0]!r}{did_you_mean(words[0], commands)}")
    if words and words[0].startswith("-"):
        parser.refuse_unknown([word for word in words if word not in ("-h", "--help", "--version")][:1])
    if not words:
        parser.error(f"a command is needed: {', '.join(commands)}")
    options, rest = parser.parse_known_args(words)
    if options.command not in ("train", "reproduce", "tune", "profile"):
        options.parser.refuse_unknown(rest)
    options.overrides = rest
    return options


def build() -> tuple[Parser, dict[str, Parser]]:
    """The parser, and those of the commands by name."""
    parser = Parser("smoothloss", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"smoothloss {smoothloss.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    use = (_recipes, _train, _translate, _caption, _evaluate, _average, _report)
    for add in (*use, _features, _score, _reproduce, _tune, _table, _cache, _profile, _demo):
        add(commands)
    for command in commands.choices.values():
        command.set_defaults(parser=command)
    return parser, dict(commands.choices)


def _recipes(commands: Subcommands) -> None:
    text = "list the recipes and tables that come with the package, or print one"
    examples = ("smoothloss recipes", "smoothloss recipes multi30k/mle")
    recipes = commands.add_parser("recipes", help=text, description=text, examples=examples)
    recipes.add_argument("name", metavar="NAME", nargs="?", help="the one to print")


def _train(commands: Subcommands) -> None:
    examples = (
        "smoothloss train multi30k/mle --out runs/mle",
        "smoothloss train multi30k/mle --out runs/mle --training.epochs 20 --resume",
        "smoothloss train multi30k/mle --help",
    )
    text = "train what a recipe describes"
    train = commands.add_parser("train", help=text, description=text, epilog=TRAIN_EPILOG, examples=examples)
    train.add_argument("recipe", metavar="RECIPE", help="a YAML file, or a name such as multi30k/mle")
    train.add_argument("--out", metavar="DIR", help="run directory (default: runs/<name of the recipe>)")
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the run directory")
    train.add_argument("--overwrite", action="store_true", help="remove the run that is there and start anew")
    train.set_defaults(describe=False)


def _add_output(parser: Parser) -> None:
    """How the outputs for new input are written."""
    parser.add_argument("--out", metavar="FILE", help="where the outputs go (default: standard output)")
    parser.add_argument("--scores", action="store_true", help="a column with the score of each output")
    parser.add_argument("--json", action="store_true", help="a JSON object a line, with scores")
    add_device(parser)
    add_decoding(parser)


def _translate(commands: Subcommands) -> None:
    examples = (
        'echo "ein Mann fährt Rad" | smoothloss translate runs/mle',
        "smoothloss translate runs/mle text.de --out text.en --beam_size 5",
        "smoothloss translate runs/seed1 runs/seed2 text.de",
        "smoothloss translate runs/mle text.de --n_best 3 --scores",
    )
    text = "translate text with a trained run, or an ensemble"
    epilog = OUTPUT_EPILOG.format(name="number from 1")
    translate = commands.add_parser("translate", help=text, description=text, epilog=epilog, examples=examples)
    runs = "a run directory, or a checkpoint file in one; several: an ensemble. The last word may be the FILE: "
    lines = "UTF-8 text, .gz or plain, a sentence a line; - or none: standard input"
    translate.add_argument("words", metavar="RUN [RUN ...] [FILE]", nargs="+", help=runs + lines)
    translate.add_argument("--tokenized", action="store_true", help="write words as the model does, not detokenised")
    longest = "longest sentence in tokens; a longer one is an error (default: %(default)s)"
    translate.add_argument("--max_input", type=whole(1), metavar="N", default=1000, help=longest)
    _add_output(translate)


def _caption(commands: Subcommands) -> None:
    examples = (
        "smoothloss caption runs/captions my/images",
        "smoothloss caption runs/captions features.npy --names --out captions.tsv",
        "smoothloss caption runs/captions dog.jpg cat.png --weights microsoft/resnet-152 --grid 7",
        "smoothloss caption runs/seed1 runs/seed2 my/images --beam_size 5",
    )
    text = "caption images, or their features, with a trained run, or an ensemble"
    epilog = OUTPUT_EPILOG.format(name="name")
    caption = commands.add_parser("caption", help=text, description=text, epilog=epilog, examples=examples)
    what = "a run directory, or a checkpoint file in one; several: an ensemble. Then images, or folders of them, for a "
    what += "run trained on what `smoothloss features` wrote and for the demo's (- reads their names from a pipe); or "
    what += "what the recipe takes: features as .npy, .npz, .h5 or a folder of such, a JSON with labels or boxes"
    caption.add_argument("words", metavar="RUN [RUN ...] INPUT [INPUT ...]", nargs="+", help=what)
    caption.add_argument("--names", action="store_true", help="a column with the name of each image")
    made = caption.add_argument_group(
        "features of images", "as of `smoothloss features`; where the run says how its features were made, from there"
    )
    made.add_argument("--weights", metavar="NAME", help="a ResNet on the hub of transformers, or a folder with one")
    made.add_argument("--grid", type=whole(0), metavar="N", help="N x N regions; 0: one vector")
    made.add_argument("--size", type=whole(32), metavar="PIXELS", help="side that images are resized to")
    _add_output(caption)


def _evaluate(commands: Subcommands) -> None:
    examples = (
        "smoothloss evaluate runs/mle --split test --beam_size 5 --n_best 5",
        "smoothloss evaluate runs/seed1 runs/seed2 --out runs/ensemble",
        "smoothloss evaluate runs/mle/checkpoints/average.safetensors --out runs/mle/averaged",
    )
    text = "score the best checkpoint of a run, or an ensemble"
    evaluate = commands.add_parser("evaluate", help=text, description=text, examples=examples)
    checkpoints = "run directories, or checkpoint files in them; several: an ensemble"
    evaluate.add_argument("checkpoints", metavar="RUN", nargs="+", help=checkpoints)
    evaluate.add_argument("--split", help="validation, or a test split of the recipe (default: all test splits)")
    evaluate.add_argument("--out", metavar="DIR", help="where scores and hypotheses go (default: the run directory)")
    add_device(evaluate)
    add_decoding(evaluate)


def _average(commands: Subcommands) -> None:
    text = "average the last validated models of a run (training.keep_checkpoints)"
    examples = ("smoothloss average runs/mle --last 3",)
    average = commands.add_parser("average", help=text, description=text, examples=examples)
    average.add_argument("run", metavar="RUN", help="a run directory")
    average.add_argument("--last", type=whole(1), metavar="N", help="how many (default: all that were kept)")


def _report(commands: Subcommands) -> None:
    text = "write an HTML report on runs side by side"
    examples = ("smoothloss report runs/mle runs/tok --out report.html",)
    report = commands.add_parser("report", help=text, description=text, examples=examples)
    report.add_argument("runs", metavar="RUN", nargs="+", help="run directories; the first is the baseline")
    report.add_argument(
        "--split", help="whose scores and outputs are shown (default: the first run's first test split)"
    )
    report.add_argument("--out", metavar="FILE", default="report.html", help="default: %(default)s")


def _features(commands: Subcommands) -> None:
    text = "extract ResNet features from a folder of images"
    examples = (
        "smoothloss features my/images --out features.npy",
        "smoothloss features my/images --out features.h5 --grid 7 --half",
    )
    features = commands.add_parser("features", help=text, description=text, examples=examples)
    features.add_argument("folder", metavar="FOLDER", help="images, in subfolders too")
    features.add_argument("--out", required=True, metavar="FILE", help=".npy or .h5, for a recipe's data.features")
    where = "a ResNet on the hub of transformers, or a folder with its safetensors (default: %(default)s)"
    features.add_argument("--weights", metavar="NAME", default="microsoft/resnet-152", help=where)
    grid = "keep N x N regions for attention; 0 keeps one vector (default: 0)"
    features.add_argument("--grid", type=whole(0), metavar="N", default=0, help=grid)
    side = "side in pixels that images are resized to (default: 224, whose map has 7 x 7 positions)"
    features.add_argument("--size", type=whole(32), metavar="PIXELS", default=224, help=side)
    features.add_argument("--half", action="store_true", help="write float16: half the disk")
    features.add_argument("--batch_size", type=whole(1), default=32, help="images at a time (default: 32)")
    features.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")


def _score(commands: Subcommands) -> None:
    text = "BLEU, ROUGE-L and CIDEr-D of candidates in a file"
    examples = (
        "smoothloss score output.txt reference.txt --tokenize 13a",
        "smoothloss score captions.json annotations.json --tokenize ptb-like --out scores.json",
    )
    score = commands.add_parser("score", help=text, description=text, epilog=SCORE_EPILOG, examples=examples)
    score.add_argument("candidates", metavar="CANDIDATES", help="text or JSON")
    score.add_argument("references", metavar="REFERENCES", nargs="+", help="text files, or one JSON file")
    score.add_argument("--tokenize", default="none", choices=("none", "13a", "intl", "ptb-like"))
    score.add_argument("--lowercase", action="store_true", help="before it is tokenised")
    mean = "mean sentence BLEU too: none, floor, add-k, exp (sacrebleu's), add-k-all (the paper's reward), coco"
    score.add_argument("--sentence_bleu", metavar="SMOOTHING", choices=SMOOTHINGS, help=mean)
    score.add_argument("--meteor", action="store_true", help="METEOR 1.5 too, by pycocoevalcap and Java")
    score.add_argument("--spice", action="store_true", help="SPICE too, by pycocoevalcap, Java 8 and CoreNLP's models")
    score.add_argument("--df", metavar="FILE", help="document frequencies from these references, text or JSON")
    score.add_argument("--out", metavar="FILE", help="JSON with signature, scores and those of every sentence")


def _reproduce(commands: Subcommands) -> None:
    text = "train the runs of a table, as far as they are missing, and write it"
    examples = (
        "smoothloss reproduce tables/multi30k --jobs 2",
        "smoothloss reproduce tables/multi30k --rows tok --seeds 1 2 --training.epochs 1",
        "smoothloss reproduce tables/multi30k_converged --recorded benchmarks/results/multi30k_converged.json",
    )
    reproduce = commands.add_parser("reproduce", help=text, description=text, examples=examples)
    reproduce.add_argument("table", metavar="TABLE", help="a YAML file, or a name such as tables/multi30k")
    reproduce.add_argument("--out", metavar="DIR", help="runs and table (default: runs/<name of the table's file>)")
    reproduce.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="only these, and the baseline")
    seeds = whole(0, 2**63 - 1)
    reproduce.add_argument("--seeds", nargs="+", type=seeds, default=[], metavar="SEED", help="instead of the table's")
    jobs = "runs side by side, sharing the cores (default: 1)"
    reproduce.add_argument("--jobs", type=whole(1), default=1, help=jobs)
    reproduce.add_argument(
        "--no-train", dest="train", action="store_false", help="only write the table of what is there"
    )
    files = "table.json of other machines: their runs are the table's where recipe, data and code agree"
    reproduce.add_argument("--recorded", nargs="+", default=[], metavar="FILE", help=files)
    reproduce.add_argument(
        "--any-code", action="store_true", help="take recorded runs of other code too, and say which"
    )


def _tune(commands: Subcommands) -> None:
    text = "choose settings of a recipe by what they score on the validation part"
    examples = (
        "smoothloss tune multi30k/seq_space --workers 2",
        "smoothloss tune my.yaml --trials 40 --training.epochs 10",
    )
    tune = commands.add_parser("tune", help=text, description=text, epilog=TUNE_EPILOG, examples=examples)
    tune.add_argument("recipe", metavar="RECIPE", help="a recipe with a tune: section: a YAML file, or a name")
    tune.add_argument("--out", metavar="DIR", help="trials and results (default: runs/<name of the file>-tune)")
    tune.add_argument("--trials", type=whole(1), metavar="N", help="settings to try in all (default: the recipe's)")
    workers = "trials side by side, sharing the cores (default: 1)"
    tune.add_argument("--workers", type=whole(1), default=1, metavar="N", help=workers)


def _table(commands: Subcommands) -> None:
    text = "build a similarity table, or look into one"
    examples = (
        "smoothloss table build vectors.txt --vocabulary runs/tok/vocabulary.target.json --out table.safetensors",
        "smoothloss table show runs/tok/table.safetensors --vocabulary runs/tok/vocabulary.target.json dog",
    )
    table = commands.add_parser("table", help=text, description=text, examples=examples)
    actions = table.add_subparsers(dest="action", required=True, metavar="ACTION")
    text = "a table from word vectors and a vocabulary; prints the mass it keeps"
    build = actions.add_parser("build", help=text, description=text, examples=examples[:1])
    build.add_argument(
        "vectors", metavar="VECTORS", help="GloVe, word2vec (text, .bin) or fastText (.vec), .gz and .zip too; .npz"
    )
    build.add_argument("--vocabulary", required=True, metavar="V.json", help="vocabulary file of a run")
    build.add_argument("--out", required=True, metavar="FILE", help="the table, .safetensors")
    tau = "temperature on the full cosine (default: 0.1)"
    build.add_argument("--tau", type=real(0, above=True), default=0.1, help=tau)
    build.add_argument("--beta", type=real(0), default=0.0, help="promotion of rare tokens (default: 0)")
    build.add_argument("--neighbours", type=whole(1), default=64, help="entries kept per row (default: 64)")
    build.add_argument("--tail", default="uniform", choices=("uniform", "renormalize", "exact"))
    text = "a word's neighbours and their mass"
    show = actions.add_parser("show", help=text, description=text, examples=examples[1:])
    show.add_argument("table", metavar="TABLE", help="a table.safetensors")
    show.add_argument("word", metavar="WORD", nargs="+", help="words of the vocabulary")
    show.add_argument("--vocabulary", required=True, metavar="V.json", help="vocabulary file of the same run")
    show.add_argument("--neighbours", type=whole(1), default=10, help="how many to show (default: 10)")
    for action in actions.choices.values():
        action.set_defaults(parser=action)


def _cache(commands: Subcommands) -> None:
    text = "write a cache of what a teacher says, look into one, or make one of several"
    examples = (
        "smoothloss cache write my_teacher:source --out teacher --k 64",
        "smoothloss cache inspect teacher --verify",
        "smoothloss cache join teacher part0 part1",
        "smoothloss cache copy teacher other --out both --shard_bytes 1000000000",
    )
    cache = commands.add_parser("cache", help=text, description=text, examples=examples)
    actions = cache.add_subparsers(dest="action", required=True, metavar="ACTION")
    text = "what a teacher says of batches; called again, goes on where it was stopped"
    write = actions.add_parser("write", help=text, description=text, epilog=CACHE_EPILOG, examples=examples[:1])
    write.add_argument("source", metavar="MODULE:FUNCTION", help="what returns the teacher and its batches, see below")
    write.add_argument("--out", required=True, metavar="DIR", help="the cache's folder")
    kept = write.add_mutually_exclusive_group()
    kept.add_argument("--k", type=whole(1), help="of logits, keep the likeliest classes")
    kept.add_argument("--draws", type=whole(1), metavar="N", help="of logits, keep the counts of so many draws")
    write.add_argument("--seed", type=whole(0), default=0, help="of the draws (default: 0)")
    text = "what a cache holds"
    inspect = actions.add_parser("inspect", help=text, description=text, examples=examples[1:2])
    inspect.add_argument("path", metavar="PATH", help="the cache's folder")
    inspect.add_argument("--verify", action="store_true", help="read everything and compare it with its checksums")
    text = "one cache of several below one folder, by an index; nothing is copied"
    join = actions.add_parser("join", help=text, description=text, examples=examples[2:3])
    join.add_argument("path", metavar="PATH", help="the folder that they lie in")
    join.add_argument("parts", metavar="PART", nargs="+", help="caches, as paths below it, in order")
    text = "merge caches, take a part of them, or change the size of their shards"
    copy = actions.add_parser("copy", help=text, description=text, examples=examples[3:])
    copy.add_argument("sources", metavar="CACHE", nargs="+", help="caches with the same settings")
    copy.add_argument("--out", required=True, metavar="DIR", help="the new cache's folder")
    copy.add_argument("--first", type=whole(0), metavar="N", default=0, help="the first sequence (default: 0)")
    copy.add_argument("--count", type=whole(0), metavar="N", help="how many (default: all from there)")
    copy.add_argument("--fingerprint", help="of what the new cache holds (default: the sources')")
    copy.add_argument("--shard_bytes", type=whole(1), metavar="N", default=1 << 27, help="default: %(default)s")
    for action in actions.choices.values():
        action.set_defaults(parser=action)


def _profile(commands: Subcommands) -> None:
    text = "train some steps of a recipe, and say where their time goes; nothing is kept"
    examples = (
        "smoothloss profile multi30k/mle",
        "smoothloss profile multi30k/tok_seq_lazy --steps 50 --out profile.json --training.batch_size 128",
    )
    profile = commands.add_parser("profile", help=text, description=text, examples=examples)
    profile.add_argument("recipe", metavar="RECIPE", help="a YAML file, or a name such as multi30k/mle")
    profile.add_argument("--steps", type=whole(1), metavar="N", default=20, help="steps (default: %(default)s)")
    profile.add_argument("--out", metavar="FILE", help="JSON with the same and more digits")


def _demo(commands: Subcommands) -> None:
    text = "train MLE and lazy Tok-Seq on small scenes, and write an HTML report"
    demo = commands.add_parser("demo", help=text, description=text, examples=("smoothloss demo --out runs/demo",))
    demo.add_argument("--out", metavar="DIR", default="runs/demo", help="where the runs and the report go")
