"""The benchmarks run end to end at a tiny shape, say why a peer is missing, and judge targets from rows."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from integrations.trainer_step import counts_too_few
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1] / "benchmarks"
SHAPE = "24x101x16"


def _load(name: str) -> ModuleType:
    """Import a module of the benchmarks, which are no installed package, without putting the sources on the path."""
    if "benchmarks" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "benchmarks", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules["benchmarks"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["benchmarks"])
    return importlib.import_module(f"benchmarks.{name}")


main = _load("__main__")
captions, contest, distillation, linear, logits, measure, peers, plots, problems, rewards, sampling, targets = map(
    _load,
    (
        *(
            "captions",
            "contest",
            "distillation",
            "linear",
            "logits",
            "measure",
            "peers",
            "plots",
            "problems",
            "rewards",
            "sampling",
        ),
        "targets",
    ),
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the files that one run of everything writes, by suite; compiled peers run uncompiled, for the time."""
    folder = tmp_path_factory.mktemp("benchmarks")
    with torch.compiler.set_stance("force_eager"):
        options = ["--shapes", SHAPE, "--dtype", "float32", "--repeats", "2", "--device", "cpu", "--out", str(folder)]
        assert main.main(options) == 0
    assert not list(folder.glob("*.part"))
    return {path.stem.removesuffix("_cpu"): json.loads(path.read_text()) for path in folder.glob("*.json")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "suite",
    ["logits", "linear", "lazy", "exact", "rewards", "sampling", "statistics", "distillation", "linear_distillation"],
)
def test_every_contender_is_a_row_with_a_time_or_a_reason(results: dict[str, Any], suite: str) -> None:
    rows = results[suite]["rows"]
    assert rows
    for row in rows:
        assert row["suite"] == suite
        assert (row["rows"], row["classes"], row["hidden"]) == (24, 101, 16)
        assert "not_inspected" not in row
        if "not_run" in row:
            assert row["kind"] == "peer"
            assert row["not_run"]
        else:
            assert 0 < row["ms_p20"] <= row["ms"] <= row["ms_p80"]
            assert row["runs"] == 2
    assert {"smoothloss", "floor"} <= {row["kind"] for row in rows if "ms" in row} or suite in ("lazy", "rewards")


def test_the_environment_names_versions_and_no_date(results: dict[str, Any]) -> None:
    environment = results["logits"]["environment"]
    assert environment["torch"] == torch.__version__
    assert {"device", "smoothloss", "triton", "liger-kernel", "cut-cross-entropy", "quack-kernels", "commit"} <= set(
        environment
    )


@pytest.mark.parametrize("suite", ["logits", "linear", "exact", "statistics"])
def test_whoever_ran_is_right(results: dict[str, Any], suite: str) -> None:
    seen = 0
    for row in results[suite]["rows"]:
        for key, value in row.items():
            if key.endswith("_error"):
                assert value < 1e-5, (row["what"], key)
                seen += 1
    assert seen >= 9


def test_what_needs_a_gpu_says_so(results: dict[str, Any]) -> None:
    reasons = {row["what"]: row.get("not_run") for row in results["linear"]["rows"]}
    assert reasons[linear.LIGER] == reasons[linear.LIGER_BEST] == "its kernels need a GPU"


def test_the_targets_ask_for_rows_that_the_suites_write(results: dict[str, Any]) -> None:
    written = {(row["suite"], row["what"]) for suite in results.values() for row in suite["rows"]}
    assert {("logits", what) for what in (*targets.FRESH, targets.COPY)} <= written
    asked = (targets.OURS_HARD, targets.OURS_SOFT, targets.LIGER, targets.LIGER_BEST, targets.TOP_K, targets.MATMULS)
    assert {("linear", what) for what in asked} <= written


