"""What the package imports is declared, exists on every platform, and pyproject.toml lists every folder."""

import ast
import sys
from importlib import metadata
from pathlib import Path

import pytest
from lowest_versions import PROJECT, PYPROJECT, all_floors, floors
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for folder in ("semcot_hf", "modeling") for path in (ROOT / folder).rglob("*.py"))
# Import names that differ from their distribution's.
DISTRIBUTIONS = {"sklearn": "scikit-learn", "yaml": "pyyaml"}
# Standard modules that Windows or macOS lack.
NOT_EVERYWHERE = {"crypt", "fcntl", "grp", "msvcrt", "nis", "posix", "pwd", "resource", "termios", "tty", "winreg"}


def imported(node: ast.AST) -> set[str]:
    """Return the top-level modules that an import statement names; relative imports name none."""
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    return {node.module.partition(".")[0]} if isinstance(node, ast.ImportFrom) and not node.level else set()


def imports(path: Path) -> set[str]:
    """Return the top-level modules that a file imports anywhere."""
    return set().union(*map(imported, ast.walk(ast.parse(path.read_text()))))


def at_module_level(path: Path) -> set[str]:
    """Return the top-level modules that importing a file imports, `try` blocks left out."""
    tree, found = ast.parse(path.read_text()), set()
    pending = list(tree.body)
    while pending:
        node = pending.pop()
        found |= imported(node)
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Try)):
            pending += ast.iter_child_nodes(node)
    return found


def declared(*extras: str) -> set[str]:
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return {canonicalize_name(Requirement(line).name) for line in lines}


def third_party(names: set[str]) -> set[str]:
    others = names - set(sys.stdlib_module_names) - {"semcot_hf"}
    return {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in others}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_imported_distribution_is_declared(path):
    assert third_party(imports(path)) <= declared("lm-eval", "page", "serve")


def test_every_declared_distribution_is_imported():
    used = third_party(set().union(*map(imports, FILES)))
    # accelerate and peft are what transformers and TRL need for training and for adapters.
    assert declared("page", "serve") - used <= {"accelerate", "peft"}


def test_the_tests_and_examples_import_what_is_declared():
    files = [path for folder in ("tests", "examples") for path in (ROOT / folder).rglob("*.py")]
    own = {path.stem for path in files}
    used = third_party(set().union(*map(imports, files)) - own - {"tests", "parameterized"})
    assert used <= declared("test", "lm-eval", "page", "serve")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_importing_a_file_needs_no_module_of_one_platform(path):
    assert not at_module_level(path) & NOT_EVERYWHERE


def test_the_check_of_platforms_sees_imports_at_module_level_only(tmp_path):
    (tmp_path / "a.py").write_text("import os\nif os.name:\n    import resource\ndef f():\n    import fcntl\n")
    assert at_module_level(tmp_path / "a.py") & NOT_EVERYWHERE == {"resource"}


def test_every_dependency_has_a_floor():
    assert all_floors()
    with pytest.raises(ValueError, match="torch declares no lowest version: add one with >="):
        floors(["torch"])


def test_what_is_installed_at_its_floor_accepts_the_floors_of_the_others():
    # Without the network no other version's requirements are known; `make test-floor` installs all floors.
    lowest = {canonicalize_name(one.name): next(iter(one.specifier)).version for one in map(Requirement, all_floors())}
    at_floor = [name for name, floor in lowest.items() if Version(metadata.version(name)) == Version(floor)]
    assert at_floor
    for name in at_floor:
        for requirement in map(Requirement, metadata.requires(name) or []):
            floor = lowest.get(canonicalize_name(requirement.name))
            if floor is not None and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
                assert requirement.specifier.contains(floor), f"{name} {lowest[name]} requires {requirement}"


def test_every_folder_of_the_package_is_listed():
    folders = {path.parent for path in FILES if path.name == "__init__.py"}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders} - {"modeling"} | {"semcot_hf.modeling"}
    assert sorted(names) == PYPROJECT["tool"]["setuptools"]["packages"]


def test_the_pinned_set_meets_the_declared_versions():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    pinned = {canonicalize_name(name): version for name, version in pinned.items()}
    groups = PROJECT["optional-dependencies"].values()
    for requirement in map(Requirement, [*PROJECT["dependencies"], *(line for group in groups for line in group)]):
        if requirement.name != "semcot-hf":
            name = canonicalize_name(requirement.name)
            assert name in pinned or name == "lm-eval", f"constraints.txt does not pin {name}"
            assert name not in pinned or requirement.specifier.contains(pinned[name]), f"{requirement}: {pinned[name]}"


def test_the_syntax_is_that_of_the_lowest_declared_python():
    lowest = tuple(map(int, PROJECT["requires-python"].removeprefix(">=").split(".")))
    for path in FILES:
        ast.parse(path.read_text(), feature_version=lowest)
