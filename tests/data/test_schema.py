"""Any row of text becomes a row of the schema."""

import time

import pytest

from semcot_hf.data.schema import COLUMNS, count_steps, split_answer, split_steps, to_row


@pytest.mark.parametrize(
    ("reasoning", "steps"),
    [
        ("<<1+1=2>>", ["<<1+1=2>>"]),
        ("<<1+1=2>>\n<<2+2=4>>", ["<<1+1=2>>", "<<2+2=4>>"]),
        ("Half is 30 / 2 = 15. The rest is 15.", ["Half is 30 / 2 = 15.", "The rest is 15."]),
        ("It costs $4.50. So 2 cost $9.", ["It costs $4.50.", "So 2 cost $9."]),
        ("Dr. No met Mrs. Bo vs. St. Paul. All won.", ["Dr. No met Mrs. Bo vs. St. Paul.", "All won."]),
        ("1. Add 2. 2. Take 3.", ["1. Add 2.", "2. Take 3."]),
        ('He said "Stop." Then he left.', ['He said "Stop."', "Then he left."]),
        ("First:\n\\[\n2+2\n\\]\n\nSo 4. Done.", ["First:", "2+2", "So 4. Done."]),
        ("one step with no end", ["one step with no end"]),
        ("5 6 + 0 1 ( 5 7 )", ["5 6", "+ 0 1 ( 5 7 )"]),
        ("", []),
    ],
)
def test_split_steps(reasoning, steps):
    assert split_steps(reasoning) == steps


def test_split_answer_takes_the_last_mark_of_the_last_line_only():
    assert split_answer("#### Step 1\nAdd.\n#### 4") == ("#### Step 1\nAdd.", "4")
    assert split_answer("#### Step 1\nAdd.") == ("", "#### Step 1\nAdd.")


def row_of(example, **columns):
    return to_row(example, columns or {name: name for name in example})


def test_missing_optional_fields_are_empty():
    row = row_of({"query": " 1+1? ", "answer": 2})
    assert row == {"query": "1+1?", "reasoning": "", "condensed_reasoning": "", "answer": "2", "steps": []}
    assert tuple(row) == COLUMNS


@pytest.mark.parametrize(
    ("value", "text"),
    [(18.0, "18"), (0.5, "0.5"), (70000.0, "70000"), (True, "yes"), (False, "no"), (None, ""), (float("nan"), "")],
)
def test_answers_become_text(value, text):
    assert row_of({"query": "?", "answer": value})["answer"] == text


def test_reasoning_is_found_where_it_is():
    assert row_of({"query": "?", "answer": "1+1=2 #### 2"})["reasoning"] == "1+1=2"
    kept = row_of({"query": "?", "reasoning": "#### Sum\n1+1=2", "answer": "Two. #### 2"})
    assert (kept["reasoning"], kept["answer"]) == ("#### Sum\n1+1=2", "2")
    joined = row_of({"query": "?", "reasoning": "1+1=2\n#### 2"})
    assert (joined["reasoning"], joined["answer"], joined["steps"]) == ("1+1=2", "2", ["1+1=2"])
    listed = row_of({"query": "?", "steps": ["<<1+1=2>>", "<<2+1=3>>"], "answer": "3"})
    assert (listed["reasoning"], listed["steps"]) == ("<<1+1=2>> <<2+1=3>>", ["<<1+1=2>>", "<<2+1=3>>"])


def test_conversations():
    prompt = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "2+2?"},
    ]
    row = row_of({"prompt": prompt, "completion": [{"role": "assistant", "content": "<<2+2=4>>\n#### 4"}]})
    assert (row["query"], row["reasoning"], row["answer"]) == ("2+2?", "<<2+2=4>>", "4")
    with pytest.raises(ValueError, match="column 'prompt' holds .* messages of which one with role 'user' has text"):
        row_of({"prompt": prompt[:1], "completion": "4"})


def test_prompt_and_completion_count_only_without_query_and_answer():
    row = row_of({"query": "2+2?", "answer": "4", "prompt": "Solve the problem.", "completion": ["n/a"]})
    assert (row["query"], row["answer"]) == ("2+2?", "4")
    row = row_of({"query": "2+2?", "prompt": None, "completion": "<<2+2=4>> #### 4"})
    assert (row["query"], row["answer"], row["reasoning"]) == ("2+2?", "4", "<<2+2=4>>")


