"""The examples run by their documented commands at tiny sizes, and the launchers read their configurations."""

import gzip
import importlib.util
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from embeds_engine import EmbedsEngine
from served import running
from transformers import AutoModelForCausalLM, AutoTokenizer

from semcot_hf import SemCoTForCausalLM
from semcot_hf.bench.tasks.definitions import BENCH_TASKS
from semcot_hf.bench.tasks.pretraining import fresh_model, train_tokenizer
from semcot_hf.cli.main import main
from semcot_hf.data.tasks import elements, facts
from semcot_hf.demo import GENERATOR_PATH, HOST_PATH, QUESTION
from semcot_hf.evaluation import answer_questions
from semcot_hf.evaluation.statistics import accuracy_interval, mcnemar
from semcot_hf.inference.answering import Answerer
from semcot_hf.inference.prompting import with_answer_prompt
from semcot_hf.inference.settings import read_thought_prompt

pytest_plugins = ["distillation_fixtures"]
pytestmark = pytest.mark.usefixtures("datasets_cache")

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SMALL = ["--max_steps", "2", "--max_train_samples", "4", "--per_device_train_batch_size", "2"]


def documented(text, command):
    """Arguments of the first command in a docstring or comment that starts with `command`, its line breaks joined."""
    text = re.sub(r"\\\n[#\s]*", "", text)
    [line, *_] = [line.lstrip("# ") for line in text.splitlines() if line.lstrip("# ").startswith(command)]
    return shlex.split(line.removeprefix(command))


def run_documented(name, output_dir, *sizes):
    """Run the command that an example's docstring gives, with smaller sizes and another output folder."""
    example = load(name)
    arguments = documented(example.__doc__, f"python examples/{name}")
    assert "--output_dir" in arguments
    example.main([*arguments, *SMALL, *sizes, "--output_dir", str(output_dir)])
    return example


