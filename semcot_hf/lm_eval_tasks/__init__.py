"""Tasks for lm-evaluation-harness with the verdicts of `semcot evaluate`; `INCLUDE_PATH` is for `--include_path`."""

from pathlib import Path

INCLUDE_PATH = Path(__file__).parent
