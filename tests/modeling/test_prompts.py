"""Layouts of prompt batches: the shortcuts for batches that end alike, against the general functions row by row."""

import pytest
import torch

from semcot_hf.modeling.splicing_semcot import (
    generator_queries,
    insertion_columns,
    prompt_layout,
    splice,
)

ANSWER = [7, 8]
# real tokens of each row, with the padding's side
BATCHES = {
    "no padding": ([[3, 4, 5, 7, 8], [6, 5, 4, 7, 8]], None),
    "left": ([[3, 4, 5, 6, 7, 8], [6, 7, 8]], "left"),
    "left, wider than the longest": ([[3, 4, 7, 8], [6, 7, 8]], "wide"),
    "right": ([[3, 4, 5, 6, 7, 8], [6, 7, 8]], "right"),
    "behind a prefix": ([[3, 4, 5, 6, 7, 8], [3, 4, 7, 8]], "middle"),
    "without the answer prompt": ([[3, 4, 5, 6], [3, 6]], "left"),
    "some with it": ([[3, 4, 7, 8], [3, 4, 5]], "left"),
    "shorter than the answer prompt": ([[3], [4]], None),
}


def padded(rows, side):
    width = max(map(len, rows)) + (2 if side == "wide" else 0)
    ids, mask = [], []
    for row in rows:
        pad, start = width - len(row), {"right": len(row), "middle": 2}.get(side, 0)
        ids.append(row[:start] + [0] * pad + row[start:])
        mask.append([1] * start + [0] * pad + [1] * (len(row) - start))
    return torch.tensor(ids), torch.tensor(mask)


@pytest.mark.parametrize("rows, side", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("answer", [ANSWER, []], ids=["answer prompt", "none"])
def test_layout_and_queries_are_those_of_the_general_functions(rows, side, answer):
    ids, mask = padded(rows, side)
    layout = prompt_layout(ids, mask, answer)
    columns, found = insertion_columns(ids, mask, answer)
    assert torch.as_tensor(layout.columns).expand(len(rows)).tolist() == columns.tolist()
    assert layout.found == bool(found.all())
    assert (layout.lowest, layout.highest) == (int(ids.min()), int(ids.max()))
    assert (layout.shortest, layout.longest) == (min(map(len, rows)), max(map(len, rows)))
    queries = [
        generator_queries(ids, mask, columns, 9),
        generator_queries(ids, mask, layout.columns, 9),
        generator_queries(ids, mask, layout.columns, 9, layout.extent),
    ]
    for made, expected in [*zip(queries[1], queries[0], strict=True), *zip(queries[2], queries[0], strict=True)]:
        assert (made is None) == (expected is None) and (made is None or torch.equal(made, expected))
    assert isinstance(layout.columns, int) == (side != "right" and (not answer or rows != BATCHES["some with it"][0]))


def test_one_column_for_all_rows_splices_as_a_column_each():
    values, inserted = torch.randn(3, 5, 2), torch.randn(3, 4, 2)
    for column in range(6):
        assert torch.equal(splice(values, inserted, column), splice(values, inserted, torch.full((3,), column)))


@pytest.mark.parametrize(
    "fields, changes",
    [
        ({"state_offset": -1}, {}),
        ({"generator_mode": "sequential", "projection": "vocabulary", "starts_with_thought_token": False}, {}),
        ({}, {"family": "mistral", "sliding_window": 3}),
    ],
    ids=["the state before", "no thought token", "sliding window"],
)
def test_padding_within_a_query_does_not_change_its_tokens(tiny_lm, tiny_semcot, fields, changes):
    """Behind a cached prefix; the padding of the first row stands directly before the answer prompt."""
    generator = tiny_lm(hidden_size=16, seed=1, **changes)
    model = tiny_semcot(generator=generator, answer_prompt_ids=ANSWER, **fields)
    rows = [[30, 31, *ANSWER], [30, 31, 40, 41, 42, 43, *ANSWER]]
    ids, mask = padded(rows, "middle")
    expected = torch.cat([model.implicit_embeddings(torch.tensor([row])) for row in rows])
    torch.testing.assert_close(model.implicit_embeddings(ids, mask), expected)