def test_plots_draw_every_suite(results: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for suite, content in results.items():
        (tmp_path / f"{suite}_cpu.json").write_text(json.dumps(content))
    (tmp_path / "other.json").write_text("[1]")
    assert plots.main([str(tmp_path)]) == 0
    names = {path.name for path in tmp_path.glob("*.png")}
    assert names == {
        f"logits_cpu_{SHAPE}_float32.png",
        f"linear_cpu_{SHAPE}_float32.png",
        f"exact_cpu_{SHAPE}_float32.png",
        f"statistics_cpu_{SHAPE}_float32.png",
        f"lazy_cpu_{SHAPE}_float32_loss_and_backward.png",
        f"lazy_cpu_{SHAPE}_float32_training_step.png",
        *(f"rewards_cpu_{SHAPE}_int64_{mode.replace(' ', '_')}.png" for mode in rewards.MODES),
        f"sampling_cpu_{SHAPE}_int64_10_samples.png",
        f"distillation_cpu_{SHAPE}_float32.png",
        f"linear_distillation_cpu_{SHAPE}_float32.png",
    }


@pytest.mark.parametrize("suite", ["distillation", "linear_distillation"])
def test_divergences_are_held_against_hard_labels_and_statistics(results: dict[str, Any], suite: str) -> None:
    rows = {row["what"]: row for row in results[suite]["rows"]}
    for divergence in distillation.DIVERGENCES:
        for missing in distillation.MISSING:
            row = rows[distillation.name(divergence, missing)]
            assert row["relative_to_mle"] == row["ms"] / rows[logits.name(problems.HARD)]["ms"]
            yardstick = rows[distillation.yardstick(divergence, missing)]
            assert row["relative_to_statistics"] == row["ms"] / yardstick["ms"]


def test_rewards_beside_their_peers() -> None:
    pytest.importorskip("pycocoevalcap")
    pytest.importorskip("sacrebleu")
    rows = rewards.run([problems.parse_shape("6x30x3")], [], contest.Settings(CPU, 2))
    by_name = {(row["mode"], row["what"]): row for row in rows}
    peers = [(mode, rewards.COCO) for mode in (rewards.CIDER, rewards.BLEU, rewards.ROUGE)]
    for key in (*peers, (rewards.BLEU, rewards.SACREBLEU)):
        assert by_name[key]["score_error"] < 1e-9, key
    for threads in rewards.THREADS:
        for how in ("prepared", "from ids", "from text"):
            row = by_name[rewards.CIDER, rewards.ours(how, threads)]
            assert row["speedup"] == by_name[rewards.CIDER, rewards.COCO]["ms"] / row["ms"]
    assert not any(contest.broken(row) for row in rows)


def test_rewards_beside_operators_of_torch(results: dict[str, Any]) -> None:
    row = next(row for row in results["rewards"]["rows"] if row["what"] == rewards.UNIQUE)
    assert row["score_error"] < 1e-6


def test_captions_are_drawn_alike_or_real(data_dir: Path) -> None:
    shape = problems.parse_shape("24x101x16")
    drawn = captions.captions(shape)
    assert drawn == captions.captions(shape)
    assert drawn.source == "drawn"
    assert [len(sample) for sample in drawn.candidates] == [6] * 4
    assert [len(given) for given in drawn.references] == [16] * 6
    for name, samples in (("captions", 1), ("samples", 4)):
        shape = problems.SHAPES[name]
        real = captions.captions(shape)
        assert real.source == "coco"
        assert [len(sample) for sample in real.candidates] == [shape.rows // samples] * samples
        assert {len(given) for given in real.references} == {5}


def test_a_spent_budget_leaves_rewards_that_say_so() -> None:
    rows = rewards.run([problems.SHAPES["samples"]], [], contest.Settings(CPU, 2, seconds=0.0))
    assert {row["not_run"] for row in rows} == {contest.NO_TIME}


def test_every_sampler_is_measured_with_every_pool(results: dict[str, Any]) -> None:
    ran = {row["what"] for row in results["sampling"]["rows"]}
    pools = {"vocabulary", "batch", "references"}
    similar = {f"similar, {tail}" for tail in ("renormalize", "uniform", "exact")}
    assert ran == {f"Hamming, {pool}" for pool in pools | similar} | {f"edit, {pool}" for pool in pools} | {
        sampling.NUMBERS
    }
    rows = sampling.run([problems.parse_shape(SHAPE)], [torch.float32], contest.Settings(CPU, 2, seconds=0.0))
    assert [row["not_run"] for row in rows] == [contest.NO_TIME]


def test_a_spent_budget_leaves_rows_that_say_so() -> None:
    settings = contest.Settings(CPU, 2, seconds=0.0)
    rows = contest.run_suite(logits.suite, [problems.parse_shape(SHAPE)], [torch.float32], settings)
    assert {row["not_run"] for row in rows} == {contest.NO_TIME}


def test_a_peer_that_breaks_is_a_row_and_ours_counts_as_broken() -> None:
    def breaks(problem: object) -> None:
        raise ValueError("first line\nsecond line")

    def missing(problem: object) -> None:
        importlib.import_module("no_such_package")

    contenders = [
        contest.Contender(contest.OURS, contest.OURS, breaks),
        contest.Contender("broken peer", contest.PEER, breaks),
        contest.Contender("missing peer", contest.PEER, missing),
        contest.Contender(logits.COPY, contest.FLOOR, logits.copy),
    ]
    suite = contest.Suite("logits", "logits", contenders, floor=logits.COPY)
    rows = contest.Run(suite, problems.parse_shape(SHAPE), torch.float32, contest.Settings(CPU, 1)).rows()
    assert [row.get("not_run") for row in rows] == [
        "failed: ValueError: first line",
        "failed: ValueError: first line",
        "no_such_package is not installed",
        None,
    ]
    assert [contest.broken(row) for row in rows] == [True, False, False, False]


def test_graphs_are_rows_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_once_captured(function: Any) -> Any:
        if function() is failing:
            raise RuntimeError("operation not permitted when stream is capturing")
        return function

    failing = (torch.zeros(()),)
    monkeypatch.setattr(measure, "replay", fails_once_captured)
    contenders = [
        contest.Contender("a", contest.PEER, lambda problem: lambda: failing, graph=True),
        contest.Contender("b", contest.PEER, peers.torch_eager),
        contest.Contender(logits.COPY, contest.FLOOR, logits.copy, graph=True),
    ]
    suite = contest.Suite("logits", "logits", contenders, floor=logits.COPY)
    run = contest.Run(suite, problems.parse_shape(SHAPE), torch.float32, contest.Settings(CPU, 1))
    eager = run.rows()
    assert [row["mode"] for row in eager] == ["eager"] * 3
    rows = run._graph_rows(None)
    assert [(row["what"], row["mode"]) for row in rows] == [("a", "graph"), (logits.COPY, "graph")]
    assert rows[0]["not_run"].startswith("failed: RuntimeError: operation not permitted")
    assert rows[1]["ms"] > 0


def test_quick_takes_the_first_shape_and_three_runs(tmp_path: Path) -> None:
    options = ["--suite", "exact", "--quick", "--shapes", SHAPE, "8x100x16", "--device", "cpu", "--out", str(tmp_path)]
    assert main.main(options) == 0
    rows = json.loads((tmp_path / "exact_cpu.json").read_text())["rows"]
    assert {(row["shape"], row["runs"]) for row in rows} == {(SHAPE, 3)}


def test_a_dense_matrix_that_is_too_large_is_not_built() -> None:
    with pytest.raises(problems.NotRunnableError, match="61 GiB"):
        _ = problems.Vocabulary(128256, CPU).matrix


def test_shapes() -> None:
    assert problems.parse_shape("llama3").classes == 128256
    assert problems.parse_shape("8x100x16")[:4] == ("8x100x16", 8, 100, 16)
    for wrong in ("8x100", "0x1x1", "axbxc", "coc"):
        with pytest.raises(ValueError, match="shape: got"):
            problems.parse_shape(wrong)
    shrunk = problems.small(problems.SHAPES["llama3"])
    assert shrunk[1:4] == (1024, 16032, 512)


def test_input_sets_rotate() -> None:
    assert measure.input_sets(1) == 8
    assert measure.input_sets(100 * 2**20) == 3
    assert measure.input_sets(2**32) == 1
    calls: list[int] = []
    turn = measure.rotating([lambda i=i: calls.append(i) for i in range(3)], first=4)
    for _ in range(4):
        turn()
    assert calls == [1, 2, 0, 1]


def test_interleaved_stops_in_time_but_not_before_the_least() -> None:
    calls: list[str] = []
    functions = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    timings = measure.interleaved(functions, CPU, 50, warmup=1, least=3, seconds=0.0)
    rounds = [tuple(calls[i : i + 2]) for i in range(0, len(calls), 2)]
    assert len(rounds) == 4
    assert set(rounds) == {("a", "b"), ("b", "a")}  # each of them once a round, in an order that changes
    assert timings["a"]["runs"] == timings["b"]["runs"] == 3


def test_launches_are_counted_from_the_trace() -> None:
    categories = ["kernel", "cpu_op", "gpu_memcpy", "cuda_runtime", "gpu_memset", "kernel", "gpu_user_annotation"]
    assert measure.count_launches([{"cat": category} for category in categories] + [{"name": "metadata"}]) == 4


HELD = """
import json
import torch
from benchmarks import measure

def function():
    return [torch.empty(24 * 2**20 // 4).fill_(1.0) for _ in range(12)]

function()
# Some systems take cold pages of files from a process meanwhile, which look like memory that it gave back.
print(json.dumps([measure.peak_memory(function, torch.device("cpu")) for _ in range(5)]))
"""


def test_peak_memory_sees_what_the_heap_already_holds() -> None:
    # In a process of its own, whose C library takes all from its heap and gives nothing back by itself. Elsewhere
    # something may lie behind the heap, whose free end then stays.
    keeping = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**40)}
    environment = {**os.environ, **keeping, "PYTHONPATH": str(ROOT.parent)}
    printed = subprocess.run([sys.executable, "-c", HELD], env=environment, capture_output=True, text=True, check=True)
    known = [peak for peak in json.loads(printed.stdout) if peak is not None]
    if not known:
        pytest.skip("this system does not tell its peak memory")
    assert statistics.median(known) == pytest.approx(24 * 12, rel=0.08)