def load(name):
    spec = importlib.util.spec_from_file_location(Path(name).stem, EXAMPLES / name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def answers(folder):
    """Whether the saved checkpoint answers a question."""
    model, tokenizer = SemCoTForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": QUESTION}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    new = model.generate(ids, max_new_tokens=2, do_sample=False)
    return new.shape[1] > ids.shape[1] and bool(torch.isfinite(model.implicit_embeddings(ids)).all())


def test_examples_are_short():
    files = [path for path in EXAMPLES.rglob("*") if path.suffix in (".py", ".yaml", ".sh")]
    short = [path for path in files if path.parent.name != "bench"]
    assert len(short) >= 12
    assert not [path.name for path in short if len(path.read_text().splitlines()) > 100]


@pytest.mark.parametrize("pair", ["llama2_sheared", "mistral", "qwen"])
def test_gsm8k_commands_run(pair, tmp_path):
    """The commands in the files, with the tiny models and generated questions in place of the 7B ones and GSM8K."""
    rows = tmp_path / "rows"
    rows.mkdir()
    for split, count in (("train", 8), ("validation", 4)):
        made = facts.generate(count, seed=0, split=split, min_steps=1, max_steps=2)
        (rows / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    files = {stage: EXAMPLES / "gsm8k" / f"{pair}_{stage}.yaml" for stage in ("align", "distill")}
    texts = {stage: path.read_text() for stage, path in files.items()}
    data, encoder, model = (str(tmp_path / name) for name in ("data", "encoder", "model"))
    condense = documented(texts["align"], "semcot condense")
    assert main(["condense", *condense, "--dataset", str(rows), "--output_dir", data]) == 0
    models = {"align": [], "distill": ["--generator", str(GENERATOR_PATH), "--alignment_encoder", encoder]}
    for stage, output in (("align", encoder), ("distill", model)):
        command = documented(texts[stage], f"semcot {stage}")
        assert command == ["--config", f"examples/gsm8k/{files[stage].name}"]
        changed = ["--host", str(HOST_PATH), "--dataset", data, "--output_dir", output, *models[stage]]
        assert main([stage, "--config", str(files[stage]), *changed, "--max_steps", "2"]) == 0
    assert answers(model)


def test_pairs_name_the_papers_models():
    found = {path.stem: yaml.safe_load(path.read_text()) for path in (EXAMPLES / "gsm8k").glob("*.yaml")}
    assert len(found) == 6
    for name, values in found.items():
        assert values["host"] == found[name.replace("distill", "align")]["host"]
        assert isinstance(values["learning_rate"], float)


def test_lora_on_the_host_itself(tmp_path):
    run_documented("lora_host_as_generator.py", tmp_path)
    assert answers(tmp_path)


def test_sequential_with_step_decoder_reads_its_tokens(tmp_path, capsys):
    run_documented("sequential_step_decoder.py", tmp_path)
    assert capsys.readouterr().out.count("\ntoken ") == 5
    assert answers(tmp_path)
    assert SemCoTForCausalLM.from_pretrained(tmp_path).step_decoder is not None


@pytest.mark.slow
def test_the_words_recipe_on_pairs_and_sets(tmp_path):
    """The table's command on the demo's models, and each pair's own command again, which finds everything done."""
    models, data, output = tmp_path / "models", tmp_path / "data", tmp_path / "runs"
    models.mkdir()
    for name, path in (("h", HOST_PATH), ("g", GENERATOR_PATH)):
        (models / name).symlink_to(Path(path).resolve())
    (data / "svamp").mkdir(parents=True)
    for ours, papers in (("train", "train_42"), ("test", "eval_42")):
        rows = (EXAMPLES / "data" / "arithmetic" / f"{ours}.jsonl").read_text().splitlines()
        (data / "svamp" / f"{papers}.json").write_text(f"[{','.join(rows)}]")
    training = "--words_max_steps 2 --use_cpu --report_to none --num_implicit_tokens 100"
    evaluation = "--max_eval_samples 3 --max_new_tokens 4 --latency_samples 2 --latency_batch_sizes 1 2"
    flags = [
        "--models",
        models,
        "--data",
        data,
        "--output",
        output,
        "--sets",
        "svamp",
        "--pairs",
        "h+g",
    ]
    tuned = "--learning_rates 1e-3 --steps 2 --eval_questions 3 --max_new_tokens 4"
    flags += ["--prompt_tuning_flags", tuned]
    flags += ["--evaluate_flags", evaluation]
    words = ["--variants", "words", "--distill_flags", training]
    stages = ["--variants", "stages_k1", "--align_flags", "--max_steps 2 --per_device_train_batch_size 4 --use_cpu"]
    stages += ["--distill_flags", "--max_steps 2 --use_cpu --report_to none"]
    command = [sys.executable, EXAMPLES / "real" / "table.py", *flags, *words]
    done = subprocess.run(command, cwd=EXAMPLES.parent, check=True, capture_output=True, text=True)
    assert "### svamp, h, g, words" in done.stdout and "| host, explicit CoT | " in done.stdout
    assert "(prompt tuning) | " in done.stdout
    assert re.search(r"^Trained on \d+ rows: 2 steps, 0 minutes and \S+ TFLOP\.$", done.stdout, re.MULTILINE)
    kept = output / "results" / "svamp--h--g--words.jsonl.gz"
    header = next(line for line in done.stdout.splitlines() if line.startswith("| row |"))
    timed = "seconds a question | of explicit CoT's time"
    assert header.endswith(f"| {timed} | {timed.replace(' |', ', batches of 2 |')}, batches of 2 |")
    with gzip.open(kept, "rt") as file:
        written = [json.loads(line) for line in file]
    rows = [row for row in written if "index" in row]
    times = {(row["method"], row["batch_size"]) for row in written if "median" in row}
    assert {("no_cot", 1), ("semcot", 1), ("semcot", 2), ("generator", 2)} <= times
    [training_line] = [row for row in written if "training" in row]
    assert training_line["training"]["train_steps"] == 2 and len(rows) + len(times) + 1 == len(written)
    assert {row["method"] for row in rows} >= {"semcot", "semcot_hard", "generator", "other_question"}
    assert all(isinstance(row["correct"], bool) and "question" not in row for row in rows)
    assert not {"query", "answer", "output"} & {name for row in rows for name in row}
    weights = output / "svamp--h--g--words" / "model" / "model.safetensors"
    saved = weights.stat().st_mtime_ns
    subprocess.run(command, cwd=EXAMPLES.parent, check=True, capture_output=True)
    assert weights.stat().st_mtime_ns == saved
    with gzip.open(kept, "rt") as file:
        assert [json.loads(line) for line in file] == written
    other = [*command[:2], *flags, *words[:-1], training.replace("max_steps 2", "max_steps 3")]
    done = subprocess.run(other, cwd=EXAMPLES.parent, capture_output=True, text=True)
    assert done.returncode == 1 and "svamp--h--g--words holds another run (distill_flags: " in done.stderr
    paper = [*command[:2], *flags, *stages]
    done = subprocess.run(paper, cwd=EXAMPLES.parent, check=True, capture_output=True, text=True)
    assert "### svamp, h, g, stages_k1" in done.stdout
    config = json.loads((output / "svamp--h--g--stages_k1" / "model" / "config.json").read_text())
    assert config["num_implicit_tokens"] == 1 and (output / "svamp--h--encoder" / "modules.json").is_file()


def test_the_sets_of_the_table_have_files(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES / "real"))
    files_of = load("real/variants.py").files_of
    data, output = tmp_path / "data", tmp_path / "output"
    train, test = files_of("multiarith", data, output)
    assert train == [data / "multiarith" / "train_42.json", data / "gsm8k" / "train_42.json"]
    assert test == data / "multiarith" / "eval_42.json" and not output.exists()
    (train,), test = files_of("elements", data, output)
    made = [[json.loads(line) for line in path.read_text().splitlines()] for path in (train, test)]
    assert [len(rows) for rows in made] == [720, 200]
    assert all(elements.solve(row["query"]) == row["answer"] for rows in made for row in rows)
    assert files_of("elements", data, output) == ([train], test)


def commands_of_pages():
    """Return each `semcot` command in the pages of examples/, as (page, words)."""
    found = []
    for page in sorted(EXAMPLES.rglob("*.md")):
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [(page, shlex.split(line)[1:]) for line in lines if line.startswith("semcot ")]
    return found


def variant_commands(monkeypatch):
    """Return the commands of training that `make real` runs for each variant and set."""
    monkeypatch.syspath_prepend(str(EXAMPLES / "real"))
    variants = load("real/variants.py")
    found = []
    for variant in variants.VARIANTS.values():
        for name in variant.sets:
            flags = shlex.split(f"--dataset {name} --output_dir runs/{name} {variant.flags_for(name)}")
            found.append(["distill", "--recipe", variant.recipe, *flags])
            if variant.align is not None:
                found.append(["align", "--dataset", name, "--output_dir", "runs/encoder", *shlex.split(variant.align)])
    return found


def test_the_flags_of_measured_commands_are_accepted(monkeypatch, capsys):
    """They take hours on models that the tests do not have; up to the data, they are run here."""

    def stop(*args):
        raise ValueError("the flags are accepted")

    for command in ("align", "calibrate", "candidates", "condense", "distill", "evaluate", "few_shot"):
        monkeypatch.setattr(f"semcot_hf.cli.{command}.load_splits", stop)
    # Some commands import it when they are run.
    monkeypatch.setattr("semcot_hf.cli.arguments.load_splits", stop)
    shown = [words for _, words in commands_of_pages() if words[:2] != ["bench", "methods"]]
    assert len(shown) > 3
    for words in [*shown, *variant_commands(monkeypatch)]:
        assert main(words) == 1
        assert capsys.readouterr().err.endswith("the flags are accepted\n"), words


def test_a_host_alone_is_told_to_think_and_shown_examples_of_its_set(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES / "real"))
    flags = {name: load("real/variants.py").host_flags(name) for name in ("svamp", "commonsense_qa", "coin_flip")}
    assert flags["svamp"] == ["--methods", "cot", "condensed", "--max_thought_tokens", "64"]
    # A rival gets the answer prompt of the pairs.
    assert flags["coin_flip"][-2:] == ["--answer_prompt", "The answer (yes or no) is:"]
    asked = ["--cot_instruction", "Think step by step, and end with the letter of the answer."]
    assert flags["commonsense_qa"] == ["--methods", "cot", *asked]
    assert flags["coin_flip"][1:6] == ["cot", "condensed", "--max_thought_tokens", "64", "--cot_instruction"]
    assert read_thought_prompt(flags["coin_flip"][-3])[-1]["role"] == "assistant"


