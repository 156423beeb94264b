"""Build sdist and wheel, install the wheel away from the checkout, and run it there.

    make wheel-test

The wheel is built from the sdist. Its virtual environment takes the dependencies from the environment that runs this
script, but not that environment's editable installation. From a folder outside the checkout it imports every module of
the checkout, prints the help of every command, and runs a short demo.
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IMPORTS = """
import importlib, sys
folder, names = sys.argv[1], sys.argv[2:]
for name in names:
    module = importlib.import_module(name)
    assert module.__file__.startswith(folder), f"{name} comes from {module.__file__}, not from the wheel"
print(f"{len(names)} modules imported from the wheel")
"""
COMMANDS = """
from semcot_hf.cli.main import COMMANDS
from semcot_hf.cli.bench import BENCHES
names = [name for name in COMMANDS if name not in ("bench", "data")]
print(*names, "bench", *(f"bench {name}" for name in BENCHES), "data check", sep="\\n")
"""
DEMO = """
from semcot_hf.demo.pipeline import DemoSettings, run_demo
sizes = DemoSettings(train_samples=64, eval_samples=12, words_steps=2, batch_size=8)
report, answers = run_demo("demo", sizes)
assert len(answers) == 3
"""


def modules() -> list[str]:
    """Return the name of every module of the checkout, as the wheel must have it."""
    names = []
    for folder, package in (("semcot_hf", "semcot_hf"), ("modeling", "semcot_hf.modeling")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            names.append(".".join([package, *(part for part in parts if part != "__init__")]))
    return names


def run(*command: object, folder: Path) -> str:
    """Run a command in a folder, without the environment's Python settings; return what it printed.

    Raises:
        SystemExit: when the command fails.
    """
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))[:300]} failed:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout


def main() -> None:
    """Build, install and run the wheel in a temporary folder, which is removed afterwards."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        run(sys.executable, "-m", "build", "--outdir", folder / "dist", ROOT, folder=folder)
        [wheel] = (folder / "dist").glob("*.whl")
        [sdist] = (folder / "dist").glob("*.tar.gz")
        print(f"built {sdist.name} and {wheel.name}")
        venv.create(folder / "venv", with_pip=True)
        scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
        python, semcot = scripts / "python", scripts / "semcot"
        run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel, folder=folder)
        purelib = Path(
            run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=folder).strip()
        )
        # A path in a .pth file makes the libraries importable; the .pth files beside them, such as the editable
        # installation's, are not read.
        (purelib / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        print(run(python, "-c", IMPORTS, purelib, *modules(), folder=folder).strip())
        assert "usage: semcot" in run(semcot, "--help", folder=folder)
        names = run(python, "-c", COMMANDS, folder=folder).splitlines()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            helps = pool.map(lambda name: run(semcot, *name.split(), "--help", folder=folder), names)
        assert all("usage: semcot" in text for text in helps)
        print(f"--help of {len(names)} commands")
        run(python, "-c", DEMO, folder=folder)
        print("a short demo ran; the wheel is complete")


if __name__ == "__main__":
    main()
