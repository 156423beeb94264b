"""Generated tasks: true answers, exact steps, splits that cannot overlap, the reference's own text."""

import re
import time
from itertools import pairwise

import pytest

from semcot_hf.answers import check_answer, infer_answer_type
from semcot_hf.data.schema import COLUMNS, split_steps
from semcot_hf.data.splits import SPLITS, normalise_question, split_of
from semcot_hf.data.tasks import arithmetic, coin_flip, countdown, elements, facts, graph, multiplication

TASKS = [coin_flip, arithmetic, multiplication, graph, facts, elements, countdown]
every_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__.rpartition(".")[2])


@every_task
def test_answers_agree_with_the_independent_solver(task):
    for split in SPLITS:
        rows = task.generate(300, seed=5, split=split)
        if task is countdown:
            # Of several right answers the solver may find another one.
            assert all(check_answer(task.solve(row["query"]), row["answer"], "expression") for row in rows)
        else:
            assert [task.solve(row["query"]) for row in rows] == [row["answer"] for row in rows]


@every_task
def test_rows_hold_the_schema_and_their_steps(task):
    for row in task.generate(200, seed=1):
        assert tuple(row) == COLUMNS
        assert " ".join(row["steps"]) == row["reasoning"]
        assert split_steps(row["reasoning"]) == row["steps"]
        assert all(row[column] for column in COLUMNS)
        assert len(row["condensed_reasoning"].split()) <= 10
        assert len(row["condensed_reasoning"]) < len(row["reasoning"])


@every_task
def test_splits_share_no_question_whatever_the_seeds(task):
    asked = {}
    for split, seeds in (("train", (0, 7)), ("validation", (0,)), ("test", (0, 11))):
        rows = [row for seed in seeds for row in task.generate(500, split=split, seed=seed)]
        asked[split] = {normalise_question(row["query"]) for row in rows}
    assert not asked["train"] & asked["test"]
    assert not asked["train"] & asked["validation"]
    assert not asked["validation"] & asked["test"]
    assert all(split_of(question) == split for split, questions in asked.items() for question in questions)


@every_task
def test_same_seed_same_rows_without_repeats(task):
    rows = task.generate(400, seed=2)
    assert rows == task.generate(400, seed=2)
    assert rows[:50] == task.generate(50, seed=2)
    assert rows != task.generate(400, seed=3)
    assert len({row["query"] for row in rows}) == 400


@every_task
def test_solvers_refuse_other_questions(task):
    with pytest.raises(ValueError, match="query="):
        task.solve("What is the capital of France?")


def test_coin_flip_states_and_shares():
    rows = coin_flip.generate(4000, seed=0)
    people = [len(row["steps"]) for row in rows]
    assert all(430 < people.count(n) < 570 for n in range(3, 11))
    assert sum(row["answer"] == "yes" for row in rows) / 4000 == pytest.approx(0.5, abs=0.03)
    for row in rows[:300]:
        told = re.findall(r"(\w+) (flips|does not flip) the coin\.", row["query"])
        assert len({name for name, _ in told}) == len(told) == len(row["steps"])
        heads = True
        for (name, action), step, state in zip(
            told, row["steps"], row["condensed_reasoning"].rstrip(".").split(", "), strict=True
        ):
            heads ^= action == "flips"
            assert state == ("heads" if heads else "tails")
            assert step == (f"{name} flips, now {state}." if action == "flips" else f"{name} keeps, still {state}.")
            assert len(re.findall(r"\w+|[^\w\s]", step)) == 6


def test_coin_flip_difficulty():
    assert {len(row["steps"]) for row in coin_flip.generate(100, min_people=12, max_people=14)} == {12, 13, 14}
    with pytest.raises(ValueError, match="min_people=5, max_people=4: need 1 <= min_people <= max_people <= 40"):
        coin_flip.generate(1, min_people=5, max_people=4)
    with pytest.raises(ValueError, match=r"num_samples=200 .* task 'coin_flip' .*split='test'"):
        coin_flip.generate(200, split="test", min_people=1, max_people=1)


