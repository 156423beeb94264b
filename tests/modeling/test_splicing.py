"""Splicing: where implicit tokens go, checked against plain Python lists."""

import pytest
import torch

from semcot_hf.modeling.splicing_semcot import (
    generator_queries,
    insertion_columns,
    positions_from_mask,
    prompt_ends,
    splice,
    spliced_columns,
)

ANSWER = [7, 8]
ROWS = [
    # ids, mask, completion mask, expected column, answer prompt found
    ([0, 0, 3, 4, 7, 8], [0, 0, 1, 1, 1, 1], None, 4, True),
    ([3, 4, 7, 8, 0, 0], [1, 1, 1, 1, 0, 0], None, 2, True),
    ([3, 7, 8, 4, 5, 6], [1] * 6, None, 6, False),
    ([3, 4, 7, 8, 5, 6], [1] * 6, [0, 0, 0, 0, 1, 1], 2, True),
    ([0, 3, 4, 7, 8, 8], [0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1], 3, True),
    ([7, 8, 3, 4, 0, 0], [1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0], 0, True),
    ([8, 3, 4, 5, 6, 7], [1] * 6, [0, 1, 1, 1, 1, 1], 1, False),
]


@pytest.mark.parametrize("ids, mask, completion, column, found", ROWS)
def test_insertion_column_of_one_row(ids, mask, completion, column, found):
    completion = None if completion is None else torch.tensor([completion])
    columns, hits = insertion_columns(torch.tensor([ids]), torch.tensor([mask]), ANSWER, completion)
    assert (columns.tolist(), hits.tolist()) == ([column], [found])


def test_insertion_columns_of_a_batch_are_those_of_its_rows():
    rows = [row for row in ROWS if row[2] is None]
    ids, mask = (torch.tensor([row[i] for row in rows]) for i in (0, 1))
    columns, found = insertion_columns(ids, mask, ANSWER)
    assert columns.tolist() == [row[3] for row in rows]
    assert found.tolist() == [row[4] for row in rows]


def test_an_answer_prompt_hidden_behind_padding_does_not_count():
    columns, found = insertion_columns(torch.tensor([[7, 8]]), torch.tensor([[0, 1]]), ANSWER)
    assert (columns.tolist(), found.tolist()) == ([2], [False])


def test_without_an_answer_prompt_tokens_go_to_the_prompts_end():
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0]])
    columns, found = insertion_columns(torch.full((2, 4), 5), mask, [])
    assert columns.tolist() == prompt_ends(mask).tolist() == [4, 2]
    assert found.all()


@pytest.mark.parametrize("rest", [(), (3,), (2, 3)])
def test_splice_equals_lists(rest):
    torch.manual_seed(0)
    values, inserted = torch.randn(4, 6, *rest), torch.randn(4, 3, *rest)
    columns = torch.tensor([0, 2, 5, 6])
    out = splice(values, inserted, columns)
    for row, column in enumerate(columns.tolist()):
        expected = torch.cat([values[row, :column], inserted[row], values[row, column:]])
        assert torch.equal(out[row], expected)
    where = spliced_columns(6, 3, columns)
    index = where.view(4, 6, *[1] * len(rest)).expand(4, 6, *rest)
    assert torch.equal(out.gather(1, index), values)


def test_splice_passes_gradients_to_both_sides():
    values, inserted = torch.randn(2, 4, 3, requires_grad=True), torch.randn(2, 2, 3, requires_grad=True)
    splice(values, inserted, torch.tensor([1, 4])).sum().backward()
    assert torch.equal(values.grad, torch.ones_like(values))
    assert torch.equal(inserted.grad, torch.ones_like(inserted))


def test_queries_are_the_real_tokens_before_the_column():
    ids = torch.tensor([[0, 3, 4, 5, 7, 8], [3, 4, 7, 8, 0, 0], [6, 7, 8, 0, 0, 0]])
    mask = (ids > 0).long()
    columns, _ = insertion_columns(ids, mask, ANSWER)
    queries, query_mask = generator_queries(ids, mask, columns, pad_token_id=9)
    assert queries.tolist() == [[3, 4, 5], [9, 3, 4], [9, 9, 6]]
    assert query_mask.tolist() == [[1, 1, 1], [0, 1, 1], [0, 0, 1]]


def test_positions_count_real_tokens():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    assert positions_from_mask(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]]
