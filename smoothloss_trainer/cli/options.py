"""A parser whose errors are one line, and types of numbers that say which ones are meant."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

Subcommands = Any  # argparse._SubParsersAction[Parser], which cannot be written down at run time

DECODING: dict[str, tuple[Callable[[str], Any], str]] = {}  # filled below, once the types are there
SAMPLING = ("temperature", "top_k", "top_p", "seed")
SEARCHING = ("beam_size", "length_penalty")


class Parser(argparse.ArgumentParser):
    """Options are written out in full; an error is one line, with what may have been meant."""

    def __init__(
        self, prog: str | None = None, *, description: str = "", epilog: str = "", examples: Sequence[str] = ()
    ) -> None:
        shown = "\n".join(["examples:", *(f"  {example}" for example in examples)]) if examples else ""
        text = "\n\n".join(part for part in (epilog, shown) if part) or None
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, description=description, epilog=text, formatter_class=raw, allow_abbrev=False)
        self.examples = tuple(examples)

    def error(self, message: str) -> NoReturn:
        """Print one line and leave with status 2."""
        self.exit(2, f"smoothloss: error: {' '.join(message.split())} (see {self.prog} --help)\n")

    def refuse_unknown(self, words: Sequence[str]) -> None:
        """Refuse words that the parser left over."""
        if not words:
            return
        first = next((word for word in words if word.startswith("-")), words[0]).partition("=")[0]
        if not first.startswith("-"):
            self.error(f"unexpected argument: {first!r}")
        self.error(f"there is no option {first}{did_you_mean(first, self._option_string_actions)}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean ...?`` where a known word is close; hyphens are as good as underscores."""
    spelling = {name.replace("-", "_"): name for name in known}
    close = get_close_matches(word.replace("-", "_"), list(spelling), n=1)
    return f"; did you mean {spelling[close[0]]}?" if close else ""


def whole(low: int, high: float = math.inf) -> Callable[[str], int]:
    """A type for argparse: whole numbers from ``low`` to ``high``."""

    def convert(text: str) -> int:
        number = _number(int, text, "a whole number")
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"must be {_range(low, high)}, got {text}")
        return int(number)

    return convert


def real(low: float = -math.inf, high: float = math.inf, *, above: bool = False) -> Callable[[str], float]:
    """A type for argparse: finite numbers from ``low`` to ``high``; with ``above`` not ``low`` itself."""

    def convert(text: str) -> float:
        number = _number(float, text, "a number")
        if not math.isfinite(number) or not low <= number <= high or (above and number == low):
            expected = "finite" if low == -math.inf else _range(low, high, above=above)
            raise argparse.ArgumentTypeError(f"must be {expected}, got {text}")
        return number

    return convert


def _number(kind: Callable[[str], float], text: str, expected: str) -> float:
    try:
        return kind(text)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"must be {expected}, got {text!r}") from None


def _range(low: float, high: float, *, above: bool = False) -> str:
    least = f"above {low:g}" if above else f"at least {low:g}"
    return least if high == math.inf else f"{least} and at most {high:g}"


DECODING |= {
    "beam_size": (whole(1), "hypotheses kept; 1 is greedy search"),
    "length_penalty": (real(0), "ranks by log-probability / length ** this"),
    "max_length": (whole(1), "longest output in tokens"),
    "n_best": (whole(1), "hypotheses written per input, with their scores"),
    "no_repeat_ngram_size": (whole(0), "no n-gram of this size twice in an output; 0: repeats are allowed"),
    "temperature": (real(0, above=True), "sample: draws from softmax(logits / temperature)"),
    "top_k": (whole(0), "sample: draws from the so many most probable tokens; 0: from all"),
    "top_p": (real(0, 1, above=True), "sample: draws from the fewest tokens that make up this mass"),
    "seed": (whole(0, 2**63 - 1), "sample: seeds the draws"),
    "batch_size": (whole(1), "inputs decoded together"),
}


def add_decoding(parser: Parser) -> None:
    """The options that take the place of the recipe's ``decoding:``."""
    group = parser.add_argument_group("decoding", "in place of what the recipe says (of the first run)")
    group.add_argument("--method", choices=("beam", "sample"), help="search for the best outputs, or draw them")
    group.add_argument("--suppress_unk", action=argparse.BooleanOptionalAction, help="never write the unknown word")
    for name, (kind, explanation) in DECODING.items():
        group.add_argument(f"--{name}", type=kind, help=explanation)


def add_device(parser: Parser, default: str = "the recipe's") -> None:
    """``--device``."""
    parser.add_argument("--device", help=f"auto, cpu, cuda, cuda:1 (default: {default})")