def test_fastest_takes_the_fastest() -> None:
    problem = problems.Problem("logits", problems.parse_shape(SHAPE), torch.float32, problems.Vocabulary(101, CPU))
    busy = torch.randn(400, 400)

    def slow() -> tuple[torch.Tensor, ...]:
        return (busy @ busy @ busy,)

    def quick() -> tuple[torch.Tensor, ...]:
        return (busy,)

    chosen = peers.fastest("peer", {"slow": slow, "quick": quick}, problem)
    assert chosen is quick
    assert chosen.setting == "quick"
    again = peers.fastest("peer", {"quick": slow, "slow": quick}, problem)
    assert again is slow, "the choice of the first batch holds for the others"


def _row(suite: str, shape: str, what: str, mode: str = "eager", **values: Any) -> dict[str, Any]:
    return {"suite": suite, "shape": shape, "what": what, "mode": mode, "dtype": "bfloat16", **values}


def _good_rows() -> list[dict[str, Any]]:
    rows = [
        _row("logits", shape, what, ms=1.0, of_floor=0.9, launches=3)
        for shape in (*targets.LARGE, *targets.LAUNCH_BOUND)
        for what in targets.FRESH
    ]
    for shape in targets.LAUNCH_BOUND:
        rows.append(_row("logits", shape, targets.COPY, "graph", ms=0.002))
        rows += [_row("logits", shape, what, "graph", ms=0.015) for what in targets.FRESH]
    times = {
        targets.OURS_HARD: 35.5,
        targets.OURS_SOFT: 35.9,
        targets.MATMULS: 32.7,
        targets.LIGER: 53.0,
        targets.LIGER_BEST: 35.1,
        targets.TOP_K: 90.0,
    }
    dw = {targets.OURS_HARD: 2.3e-3, targets.LIGER: 1.6e-2}
    rows += [_row("linear", "llama3", what, ms=ms, d_weight_error=dw.get(what)) for what, ms in times.items()]
    rows += [
        _row("rewards", "samples", targets.OURS_ON_GPU, mode, ms=0.05, launches=1) | {"dtype": "int64"}
        for mode in targets.MODES
    ]
    rows.append(_row("logits", "coco", targets.TORCH, ms=1.1))
    rows += [
        _row("lazy", "coco", targets.LAZY, mode, relative_to_mle=1.01)
        for mode in ("training step", "training step, graph")
    ]
    return rows