def test_the_words_of_a_set_get_its_own_answer_prompt(tmp_path, monkeypatch):
    """CoinFlip's answers are no numbers, and a walk that ends at an element is no answer yet."""
    monkeypatch.syspath_prepend(str(EXAMPLES / "real"))
    commands = []

    class Stop(Exception):
        pass

    def run(command, **options):
        commands.append(command)
        raise Stop

    monkeypatch.setattr(subprocess, "run", run)
    prompts = {"coin_flip": "The answer (yes or no) is:", "elements": "The atomic number is", "svamp": None}
    for name, prompt in prompts.items():
        flags = ["--models", "m", "--data", str(tmp_path), "--output", str(tmp_path / name), "--sets", name]
        monkeypatch.setattr(sys, "argv", ["table.py", *flags, "--pairs", "h+g", "--variants", "words"])
        with pytest.raises(Stop):
            load("real/table.py").main()
        command = commands.pop()
        given = shlex.split(command[command.index("--distill_flags") + 1])
        assert (given[given.index("--answer_prompt") + 1] if "--answer_prompt" in given else None) == prompt


def test_rows_of_several_sets_in_one_training(tmp_path, monkeypatch, capsys):
    def rows(first, last, operations=1):
        calculation = " + ".join(["1"] * (operations + 1))
        return [
            {
                "query": f"What is {calculation} in week {week}?",
                "reasoning": f"{calculation} = {operations + 1}",
                "answer": str(operations + 1),
            }
            for week in range(first, last)
        ]

    def save(name, content):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("".join(f"{json.dumps(row)}\n" for row in content))
        return str(tmp_path / name)

    long = [{**row, "query": row["query"] + " Say it." * 40} for row in rows(0, 9, 2)]
    short = save("more/train.jsonl", [*rows(0, 9, 2), *rows(0, 9, 3), *long, {**rows(0, 1)[0], "reasoning": "Two."}])
    command = ["mix.py", "--train", save("a/train.jsonl", rows(0, 12)), save("b/train.jsonl", rows(8, 20))]
    command += ["--short", short, "--max_short", "5", "--output", str(tmp_path / "mixed"), "--validation", "0.25"]
    tests = {"a": rows(0, 4), "b": rows(18, 22)}
    command += ["--test", *(save(f"{name}/test.jsonl", content) for name, content in tests.items())]
    monkeypatch.syspath_prepend(str(EXAMPLES / "real"))
    monkeypatch.setattr(sys, "argv", command)
    load("real/mix.py").main()
    found = {
        file: [json.loads(line)["query"] for line in (tmp_path / "mixed" / file).read_text().splitlines()]
        for file in [f"{name}/{split}.jsonl" for name in tests for split in ("train", "validation", "test")]
    }
    for name, content in tests.items():
        assert found[f"{name}/test.jsonl"] == [row["query"] for row in content]
    train, validation = found["a/train.jsonl"], found["a/validation.jsonl"]
    assert (train, validation) == (found["b/train.jsonl"], found["b/validation.jsonl"])
    # Weeks 4 to 17, each once, and five short rows of two operations.
    taken = {*train, *validation}
    assert len(train) == 14 and len(validation) == 5 and len(taken) == 19
    assert {row["query"] for row in rows(4, 18)} <= taken
    assert len({row["query"] for row in rows(0, 9, 2)} & taken) == 5
    for wrong, problem in ((["--test", *command[-2:], command[-1]], "same name"), (["--validation", "0"], "(0, 1)")):
        monkeypatch.setattr(sys, "argv", [*command, *wrong])
        with pytest.raises(SystemExit):
            load("real/mix.py").main()
        assert problem in capsys.readouterr().err


