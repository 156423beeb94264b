"""One table of all runs of pairs of pretrained models, as Markdown: a row for each file of verdicts.

    python examples/real/overview.py examples/real/results/*.jsonl.gz

Files and p-values are as in `report.py`, which shows each run by itself.
"""

import sys
from collections.abc import Iterable

from report import compare, markdown
from verdicts import Section, read_sections

COLUMNS = {
    "no_cot": "no CoT",
    "cot": "explicit CoT",
    "condensed": "condensed CoT",
    "semcot": "**SemCoT**",
    "generator": "**generator alone**",
    "words": "words as text",
    "other_question": "another question's thought",
}


def overview(sections: Iterable[Section]) -> str:
    """Return one table with a row for each pair: accuracies, and the number of questions where it is another one."""
    columns = ["set", "host", "generator", "variant", *COLUMNS.values(), "p against the generator alone"]
    lines = [columns, ["---"] * len(columns)]
    for parts, verdicts, *_ in sections:
        own = len(verdicts["semcot"]) if "semcot" in verdicts else 0
        cells = []
        for method in COLUMNS:
            right = [row["correct"] for row in verdicts.get(method, {}).values()]
            count = "" if len(right) == own else f" of {len(right)}"
            cells.append(f"{sum(right) / len(right):.1%}{count}" if right else "")
        if own:
            lines.append([*parts, *cells, compare(verdicts["semcot"], verdicts.get("generator"))])
    return markdown(lines)


def main(paths: list[str]) -> None:
    print(overview(read_sections(paths)))


if __name__ == "__main__":
    main(sys.argv[1:])