def _change(rows: list[dict[str, Any]], what: str, shape: str, mode: str = "eager", **values: Any) -> None:
    changed = [row for row in rows if (row["what"], row["shape"], row["mode"]) == (what, shape, mode)]
    assert len(changed) == 1
    changed[0].update(values)


def _verdicts(rows: list[dict[str, Any]]) -> list[str]:
    return [result["verdict"] for result in targets.evaluate(rows)]


def test_targets_pass_on_good_rows() -> None:
    results = targets.evaluate(_good_rows())
    assert [result["verdict"] for result in results] == ["pass"] * len(targets.TARGETS)
    assert results[0]["measured"] == 0.9
    assert results[2]["measured"] == pytest.approx(32.7 / 35.5)


@pytest.mark.parametrize(
    ("failing", "what", "shape", "mode", "values"),
    [
        ({0}, targets.OURS_SOFT, "logits 64k", "eager", {"of_floor": 0.84}),
        ({1}, targets.OURS_SOFT, "logits llama3", "eager", {"ms": 1.04}),
        ({2, 3}, targets.MATMULS, "linear llama3", "eager", {"ms": 30.0}),
        ({5}, targets.LIGER, "linear llama3", "eager", {"ms": 35.0}),
        ({6}, targets.LIGER_BEST, "linear llama3", "eager", {"ms": 33.0}),
        ({7}, targets.TOP_K, "linear llama3", "eager", {"ms": 70.0}),
        ({8}, targets.LIGER, "linear llama3", "eager", {"d_weight_error": 5e-3}),
        ({9}, targets.OURS_HARD, "logits wmt", "eager", {"launches": 4}),
        ({10}, targets.OURS_SOFT, "logits coco", "graph", {"ms": 0.021}),
        ({11}, targets.OURS_ON_GPU, "rewards samples", rewards.CIDER, {"ms": 0.101}),
        ({12}, targets.OURS_ON_GPU, "rewards samples", rewards.BLEU, {"launches": 2}),
        ({13}, targets.LAZY, "lazy coco", "training step", {"relative_to_mle": 1.06}),
        ({14}, targets.LAZY, "lazy coco", "training step, graph", {"relative_to_mle": 1.03}),
        ({15}, targets.TORCH, "logits coco", "eager", {"ms": 0.9}),
    ],
)
def test_a_missed_target_fails_alone(
    failing: set[int], what: str, shape: str, mode: str, values: dict[str, Any]
) -> None:
    rows = _good_rows()
    suite, shape = shape.split(" ")
    _change([row for row in rows if row["suite"] == suite], what, shape, mode, **values)
    assert {number for number, verdict in enumerate(_verdicts(rows)) if verdict == "FAIL"} == failing


