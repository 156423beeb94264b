"""Build hooks of the documentation site: the package's layout, the list of files, and links out of docs/."""

import ast
import atexit
import dataclasses
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# [text](../path) or ![text](../path): a file of the repository outside docs/, as it is linked on a Git host.
_OUTSIDE = re.compile(r"(!?)\[([^\]]*)\]\(\.\./([^)\s]+)\)")
# <!-- fields: module.Class -->, which becomes a table of a configuration's fields.
_FIELDS = re.compile(r"<!-- fields: ([\w.]+)\.(\w+) -->")
_LISTED = ("modeling", "semcot_hf", "examples")


@event_priority(100)
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Copy the package into a folder of this build as an installation lays it out: modeling/ inside semcot_hf/.

    mkdocstrings looks for the folder when it is configured, which is after this event, thanks to its priority.
    """
    folder = _folder_of_this_process()
    package = folder / "semcot_hf"
    if package.exists():  # `mkdocs serve` builds again and again.
        shutil.rmtree(package)
    for source, target in ((ROOT / "semcot_hf", package), (ROOT / "modeling", package / "modeling")):
        # The demo's models are not needed.
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("models", "__pycache__"))
    for file in package.rglob("*.py"):
        # Outside code spans Markdown would take it for an HTML tag.
        file.write_text(re.sub(r"(?<!`)<thought>(?!`)", "`<thought>`", file.read_text()))
    config.plugins["mkdocstrings"].config["handlers"]["python"]["paths"] = [str(folder)]
    return config


@cache
def _folder_of_this_process() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="semcot-docs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the images outside docs/ that pages show, such as the benchmark's plots."""
    for page in list(files.documentation_pages()):
        for shown, _, target in _OUTSIDE.findall(page.content_string):
            if shown and files.get_file_from_path(f"assets/{target}") is None:
                files.append(File.generated(config, f"assets/{target}", abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the list of files, and point links out of docs/ to what the site has of them."""
    markdown = _FIELDS.sub(lambda match: field_table(*match.groups()), _OUTSIDE.sub(_inside, markdown))
    return markdown.replace("<!-- files -->", file_list(source_files()))


def source_files() -> list[str]:
    """Return the paths of the Python files under modeling/, semcot_hf/ and examples/, sorted."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *_LISTED]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not listed:  # Not a Git checkout.
        listed = [str(path.relative_to(ROOT)) for folder in _LISTED for path in (ROOT / folder).rglob("*")]
    return sorted(name for name in listed if name.endswith(".py") and (ROOT / name).is_file())


def file_list(names: Iterable[str]) -> str:
    """Return a Markdown list: each file with the first line of its docstring, under its folder's name."""
    lines, folder = [], None
    for name in sorted(names, key=lambda name: (name.rpartition("/")[0], name)):
        if name.rpartition("/")[0] != folder:
            folder = name.rpartition("/")[0]
            lines += ["", f"### `{folder}/`", ""]
        docstring = ast.get_docstring(ast.parse((ROOT / name).read_text())) or ""
        lines.append(f"- `{name.rpartition('/')[2]}`: {docstring.partition(chr(10))[0]}")
    return "\n".join(lines)


def field_table(module: str, name: str) -> str:
    """Return a Markdown table of a configuration's fields that this package defines: name, default, help."""
    config = getattr(import_module(module), name)
    classes = [base for base in config.__mro__ if base.__module__.startswith("semcot_hf")]
    own = set().union(*(vars(base).get("__annotations__", {}) for base in classes))
    lines = ["| field | default | meaning |", "|---|---|---|"]
    for field in dataclasses.fields(config):
        if field.name in own:
            meaning = field.metadata["help"].replace("|", "\\|").replace("<", "&lt;")
            lines.append(f"| `{field.name}` | {_default(field)} | {meaning} |")
    return "\n".join(lines)


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{field.default!r}`"
    return "required" if field.default_factory is dataclasses.MISSING else f"`{field.default_factory()!r}`"


def _inside(match: re.Match[str]) -> str:
    shown, text, target = match.groups()
    return f"![{text}](assets/{target})" if shown else f"{text} (`{target}`)"
