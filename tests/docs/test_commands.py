"""Every command and every Python snippet of README and docs runs, on a few rows and steps."""

import contextlib
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import uvicorn
from embeds_engine import EmbedsEngine
from hub_stand_in import hub_stand_in, run
from served import free_port, running
from transformers import AutoModelForCausalLM, AutoTokenizer

from semcot_hf import SemCoTForCausalLM, build_alignment_encoder, load_reasoning_dataset
from semcot_hf.cli.main import main
from semcot_hf.data.tasks import facts
from semcot_hf.demo import GENERATOR_PATH, HOST_PATH
from semcot_hf.inference.prompting import answer_prompt_ids, with_answer_prompt
from semcot_hf.lm_eval_tasks import INCLUDE_PATH
from semcot_hf.serve.launch import check_address

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)
# The same commands on a few rows and steps; later flags win.
TRAINING = "--max_train_samples 12 --max_eval_samples 4 --max_steps 2 --use_cpu --report_to none --eval_strategy no"
SMALL = {
    "semcot align": f"{TRAINING} --save_strategy no",
    "semcot distill": f"{TRAINING} --per_device_train_batch_size 4 --save_strategy no",
    "semcot condense": "--max_train_samples 20 --max_eval_samples 4",
    "semcot evaluate": "--max_eval_samples 3 --max_new_tokens 4 --latency_samples 1",
    "semcot calibrate": "--max_eval_samples 40 --max_new_tokens 4 --latency_samples 1",
    "semcot answer-prompt": "--max_eval_samples 4 --max_new_tokens 4",
    "semcot candidates": "--max_eval_samples 4 --max_new_tokens 4",
    "semcot few-shot": "--max_train_samples 12 --max_eval_samples 4 --max_new_tokens 4",
    "semcot generate": "--max_new_tokens 4",
    "semcot data": "",
    "semcot bench methods": "--methods no_cot --seeds 0 --steps 1 --learning_rates 1e-3 --train_questions 8 "
    "--batch_size 2 --eval_questions 2 --latency_samples 1 --models_steps_factor 0.001",
    "semcot bench alignment": f"{TRAINING} --temperatures 0.05 --poolings mean --layers 5 --learning_rates 1e-5 "
    "--batch_sizes 64 --combine False",
    "semcot bench speed": "--methods semcot_parallel --batch_sizes 1 --prompt_lengths 16 --implicit_tokens 2 "
    "--answer_tokens 2 --seconds 0.1",
    "python examples/bench/train_speed.py": "--sizes toy --batch_size 4 --steps 2 --plain_samples 2 --parts stage2 "
    "--output runs/train_speed",
    "python examples/bench/serve_speed.py": "--requests 2 --clients 2 --new_tokens 2 --reasoning_tokens 4 --blocks 1",
}
PORT, PAGE_PORT, *ENGINE_PORTS = (free_port() for _ in range(4))
SMALL["semcot page"] = f"--port {PAGE_PORT}"
SMALL["semcot serve"] = f"--port {PORT}"
# Public models by the small ones that stand in for them, and usual addresses by free ones.
STAND_INS = {
    "http://127.0.0.1:8080": f"http://127.0.0.1:{PORT}",
    **{f"http://127.0.0.1:{8000 + n}": f"http://127.0.0.1:{port}" for n, port in enumerate(ENGINE_PORTS)},
    "Qwen/Qwen2.5-1.5B-Instruct": str(HOST_PATH),
    "Qwen/Qwen2.5-0.5B-Instruct": str(GENERATOR_PATH),
    "/models/my-host": str(HOST_PATH),
}


def steps(page):
    """(language, text) of the commands and snippets of a page, in their order."""
    found = []
    for language, text in BLOCK.findall(page.read_text()):
        lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
        found += [("bash", line) for line in lines] if language == "bash" else [("python", text)]
    return found


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with what earlier pages leave behind: untrained, but complete."""
    folder = tmp_path_factory.mktemp("docs")
    tokenizer = AutoTokenizer.from_pretrained(HOST_PATH)
    pair, prompt = (str(HOST_PATH), str(GENERATOR_PATH)), answer_prompt_ids(tokenizer)
    model = SemCoTForCausalLM.from_host_generator_pretrained(*pair, answer_prompt_ids=prompt)
    # The demo's model thinks in words. Untrained, it is right in some questions, as a calibration needs.
    words = SemCoTForCausalLM.from_host_generator_pretrained(
        *pair, answer_prompt_ids=prompt, recipe="words", tokenizer=tokenizer, num_implicit_tokens=24
    )
    for name, made in (("runs/model", model), ("runs/demo/model", words)):
        made.save_pretrained(folder / name)
        with_answer_prompt(tokenizer).save_pretrained(folder / name)
    build_alignment_encoder(model.host, tokenizer).save(str(folder / "runs/encoder"))
    questions = [{"query": f"A letter is in {town}. Ann keeps it. Where does it end?"} for town in facts.TOWNS[:3]]
    (folder / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    (folder / "examples").symlink_to(ROOT / "examples")
    return folder


@pytest.fixture
def hub_sets(monkeypatch):
    """GSM8K in the Hub's columns, without the Hub."""
    rows = load_reasoning_dataset("examples/data/arithmetic")

    def in_hub_columns(row):
        return {"question": row["query"], "answer": f"{row['reasoning']}\n#### {row['answer']}"}

    names = rows["train"].column_names
    gsm8k = datasets.DatasetDict(
        {name: rows[name].map(in_hub_columns, remove_columns=names) for name in ("train", "test")}
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config=None: {"openai/gsm8k": gsm8k}[name])