def test_a_replay_may_take_twice_the_floor_where_that_is_more_than_20_us() -> None:
    rows = _good_rows()
    _change(rows, targets.COPY, "wmt", "graph", ms=0.07)
    _change(rows, targets.OURS_HARD, "wmt", "graph", ms=0.139)
    assert _verdicts(rows)[10] == "pass"
    _change(rows, targets.OURS_HARD, "wmt", "graph", ms=0.141)
    assert _verdicts(rows)[10] == "FAIL"


def test_what_was_not_measured_is_neither_passed_nor_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row for row in _good_rows() if row["what"] != targets.LIGER]
    rows.append(_row("linear", "llama3", targets.LIGER, not_run="liger_kernel is not installed"))
    path = tmp_path / "linear.json"
    path.write_text(json.dumps({"environment": {}, "rows": rows}))
    assert targets.main([str(path), str(tmp_path / "absent.json")]) == 0
    printed = capsys.readouterr().out
    assert printed.count("not measured") == 2
    assert "liger_kernel is not installed" in printed
    _change(rows, targets.OURS_HARD, "coco", launches=9)
    path.write_text(json.dumps({"environment": {}, "rows": rows}))
    assert targets.main([str(path)]) == 1


def test_other_dtypes_do_not_count() -> None:
    rows = _good_rows()
    rows += [row | {"dtype": "float32", "ms": 1000.0} for row in rows]
    assert set(_verdicts(rows)) == {"pass"}