def test_equations_as_steps_and_what_the_tokens_say_of_them(tmp_path, monkeypatch, capsys):
    """The documented commands, the second one on a tiny pair that says nothing right, cut off and continued."""
    monkeypatch.syspath_prepend(str(EXAMPLES / "real"))
    example = load("real/steps.py")
    rows = [
        {"query": "a", "reasoning": "He has 2 + 3 = 5 pens, 5 * 2 = 10 in all.", "answer": "10"},
        {"query": "b", "reasoning": "He has many pens.", "answer": "10"},
        {"query": "c", "reasoning": "He has 4 - 1 = 3 pens.", "answer": "3"},
    ]
    train, test, data = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "data"
    train.write_text("\n".join(map(json.dumps, rows)))
    test.write_text(
        "\n".join(json.dumps({**rows[number], "query": query}) for number, query in ((2, "c"), (0, "d"), (1, "e")))
    )

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", ["steps.py", name, *map(str, arguments)])
        example.main()

    run("rows", "--train", train, "--test", test, "--output", data)
    found = {name: (data / f"{name}.jsonl").read_text().splitlines() for name in ("train", "test")}
    of_test = [json.loads(row) for row in found["test"]]
    assert [json.loads(row)["steps"] for row in found["train"]] == [["2+3=5", "5*2=10"]]
    assert {row["query"]: row["steps"] for row in of_test} == {"c": ["4-1=3"], "d": ["2+3=5", "5*2=10"]}

    paths = (str(HOST_PATH), str(GENERATOR_PATH))
    pair = SemCoTForCausalLM.from_host_generator_pretrained(*paths, num_implicit_tokens=2)
    pair.add_step_decoder(AutoModelForCausalLM.from_pretrained(GENERATOR_PATH))
    pair.save_pretrained(tmp_path / "model")
    tokenizer = with_answer_prompt(AutoTokenizer.from_pretrained(HOST_PATH))
    tokenizer.save_pretrained(tmp_path / "model")
    asked = ("--model", tmp_path / "model", "--data", data / "test.jsonl", "--output", tmp_path / "read.jsonl.gz")
    run("read", *asked, "--batch_size", 1)
    printed = capsys.readouterr().out
    with gzip.open(tmp_path / "read.jsonl.gz", "rt") as file:
        lines = file.readlines()
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": of_test[1]["query"]}], add_generation_prompt=True, return_tensors="pt"
    )
    assert json.loads(lines[1])["tokens"] == pair.eval().implicit_steps(**prompt, tokenizer=tokenizer)[0]
    with gzip.open(tmp_path / "read.jsonl.gz", "wt") as file:
        file.write(lines[0])
    run("read", *asked)
    assert capsys.readouterr().out == printed
    with gzip.open(tmp_path / "read.jsonl.gz", "rt") as file:
        assert file.readlines() == lines

    compared = example.compared({"steps": ["2+3=5", "5*2=10"], "answer": "10"}, ["2 + 3 = 5", "5*2=11", "1=10"])
    assert compared["right"] == [True, False] and not compared["answer"]
    assert example.compared({"steps": ["4-1=3"], "answer": "3"}, ["5-2=3", "noise"])["answer"]


