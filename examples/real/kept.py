"""Files of results that are continued only by the run that began them."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path

from semcot_hf.storage import check_same_run, write_json


def kept_rows(output: Path, settings: Mapping, *names: str) -> list[dict]:
    """Return the rows of a file of results that is continued, none if it is new.

    What determines the results is written beside it, as `<file>.json`.

    Args:
        output: a gzip of JSON lines.
        settings: of this run.
        names: those that determine the results.

    Raises:
        ValueError: for a file of other settings, or of unknown ones.
    """
    path, wanted, rows = Path(f"{output}.json"), {name: settings[name] for name in names}, []
    if output.is_file():
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        check_same_run(found, wanted, place=f"--output {output}", remedy="Choose another file, or delete this one.")
        with gzip.open(output, "rt") as file:
            rows = [json.loads(line) for line in file]
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, wanted)
    return rows