def test_lazy_and_exact_gradients_are_compared(tmp_path: Path) -> None:
    pytest.importorskip("pydantic")
    from smoothloss_trainer.loop import train
    from smoothloss_trainer.recipe import parse_recipe
    from smoothloss_trainer.run import RunDirectory

    lazy_vs_exact = _load("lazy_vs_exact")
    found = lazy_vs_exact.compare(torch.tensor([3.0, 4.0]), torch.tensor([5.0, 0.0]))
    assert found == pytest.approx((0.6, math.sqrt(20) / 5, 1.0))
    lines = [" ".join(["red dog runs", "cat sleeps here", "a bird sings now"][number % 3 :]) for number in range(20)]
    for language in ("up", "low"):
        text = "".join(f"{line}\n" for line in lines)
        (tmp_path / f"text.{language}").write_text(text.upper() if language == "up" else text)
    data = {"train": f"{tmp_path}/text", "validation": f"{tmp_path}/text", "source": "up", "target": "low"}
    sizes = {"embedding": 8, "encoder": 8, "decoder": 8, "attention": 8, "dropout": 0.5}
    values = {"task": "translation", "device": "cpu", "data": data, "model": sizes}
    values |= {"training": {"max_steps": 3, "batch_size": 10}, "decoding": {"max_length": 5}}
    train(parse_recipe(values), RunDirectory(tmp_path / "run"))
    rows, _ = lazy_vs_exact.run(tmp_path / "run", 2)
    assert [(row["reward"], row["num_samples"], row["alpha"]) for row in rows] == [
        (reward, count, alpha) for reward in ("none", "BLEU-4") for count in (1, 5) for alpha in (0.7, 1.0)
    ]
    for row in rows:
        assert row["lazy_loss"] != row["exact_loss"]
        assert 0 < row["difference"] < 1 and 0 < row["cosine"] < 1, "near to each other, and not the same"
        assert row["other_samples_difference"] > 0
    again, _ = lazy_vs_exact.run(tmp_path / "run", 2)
    assert again == rows, "without dropout, and with samples from seeds, nothing is left to chance"


def test_a_teacher_cache_is_measured(tmp_path: Path) -> None:
    teacher_cache = _load("teacher_cache")
    for kind in teacher_cache.KINDS:
        folder = tmp_path / f"{kind.name}-{kind.classes}"
        folder.mkdir()
        rows = teacher_cache.measure(kind, folder, 4, 16, 2)
        assert [row["batch"] for row in rows] == list(teacher_cache.BATCHES)
        for row in rows:
            assert 0 < row["entries"] <= 4 * 16 * kind.slots
            assert row["bytes_a_token"] / row["bytes_an_entry"] == pytest.approx(row["entries"] / 64)
            assert row["relative_error"] == 0 if "draws" in kind.options else 0 < row["relative_error"] < 2.5e-4
            assert 0 < row["read_millions_p20"] <= row["read_millions"] <= row["read_millions_p80"]
            assert row["write_millions"] > 0


FAKE_PYTHON = """#!/usr/bin/env bash
echo "$@" >>"$CALLS"
if [[ "$*" == *pytest* ]]; then sleep 2; fi
if [[ "$*" == *"--suite rewards"* ]]; then exit 3; fi
"""


@pytest.mark.slow
def test_the_check_on_a_gpu_goes_on_where_the_last_call_ended(tmp_path: Path) -> None:
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    environment = {
        **os.environ, "PYTHON": str(python), "CALLS": str(calls), "DEVICE": "cpu", "OUT": str(tmp_path / "out"),
        "STATE": str(tmp_path / "state"), "STEPS": "", "WHEEL": "", "PEERS": "",
    }  # fmt: skip

    def call(total: int) -> tuple[int, list[str], str]:
        """Return the status, what was run and the report."""
        calls.write_text("")
        script = ROOT / "gpu_check.sh"
        done = subprocess.run(
            ["bash", str(script)], env={**environment, "TOTAL": str(total)}, capture_output=True, text=True, check=False
        )
        return done.returncode, calls.read_text().splitlines(), done.stdout

    def suites(lines: list[str]) -> list[str]:
        return [line.split("--suite ")[1].split()[0] for line in lines if "--suite" in line]

    status, first, report = call(47)  # enough for a benchmark, and not after the tests
    assert status == 1
    assert "pip install" in first[0]
    assert "-m smoothloss" in first[1]
    assert any("pytest backends rewards sampling trainer/test_gpu_graphs.py -m gpu" in line for line in first)
    assert suites(first) == []
    assert "lazy         no time left" in report and "still to do: lazy" in report
    status, second, report = call(300)
    assert not any("-m pip" in line or "-m pytest" in line for line in second), "what has ended is not run again"
    assert suites(second)[:3] == ["lazy", "logits", "linear"], "what matters comes first"
    assert set(suites(second)) == {"lazy", "logits", "linear", "sampling", "statistics", "rewards", "exact"}
    assert status == 1 and "rewards      failed (3)" in report
    assert "still to do" not in report
    assert (tmp_path / "out" / "results.tar.gz").exists()
    status, third, _ = call(300)
    assert status == 1
    assert suites(third) == []
    steps = next((tmp_path / "state").iterdir()) / "logs" / "steps"
    text = re.sub("^linear .*$", "linear       over 100 s     100 s   ", steps.read_text(), flags=re.MULTILINE)
    steps.write_text(re.sub("^exact .*$", "exact        no time left     9 s   ", text, flags=re.MULTILINE))
    _, fourth, _ = call(300)
    assert suites(fourth) == ["exact", "linear"], "what was over its own limit comes last"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:::transformers", "ignore:::accelerate", "ignore:::torch")