def test_a_query_may_be_a_conversation():
    messages = [{"role": "user", "content": "Hi."}, {"role": "user", "content": "2+2?"}]
    assert row_of({"question": messages, "answer": "4"}, query="question", answer="answer")["query"] == "2+2?"
    with pytest.raises(ValueError, match="column 'question' holds .'2.2', '3.3'.: need a text, or messages"):
        row_of({"question": ["2+2", "3+3"], "answer": "4"}, query="question", answer="answer")
    with pytest.raises(ValueError, match="column 'prompt' holds 7: need a text, or messages"):
        row_of({"prompt": 7, "completion": "4"})


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("query", {"text": "2+2?"}),
        ("answer", ["4", "four"]),
        ("answer", {"value": 4}),
        ("reasoning", ["2+2", "4"]),
        ("condensed_reasoning", ["sum"]),
        ("steps", {"first": "2+2"}),
        ("steps", ["2+2", {"then": "4"}]),
    ],
)
def test_lists_and_dicts_are_no_text(column, value):
    with pytest.raises(ValueError, match=rf"column '{column}' holds the (list|dict) .* need a text\. Write it as one"):
        row_of({"query": "2+2?", "answer": "4", column: value})


def test_a_row_without_an_answer_is_refused():
    with pytest.raises(
        ValueError, match="no column holds the answer, and the reasoning '1.1=2' does not end on .####"
    ):
        row_of({"query": "?", "reasoning": "1+1=2"})


@pytest.mark.parametrize(
    ("reasoning", "steps", "count"),
    [
        ("To find it:\n\n1. **Add**:\n\\[\n9 + 21 = 30\n\\]\n\n2. **Subtract**:\n\\[ 30 - 29 = 1 \\]\n\nSo 1.", 9, 2),
        ("She sold 48/2 = <<48/2=24>>24 clips.\nThat makes 48+24 = <<48+24=72>>72 in all.", 2, 2),
        ("<<16-3-4=9>> <<9*2=18>>", 2, 2),
        ("Let me think.\nStep 1: read it.\nStep 2: compare.\nStep 3: choose.", 4, 3),
        ("A. bank: no.\nB. river: yes.\n\nSo the answer is B.", 3, 0),
        ("7 6 9 + 0 2 0 8 ( 7 8 9 8 ) + 0 0 1", 3, 3),
        ("Ann flips it. It is tails up. Bob does not.", 3, 3),
        ("", 0, 0),
        ("Boxes = 3 x 4\nBoxes = 12\nLeft = 12 - 2\nLeft = 10", 4, 2),
        ("Total = 9 + 21\nSo 9 + 21 = 30.", 2, 1),
        ("7 = 3 + 4, and 14 = 7 * 2", 1, 2),
        ("50% of 20 = 10. 10 + 5 = 15.", 2, 2),
        ("(1) add them (2) subtract 3", 1, 2),
        ("Step 1: add\nStep 2: halve", 2, 2),
        ("- a bank\n- a river", 2, 0),
        ("3 - 5 = -2. -2 * 4 = -$8.", 9, 2),
        ("$$48 / 2 = 24$$ so \\boxed{24}", 1, 1),
        ("Total = 24 boxes in 2 rooms.\nLeft = 9 well-made pens and 3 others.", 2, 0),
        ("3x4 = 12 boxes.\nLeft = 12-2", 2, 2),
    ],
)
def test_count_steps(reasoning, steps, count):
    assert count_steps(reasoning, ["a step"] * steps) == count


@pytest.mark.parametrize(
    "reasoning",
    ["It goes = " + " -- ".join(["1"] * 60) + " = ?", "3 * 4 =" + " " * 2000 + "?"],
    ids=["signs", "spaces"],
)
def test_texts_without_a_result_are_left_at_once(reasoning):
    start = time.perf_counter()
    assert count_steps(reasoning, []) == 0
    assert time.perf_counter() - start < 5
