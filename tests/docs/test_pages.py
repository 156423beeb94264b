"""README and docs agree with the tree: links, tables, options, lists of files; and the README stays short."""

import ast
import contextlib
import dataclasses
import io
import re
from pathlib import Path

import pytest

import semcot_hf
from semcot_hf.cli.main import main
from semcot_hf.training.model_card import snippet

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = ("demo", "align", "distill", "evaluate", "generate", "condense", "convert", "data check", "page", "serve")
COMMANDS += ("calibrate", "answer-prompt", "few-shot", "candidates", "bench methods", "bench speed", "bench alignment")
LINK = re.compile(r"\]\(([^)\s]+)\)")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def anchors(page):
    """The anchors of a page's headings, as Git hosts and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_is_short_and_starts_with_the_two_commands():
    text = README.read_text()
    assert len(text.split()) <= 1650
    commands = re.findall(r"^(\w[^#\n]*)", text.partition("```bash\n")[2].partition("```")[0], re.MULTILINE)
    assert [command.strip() for command in commands] == ["make demo", "make test"]


@each_page
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name}: {target} is not there"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target} has no such heading"


@each_page
def test_nothing_outside_the_clone_is_named(page):
    assert "../shared" not in page.read_text()


@pytest.fixture(scope="module")
def flags():
    """Every flag of every command."""
    printed = io.StringIO()
    for command in COMMANDS:
        with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
            main([*command.split(), "--help"])
    return set(re.findall(r"--[a-z]\w+", printed.getvalue())) | {"--config", "--help"}


@each_page
def test_flags_in_the_text_exist(page, flags):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for code in re.findall(r"`([^`]*--[^`]*)`", text):
        if not code.startswith(("pip ", "lm_eval ", "transformers ", "vllm ", "docker ")):
            # The examples' and the harness's own flags are theirs, and so are those in quotation marks.
            named = set(re.findall(r"--[a-z]\w+", re.sub(r'"[^"]*"', "", code)))
            assert named <= flags | {"--train", "--validation", "--metadata"} | {"--include_path"}, code


def test_options_have_the_defaults_that_the_training_page_gives(tmp_path):
    text = (ROOT / "docs/training.md").read_text()
    tables = re.findall(r"\| option \| default \| meaning \|\n\|[-|]+\n((?:\|.*\n)+)", text)
    configs = (semcot_hf.SemCoTAlignmentConfig, semcot_hf.SemCoTDistillationConfig)
    for table, config in zip(tables, configs, strict=True):
        made = config(output_dir=str(tmp_path))
        values = {field.name: getattr(made, field.name) for field in dataclasses.fields(config)}
        values["max_steps"] = None if values["max_steps"] == -1 else values["max_steps"]
        for line in table.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|", 2)]
            names = re.findall(r"`(\w+)`", cells[0])
            if "first_layer" in names:
                continue
            defaults = cells[1].split(", ") if "," in cells[1] else [cells[1]] * len(names)
            for name, default in zip(names, defaults, strict=True):
                if isinstance(values[name], int | float):
                    assert float(default) == values[name], line
                else:
                    assert default.strip("`") == str(values[name] or "unset"), line


def test_architecture_names_every_folder_and_shared_file():
    text = (ROOT / "docs/architecture.md").read_text()
    for folder in (path.parent for path in (ROOT / "semcot_hf").glob("*/__init__.py")):
        assert f"`semcot_hf/{folder.name}/`" in text
    for file in (ROOT / "semcot_hf").glob("[a-z]*.py"):
        assert f"`semcot_hf/{file.name}`" in text
    for named in re.findall(r"`((?:semcot_hf|modeling|examples|tests)/[\w/.]*)`", text):
        assert (ROOT / named).exists(), named


def test_the_reference_has_every_public_name():
    text = (ROOT / "docs/api.md").read_text()
    assert [name for name in semcot_hf.__all__ if not re.search(rf"^::: semcot_hf\S*\.{name}$", text, re.M)] == []


def asking_calls(text):
    """The calls in blocks of Python for which transformers asks whether to run a checkpoint's code.

    Once semcot_hf is imported, it does not ask.
    """
    found = []
    for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for node in ast.walk(ast.parse(block)):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if re.fullmatch(r"Auto\w+\.from_pretrained|(transformers\.)?pipeline", name):
                imported = re.search(r"^(from|import) semcot_hf", block, re.MULTILINE)
                if not imported and "trust_remote_code" not in [keyword.arg for keyword in node.keywords]:
                    found.append(ast.unparse(node))
    return found


def test_no_snippet_has_transformers_ask_whether_to_run_code():
    code = 'from transformers import pipeline\npipe = pipeline("text-generation", model="you/m"{})\n'
    assert len(asking_calls(f"```python\n{code.format('')}```\n")) == 1
    assert not asking_calls(f"```python\n{code.format(', trust_remote_code=True')}```\n")
    assert not asking_calls(f"```python\nimport semcot_hf\n{code.format('')}```\n")
    texts = {page.name: page.read_text() for page in PAGES} | {"model card": f"```python\n{snippet('you/model')}```\n"}
    calls = {name: asking_calls(text) for name, text in texts.items()}
    assert "from_pretrained" in texts["README.md"] and "pipeline" in texts["model card"]
    assert not {name: found for name, found in calls.items() if found}
