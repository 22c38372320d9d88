"""The head on many cards, on paper: bytes moved and time of a step, from 8 to 512 of them. Nothing is measured.

    python -m benchmarks.parallel_model     # benchmarks/results/parallel_model.json, tables of docs/many_devices.md

A step is the loss and its gradients, from hidden states. Three ways, each with `tokens` positions for each card:

* data: each card has all classes and its own positions; the head's gradient is all-reduced.
* vocabulary: each card has its share of the classes and all positions of all cards; hidden states are gathered, the
  statistics of each position exchanged, the gradient of the hidden states reduce-scattered.
* both: vocabulary within a machine of 8 cards, data between machines.

The assumptions are those of `Machine` and `Shape`, written into the file; communication overlaps with nothing.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "parallel_model.json"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "many_devices.md"
WAYS = ("data", "vocabulary", "both")
CARDS = (8, 16, 32, 64, 128, 256, 512)
CLASSES = (32_768, 65_536, 131_072, 262_144)
TOKENS = (2_048, 8_192, 32_768)
# Of each position and process (`smoothloss.ops.vocabulary_parallel`), in float64: five numbers, and one for its target.
STATISTICS_BYTES = 6 * 8

Row = dict[str, float | int | str]


@dataclass(frozen=True)
class Machine:
    """Speeds of a card and its links: what data sheets say, times the share that is taken to be reached.

    Attributes:
        flops: bfloat16 without sparsity, of an H100 SXM (NVIDIA's data sheet).
        memory: bytes a second of its HBM3 (the same).
        link: bytes a second and direction of NVLink 4: half of the 900 GB/s of both (the same).
        network: bytes a second and direction of a card's own ConnectX-7, 400 Gbit/s (DGX H100 user guide).
        of_flops, of_memory, of_link, of_network: shares that are reached; assumed.
        link_latency, network_latency: seconds of a collective's step within and between machines; assumed.
        cards: of a machine.
    """

    flops: float = 989e12
    memory: float = 3.35e12
    link: float = 450e9
    network: float = 50e9
    of_flops: float = 0.7
    of_memory: float = 0.85
    of_link: float = 0.8
    of_network: float = 0.8
    link_latency: float = 3e-6
    network_latency: float = 10e-6
    cards: int = 8


@dataclass(frozen=True)
class Shape:
    """What a step is of.

    Attributes:
        hidden: D.
        itemsize: bytes of hidden states, weights and their gradients: bfloat16.
        parameter_bytes: of weight, gradient and Adam's state with a float32 copy of the weight: 2 + 2 + 12.
        products: matrix products of a step; the split op computes its logits twice.
        logit_bytes: that go to and from memory for each logit: written in float32 and read twice, its gradient written
            in 16 bits and read by two products; split, the logits once more (written, and read for the statistics).
    """

    hidden: int = 4_096
    itemsize: int = 2
    parameter_bytes: int = 16
    products: tuple[int, int] = (3, 4)
    logit_bytes: tuple[int, int] = (18, 26)


def row(way: str, cards: int, classes: int, tokens: int, machine: Machine, shape: Shape) -> Row:
    """Return bytes and seconds of a step of one card."""
    machines = cards // machine.cards
    split = {"data": 1, "vocabulary": cards, "both": machine.cards}[way]  # cards that share one head
    is_split = split > 1
    logits = tokens * classes  # of each card, whichever way they are cut
    compute = shape.products[is_split] * 2 * logits * shape.hidden / (machine.flops * machine.of_flops)
    memory = shape.logit_bytes[is_split] * logits / (machine.memory * machine.of_memory)
    positions, inside = tokens * split, (machine.cards - 1) / machine.cards
    link = network = seconds = 0.0
    if is_split:
        # Gathered and scattered hidden states, and the statistics of all processes: what a card receives.
        moved = (2 * shape.hidden * shape.itemsize + STATISTICS_BYTES * split) * positions
        apart = (split // machine.cards - 1) / (split // machine.cards)
        # Hierarchically: a card's share of what other machines have over its network, the rest of it over its links.
        link, network = moved * inside, moved / machine.cards * apart
        seconds += 3 * _latency(split, machine)
    if way != "vocabulary":
        gradient = classes / split * shape.hidden * shape.itemsize
        if way == "data":
            link += 2 * gradient * inside
            seconds += 2 * _latency(machine.cards, machine)
        share = gradient / (machine.cards if way == "data" else 1)
        network += 2 * share * (machines - 1) / machines
        seconds += 2 * math.ceil(math.log2(machines)) * machine.network_latency
    seconds += link / (machine.link * machine.of_link) + network / (machine.network * machine.of_network)
    return {
        "way": way, "cards": cards, "classes": classes, "tokens": tokens,
        "link_MB": link / 1e6, "network_MB": network / 1e6, "compute_ms": compute * 1e3, "memory_ms": memory * 1e3,
        "communication_ms": seconds * 1e3, "step_ms": (compute + memory + seconds) * 1e3,
        "head_GB": shape.parameter_bytes * shape.hidden * classes / split / 1e9,
    }  # fmt: skip


def _latency(cards: int, machine: Machine) -> float:
    inside, between = min(cards, machine.cards), max(1, cards // machine.cards)
    return math.ceil(math.log2(inside)) * machine.link_latency + math.ceil(math.log2(between)) * machine.network_latency


def rows(machine: Machine, shape: Shape) -> list[Row]:
    """Return the rows of every size."""
    sizes = [(cards, classes, tokens) for classes in CLASSES for tokens in TOKENS for cards in CARDS]
    return [row(way, *size, machine, shape) for size in sizes for way in WAYS]


def limits(machine: Machine, shape: Shape) -> list[Row]:
    """Return where each way stops paying: for each number of classes, and of cards, tokens a card and cards."""
    found: list[Row] = []
    for classes in CLASSES:
        for cards in (CARDS[0], CARDS[-1]):
            counts = [2**power for power in range(6, 18)]
            paying = [n for n in counts if _time("both", cards, classes, n, machine, shape)
                      < _time("data", cards, classes, n, machine, shape)]  # fmt: skip
            found.append({"classes": classes, "cards": cards, "both_up_to_tokens": max(paying, default=0)})
    for tokens in TOKENS:
        for classes in CLASSES:
            paying = [cards for cards in CARDS if _time("vocabulary", cards, classes, tokens, machine, shape)
                      <= min(_time(way, cards, classes, tokens, machine, shape) for way in WAYS)]  # fmt: skip
            found.append({"classes": classes, "tokens": tokens, "vocabulary_up_to_cards": max(paying, default=0)})
    return found


def _time(way: str, cards: int, classes: int, tokens: int, machine: Machine, shape: Shape) -> float:
    return float(row(way, cards, classes, tokens, machine, shape)["step_ms"])


# ---- the page


def tables(content: dict[str, list[Row]]) -> str:
    """Return the page's tables of the file's rows."""
    by_size = {(r["way"], r["cards"], r["classes"], r["tokens"]): r for r in content["rows"]}
    lines = [
        "| classes | cards | data: ms (of them moving), MB by link, by network, head GB | vocabulary | both |",
        "|---|---|---|---|---|",
    ]
    for classes in CLASSES:
        for cards in (8, 64, 512):
            cells = [_cell(by_size[way, cards, classes, TOKENS[1]]) for way in WAYS]
            lines.append(f"| {classes:,} | {cards} | {' | '.join(cells)} |")
    lines += [
        "",
        "| classes | both beats data with 8 cards | with 512 cards | vocabulary alone is best, 2,048 tokens a card |",
        "|---|---|---|---|",
    ]
    for classes in CLASSES:
        least = [
            next(r for r in content["limits"] if (r["classes"], r.get("cards")) == (classes, cards))[
                "both_up_to_tokens"
            ]
            for cards in (CARDS[0], CARDS[-1])
        ]
        wanted = classes, TOKENS[0]
        alone = next(r for r in content["limits"] if (r["classes"], r.get("tokens")) == wanted)
        texts = [f"up to {n:,} tokens a card" if n else "never" for n in least]
        most = alone["vocabulary_up_to_cards"]
        lines.append(f"| {classes:,} | {' | '.join(texts)} | {f'up to {most} cards' if most else 'never'} |")
    return "\n".join(lines)


def _cell(of: Row) -> str:
    return (
        f"{of['step_ms']:.1f} ({of['communication_ms']:.1f}), {of['link_MB']:,.0f}, {of['network_MB']:,.0f},"
        f" {of['head_GB']:.2f}"
    )


def with_tables(page: str, content: dict[str, list[Row]]) -> str:
    """Return the page with its tables made anew."""
    begin, end = "<!-- from benchmarks/results/parallel_model.json -->\n", "<!-- end -->"
    before, rest = page.split(begin)
    return f"{before}{begin}\n{tables(content)}\n\n{end}{rest.split(end)[1]}"


def content() -> dict[str, object]:
    """Return what the file holds."""
    machine, shape = Machine(), Shape()
    return {
        "title": "The head on many cards, on paper",
        "machine": dataclasses.asdict(machine),
        "shape": dataclasses.asdict(shape),
        "rows": rows(machine, shape),
        "limits": limits(machine, shape),
    }  # fmt: skip


def main() -> None:
    """Write the file, and the tables into the page."""
    found = content()
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