def test_coin_flip_is_fast():
    begin = time.process_time()
    coin_flip.generate(20_000)
    assert 20_000 / (time.process_time() - begin) > 10_000


def test_arithmetic_equations_are_true_and_bounded():
    rows = arithmetic.generate(1500, seed=4, min_steps=1, max_steps=8, max_value=99)
    assert {len(row["steps"]) for row in rows} == set(range(1, 9))
    for row in rows:
        equations = re.findall(r"<<(\d+)([-+*/])(\d+)=(\d+)>>", row["reasoning"])
        assert row["condensed_reasoning"] == " ".join(f"<<{a}{sign}{b}={c}>>" for a, sign, b, c in equations)
        assert len(equations) == len(row["steps"])
        for a, sign, b, c in equations:
            a, b, c = int(a), int(b), int(c)
            assert {"+": a + b, "-": a - b, "*": a * b}.get(sign, c) == c and (sign != "/" or b * c == a)
            assert 0 <= c <= 99 and 0 <= a <= 99 and 0 <= b <= 99
        assert row["answer"] == equations[-1][3]
    signs = "".join(re.findall(r"<<\d+([-+*/])", " ".join(row["reasoning"] for row in rows)))
    assert all(signs.count(sign) > 300 for sign in "+-*/")


def test_arithmetic_has_every_template_and_refuses_bad_ranges():
    text = " ".join(row["query"] for row in arithmetic.generate(500))
    for words in ("buys", "gives", "loses", "trades", "equally into", "bags with", "them all to", "half", "sells all"):
        assert words in text
    with pytest.raises(ValueError, match="min_steps=0, max_steps=6"):
        arithmetic.generate(1, min_steps=0)
    with pytest.raises(ValueError, match="max_value=9 must be at least 20"):
        arithmetic.generate(1, max_value=9)


@pytest.mark.parametrize("num_digits", [1, 2, 5, 9])
def test_multiplication_of_any_length(num_digits):
    for row in multiplication.generate(5, num_digits=num_digits):
        a, b = (int(side.replace(" ", "")[::-1]) for side in row["query"].split(" * "))
        assert len(str(a)) == len(str(b)) == num_digits == len(row["steps"])
        assert int(row["answer"].replace(" ", "")[::-1]) == a * b
        shifted = [int(part[::-1]) for part in row["condensed_reasoning"].split()]
        assert sum(shifted) == a * b


@pytest.mark.parametrize("name", ["4_by_4_valid", "4_by_4_test_bigbench", "5_by_5_valid", "5_by_5_test_bigbench"])
def test_multiplication_reproduces_the_reference_files(shared_data, name):
    lines = (shared_data / "multiplication" / f"{name}.txt").read_text().splitlines()
    assert len(lines) == 1000
    for line in lines:
        a, b = (int(side.replace(" ", "")[::-1]) for side in line.partition("||")[0].split(" * "))
        row = multiplication.make_row(a, b, int(name[0]))
        assert f"{row['query']}||{row['reasoning']} #### {row['answer']}" == line
        assert multiplication.solve(row["query"]) == row["answer"]