def test_candidates_and_the_rules_that_choose_among_them(tmp_path, monkeypatch, capsys):
    """The documented command on an untrained pair, cut off after its first batch; rules by hand."""
    monkeypatch.syspath_prepend(str(EXAMPLES / "real"))
    example = load("real/candidates.py")
    model, data, output = (tmp_path / name for name in ("model", "test.jsonl", "candidates.jsonl.gz"))
    rows = (EXAMPLES / "data" / "arithmetic" / "test.jsonl").read_text().splitlines()[:4]
    data.write_text("\n".join(rows))
    paths = (str(HOST_PATH), str(GENERATOR_PATH))
    pair = SemCoTForCausalLM.from_host_generator_pretrained(*paths, recipe="words", num_implicit_tokens=5)
    pair.save_pretrained(model)
    AutoTokenizer.from_pretrained(HOST_PATH).save_pretrained(model)
    command = documented(example.__doc__, "python examples/real/candidates.py")
    command += ["--model", str(model), "--data", str(data), "--output", str(output), "--batch_size", "3"]
    monkeypatch.setattr(sys, "argv", ["candidates.py", *command])
    example.main()
    printed = capsys.readouterr().out
    with gzip.open(output, "rt") as file:
        lines = file.readlines()
    made = [json.loads(line) for line in lines]
    assert [row["index"] for row in made] == [0, 1, 2, 3] and all(len(row["candidates"]) == 8 for row in made)
    # What the host says is what `generate` returns.
    tokenizer = AutoTokenizer.from_pretrained(model)
    for number, name in ((1, "first"), (8, "chosen")):
        queries = [json.loads(row)["query"] for row in rows]
        options = {"method": "semcot", "max_new_tokens": 24, "num_candidates": number}
        answers = answer_questions(pair, tokenizer, queries, **options)
        assert [answer.output for answer in answers] == [row[name]["output"] for row in made]
    with gzip.open(output, "wt") as file:
        file.writelines(lines[:3])
    example.main()
    again = capsys.readouterr().out
    assert again.startswith("4 of 4") and again.splitlines()[1:] == printed.splitlines()[2:]
    with gzip.open(output, "rt") as file:
        assert file.readlines() == lines
    for flag in ("--num_candidates", "--host_weight"):
        monkeypatch.setattr(sys, "argv", ["candidates.py", *command, flag, "2"])
        with pytest.raises(ValueError, match=rf"holds another run \({flag[2:]}: .* there, 2.* now\)"):
            example.main()
    with gzip.open(output, "rt") as file:
        assert file.readlines() == lines

    def one(own, host, result, right):
        return {"generator": own, "host": host, "result": result, "right": right}

    judged = [one(-1.0, -9.0, "2", False), one(-2.0, -4.0, "3", True), one(-3.0, -1.0, "4", False)]
    judged.append(one(-4.0, -9.0, "3", True))
    # What states no result has no vote.
    judged += [one(-5.0, -9.0, None, False)] * 3
    counts = example.rules([{"candidates": judged, "first": {"right": False}, "chosen": {"right": True}}])
    assert counts == {
        "most probable words": 0,
        "most frequent result": 1,
        "the generator's probability": 0,
        "both, the host's with weight 0.1": 0,
        "both, the host's with weight 0.25": 1,
        "both, the host's with weight 0.5": 0,
        "both, the host's with weight 1": 0,
        "both, the host's with weight 2": 0,
        "any": 1,
        "the host's answer, first": 0,
        "the host's answer, chosen": 1,
    }


def test_training_words_through_the_host(tmp_path, capsys):
    """The documented command on an untrained pair, whose host reads each two words as their mean."""
    joint = load("real/joint.py")
    model, data, output = (tmp_path / name for name in ("model", "data", "output"))
    data.mkdir()
    for split in ("train", "test"):
        rows = (EXAMPLES / "data" / "arithmetic" / f"{split}.jsonl").read_text().splitlines()[:8]
        (data / f"{split}.jsonl").write_text("\n".join(rows))
    paths = (str(HOST_PATH), str(GENERATOR_PATH))
    pair = SemCoTForCausalLM.from_host_generator_pretrained(*paths, recipe="words", num_implicit_tokens=5)
    pair.save_pretrained(model)
    AutoTokenizer.from_pretrained(HOST_PATH).save_pretrained(model)
    command = documented(joint.__doc__, "python examples/real/joint.py")
    command += ["--model", str(model), "--data", str(data), "--output_dir", str(output), "--max_steps", "2"]
    command += ["--eval_steps", "1", "--save_steps", "1", "--logging_steps", "1", "--use_cpu"]
    joint.main([*command, "--words_per_token", "2", "--max_new_tokens", "3"])
    with gzip.open(output / "verdicts.jsonl.gz", "rt") as file:
        verdicts = [json.loads(line) for line in file]
    assert len(verdicts) == 8 and f"of {len(verdicts)} test questions are right" in capsys.readouterr().out
    assert {"kl_loss", "answer_loss"} <= {
        key for row in json.loads((output / "log.json").read_text())["log"] for key in row
    }
    # Without training the answers are kept in a folder of their own, too.
    left = ["--output_dir", str(tmp_path / "left" / "as it is"), "--max_steps", "0", "--max_new_tokens", "3"]
    joint.main([*command, *left])
    assert (tmp_path / "left" / "as it is" / "verdicts.jsonl.gz").is_file()
    merged = joint.MergedWords.from_pretrained(model)
    ids = torch.arange(20, 32).view(2, 6)
    words, mask = merged.implicit_embeddings(ids, return_mask=True)
    merged.words_per_token = 2
    tokens, kept = merged.implicit_embeddings(ids, return_mask=True)
    for row in range(2):
        own = words[row, mask[row].bool()]
        slow = torch.stack([group.mean(dim=0) for group in own.split(2)])
        torch.testing.assert_close(tokens[row, kept[row].bool()], slow)


