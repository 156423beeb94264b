"""Fetch transformers' own common tests, of the installed version, from its source distribution on PyPI.

    python tests/common/fetch_transformers_tests.py FOLDER

Prints the folder to put on `sys.path`, whose `tests` is a package. None of these tests is part of this repository.

The source distribution holds the top level of transformers' `tests` folder only. `test_modeling_common.py` and
`test_configuration_common.py` import three modules of its sub-folders; `ABSENT` stands in for them, with nothing in
them to run.
"""

import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

ABSENT = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}


def fetch(cache):
    """Download and unpack once per version; returns the folder that holds `tests`."""
    number = version("transformers")
    root = cache / f"transformers-{number}"
    if (root / "complete").exists():
        return root
    cache.mkdir(parents=True, exist_ok=True)
    options = ["--quiet", "--no-binary", ":all:", "--no-deps", "--no-build-isolation", "--dest", str(cache)]
    command = [sys.executable, "-m", "pip", "download", *options, f"transformers=={number}"]
    subprocess.run(command, check=True, stdout=sys.stderr)
    with tarfile.open(cache / f"transformers-{number}.tar.gz") as archive:
        wanted = [member for member in archive if member.name.startswith(f"{root.name}/tests/") and member.isfile()]
        archive.extractall(cache, members=wanted, filter="data")
    (root / "tests" / "__init__.py").touch()
    for name, text in ABSENT.items():
        path = root / "tests" / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            (path.parent / "__init__.py").touch()
            path.write_text(text)
    (root / "complete").touch()
    return root


if __name__ == "__main__":
    print(fetch(Path(sys.argv[1])))
