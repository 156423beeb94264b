"""What the files in `modeling/` may do: their syntax trees show no sockets, shells, evaluation or reading of files."""

import ast
import doctest
import importlib
import sys
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parents[2] / "modeling").glob("*.py"))
# Of the standard library only what computes; os for paths alone, see below.
STANDARD = {
    "collections",
    "contextlib",
    "copy",
    "dataclasses",
    "functools",
    "hashlib",
    "inspect",
    "itertools",
    "math",
    "os",
    "re",
    "typing",
    "warnings",
}
LIBRARIES = {"torch", "transformers"}
FORBIDDEN_CALLS = {"open", "eval", "exec", "compile", "__import__", "breakpoint", "input"}
FORBIDDEN_ATTRIBUTES = {
    "system", "popen", "spawn", "fork", "execv", "execve", "remove", "unlink", "rmdir", "rename", "environ",
    "load", "hub", "load_state_dict_from_url", "import_module", "read_text", "read_bytes", "write_text",
    "urlopen", "compile",
}  # fmt: skip


def siblings():
    return {path.stem for path in FILES}


@pytest.fixture(params=FILES, ids=lambda path: path.name)
def tree(request):
    tree = ast.parse(request.param.read_text())
    # Replacing a checkpoint as a whole takes operations on files; they stand in a file of their own.
    tree.replaces_files = request.param.name == "folders_semcot.py"
    return tree


def test_the_folder_is_flat_and_found():
    assert len(FILES) >= 8
    assert all(path.is_file() or path.name == "__pycache__" for path in FILES[0].parent.iterdir())


def test_imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            roots = {node.module.partition(".")[0]}
            assert node.module != "__future__"
            assert node.module != "os" or {alias.name for alias in node.names} <= {"path", "PathLike"}
        elif isinstance(node, ast.ImportFrom):
            # The Hub's loader follows `from .sibling import name` and no other relative form.
            assert node.level == 1 and node.module in siblings(), ast.unparse(node)
            continue
        else:
            continue
        more = {"filecmp", "pathlib", "re", "shutil", "types"} if getattr(tree, "replaces_files", False) else set()
        assert roots <= STANDARD | LIBRARIES | more, ast.unparse(node)
        assert roots - LIBRARIES <= set(sys.stdlib_module_names)


def test_calls_and_attributes(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS, ast.unparse(node)
        if isinstance(node, ast.Attribute):
            # torch's compiler makes no code of text.
            allowed = ast.unparse(node) == "torch.compile"
            allowed |= getattr(tree, "replaces_files", False) and node.attr in ("unlink", "rmdir")
            assert allowed or node.attr not in FORBIDDEN_ATTRIBUTES, ast.unparse(node)
            if isinstance(node.value, ast.Name) and node.value.id == "os":
                assert node.attr == "path", ast.unparse(node)


def test_worked_numbers():
    """Doctests of the installed modules; pytest would collect the folder as a package of its own and register that."""
    attempted = 0
    for name in siblings() - {"__init__"}:
        result = doctest.testmod(importlib.import_module(f"semcot_hf.modeling.{name}"))
        assert result.failed == 0, name
        attempted += result.attempted
    assert attempted >= 10


def test_classes_stand_outside_the_init_file():
    tree = ast.parse((FILES[0].parent / "__init__.py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, (ast.ClassDef, ast.FunctionDef))]


@pytest.mark.parametrize(
    "source",
    [
        "import socket",
        "import subprocess",
        "from os import system",
        "from ..x import y",
        "from .gone import y",
        "from . import splicing_semcot",
    ],
)
def test_the_import_check_sees_what_it_should(source):
    with pytest.raises(AssertionError):
        test_imports(ast.parse(source))


@pytest.mark.parametrize("source", ["open('a')", "eval('1')", "os.system('ls')", "torch.load('a')", "os.listdir('.')"])
def test_the_call_check_sees_what_it_should(source):
    with pytest.raises(AssertionError):
        test_calls_and_attributes(ast.parse(source))