def name_of(words):
    size = 3 if words[:2] == ["semcot", "bench"] else 2
    return " ".join(words[:size])


def run_command(line, monkeypatch):
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
    elif words[0] == "pip":
        help_text = subprocess.run([sys.executable, "-m", "pip", words[1], "--help"], capture_output=True, text=True)
        assert all(word in help_text.stdout for word in words[2:] if word.startswith("-")), line
    elif words[0] == "lm_eval":
        # Its own test runs it where it is installed.
        assert (INCLUDE_PATH / f"{words[words.index('--tasks') + 1].removeprefix('semcot_')}.yaml").is_file()
    elif words[:2] == ["semcot", "convert"]:
        # It fetches the authors' checkpoint; its own tests convert one of that form.
        with pytest.raises(SystemExit) as ended:
            main([*words[1:], "--help"])
        assert ended.value.code == 0
    else:
        small = shlex.split(SMALL[name_of(words)])
        if words[:2] == ["semcot", "page"]:
            # Its own tests show it.
            monkeypatch.setattr("gradio.Blocks.launch", lambda page, **_: None)
        words = [STAND_INS.get(word, word) for word in words]
        if words[0] == "semcot":
            if "--config" in words:
                small += ["--host", str(HOST_PATH)]
                small += ["--generator", str(GENERATOR_PATH)] if words[1] == "distill" else []
            assert main([*words[1:], *small]) in (0, None), line
        else:
            monkeypatch.syspath_prepend(str(Path(words[1]).parent))
            monkeypatch.setattr(sys, "argv", [words[1], *words[2:], *small])
            runpy.run_path(words[1], run_name="__main__")


@pytest.fixture
def servers(monkeypatch):
    """Servers run in threads, so that the snippets after them can ask them; `semcot serve` replaces its last one."""
    with contextlib.ExitStack() as engines, contextlib.ExitStack() as front:

        def check(*address):
            front.close()
            check_address(*address)

        monkeypatch.setattr("semcot_hf.cli.serve.check_address", check)
        monkeypatch.setattr(uvicorn, "run", lambda app, *, port, **_: front.enter_context(running(app, port)))
        yield engines


def run_vllm(words, engines):
    """Run what stands in for `vllm serve HOST --enable-prompt-embeds --port PORT`."""
    assert words[1] == "serve" and "--enable-prompt-embeds" in words
    host = STAND_INS[words[2]]
    engine = EmbedsEngine(AutoModelForCausalLM.from_pretrained(host), AutoTokenizer.from_pretrained(host))
    engines.enter_context(running(engine.app, ENGINE_PORTS[int(words[words.index("--port") + 1]) - 8000]))


@pytest.mark.parametrize("page", [page for page in PAGES if steps(page)], ids=lambda page: page.stem)
def test_commands_and_snippets_run(page, prepared, tmp_path, hub_sets, servers, monkeypatch, capsys):
    shutil.copytree(prepared, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    if page.stem == "sharing":
        return run_with_hub(page, tmp_path, monkeypatch)
    namespace = {"__name__": "__main__"}
    for language, text in steps(page):
        if text.startswith("vllm "):
            run_vllm(shlex.split(text), servers)
        elif language == "bash":
            run_command(text, monkeypatch)
        else:
            exec(compile(with_stand_ins(text), str(page), "exec"), namespace)


def with_stand_ins(text):
    for public, small in STAND_INS.items():
        text = text.replace(public, small)
    return text


def run_with_hub(page, folder, monkeypatch):
    """Run a page's snippets in one process that takes the stand-in for the Hub; its commands as on other pages."""
    script = with_stand_ins("\n".join(text for language, text in steps(page) if language == "python"))
    with hub_stand_in() as hub:
        run(script, hub, folder / "home")
    for language, text in steps(page):
        if language == "bash":
            run_command(text, monkeypatch)


def test_every_command_is_shown():
    shown = {name_of(shlex.split(text)) for page in PAGES for language, text in steps(page) if language == "bash"}
    assert set(SMALL) | {"semcot convert", "make demo", "make test", "make docs"} <= shown
