"""Tasks for lm-evaluation-harness, judged as `semcot evaluate` judges: the folder for its `--include_path`."""

from pathlib import Path

INCLUDE_PATH = Path(__file__).parent
