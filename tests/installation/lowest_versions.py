"""Print pip constraints that hold every direct dependency at its lowest declared version.

    python tests/installation/lowest_versions.py > build/floor/constraints.txt

Dependencies that are declared without a floor are an error; so is an extra's, `lm-eval` excepted, which no test needs.
"""

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

PYPROJECT = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
_EXTRAS = ("page", "serve", "test")


def floors(requirements: list[str]) -> list[str]:
    """Return `name==version` for each requirement, with the version behind its `>=` or `==`.

    Raises:
        ValueError: for a requirement that has neither.

    >>> floors(["torch>=2.13", "transformers>=5.20,<6", "ruff==0.17.5"])
    ['torch==2.13', 'transformers==5.20', 'ruff==0.17.5']
    """
    found = []
    for requirement in map(Requirement, requirements):
        if requirement.name == "semcot-hf":
            continue
        lowest = [bound.version for bound in requirement.specifier if bound.operator in (">=", "==")]
        if len(lowest) != 1:
            raise ValueError(f"{requirement} declares no lowest version: add one with >=")
        found.append(f"{requirement.name}=={lowest[0]}")
    return found


def all_floors() -> list[str]:
    """Return `floors` of the package and of the extras that its tests need."""
    return floors(
        [*PROJECT["dependencies"], *(line for name in _EXTRAS for line in PROJECT["optional-dependencies"][name])]
    )


if __name__ == "__main__":
    print(*all_floors(), sep="\n")
    sys.exit(0)
