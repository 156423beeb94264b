"""The wheels that a GPU machine without a network lacks, in the versions of constraints.txt, and this project's.

    python examples/gpu/wheels.py --output build/gpu/wheels --python_version 3.12

The packages are those of wheels.txt. PyTorch is not among them: a GPU machine has one for its driver. There,

    pip install --no-index --no-deps --target site build/gpu/wheels/*.whl && export PYTHONPATH=site

puts them into use. The first pages of `pip list` there tell what else is lacking; add its name to wheels.txt.
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Pip takes a platform exactly as it is named.
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (39, 35, 34, 31, 28, 27, 24, 17)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux1_x86_64"]


def pinned(names: list[str], constraints: str) -> list[str]:
    """Return name==version of each package.

    Raises:
        ValueError: for a package without a version in the constraints.

    >>> pinned(["peft"], "peft==0.21.2\\ntrl==1.16.0")
    ['peft==0.21.2']
    """
    versions = dict(line.split("==") for line in constraints.split() if "==" in line)
    if missing := [name for name in names if name not in versions]:
        raise ValueError(f"wheels.txt names {', '.join(missing)}, which constraints.txt lacks: add versions there.")
    return [f"{name}=={versions[name]}" for name in names]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="Folder of the wheels.")
    parser.add_argument("--python_version", default="3.12", help="Python of the GPU machine.")
    parser.add_argument("--platforms", nargs="+", default=PLATFORMS, help="Platforms of the wheels.")
    arguments = parser.parse_args(argv)
    names = Path(__file__).with_name("wheels.txt").read_text().split()
    wanted = pinned(names, (ROOT / "constraints.txt").read_text())
    arguments.output.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip"]
    options = ["--no-deps", "--only-binary=:all:", "--implementation", "cp"]
    options += ["--python-version", arguments.python_version, "-d", str(arguments.output)]
    options += [word for platform in arguments.platforms for word in ("--platform", platform)]
    subprocess.run([*pip, "download", "-q", *options, *wanted], check=True)
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", str(arguments.output), str(ROOT)], check=True)
    found = list(arguments.output.glob("*.whl"))
    print(f"{len(found)} wheels, {sum(path.stat().st_size for path in found) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
