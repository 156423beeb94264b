"""Make the sample datasets of this folder from the seeded generator of arithmetic word problems.

    python examples/data/make.py

`arithmetic/` holds 60 training, 20 validation and 20 test rows in the schema of `load_reasoning_dataset`;
`no_reasoning.jsonl` holds 20 questions with their answers alone, as input for `semcot condense`.
"""

import sys
from pathlib import Path

from semcot_hf.data import load_reasoning_dataset
from semcot_hf.data.loading import write_splits
from semcot_hf.storage import write_json_lines


def make(folder: Path) -> None:
    """Write all sample files into `folder`."""
    sizes = {"num_samples": 60, "num_validation": 20, "num_test": 20}
    write_splits(load_reasoning_dataset("arithmetic", seed=0, **sizes), folder / "arithmetic")
    questions = load_reasoning_dataset("arithmetic", "train", seed=1, num_samples=20, max_steps=3)
    write_json_lines(folder / "no_reasoning.jsonl", questions.select_columns(["query", "answer"]))


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