def test_a_step_of_the_trainer_is_measured() -> None:
    for name in ("transformers", "accelerate"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    memory = _load("transformers_memory")
    for kind in memory.KINDS:
        rows = [memory.measure(kind, way, 101, 32, 2, 16) for way in memory.WAYS]
        # T5's own loss is divided by what there is, ours by what the Trainer counts.
        counted = 15 if counts_too_few(kind == "T5") else 16
        own = rows[0]["loss"]
        assert [row["loss"] for row in rows] == pytest.approx([own, own * 16 / counted, own * 16 / counted], rel=1e-6)
        assert all(row["peak_mib"] is None or row["peak_mib"] >= 0 for row in rows)


def test_compensation_puts_back_what_filtering_drops(tmp_path: Path) -> None:
    compensated = _load("compensated")
    generator = torch.Generator().manual_seed(0)
    # Rows of eight kinds: a tail of each kind is the whole of what is left out.
    hidden = torch.randn(8, 16, generator=generator).repeat_interleave(40, 0)
    weight, bias = torch.randn(900, 16, generator=generator) / 4, -1.7 * torch.arange(1, 901).log()
    labels = torch.multinomial((hidden @ weight.t() + bias).softmax(-1), 1, generator=generator)[:, 0]
    save_file({"hidden": hidden, "weight": weight, "bias": bias, "labels": labels}, tmp_path / "step_1.safetensors")
    out = tmp_path / "found.json"
    arguments = [str(tmp_path / "step_1.safetensors"), "--rows", "320", "--tolerance", "1", "--smoothing", "0", "0.1"]
    assert compensated.main([*arguments, "--repeats", "1", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["what"] for row in rows] == ["dense", "filtered", "compensated"] * 2
    for dense, filtered, ours in (rows[:3], rows[3:]):
        assert dense["columns_kept"] == 1
        assert filtered["columns_kept"] == ours["columns_kept"] <= 0.5
        for error in ("d_input_error_of_rounding", "d_weight_error_of_rounding"):
            assert dense[error] == 1
            assert ours[error] < 1.1 < filtered[error]


def test_trainings_with_a_compensated_tail_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training, language_models = _load("compensated_training"), _load("language_models")
    words = [f"w{number}" for number in range(400)]
    shares = 1 / torch.arange(1, 401)
    drawn = torch.multinomial(shares.expand(1100, 400), 9, generator=torch.Generator().manual_seed(0))
    text = tmp_path / "text.txt"
    text.write_text("".join(" ".join(words[word] for word in row) + "\n" for row in drawn.tolist()))
    size = len(language_models.Text(language_models.read(text, None), 1).words)
    save_file(
        {"weight": torch.randn(size, 8, generator=torch.Generator().manual_seed(1))}, tmp_path / "head.safetensors"
    )
    arguments = [str(text), "--least", "1", "--table", str(tmp_path / "head.safetensors"), "--width", "16"]
    arguments += ["--steps", "2", "--every", "1", "--sentences", "50", "--seeds", "3", "--runs", str(tmp_path / "runs")]
    for _ in range(2):  # the second time from the files of the first
        assert training.main([*arguments, "--out", str(tmp_path / "out.json")]) == 0
        rows = json.loads((tmp_path / "out.json").read_text())["rows"]
        assert [(row["loss"], row["way"], row["step"]) for row in rows] == [
            (loss, way, step) for loss in training.LOSSES for way in training.WAYS for step in range(3)
        ]
        assert all(row["held_out_loss"] < math.log(size) + 0.5 and 0 < row["columns_kept"] <= 1 for row in rows)
    assert len(capsys.readouterr().err.splitlines()) == 9, "a run that is there is not made again"