@pytest.mark.parametrize("num_digits", [1, 3, 4])
def test_multiplication_by_columns_gives_the_digits(num_digits):
    for row in multiplication.generate(40, num_digits=num_digits):
        columns = multiplication.column_sums(row["query"])
        sizes = [num_digits - abs(num_digits - 1 - column) + 1 for column in range(2 * num_digits - 1)]
        assert [len(sums) for sums in columns] == sizes
        digits = [sums[-1] % 10 for sums in columns] + [columns[-1][-1] // 10]
        assert " ".join(map(str, digits)) == row["answer"]
        assert columns[0][0] == 0
        assert [sums[0] for sums in columns[1:]] == [sums[-1] // 10 for sums in columns[:-1]]
        assert all(before <= after <= before + 81 for sums in columns for before, after in pairwise(sums))
    with pytest.raises(ValueError, match="is not a multiplication"):
        multiplication.column_sums("7 6 + 1 6")


def test_multiplication_by_a_shorter_number():
    for row in multiplication.generate(20, num_digits=4, second_digits=2):
        assert re.fullmatch(r"\d \d \d [1-9] \* \d [1-9] 0 0", row["query"])
        assert multiplication.solve(row["query"]) == row["answer"]
    for second_digits in (0, 5):
        with pytest.raises(ValueError, match=f"second_digits={second_digits} must be 1 to num_digits=4"):
            multiplication.generate(1, num_digits=4, second_digits=second_digits)


def test_graph_follows_one_chain_and_gives_nothing_away():
    rows = graph.generate(1000, seed=6, min_depth=2, max_depth=4, num_distractors=5)
    first = 0
    for row in rows:
        rules = re.findall(r"Every (\w+) is a (\w+)\.", row["query"])
        person, *choices = re.search(r"Is (\w+) a (\w+) or a (\w+)\?", row["query"]).groups()
        chain = row["condensed_reasoning"].rstrip(".").split(", ")
        depth = len(chain) - 1
        assert 2 <= depth <= 4 and len(rules) == 2 * depth + 5
        assert f"{person} is a {chain[0]}." in row["query"] and row["steps"][0] == f"{person} is a {chain[0]}."
        assert set(zip(chain, chain[1:], strict=False)) <= set(rules)
        assert chain[-1] == row["answer"] and row["answer"] in choices
        first += choices[0] == row["answer"]
        # Both choices end a chain of the same length: each has one rule that leads to it and none that leads on.
        assert {sum(upper == choice for _, upper in rules) for choice in choices} == {1}
        assert not {lower for lower, _ in rules} & set(choices)
    assert first / 1000 == pytest.approx(0.5, abs=0.06)


def test_graph_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"min_depth=3, max_depth=5, num_distractors=99: need .*<= 80"):
        graph.generate(1, num_distractors=99)
    with pytest.raises(ValueError, match="0 of its two concepts can be reached"):
        graph.solve("Ann is a dalpod. Is Ann a sulgus or a wimtar?")


def test_facts_of_training_questions_are_not_those_of_the_others():
    asked = {}

    def pairs(rows):
        return {(row["steps"][-1].split()[-1].rstrip("."), row["query"].rpartition(". ")[2]) for row in rows}

    for split in SPLITS:
        rows = facts.generate(3000, seed=0, split=split)
        asked[split] = pairs(rows)
        # Walks end in every town of every split, and as often in each.
        ends = [row["steps"][-1].split()[-1].rstrip(".") for row in rows]
        assert all(130 < ends.count(town) < 250 for town in facts.TOWNS)
    assert asked["test"] == asked["validation"] and not asked["train"] & asked["test"]
    assert len(asked["train"]) == len(asked["test"]) == len(facts.TOWNS) * len(facts.ATTRIBUTES) / 2
    assert pairs(facts.generate(3000, seed=0, all_facts=True)) == asked["train"] | asked["test"]
    # Chance is one in eight: in each split every value is that of one town.
    for attribute, (values, *_) in facts.ATTRIBUTES.items():
        held_out = [facts.FACTS[town][attribute] for town in facts.TOWNS if facts.is_held_out(town, attribute)]
        assert sorted(held_out) == sorted(values)


def test_facts_are_in_no_question_and_no_step():
    values = {value for known in facts.FACTS.values() for value in known.values()}
    assert len(values) == 24
    by = {"one": 1, "two": 2, "on": 1, "back": -1}
    for row in facts.generate(300, seed=1, max_steps=4):
        text = re.findall(r"\w+", f"{row['query']} {row['reasoning']} {row['condensed_reasoning']}")
        assert not values & set(text) and row["answer"] in values
        # The states follow one another by hand.
        start, *moves, _ = row["query"].split(". ")
        place = facts.TOWNS.index(start.split()[-1])
        for move, step in zip(moves, row["steps"], strict=False):
            words = move.split()
            place += 0 if words[1] == "keeps" else by[words[-2]] * by[words[-1]]
            assert step.startswith(f"{words[0]} ") and step.endswith(f" {facts.TOWNS[place % 16]}.")
        assert row["steps"][-1] == f"It ends in {facts.TOWNS[place % 16]}."
    told = facts.fact_rows()
    assert len(told) == 48 and not any(row["reasoning"] or "letter" in row["query"] for row in told)
    named = [
        (town, value) for row in told for town in facts.TOWNS if town in row["query"] for value in [row["answer"]]
    ]
    assert len(named) == 48 and all(value in facts.FACTS[town].values() for town, value in named)


def test_facts_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="min_steps=3, max_steps=2: need 1 <= min_steps <= max_steps <= 40"):
        facts.generate(1, min_steps=3, max_steps=2)
    with pytest.raises(ValueError, match="starts with no letter in a town"):
        facts.solve("Eve carries it one back. Which fruit grows where it ends?")


