"""The README stays true: its commands and snippets run, its tables are the reports', its file list is the tree."""

import ast
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from semcot_hf.bench.report import overview
from semcot_hf.bench.tasks.definitions import BENCH_TASKS
from semcot_hf.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip() and not line.strip().startswith("#")
]
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

# The same commands on a few rows and steps.
SMALL = {
    "align": ["--max_train_samples", "12", "--max_eval_samples", "4", "--max_steps", "2", "--use_cpu"],
    "distill": ["--max_train_samples", "4", "--max_eval_samples", "2", "--max_steps", "1", "--use_cpu"],
    "condense": ["--max_train_samples", "20", "--max_eval_samples", "4"],
    "evaluate": ["--max_eval_samples", "3", "--max_new_tokens", "4", "--latency_samples", "1"],
    "generate": ["--max_new_tokens", "4"],
    "bench methods": shlex.split(
        "--methods no_cot semcot --seeds 0 --steps 2 --learning_rates 1e-3 --train_questions 20 --eval_questions 4 "
        "--latency_samples 1 --compiled_latency False"
    ),
    "bench speed": shlex.split(
        "--methods no_cot semcot_parallel --batch_sizes 1 --prompt_lengths 16 --implicit_tokens 2 --answer_tokens 2 "
        "--seconds 0.1"
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("readme")


def test_the_two_commands_stand_at_the_top():
    assert [command.split("#")[0].strip() for command in COMMANDS[:2]] == ["make demo", "make test"]
    for target in ("demo", "test"):
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_commands_run(folder, shared_data, monkeypatch):
    monkeypatch.chdir(folder)
    questions = ({"query": f"Ann flips the coin {count} times. Heads?"} for count in range(3))
    (folder / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    commands = [shlex.split(command) for command in COMMANDS if command.startswith("semcot")]
    assert {name_of(command[1:]) for command in commands} >= set(SMALL)
    for command in commands:
        arguments = [
            word.replace("../shared/data", str(shared_data)).replace("examples/", f"{ROOT}/examples/")
            for word in command[1:]
        ]
        # The check finds the faults that MultiArith is known to have.
        status = 1 if arguments[:2] == ["data", "check"] else 0
        assert main([*arguments, *SMALL.get(name_of(arguments), [])]) == status, command


def name_of(arguments):
    return " ".join(arguments[:2]) if arguments[0] == "bench" else arguments[0]


def test_snippets_run(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert SNIPPETS
    for snippet in SNIPPETS:
        exec(compile(snippet, "README.md", "exec"), {"__name__": "__main__"})
    assert "generated_text" in capsys.readouterr().out


def listed_files():
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"], cwd=ROOT, capture_output=True
    )
    names = files.stdout.decode().split()
    return [name for name in names if name.split("/")[0] in ("modeling", "semcot_hf", "examples")]


def test_file_list_is_the_tree():
    names = listed_files()
    if not names:
        pytest.skip("the file list is checked in a git checkout: git lists no files here")
    for name in names:
        text = ast.get_docstring(ast.parse((ROOT / name).read_text()))
        assert f"`{name}`: {text.splitlines()[0]}" in README, f"{name} is missing, or its first line changed"
    for name in re.findall(r"^- `([^`]+\.py)`", README, re.MULTILINE):
        assert name in names, f"README lists {name}, which is not there"


def methods_report():
    return json.loads((ROOT / "examples/bench/results/methods/report.json").read_text())


def test_the_overview_of_methods_is_that_of_the_report():
    lines = overview(methods_report())
    assert len(lines) == 2 + len(BENCH_TASKS)
    assert f"<!-- overview:begin -->\n{chr(10).join(lines)}\n<!-- overview:end -->" in README


@pytest.mark.parametrize("task", methods_report()["tasks"], ids=lambda task: task["task"])
def test_the_table_of_a_task_is_that_of_the_report(task):
    table = README.partition(f"<!-- {task['task']}:begin -->\n")[2].partition(f"<!-- {task['task']}:end -->")[0]
    expected = [row_of_readme(row) for row in task["rows"]]
    assert table.splitlines()[2:] == expected


def row_of_readme(row):
    """A method's line in a task's table: fewer columns than the report's."""
    low, high = (100 * bound for bound in row["ci95"])
    compiled = row["compiled_generator_ratio"]
    other, without = (row["controls"].get(name) for name in ("other_question", "none"))
    cells = [
        row["title"],
        f"{100 * row['accuracy']:.1f} % [{low:.1f}, {high:.1f}] ({len(row['seeds'])} seeds, "
        f"sd {100 * row['sd_over_seeds']:.1f})",
        *("–" if share is None else f"{100 * share:.1f} %" for share in (other, without)),
        f"{row['latency_ratio']:.2f}" + ("" if compiled is None else f" ({compiled:.2f} compiled)"),
        f"{row['trainable_parameters']:,}",
        f"{row['seen_questions']:,}",
        f"{row['training_operations'] / 1e12:.1f}",
    ]
    return f"| {' | '.join(cells)} |"
