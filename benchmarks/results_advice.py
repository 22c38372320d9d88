"""The advice that the recorded tables bear out, in words."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from benchmarks.recorded_rows import NAMES, batch_time, calibration, over_control
from smoothloss_trainer.significance import Comparison


def advice(found: dict[str, dict[str, Any]]) -> list[str]:
    """The paragraph for whoever has to choose: of its sentences those that the tables bear out as they are now."""
    translation, captions, short, one_epoch = (
        _by_key(found, name)
        for name in ("multi30k_converged", "coco_labels_converged", "multi30k_small", "coco_labels_small")
    )
    said = []
    mild, strong = translation.get("label_smoothing_0.1"), translation.get("label_smoothing_0.3")
    if _is_above(mild) and _is_above(strong):
        said.append(
            "Begin with label smoothing, which costs nothing and is most of what can be had where an input has one "
            f"reference: on Multi30k {_gain(strong)} over MLE with 0.3, {_gain(mild)} with 0.1."
        )
        ece = [calibration(row) for row in (mild, strong, translation["mle"]) if row]
        if all(ece) and float(ece[0]) < min(map(float, ece[1:])):
            said.append(
                f"Where probabilities matter take the weaker one: its calibration error is {ece[0]} %, that of 0.3 "
                f"{ece[1]} % and that of MLE {ece[2]} %."
            )
    _, over = over_control("multi30k_converged", found.get("multi30k_converged", {}))
    dropped, sampled = "label_smoothing_0.1_consistency_dropout_0.1", "seq_batch_0.3_smoothed"
    best, usual = translation.get(dropped), translation.get("label_smoothing_0.1_consistency")
    if best and usual and _is_above(best) and len(best["scores"]["bleu"]) > 2 and over[dropped].low > 0:
        said.append(
            f"Where a step may take {batch_time(usual)} times as long, add R-Drop, with a dropout of 0.1: "
            f"{_gain(best)} over MLE, {_gain(best, over[dropped])} over the label smoothing that validation chooses."
        )
        other = _by_key(found, "tatoeba_small").get("label_smoothing_0.1_consistency")
        _, there = over_control("tatoeba_small", found.get("tatoeba_small", {}))
        more = there.get("label_smoothing_0.1_consistency")
        if other and more and more.low <= 0 <= more.high:
            said.append(
                "With five times the text, on Tatoeba, it is not told apart from label smoothing "
                f"({_gain(other, more)})."
            )
    more = translation.get(sampled)
    if more and _is_above(more) and over[sampled].low <= 0 <= over[sampled].high:
        said.append(
            f"The exact sequence loss with label smoothing has {_gain(more)} over MLE, and is not told apart from that "
            f"label smoothing ({_gain(more, over[sampled])})."
        )
    named = {"Tok": "tok_freq", "exact Seq": "seq_batch", "exact Tok-Seq": "tok_seq_batch"}
    rows = {name: translation[key] for name, key in named.items() if key in translation}
    same = [f"{name} ({_gain(row)})" for name, row in rows.items() if _is_open(row)]
    if same:
        verb = "is" if len(same) == 1 else "are"
        said.append(
            f"Of the paper's losses at its own settings {' and '.join(same)} {verb} not told apart from MLE there."
        )
    fast, exact = one_epoch.get("seq_cider_refs"), captions.get("seq_cider_refs")
    if _is_above(fast) and _is_above(exact):
        said.append(
            "Where an input has several references and CIDEr is the measure, take the exact sequence loss with CIDEr "
            f"as its reward and substitutes from the references: {_gain(exact)} over MLE on COCO's object labels."
        )
    elif _is_above(fast) and exact and _is_open(exact):
        greedy = _by_key(found, "coco_labels_converged_greedy").get("seq_cider_refs")
        without = f", and {_gain(greedy)} where no beam is searched" if _is_above(greedy) else ""
        said.append(
            f"On COCO's object labels the exact sequence loss with CIDEr has {_gain(fast)} over MLE after one epoch; "
            f"after five {_gain(exact)} is left, which is not told apart from nothing{without}: take it if you cannot "
            "train for long or have to decode greedily."
        )
    early = short.get("seq_batch")
    if early and early["comparison"] and early["comparison"]["high"] < 0:
        said.append(
            "Train to the end before you judge: with the batch's words as substitutes a sequence loss learns slowest, "
            f"and after six epochs of Multi30k was {_gain(early)} beside MLE."
        )
    return ["## In short\n", " ".join(said), ""] if said else []


def _by_key(found: dict[str, dict[str, Any]], name: str) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in found.get(name, {}).get("rows", ()) if "key" in row}


def _is_above(row: dict[str, Any] | None) -> bool:
    return bool(row and row["comparison"] and row["comparison"]["low"] > 0)


def _is_open(row: dict[str, Any]) -> bool:
    return bool(row["comparison"]) and row["comparison"]["low"] <= 0 <= row["comparison"]["high"]


def _gain(row: dict[str, Any] | None, over: Comparison | None = None) -> str:
    """What a row gains over its table's baseline, or over another row, in a metric's points."""
    assert row is not None
    metric = next(iter(row["scores"]))
    seeds = "" if len(row["scores"][metric]) > 1 else "; one seed"
    found = {"name": NAMES[metric], "seeds": seeds, **(row["comparison"] if over is None else asdict(over))}
    return "{difference:+.1f} {name} [{low:+.1f}, {high:+.1f}{seeds}]".format(**found)