def test_elements_walk_bottle_by_bottle_and_name_no_number():
    counts = {"one": 1, "two": 2, "three": 3}
    asked = {}
    for split in SPLITS:
        rows = elements.generate(600, seed=3, split=split)
        asked[split] = {row["steps"][-1].split()[-1].rstrip("?") for row in rows}
        for row in rows:
            first, start, *moves = row["query"].split(". ")
            circle = first.removeprefix("Bottles stand in a circle: ").split(", ")
            assert len(set(circle)) == 6
            place, passed = circle.index(start.split()[-1]), []
            for move in moves[:-1]:
                _, count, way = move.split()
                passed.append([])
                for _ in range(counts[count]):
                    place = (place + {"on": 1, "back": -1}[way]) % 6
                    passed[-1].append(circle[place])
            assert [step.rstrip(".").split(": ")[1].split(", ") for step in row["steps"][:-1]] == passed
            assert row["steps"][-1] == f"What is the atomic number of {circle[place]}?"
            assert not re.search(r"\d", row["query"] + row["reasoning"] + row["condensed_reasoning"])
    assert asked["test"] == asked["validation"] == elements.HELD_OUT
    assert asked["train"] == set(elements.ELEMENTS) - elements.HELD_OUT
    # A few that anyone can look up.
    known = {"hydrogen": 1, "carbon": 6, "oxygen": 8, "iron": 26, "silver": 47, "tin": 50, "iodine": 53, "xenon": 54}
    assert all(elements.ELEMENTS.index(name) + 1 == number for name, number in known.items())
    assert infer_answer_type([row["answer"] for row in elements.generate(50)]) == "numeric"
    with pytest.raises(ValueError, match="min_steps=0, max_steps=4: need 1 <= min_steps <= max_steps <= 6"):
        elements.generate(1, min_steps=0)
    with pytest.raises(ValueError, match="starts with no circle of bottles"):
        elements.solve("Bottles stand in a circle: tin, iron. Ann is at zinc. Then two on.")


def test_countdown_numbers_targets_and_steps():
    rows = countdown.generate(400, seed=0, min_numbers=2, max_numbers=5, max_value=9)
    assert {len(row["steps"]) for row in rows} == {1, 2, 3, 4}
    for row in rows:
        numbers, target = re.fullmatch(r"Use each of the numbers (.+) once to make (\d+)\.", row["query"]).groups()
        numbers = [int(number) for number in numbers.split(", ")]
        assert numbers == sorted(numbers) and max(numbers) <= 9 and int(target) <= 100
        # Python's own reading of the answer.
        assert eval(row["answer"]) == int(target)
        assert sorted(map(int, re.findall(r"\d+", row["answer"]))) == numbers
        for step in row["steps"]:
            calculation, result = step.rstrip(".").split(" = ")
            assert eval(calculation) == int(result) > 0
        assert row["steps"][-1].endswith(f"= {target}.")
    assert infer_answer_type([row["answer"] for row in countdown.generate(50)]) == "expression"
    with pytest.raises(ValueError, match="min_numbers=1"):
        countdown.generate(1, min_numbers=1)
    with pytest.raises(ValueError, match="has no answer"):
        countdown.solve("Use each of the numbers 1, 1, 1 once to make 50.")
