"""Questions are normalised, and owned by splits, by their text alone."""

import hashlib

import pytest

from semcot_hf.data.splits import SPLITS, draw_distinct, normalise_question, question_fraction, split_of
from semcot_hf.data.tasks import GENERATED_TASKS


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Is the coin still heads up?", "  is the COIN\n still heads up "),
        ("Ann’s pie costs $1,200.", "ann's pie costs $1200"),
        ("She said “four”, twice!", "She said 'four' twice"),
        ("\u00bd of it", "1\u20442 of it"),
        ("Half (1½) of it", "half (1 1/2) of it"),
        ("What is 6 × 3?", "What is 6 * 3?"),
        ("What is 6 ÷ 3?", "What is 6 / 3?"),
        ("What is 6 \u2212 3?", "What is 6 - 3?"),
        ("What is 2²?", "What is 2^2?"),
        ("Bo, a 7-year-old, waits!", "Bo a 7yearold waits"),
        ("A one-of-a-kind T-shirt, pre- and post-war", "A oneofakind Tshirt pre and postwar"),
        ("Ann (“who is 5”) waits -- why ?", "Ann ( who is 5 ) waits — why?"),
        ("Ages 6–11: «who» said ‘no’…", "Ages 6-11 who said no"),
        ("Did he say 'a'? It's p.m.!", "Did he say a its pm"),
        ("1'000 of 2,000,000; then 3", "1000 of 2000000 then 3"),
        ("in\u200bvisible\ufeff I\u2764\ufe0f", "invisible I\u2764"),
    ],
)
def test_wording_alone_does_not_make_a_new_question(one, other):
    assert normalise_question(one) == normalise_question(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 3 + 4?", "What is 3 - 4?"),
        ("What is -4?", "What is 4?"),
        ("What is 3.5?", "What is 35?"),
        ("Sum of 1,2,3", "Sum of 12,3"),
        ("7 6 * 1 2", "7 6 + 1 2"),
        ("It costs 5%", "It costs $5"),
        ("6 × 3", "6 ÷ 3"),
        ("6 × 3", "6 \u2212 3"),
        ("6 ÷ 3", "6 3"),
        ("3 ≤ 4", "3 ≥ 4"),
        ("3 ≠ 4", "3 = 4"),
        ("√4", "4"),
        ("2²", "22"),
        ("2⁻²", "2²"),
        ("½", "12"),
        ("1½", "11/2"),
        ("½2", "1/22"),
        ("(2+3)*4", "2+(3*4)"),
        ("( 2 + 3 ) * 4", "2 + ( 3 * 4 )"),
        ("(a + b) * c", "a + (b * c)"),
        ("6 - (2 - 1)", "6 - 2 - 1"),
        ("6 - (2)", "6 (2)"),
        ("What is 5!", "What is 5"),
        ("Is 3 != 4", "Is 3 = 4"),
        ("not ( True and False ) is", "not True and False is"),
        ("not (True and False) is", "not True and False is"),
        ("What is |-3| + 4?", "What is -3 + 4?"),
        ("p & q", "p | q"),
        ("a # b", "a @ b"),
        ("A B ~A", "A B A"),
        ("¬p ∧ q", "p ∧ q"),
        ("!p or q", "p or q"),
        ("(a+b)c", "a+bc"),
        ("f(x,y)", "f(xy)"),
        ("[3.7]", "3.7"),
        ("Close these: [ { [", "Close these: { [ ("),
        ("Compute n! for n = 3", "Compute n for n = 3"),
        ("(n + 1)!!", "(n + 1)!"),
        ("y' = x", "y = x"),
        ("f''(x)", "f'(x)"),
        ("Is she 5'7 tall?", "Is she 57 tall?"),
        ("4:30 plus 1", "430 plus 1"),
        ("What is 7 : 2", "What is 7 2"),
        ("x - y", "x y"),
        ("sin x - cos x", "sin x cos x"),
        ("-x + y", "x + y"),
        ("ages 3–5", "ages 35"),
        ("5°", "5"),
        ("\\sqrt{16}", "sqrt 16"),
        ("What movie is \U0001f467\U0001f41f?", "What movie is \U0001f981\U0001f451?"),
        ("क\u093f", "क\u093e"),
    ],
)
def test_other_numbers_and_signs_make_a_new_question(one, other):
    assert normalise_question(one) != normalise_question(other)


@pytest.mark.parametrize(
    ("task", "digest"),
    [
        ("coin_flip", "e6e017032449705b"),
        ("arithmetic", "95582671f084c3c3"),
        ("multiplication", "ba9bbe9ac6614726"),
        ("graph", "68fb933f0489f878"),
    ],
)
def test_generated_questions_keep_their_normalised_text_and_split(task, digest):
    rows = [row for split in SPLITS for row in GENERATED_TASKS[task].generate(100, split=split)]
    text = "\n".join(f"{normalise_question(row['query'])} {split_of(row['query'])}" for row in rows)
    assert hashlib.blake2b(text.encode(), digest_size=8).hexdigest() == digest


def test_hash_shares_are_even_and_depend_on_the_seed():
    fractions = [question_fraction(f"question {i}") for i in range(4000)]
    assert all(0 <= fraction < 1 for fraction in fractions)
    assert abs(sum(fractions) / 4000 - 0.5) < 0.02
    shares = [[split_of(f"question {i}") for i in range(4000)].count(split) / 4000 for split in SPLITS]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.02)
    moved = sum((question_fraction(f"question {i}", 1) < 0.1) != (fractions[i] < 0.1) for i in range(4000))
    assert moved > 500


def test_draws_are_distinct_repeatable_and_extend_one_another():
    def draw(rng):
        number = rng.randrange(300)
        return f"{number}?", number

    drawn = [list(draw_distinct(draw, n, task="t", seed=3, split="train")) for n in (20, 60, 60)]
    assert drawn[1] == drawn[2] and drawn[1][:20] == drawn[0]
    assert len(set(drawn[1])) == 60
    assert list(draw_distinct(draw, 60, task="t", seed=4, split="train")) != drawn[1]


def test_draws_tell_what_is_wrong():
    def draw(rng):
        return f"{rng.randrange(30)}?", None

    with pytest.raises(ValueError, match=r"num_samples=40 is more than task 'dice' has for split='train'.*fewer"):
        list(draw_distinct(draw, 40, task="dice", seed=0, split="train"))
    with pytest.raises(ValueError, match="split='dev' is unknown: choose one of train, validation, test"):
        list(draw_distinct(draw, 1, task="dice", seed=0, split="dev"))
    with pytest.raises(ValueError, match="num_samples=-1 must not be negative"):
        list(draw_distinct(draw, -1, task="dice", seed=0, split="train"))