def test_generator_with_another_tokenizer(tmp_path):
    generator, tokenizer = tmp_path / "generator", train_tokenizer(BENCH_TASKS["multiplication"])
    fresh_model(tokenizer, 1, 32).save_pretrained(generator)
    tokenizer.save_pretrained(generator)
    run_documented("cross_tokenizer.py", tmp_path, "--generator", str(generator))
    assert SemCoTForCausalLM.from_pretrained(tmp_path).config.separate_generator_tokenizer
    assert answers(tmp_path)


@pytest.mark.slow
def test_two_processes(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    script = EXAMPLES / "two_processes.sh"
    flags = [*documented(script.read_text(), f"sh examples/{script.name}"), *SMALL, "--max_eval_samples", "2"]
    done = subprocess.run(
        ["sh", str(script), *flags, "--output_dir", str(tmp_path / "model")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert answers(tmp_path / "model")


@pytest.mark.parametrize("name", ["fsdp2.yaml", "deepspeed_zero2.yaml"])
def test_launcher_configurations_are_read_and_say_that_they_are_untested(name):
    config = load_config_from_file(str(EXAMPLES / name))
    assert config.num_processes == 2 and config.mixed_precision == "bf16"
    assert "Untested here" in (EXAMPLES / name).read_text().splitlines()[0]


def test_speed_benchmark_prints_its_table(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES / "bench"))
    bench = load("bench/train_speed.py")
    toy = ["--sizes", "toy", "--batch_size", "4", "--steps", "2", "--plain_samples", "2", "--output", str(tmp_path)]
    bench.main([*toy, "--parts", "stage1", "stage2", "operations"])
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "train_speed-cpu-toy.json").read_text())
    assert result["environment"]["torch"]
    row = result["rows"][0]
    ours, kept, plain = (row["stage2"][way] for way in ("ours", "kept", "nothing kept"))
    # The paper's 7 + 2 epochs, put together from the parts that were measured.
    assert ours["run"] == pytest.approx(
        ours["once"] + ours["first"] + 6 * ours["projection"] + 2 * ours["generator"], rel=1e-6
    )
    assert kept["run"] < plain["run"]
    counts = row["operations"]
    assert counts["projection"]["ours"] < counts["generator"]["ours"] < counts["generator"]["plain"]
    assert counts["projection"]["ours"] < counts["first"]["ours"] < counts["first"]["plain"]
    assert counts["first"]["plain"] == counts["projection"]["plain"] < counts["generator"]["plain"]
    assert "toy, stage 2, generator: GFLOP a sample" in printed
    line = f"| toy | 1 | stage2 | run | {9 / ours['run']:.2f} | {9 / kept['run']:.2f} | {9 / plain['run']:.2f} |"
    assert line in printed and "| toy | 1 | stage1 | later run: layers |" in printed
    for path in bench.PATHS:
        bench.main([*toy, "--peak", path])
        assert float(capsys.readouterr().out.strip().splitlines()[-1]) >= 0


# TRL reads the attribute by its old name when it adds adapters.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_training_speed_of_the_words_phase(tmp_path, monkeypatch):
    sizes = "--rows 12 --batch_size 2 --steps 2 --blocks 1".split()
    monkeypatch.setattr(sys, "argv", ["words_speed.py", *sizes, "--output", str(tmp_path)])
    load("bench/words_speed.py").main()
    result = json.loads((tmp_path / "result.json").read_text())
    assert {name: len(seconds) for name, seconds in result["seconds a step"].items()} == {
        "words phase": 2,
        "SFTTrainer": 2,
    }
    assert result["rows"] > 0 and min(result["rows a second"].values()) > 0


def test_the_tables_of_real_pairs_are_those_of_their_verdicts(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES / "real"))
    folder = EXAMPLES / "real"
    files = sorted(folder.glob("results/*.jsonl.gz"))
    text = "\n".join(path.read_text() for path in folder.glob("*.md"))
    for script, page in (("report", text), ("overview", (folder / "README.md").read_text())):
        load(f"real/{script}.py").main(list(map(str, files)))
        printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
        assert len(printed) > 25 and not [line for line in printed if line not in page]


