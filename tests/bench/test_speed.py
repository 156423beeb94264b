"""The speed benchmark: what it times is what the models do, its figures agree with each other, and it resumes."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch
from transformers import AutoTokenizer

from semcot_hf.bench.speed import row as speed_row
from semcot_hf.bench.speed import run as speed_run
from semcot_hf.bench.speed.calls import (
    generated,
    generator_pass,
    method_calls,
    part_calls,
    prefill_in_two,
    raw_answer,
)
from semcot_hf.bench.speed.measurement import FEWEST_TURNS, PATIENCE, needed_bytes, take_turns
from semcot_hf.bench.speed.report import markdown_report
from semcot_hf.bench.speed.run import measure_speed
from semcot_hf.bench.speed.settings import (
    COMPILED,
    COMPILED_PARALLEL,
    PARTS,
    SHARED,
    SPEED_METHODS,
    SpeedSetting,
    SpeedSettings,
    plan,
    reasoning_tokens,
)
from semcot_hf.bench.speed.shapes import ANSWER_PROMPT_IDS, GPU_SIZES, SIZES, build_model, parameter_counts, prompts
from semcot_hf.bench.speed.slopes import fit_growth, growth_of_rows
from semcot_hf.cli.main import main
from semcot_hf.data import load_reasoning_dataset
from semcot_hf.demo import HOST_PATH

CPU = torch.device("cpu")
SETTING = SpeedSetting("toy", "no_cot", 2, 20, 3, 5, 0, "dynamic", "float64", "cpu", 1, 0.05)
SMALL = {
    "sizes": ["toy"],
    "methods": ["no_cot", "semcot_parallel"],
    "batch_sizes": [1, 2, 3],
    "prompt_lengths": [16],
    "implicit_tokens": [2],
    "answer_tokens": [3],
    "caches": ["dynamic"],
    "cot_tokens": 5,
    "dtype": "float32",
    "device": "cpu",
    "threads": 1,
    "seconds": 0.02,
}


@pytest.fixture(scope="module")
def model():
    """In float64 two logits are never equal."""
    return build_model("toy", num_implicit_tokens=3, dtype=torch.float64, device=CPU)


# Shapes


def test_shapes_have_the_weights_that_their_names_say():
    billions = {
        "160M": (0.162, 0.06),
        "1.1B": (1.10, 0.29),
        "llama2-7b": (6.74, 1.28),
        "qwen2.5-7b": (7.62, 0.494),
        "mistral-7b": (7.24, 1.03),
    }
    for size, expected in billions.items():
        counts = parameter_counts(size)
        assert counts["host"] / 1e9 == pytest.approx(expected[0], rel=0.01), size
        assert counts["generator"] / 1e9 == pytest.approx(expected[1], rel=0.03), size
    assert set(SIZES) == {*billions, "toy", "tiny"} and set(GPU_SIZES) < set(SIZES)


def test_built_weights_are_random_matrices_and_plain_norms(model):
    assert sum(weight.numel() for weight in model.parameters()) == sum(parameter_counts("toy").values())
    assert needed_bytes(SETTING)["weights_bytes"] == 8 * sum(parameter_counts("toy").values())
    for name, weight in model.host.named_parameters():
        if weight.dim() == 1:
            assert (weight == 1).all(), name
        else:
            assert weight.std() == pytest.approx(0.02, rel=0.1), name
            assert len({tuple(row) for row in weight.tolist()}) == len(weight), name


def test_prompts_begin_alike_and_end_on_the_answer_prompt():
    ids = prompts("toy", 3, 20, CPU)
    assert (ids[:, :10] == ids[0, :10]).all() and len({tuple(row) for row in ids.tolist()}) == 3
    assert ids[:, -3:].tolist() == [ANSWER_PROMPT_IDS] * 3 and ids[:, :-3].min() >= 10


# What is timed


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
def test_the_generators_pass_makes_the_models_tokens(model, mode):
    model.config.generator_mode = mode
    ids = prompts("toy", 2, 20, CPU)
    with torch.no_grad():
        expected = model.implicit_embeddings(ids)
    torch.testing.assert_close(generator_pass(model, ids[:, :-3], 3, mode), expected)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_bare_forwards_choose_the_tokens_of_generate(model, cache):
    ids = prompts("toy", 2, 20, CPU)
    assert raw_answer(model.host, ids, 6, cache).tolist() == generated(model.host, ids, 6, cache)[:, 20:].tolist()


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_prefill_in_two_passes_gives_the_token_of_one(model, cache):
    ids = prompts("toy", 4, 20, CPU)
    expected = raw_answer(model.host, ids, 1).tolist()
    assert prefill_in_two(model.host, ids[:, :12], ids[:, 12:], cache).tolist() == expected


def test_side_by_side_costs_the_longer_pass_and_the_rest(monkeypatch):
    times = {"generator": 1.0, "prefill": 4.0, "prefill_k": 5.0, "decode": 13.0, "parallel": 1.0, "sequential": 1.0}
    times |= {"question": 3.0, "prefill_in_two": 5.5}
    for generator, expected in ((1.0, 5.5 / 6), (4.0, 6.5 / 9)):
        turns = {name: [seconds] for name, seconds in {**times, "generator": generator}.items()}
        monkeypatch.setattr(speed_row, "take_turns", lambda *_, turns=turns, **__: turns)
        figures = speed_row._parts(replace(SETTING, method=PARTS), CPU)
        assert figures["side_by_side"]["median"] == pytest.approx(expected, abs=1e-4)
        assert figures["decode_step_s"] == 1.0 and figures["tokens_in_decode_steps"]["median"] == generator + 1


def test_a_compiled_generator_is_reported_beside_the_plain_one(monkeypatch):
    times = {"generator": 4.0, "prefill": 4.0, "prefill_k": 5.0, "decode": 13.0, "parallel": 1.0, "sequential": 1.0}
    times |= {"question": 3.0, "prefill_in_two": 5.5, "compiled_generator": 0.2}
    turns = {name: [seconds] for name, seconds in times.items()}
    monkeypatch.setattr(speed_row, "take_turns", lambda *_, **__: turns)
    monkeypatch.setattr(speed_row, "build_model", lambda *_, **__: None)
    monkeypatch.setattr(speed_row, "part_calls", lambda *args: {})
    monkeypatch.setattr(speed_row, "copy_bandwidth", lambda device: 1e9)
    setting = replace(SETTING, method=PARTS, size="llama2-7b", device="cuda")
    figures = speed_row._parts(setting, torch.device("cuda"))
    assert figures["compiled_generator_s"] == 0.2
    assert figures["tokens_in_decode_steps"]["median"] == 5
    assert figures["compiled_tokens_in_decode_steps"]["median"] == pytest.approx(1.2)
    part = {"setting": asdict(setting), "environment": 0, **figures}
    machine = {"device": "a GPU", "cpu": "a CPU"}
    report = {
        "environments": [machine],
        "rows": [],
        "parts": [part],
        "not_run": [],
        "slopes": [],
        "commands": ["x"],
    }
    assert "| 4.00 s | 200.0 ms | 4.00 s |" in markdown_report(report)
    assert "| 5.00 (1.20) | 1.00 at k = 8 |" in markdown_report(report)


def test_coconut_style_answers_equal_the_uncached_slow_path(model):
    setting = replace(SETTING, method="coconut")
    fast = method_calls(model, setting)["method"]()[:, 20:]
    host, table = model.host, model.host.get_input_embeddings()
    for row, ids in enumerate(prompts("toy", 2, 20, CPU)):
        with torch.no_grad():
            embeds = table(ids[None, :-3])
            for _ in range(3):
                state = host.get_decoder()(inputs_embeds=embeds, use_cache=False).last_hidden_state[:, -1:]
                embeds = torch.cat([embeds, state], dim=1)
            embeds = torch.cat([embeds, table(ids[None, -3:])], dim=1)
            slow = []
            for _ in range(5):
                slow.append(int(host(inputs_embeds=embeds, use_cache=False).logits[0, -1].argmax()))
                embeds = torch.cat([embeds, table(torch.tensor([slow[-1:]]))], dim=1)
        assert fast[row].tolist() == slow


def test_every_method_gives_answers_of_the_length_asked_for(model, captured):
    for method in SPEED_METHODS:
        cot = 4 if method == "cot" else 0
        k = 0 if method in ("no_cot", "cot") else 3
        calls = method_calls(model, replace(SETTING, method=method, k=k, cot=cot))
        # Explicit CoT writes its reasoning and the answer prompt behind the bare question.
        expected = 17 + 4 + 3 + 5 if method == "cot" else 20 + 5
        assert calls["method"]().shape == (2, expected), method
        assert set(calls) == {"method", "limit", "strict_limit"} | ({"no_cot"} if method != "no_cot" else set())
        for call in calls.values():
            call()


def test_a_static_cache_changes_no_answer(model):
    for method in ("no_cot", "semcot_parallel", "semcot_sequential"):
        calls = [method_calls(model, replace(SETTING, method=method, cache=cache)) for cache in ("dynamic", "static")]
        for name in ("method", "no_cot" if method != "no_cot" else "limit"):
            assert calls[0][name]().tolist() == calls[1][name]().tolist(), (method, name)


def test_compiling_changes_no_answer(model, captured):
    for count, methods in enumerate(
        (("semcot_sequential", COMPILED), ("semcot_parallel", COMPILED_PARALLEL)), start=1
    ):
        plain, compiled = (method_calls(model, replace(SETTING, method=method))["method"]() for method in methods)
        assert compiled.tolist() == plain.tolist() and len(captured) == count
        assert model._compiled_tokens is None


def test_parts_of_a_compiled_generator_make_the_parallel_tokens(model, captured):
    setting = replace(SETTING, method=PARTS)
    calls = part_calls(model, setting, 2, True)
    assert "compiled_generator" not in part_calls(model, setting, 2, False)
    calls["sequential"]()
    torch.testing.assert_close(calls["compiled_generator"](), calls["generator"]())
    assert len(captured) == 1 and model._compiled_tokens is None


def test_a_shared_prefix_changes_no_answer(model):
    plain = method_calls(model, replace(SETTING, method="semcot_parallel"))["method"]()
    shared = method_calls(model, replace(SETTING, method=SHARED))
    assert shared["method"]().tolist() == plain.tolist()
    assert shared["limit"]()[1][:, -5:].tolist() == shared["strict_limit"]()[1].tolist()


# Measurement


def test_turns_rotate_and_keep_to_their_budget(monkeypatch):
    now, order = [0.0], []
    monkeypatch.setattr("semcot_hf.bench.speed.measurement.synchronized_time", lambda device: now[0])

    def call(name, seconds):
        order.append(name)
        now[0] += seconds

    calls = {"a": lambda: call("a", 2.0), "b": lambda: call("b", 1.0)}
    assert take_turns(calls, seconds=1.0, device=CPU) == {"a": [2.0, 2.0], "b": [1.0, 1.0]}  # 6 s: out of patience
    assert "".join(order) == "abba"
    assert len(take_turns(calls, seconds=4.0, device=CPU)["a"]) == FEWEST_TURNS
    assert len(take_turns(calls, seconds=30.0, device=CPU)["a"]) == 10
    assert PATIENCE == 5


def test_fits_recover_known_slopes_and_sweeps():
    rows = [
        {
            "setting": {"method": method, "batch": batch, "k": k},
            "environment": 0,
            "latency_s": base + 0.01 * batch + 0.002 * k,
        }
        for method, base in (("a", 0.1), ("b", 0.5))
        for batch, k in [(1, 5), (2, 5), (4, 5), (8, 5), (1, 0), (1, 10), (1, 20)]
    ]
    # Another machine's rows belong to no sweep of this one's.
    rows += [
        {"setting": {"method": "a", "batch": batch, "k": 5}, "environment": 1, "latency_s": 9.0} for batch in (16, 32)
    ]
    fits = {(fit["setting"]["method"], fit["factor"]): fit for fit in growth_of_rows(rows, ("batch", "k"))}
    assert set(fits) == {(method, factor) for method in "ab" for factor in ("batch", "k")}
    for (method, factor), fit in fits.items():
        assert fit["slope"] == pytest.approx(0.01 if factor == "batch" else 0.002)
        assert fit["r2"] == 1.0 and fit["growth"] == "sublinear" and fit["points"] == 4
        # Batch is swept at k = 5, k at batch 1: both add 0.01.
        assert fit["intercept"] == pytest.approx((0.1 if method == "a" else 0.5) + 0.01)
    assert fit_growth([1, 2, 4], [1.0, 4.0, 16.0])["exponent"] == pytest.approx(2.0)
    with pytest.raises(ValueError, match="at least three values"):
        fit_growth([1, 2], [1.0, 2.0])


# The plan, the run and the command


def test_the_plan_varies_one_factor_at_a_time():
    settings = {**SMALL, "methods": list(SPEED_METHODS), "implicit_tokens": [2, 0], "caches": ["static", "dynamic"]}
    rows = plan(SpeedSettings("x", **settings))
    assert len(set(rows)) == len(rows) and rows[0].method == PARTS
    centre = {"batch": 1, "prompt": 16, "k": 2}
    for row in rows[1:]:
        factors = centre if row.k or row.method.startswith("semcot") or row.method == "coconut" else {"batch": 1}
        assert sum(getattr(row, name) != value for name, value in factors.items()) <= 1
        assert row.cot == (5 if row.method == "cot" else 0)
    # What begins on a dynamic cache of its own is there once, as is what k does not change.
    counts = {method: sum(row.method == method for row in rows) for method in SPEED_METHODS}
    semcot = dict.fromkeys(("semcot_parallel", "semcot_sequential", COMPILED, COMPILED_PARALLEL), 5)
    assert counts == dict(no_cot=4, cot=4, **semcot, semcot_shared_prefix=4, coconut=4)


@pytest.mark.slow
def test_command_in_a_fresh_process_resumes_and_its_figures_agree(tmp_path):
    flags = "--sizes toy llama2-7b --batch_sizes 1 2 4 --prompt_lengths 16 --implicit_tokens 2 --answer_tokens 3 "
    flags += "--methods no_cot semcot_sequential --device cpu --cot_tokens 5 --seconds 0.02 --threads 1"
    command = [sys.executable, "-m", "semcot_hf.cli.main", "bench", "speed", *flags.split()]
    command += ["--output_dir", str(tmp_path)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    first = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert "7/7 toy" in first.stdout and "llama2-7b: not run, no GPU" in first.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["rows"]) == 6 and len(report["parts"]) == 1
    assert report["environments"][0]["threads"] == 1 and report["commands"][0].startswith("semcot bench speed --sizes")
    for row in report["rows"]:
        setting = row["setting"]
        assert row["answers_per_s"] == pytest.approx(setting["batch"] / row["latency_s"])
        assert row["tokens_per_s"] == pytest.approx(3 * row["answers_per_s"])
        assert row["p95_s"] >= row["latency_s"] and row["turns"] >= 1
        for name, part in (("overhead", "limit_s"), ("strict_overhead", "strict_limit_s")):
            figures = row[name]
            assert figures["lowest"] <= figures["low"] <= figures["median"] <= figures["high"] <= figures["highest"]
            # The ratio of the medians lies within the ratios of the turns.
            measured = row["latency_s"] / row[part]
            assert figures["lowest"] - 1e-3 <= measured <= figures["highest"] + 1e-3
        memory = row["memory"]
        assert memory["ratio"] == pytest.approx(
            memory["peak_bytes"] / (memory["weights_bytes"] + memory["cache_bytes"]), abs=1e-3
        )
    part = report["parts"][0]
    checkpoint, host = part["checkpoint_bytes"], 4 * part["parameters"]["host"]
    assert checkpoint["whole"] - checkpoint["attached"] >= host - 1000
    share = part["weights_bytes_per_token"] / part["decode_step_s"] / part["copy_bytes_per_s"]
    assert part["decode_bandwidth_share"] == pytest.approx(share)
    assert {fit["factor"] for fit in report["slopes"]} == {"batch"} and len(report["slopes"]) == 2
    waiting = {row["size"]: row for row in report["not_run"]}
    assert set(waiting) == set(GPU_SIZES) and waiting["llama2-7b"]["reason"] == "no GPU"
    assert (
        f"--sizes llama2-7b --device cuda --dtype bfloat16 --output_dir {tmp_path}" in waiting["llama2-7b"]["command"]
    )
    tables = (tmp_path / "report.md").read_text()
    assert "## Growth of the latency" in tables and "## Raw parts" in tables and "| SemCoT sequential | 1 |" in tables
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_rows_are_kept_and_failures_are_told(tmp_path, monkeypatch):
    ran, stop_at = [], 3

    def figures(setting, device):
        ran.append(setting.batch)
        if len(ran) == stop_at:
            raise KeyboardInterrupt
        if setting.batch == 3:
            return {"not_run": "its process was killed"}
        ratio = {"median": 1.0, "low": 1.0, "high": 1.0, "lowest": 1.0, "highest": 1.0}
        memory = {"peak_bytes": 1, "weights_bytes": 1, "cache_bytes": 0, "ratio": 1.0}
        names = ("latency_s", "p95_s", "answers_per_s", "tokens_per_s", "limit_s", "strict_limit_s", "turns")
        row = dict.fromkeys(names, 1.0) | {"memory": memory, "times_no_cot": None, "environment": {"cpu": "x"}}
        return row | dict.fromkeys(("overhead", "strict_overhead"), ratio)

    monkeypatch.setattr(speed_run, "_figures", figures)
    monkeypatch.setattr(speed_run, "plan", lambda settings: [row for row in plan(settings) if row.method != PARTS])
    options = {"output_dir": str(tmp_path), **SMALL}

    def measure(**changes):
        return measure_speed(SpeedSettings(**{**options, **changes}), "x", lambda line: None)

    with pytest.raises(KeyboardInterrupt):
        measure()
    assert len(json.loads((tmp_path / "report.json").read_text())["rows"]) == 2
    ran, stop_at = [], None
    report = measure()
    assert ran == [2, 2, 3, 3] and len(report["rows"]) == 4
    ran = []
    report = measure()
    assert ran == [3, 3] and len(report["rows"]) == 4  # what could not be run is tried again
    killed = [row for row in report["not_run"] if row["setting"]]
    assert len(killed) == 2 and "its process was killed" in markdown_report(report)
    ran = []
    assert len(measure(seconds=0.5)["rows"]) == 8  # other settings are other rows
    assert ran == [1, 1, 2, 2, 3, 3]
    assert len(measure(overwrite=True)["rows"]) == 4


def test_reasoning_may_be_as_long_as_a_datasets():
    arguments = SpeedSettings("x", cot_dataset="coin_flip", cot_tokenizer=str(HOST_PATH), cot_tokens=7)
    rows, tokenizer = load_reasoning_dataset("coin_flip")["test"], AutoTokenizer.from_pretrained(HOST_PATH)
    lengths = [len(tokenizer.encode(text, add_special_tokens=False)) for text in rows["reasoning"]]
    assert reasoning_tokens(arguments) == round(sum(lengths) / len(lengths)) != 7
    assert reasoning_tokens(SpeedSettings("x", cot_tokens=7)) == 7


def test_bad_input_is_told(tmp_path, capsys):
    for change, text in (
        ({"sizes": ["huge"]}, "sizes=.*must be some of toy, tiny"),
        ({"methods": []}, "methods=.*must be some of no_cot"),
        ({"batch_sizes": [0]}, "batch_sizes=.*each 1 or more"),
        ({"prompt_lengths": [3]}, "prompt_lengths=.*each 4 or more"),
        ({"implicit_tokens": [-1]}, "implicit_tokens=.*each 0 or more"),
        ({"prompt_lengths": [8_000]}, "more than the 4096 of toy"),
        ({"seconds": 0.0}, "seconds=0.0"),
        ({"dtype": "int8"}, "dtype=.*float32"),
        ({"device": "cuda"}, "torch finds no GPU") if not torch.cuda.is_available() else ({"threads": 0}, "threads="),
    ):
        with pytest.raises(ValueError, match=text):
            measure_speed(SpeedSettings(str(tmp_path / "a"), **SMALL | change))
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(ValueError, match="no speed report.*--overwrite"):
        measure_speed(SpeedSettings(str(tmp_path), **SMALL))
    assert main(["bench", "dance"]) == 2
    printed = capsys.readouterr().err
    assert "unknown benchmark 'dance'" in printed and "speed" in printed and "methods" in printed
    assert main(["bench", "speed", "--output_dir", str(tmp_path / "b"), "--cot_dataset", "coin_flip"]) == 1
    assert "needs a tokenizer to count with: add --cot_tokenizer" in capsys.readouterr().err
