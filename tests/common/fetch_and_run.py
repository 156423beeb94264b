"""Run transformers' own common tests, fetched from its source distribution on PyPI, on this package's model.

    make common-tests
    SEMCOT_TRANSFORMERS=../transformers make common-tests
    python tests/common/fetch_and_run.py -k save_load

Further arguments go to pytest. The source distribution of the installed version is unpacked into `build/`, which git
ignores; none of its code is part of this repository. It holds the top level of transformers' `tests` folder only:
`test_modeling_common.py` and `test_configuration_common.py` are there, the tests of generation
(`generation/test_utils.py`) and of export (`exporters/test_export.py`) are not, so `ABSENT` stands in for the names
that the former import, with nothing in them to run.

`SEMCOT_TRANSFORMERS` names a checkout of transformers, best at the tag of the installed version; its tests of
generation are then run by `generation_tests.py`, which is skipped otherwise.
"""

import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

GENERATION = "generation/test_utils.py"
ABSENT = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n\n\nclass ExportGenerateTesterMixin:\n    pass\n",
    GENERATION: "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}
HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / "build" / "common-tests"


def fetch():
    """Download and unpack once per version; returns the folder that holds the package `tests`."""
    number = version("transformers")
    root = CACHE / f"transformers-{number}"
    if (root / "complete").exists():
        return root
    CACHE.mkdir(parents=True, exist_ok=True)
    options = ["--quiet", "--no-binary", ":all:", "--no-deps", "--no-build-isolation", "--dest", str(CACHE)]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, f"transformers=={number}"], check=True)
    with tarfile.open(CACHE / f"{root.name}.tar.gz") as archive:
        wanted = [member for member in archive if member.name.startswith(f"{root.name}/tests/") and member.isfile()]
        archive.extractall(CACHE, members=wanted, filter="data")
    (root / "tests" / "__init__.py").touch()
    (root / "complete").touch()
    return root


def stand_in(root, checkout):
    """Write what the source distribution lacks.

    Args:
        root: folder that holds the package `tests`.
        checkout: of transformers, with its tests of generation; `None` if there is none.
    """
    texts = dict(ABSENT)
    if checkout is not None:
        source = Path(checkout) / "tests" / GENERATION
        if not source.is_file():
            sys.exit(f"SEMCOT_TRANSFORMERS={checkout} has no tests/{GENERATION}: name a checkout of transformers.")
        texts[GENERATION] = source.read_text(encoding="utf-8")
    for name, text in texts.items():
        path = root / "tests" / name
        path.parent.mkdir(exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text, encoding="utf-8")


def main(arguments):
    root = fetch()
    stand_in(root, os.environ.get("SEMCOT_TRANSFORMERS") or None)
    paths = [str(root), os.environ.get("PYTHONPATH", "")]
    settings = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    # Without it some tests are skipped as slow that here are not, or that need hardware, which they then tell.
    settings["RUN_SLOW"] = "1"
    environment = {**os.environ, **settings, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    # Their tests are not run under this project's pytest settings, which make upstream's own warnings errors.
    options = ["-c", os.devnull, "--rootdir", str(HERE), "--confcutdir", str(HERE), "-p", "no:cacheprovider"]
    options += ["-q", "-rfs", "--no-fold-skipped", "--disable-warnings"]
    files = [str(HERE / name) for name in ("common_tests.py", "generation_tests.py")]
    command = [sys.executable, "-m", "pytest", *options, *arguments, *files]
    return subprocess.run(command, env=environment, cwd=HERE).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