def test_candidates_of_a_generator_of_another_tokenizer_are_its_own_words(
    tmp_path, monkeypatch, tiny_lm, tiny_tokenizer
):
    monkeypatch.syspath_prepend(str(EXAMPLES / "real"))
    generator, model, data = (tmp_path / name for name in ("generator", "model", "test.jsonl"))
    tiny_lm(hidden_size=16, dtype=torch.float32, max_position_embeddings=512).save_pretrained(generator)
    tiny_tokenizer.save_pretrained(generator)
    row = (EXAMPLES / "data" / "arithmetic" / "test.jsonl").read_text().splitlines()[0]
    data.write_text(row)
    paths = (str(HOST_PATH), str(generator))
    pair = SemCoTForCausalLM.from_host_generator_pretrained(*paths, recipe="words", num_implicit_tokens=5)
    pair.save_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(HOST_PATH)
    tokenizer.save_pretrained(model)
    command = f"candidates.py --model {model} --data {data} --output {tmp_path}/made.jsonl.gz --num_candidates 2"
    monkeypatch.setattr(sys, "argv", command.split())
    load("real/candidates.py").main()
    with gzip.open(tmp_path / "made.jsonl.gz", "rt") as file:
        [made] = map(json.loads, file)
    [prompt] = Answerer(pair, tokenizer).prompts([json.loads(row)["query"]])
    [said] = pair.implicit_text(torch.tensor([prompt]))
    assert made["candidates"][0]["thought"] == said and pair.config.separate_generator_tokenizer


def test_the_rules_of_candidates_are_those_of_their_verdicts(monkeypatch):
    """Their table, and the verdicts of the rows that are made of them."""
    monkeypatch.syspath_prepend(str(EXAMPLES / "real"))
    example, read = load("real/candidates.py"), load("real/verdicts.py").read
    folder = EXAMPLES / "real" / "results"
    page = "".join((EXAMPLES / "real" / name).read_text() for name in ("candidates.md", "few_shot.md"))
    for path in sorted((folder / "candidates").glob("*.jsonl.gz")):
        with gzip.open(path, "rt") as file:
            rows = [json.loads(line) for line in file]
        counts = example.rules(rows)
        answered = {f"the host's answer, {name}" for name in example.ANSWERED}
        assert all(f"| {name} | {counts[name]} of {len(rows)} |" in page for name in counts.keys() - answered)
        name = path.name.removesuffix(".jsonl.gz")
        kept = read(next(iter([*folder.glob(f"{name}_candidates--*.jsonl.gz"), *folder.glob(f"{name}--*.jsonl.gz")])))
        rules = {"generator_words": "most probable words", "calculator": "most probable words"}
        rules |= {"generator_vote": "most frequent result", "calculator_vote": "most frequent result"}
        rules |= {"generator_own": "the generator's probability", "calculator_own": "the generator's probability"}
        rules |= {"calculator_both": "both, the host's with weight 1"}
        rules |= {"semcot": "the host's answer, chosen", "semcot_single": "the host's answer, first"}
        known = {method: rule for method, rule in rules.items() if method in kept}
        assert len(known) >= 5
        for method, rule in known.items():
            assert sum(row["correct"] for row in kept[method].values()) == counts[rule]


def test_the_sweep_of_stage_1_is_that_of_its_ranks():
    page = (EXAMPLES / "real" / "stage1.md").read_text()
    runs = [json.loads(line) for line in (EXAMPLES / "real" / "results" / "stage1.jsonl").read_text().splitlines()]
    assert len(runs) >= 5
    for run in runs:
        there, back = run["ranks"]
        mean = sum(1 / rank for rank in there + back) / (2 * len(there))
        assert f"| {there.count(1)} of {len(there)} | {back.count(1)} of {len(back)} | {mean:.3f} |" in page


def test_the_result_of_facts_is_that_of_its_verdicts(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES / "real"))
    page = (EXAMPLES.parent / "docs" / "benchmark.md").read_text()
    rows = {
        "no_cot": "host, no CoT",
        "cot": "host, explicit CoT",
        "semcot": "**SemCoT**",
        "generator": "**the generator alone**, in words",
        "generator_no_cot": "the generator alone, at once",
        "other_question": "SemCoT with another question's thought",
        "mean": "SemCoT with the mean of all thoughts",
        "noise": "SemCoT with noise",
    }
    verdicts = load("real/verdicts.py").read(EXAMPLES / "bench" / "results" / "facts" / "words.jsonl.gz")
    assert verdicts.keys() == rows.keys()
    for method, title in rows.items():
        right = [row["correct"] for row in verdicts[method].values()]
        low, high = accuracy_interval(sum(right), len(right))
        assert len(right) == 1_000
        assert f"| {title} | {100 * sum(right) / 1_000:.1f} % [{100 * low:.1f}, {100 * high:.1f}] |" in page


def test_the_table_of_methods_on_facts_is_that_of_its_report():
    page = (EXAMPLES.parent / "docs" / "benchmark.md").read_text()
    report = json.loads((EXAMPLES / "bench" / "results" / "facts" / "methods.json").read_text())
    (task,) = report["tasks"]
    assert len(task["rows"]) > 20 and {"prompt_tuning", "lrt", "semcot_soft_words/generator"} <= {
        row["method"] for row in task["rows"]
    }
    untouched = next(row["verdicts"][0] for row in task["rows"] if row["method"].endswith("/no_cot"))
    for row in task["rows"]:
        verdicts = row["verdicts"][0]
        right, n = verdicts.count("1"), len(verdicts)
        p = mcnemar([each == "1" for each in verdicts], [each == "1" for each in untouched])
        shown = "" if verdicts is untouched else "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
        [line] = [line for line in page.splitlines() if line.startswith(f"| {row['title']} | {100 * right / n:.1f} %")]
        assert line.endswith(f"| {shown} |")
        low, high = accuracy_interval(right, n)
        assert n == 500 and row["accuracy"] == right / n
        other = (row["controls"] or {}).get("other_question")
        other = "" if other is None else f"{100 * other:.1f}"
        assert (
            f"| {row['title']} | {100 * right / n:.1f} % [{100 * low:.1f}, {100 * high:.1f}] | {other} | "
            f"{row['latency_ratio']:.2f} |" in page
        )


def test_the_table_of_ablations_is_that_of_its_report():
    page = (EXAMPLES.parent / "docs" / "benchmark.md").read_text()
    report = json.loads((EXAMPLES / "bench" / "results" / "facts" / "ablations.json").read_text())
    [task] = report["tasks"]
    assert len(task["rows"]) == 5
    methods = json.loads((EXAMPLES / "bench" / "results" / "facts" / "methods.json").read_text())["tasks"][0]["rows"]
    untouched = next(row["verdicts"][0] for row in methods if row["method"].endswith("/no_cot"))
    for row in task["rows"]:
        right, n = row["verdicts"][0].count("1"), len(row["verdicts"][0])
        low, high = accuracy_interval(right, n)
        shown = f"{100 * right / n:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        other, ratio = 100 * row["controls"]["other_question"], row["latency_ratio"]
        assert f"| {row['title']} | {shown} | {other:.1f} | {ratio:.2f} |" in page
        whole = task["rows"][0]["verdicts"][0]
        p = mcnemar([each == "1" for each in row["verdicts"][0]], [each == "1" for each in whole])
        ended = "" if row["method"] == "semcot" else "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
        [line] = [line for line in page.splitlines() if line.startswith(f"| {row['title']} | {shown}")]
        p = mcnemar([each == "1" for each in row["verdicts"][0]], [each == "1" for each in untouched])
        over_host = "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
        assert line.endswith(f"| {over_host} | {ended} |")


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_speed_of_the_endpoint(engine, tmp_path, monkeypatch):
    sizes = "--requests 3 --clients 2 --new_tokens 3 --reasoning_tokens 6 --blocks 2 --price 2".split()
    tokenizer = AutoTokenizer.from_pretrained(HOST_PATH)
    host = AutoModelForCausalLM.from_pretrained(HOST_PATH)
    with running(EmbedsEngine(host, tokenizer, positions=256).app) as url:
        sizes += ["--engine_url", url] if engine == "vllm" else []
        monkeypatch.setattr(sys, "argv", ["serve_speed.py", *sizes, "--output", str(tmp_path)])
        load("bench/serve_speed.py").main()
    result = json.loads((tmp_path / "result.json").read_text())
    if engine == "vllm":
        for way in ("implicit tokens", "host alone"):
            found = result[way]
            # The stand-in gives both sides the same answers.
            assert found["questions"] == len(found["pairs"]) == 6 and found["pairs of different lengths"] == 0
            shares = [(pair["front"] - pair["generator"]) / pair["vLLM"] - 1 for pair in found["pairs"]]
            assert found["front adds"] == pytest.approx(statistics.median(shares), abs=1e-4)
            low, high = found["front adds, 95 % interval"]
            assert min(shares) - 1e-4 <= low <= found["front adds"] <= high <= max(shares) + 1e-4
            assert all((pair["generator"] > 0) == (way == "implicit tokens") for pair in found["pairs"])
    else:
        rates = result["batching"]["requests a second"]
        assert result["batching"]["times"] == pytest.approx(rates["many"] / rates["one"]) and rates["one"] > 0
    cost = result["cost"]
    for side, rate in cost["answers a second"].items():
        assert cost["a thousand answers"][side] == pytest.approx(1000 / rate / 3600 * 2)
    assert cost["generated tokens"]["explicit reasoning"] > cost["generated tokens"]["implicit tokens"] > 0
