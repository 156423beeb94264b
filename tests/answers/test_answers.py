"""Judging accepts what models genuinely write and gives hostile outputs at most what chance gives."""

import json
import random
import re
import threading
import time
from collections import Counter

import pytest

from semcot_hf.answers import check_answer, extract_answer, infer_answer_type

# ---------------------------------------------------------------------------------------------------------------------
# Outputs that state no answer, whatever the question: lists, hedges, evasions. They must never be right.
# ---------------------------------------------------------------------------------------------------------------------
UP_TO_29 = list(map(str, range(30)))
LETTERS = list("ABCDE")

NO_ANSWER = {
    "numeric": [
        " ".join(UP_TO_29),  # the reference's list: 40 to 58 % by the authors' check
        ", ".join(UP_TO_29),
        "\n".join(UP_TO_29),
        ". ".join(UP_TO_29) + ".",
        ".\n".join(UP_TO_29),
        "; ".join(UP_TO_29),
        " or ".join(UP_TO_29),
        " and ".join(UP_TO_29),
        "/".join(UP_TO_29),
        "-".join(UP_TO_29),
        "|".join(UP_TO_29),
        "\n".join(f"{i + 1}. {n}" for i, n in enumerate(UP_TO_29)),
        "\n".join(f"- {n}" for n in UP_TO_29),
        "\n".join(f"* **{n}**" for n in UP_TO_29),
        " ".join(f"**{n}**" for n in UP_TO_29),
        " ".join(f"${n}" for n in UP_TO_29),
        " ".join(f"({n})" for n in UP_TO_29),
        " ".join(f"It could be {n}." for n in UP_TO_29),
        "\n".join(f"Maybe it is {n}." for n in UP_TO_29),
        "\n".join(f"The answer is {n}." for n in UP_TO_29),
        " ".join(f"Answer: {n}" for n in UP_TO_29),
        "\n".join(f"Final answer: {n}" for n in UP_TO_29),
        "\n".join(f"Therefore, the answer is {n}." for n in UP_TO_29),
        "\n".join(f"#### {n}" for n in UP_TO_29),
        " ".join(f"\\boxed{{{n}}}" for n in UP_TO_29),
        "\\boxed{" + ", ".join(UP_TO_29) + "}",
        "\\boxed{5 \\text{ or } 6}",
        "#### " + " ".join(UP_TO_29),
        "The answer is " + " ".join(UP_TO_29),
        "The answer is " + ", ".join(UP_TO_29) + ".",
        "The answer is one of 1, 2, 3, 4 and 5.",
        "The answer is 5. 6. 7. 8.",
        "The answer is 5\n6\n7\n8",
        ", ".join(f"x = {n}" for n in UP_TO_29),
        "x = 5 or x = 6",
        "x = 5, y = 6",
        "5 or 6",
        "5 or maybe 6",
        "5, perhaps 6",
        "5 (or 6)",
        "either 5 or 6",
        "It is either 5 or 6.",
        "The answer is 5 or 6.",
        "The answer is either 5 or 6.",
        "The answer is 5, possibly 6.",
        "#### 5 or 6",
        "#### 5\n#### 6",
        "between 5 and 6",
        "from 5 to 6",
        "5-6",
        "5 to 6",
        "5 and 6",
        "5; 6",
        "5 / 6 / 7",
        "5 eggs and 6 ducks",
        "5 dollars, 6 dollars",
        "It is 5. Or it is 6.",
        "5. Or 6.",
        "The answer is not 5.",
        "It is not 5.",
        "neither 5 nor 6",
        "The answer is 9 * 2",
        "9 * 2",
        "16 - 3 - 4",
        "Is it 5?",
        "Is the answer 5?",
        "The answer is 5?",
        "5 + 6 = ?",
        "x = y",
        "",
        "   \n",
        "####",
        "Answer:",
        "\\boxed{}",
        "I don't know.",
        "There is not enough information to answer.",
        "The answer is a number.",
        "The answer is 1/0.",
        "1. First, count the eggs.\n2. Then count the ducks.\n3. Then",
        "Step 1: Count the eggs.",
        "The answer is any of 1...29",
        "0 < x < 30",
        "5 (6) (7)",
        "5 [6] {7}",
        "5 eggs 6 ducks 7 cows",
        "The answer is 5 eggs 6 ducks 7 cows",
        "Answers: 1, 2, 3",
        "5 vs 6",
        "1, 2, 3, and so on until 29.",
        "5. Alternatively, 6.",
        "Option 1: 5\nOption 2: 6",
        "The answer is 5 if easy, 6 if hard.",
        "The answer is 5; if not, 6",
        "first 5 then 6",
        "5? 6?",
        "**5** or **6**",
        "The answer to the question: how many are 5?",
        "12:30",
        "1.2.3",
        "3/4/2020",
        "at least 7",
        "At most 7 eggs.",
        "more than 14",
        "The answer is more than 14.",
        "Answer: less than 7",
        "Answer: **at least 7**",
        "The answer is up to $7.",
        "The answer is 7 or more",
        "7 eggs or fewer",
        "She has more than 14 eggs.",
    ],
    "choice": [
        "a)21 b)22 c)23 d)24 e)25",
        "A)21 B)22 C)23 D)24 E)25",
        "A B C D E",
        "A, B, C, D, E",
        "A/B/C/D/E",
        "A\nB\nC\nD\nE",
        "A. B. C. D. E.",
        "(A) (B) (C) (D) (E)",
        "A) B) C) D) E)",
        "**A** **B** **C** **D** **E**",
        "[A] [B] [C] [D] [E]",
        "ABCDE",
        "A-E",
        "A to E",
        "A or B",
        "A or B or C or D or E",
        "A and B",
        "A & B",
        "A|B",
        "either A or B",
        "Either (A) or (B).",
        "A, or maybe B",
        "A (or B)",
        "neither A nor B",
        "not A",
        "The answer is not A.",
        "The answer is A or B.",
        "The answer is A, B, C, D, E.",
        "The answer is A B C D E",
        "The answer is A. The answer is B.",
        "\n".join(f"The answer is {x}." for x in LETTERS),
        " ".join(f"Answer: {x}" for x in LETTERS),
        "\n".join(f"Final answer: {x}" for x in LETTERS),
        "\n".join(f"Thus, the answer is {x}." for x in LETTERS),
        "\n".join(f"#### {x}" for x in LETTERS),
        " ".join(f"\\boxed{{{x}}}" for x in LETTERS),
        "\\boxed{A, B}",
        "\\boxed{A \\text{ or } B}",
        "#### A or B",
        "#### A B C D E",
        "Option A or option B",
        "Options A, B, C, D and E are all correct.",
        "Both A and B are correct.",
        "A is correct. B is correct.",
        "It could be A. It could be B.",
        "Maybe A, maybe B.",
        "A. ignore or B. enforce",
        "Choices:\nA. ignore\nB. enforce\nC. authoritarian\nD. yell at\nE. avoid",
        "A. ignore\nB. enforce\nC. authoritarian\nD. yell at\nE. avoid",
        "a. ignore\nb. enforce\nc. authoritarian\nd. yell at\ne. avoid",
        "A. ignore B. enforce C. authoritarian D. yell at E. avoid",
        "A: ignore, B: enforce, C: authoritarian, D: yell at, E: avoid",
        "(a) ignore (b) enforce (c) authoritarian (d) yell at (e) avoid",
        "A through E",
        "A...E",
        "A\u2013E",
        "A if easy, B if hard",
        "Answer: A Answer: B",
        "A=B",
        "A+B",
        "A,B",
        "a) b) c)",
        "a b c d e",
        "a or b",
        "(a)(b)",
        "a. b. c. d. e.",
        "My answer is A, but it could be B.",
        "Both (B) and (C)",
        "B then C",
        "B?",
        "A revolving door is convenient for two direction travel.",
        "A revolving door",
        "A good answer",
        "The answer is a revolving door.",
        "I think so.",
        "I am not sure.",
        "All of the above",
        "None of the above",
        "The correct option is one of the five.",
        "Is it A?",
        "The answer is A?",
        "Which is right, A or B?",
        "X",
        "Apple",
        "bank",
        "Be careful.",
        "",
        "  \n",
        "####",
        "Answer:",
        "I don't know.",
    ],
    "yes_no": [
        "yes or no",  # the reference's hedge: 100 % by the authors' check
        "no or yes",
        "Yes or no.",
        "yes/no",
        "no/yes",
        "yes no",
        "no yes",
        "yes, no",
        "no, yes",
        "yes and no",
        "Yes and no.",
        "yes-no",
        "Yes. No.",
        "No. Yes.",
        "yes\nno",
        "no\nyes",
        "yes yes no",
        "yes no yes no yes no",
        "either yes or no",
        "The answer is yes or no.",
        "The answer is either yes or no.",
        "The answer is yes/no.",
        "The answer is yes. The answer is no.",
        "The answer is no. The answer is yes.",
        "The answer is yes. No.",
        "Answer: yes Answer: no",
        "Final answer: yes\nFinal answer: no",
        "So the answer is yes. So the answer is no.",
        "#### yes\n#### no",
        "#### no #### yes",
        "#### yes or no",
        "\\boxed{yes} \\boxed{no}",
        "\\boxed{yes \\text{ or } no}",
        "**yes** **no**",
        "(yes) (no)",
        "maybe yes, maybe no",
        "It could be yes. It could be no.",
        "neither yes nor no",
        "The answer is neither yes nor no.",
        "not yes",
        "The answer is not no.",
        "The answer is not yes.",
        "yes but no",
        "no but yes",
        "yes unless no",
        "no (yes)",
        "yes = no",
        "yes; no",
        "yes...no",
        "yes, then no",
        "Yes if heads, no if tails.",
        "The answer is yes if even, no if odd.",
        "Answer: yes. Or no.",
        "Yes, I mean no.",
        "Options: yes or no",
        "This is a yes-no question.",
        "This is a yes/no question.",
        "Answer yes or no.",
        "Yes or no?",
        "yes?",
        "The answer is no?",
        "Is the coin still heads up?",
        "No one knows.",
        "no one",
        "No-one flips the coin.",
        "There is no change.",
        "No coin was flipped.",
        "No longer.",
        "I do not know.",
        "The coin is not heads up.",
        "Nothing changes.",
        "none",
        "know",
        "now",
        "not",
        "Nope",
        "noyes",
        "yesno",
        "eyes",
        "The coin is tails up.",
        "heads",
        "tails",
        "true or false",
        "It is true that the coin was flipped.",
        "1",
        "",
        "\n",
        "####",
        "Answer:",
    ],
    "sequence": ["", "  \n", "####", "7 8 0 3 ####", "Answer:"],
}

# ---------------------------------------------------------------------------------------------------------------------
# Outputs that do state one answer, but the same whatever the question. They may score what one guess scores.
# ---------------------------------------------------------------------------------------------------------------------
CONSTANTS = {
    "numeric": [
        "1",
        "2",
        "5",
        "10",
        "0",
        "-1",
        "1.0",
        "$5",
        "50%",
        "0.5",
        "1/2",
        "50",
        "1e1",
        "1,000",
        "5 5 5 5 5",
        "The answer is 2.",
        "The answer is 1.\n#### 2",
        "#### 3",
        "\\boxed{4}",
        "\\boxed{\\frac{1}{2}}",
        "\\boxed{\\sqrt{4}}",
        "She has 5 left.",
        "So 2 * 3 = 6",
        "0 = 1 = 2 = 3 = 4 = 5",
        "The answer is 1. Wait, the answer is 2. Wait, the answer is 3.",
        "5\nQuestion: 1 2 3\nAnswer: 6",
        "\\boxed{x}",
        "\\boxed{\\{1, 2, 3, 4, 5\\}}",
        "\\boxed{5 \\pm 1}",
        "\\boxed{[0, 29]}",
        "\\boxed{\\mathbb{R}}",
        "\\boxed{x \\in \\mathbb{N}}",
        "\\boxed{n \\geq 0}",
    ],
    "choice": [
        "A",
        "B",
        "C",
        "D",
        "E",
        "(E)",
        "The answer is C.",
        "A is for Alice, B is wrong.",
        "#### D",
        "a",
        "J",
        "I",
    ],
    "yes_no": [
        "yes",
        "no",
        "The answer is no.",
        "The answer is yes.",
        "Yes!",
        "#### no",
        "no no no no",
        "yes, no doubt",
        "Yes. Wait, no.",
        "\\boxed{\\text{yes}}",
        "true",
        "The answer is False.",
    ],
    "sequence": [
        *NO_ANSWER["numeric"][:20],
        "0 1 2 3 4 5 6 7 8 9",
        "0",
        "0 0 0 0 0 0 0 0",
        "1 1 1 1 1 1 1 1",
        "9 9 9 9 9 9 9 9",
        "#### 0 0 0 0 0 0 0 0",
        "#### 1 2 3 4 5 6 7 8",
        "#### ",
        "* * * * * * * *",
        "? ? ? ? ? ? ? ?",
        ". . . . . . . .",
        "[0-9 ]*",
        ".*",
        "%s",
        "{}",
        "7 8 0 3 7 8 8 1 or 5 6 7 3 6 6 3 6",
        "7 8 0 3 7 8 8 1\n5 6 7 3 6 6 3 6",
        "#### 7 8 0 3 7 8 8 1 #### 5 6 7 3 6 6 3 6",
        "The answer is a sequence.",
        "The answer is 0 0 0 0 0 0 0 0",
        "Answer: any",
        "Answer: yes",
        "yes",
        "A",
        "None",
        "nan",
        "true",
        "null",
        "I don't know",
        "everything",
        "All of the above",
        " ".join(str(i % 10) for i in range(1000)),
        "0\n" * 50,
        "\t",
        "\u00a0",
    ],
}

# Ways to hand the question back. The whole of it must never be right.
ECHOES = {
    "as it is": lambda q: q,
    "with the prompt": lambda q: f"Question: {q}\n Answer:",
    "chat prompt": lambda q: f"user\nQuestion: {q}\nassistant\nAnswer: ",
    "twice": lambda q: f"{q} {q}",
    "three lines": lambda q: f"{q}\n{q}\n{q}",
    "lower": str.lower,
    "upper": str.upper,
    "one line": lambda q: " ".join(q.split()),
    "a line a sentence": lambda q: q.replace(". ", ".\n"),
    "as an answer": lambda q: f"The answer is {q}",
    "after a colon": lambda q: f"Answer: {q}",
    "as a final answer": lambda q: f"Final answer: {q}",
    "as a conclusion": lambda q: f"So the answer is {q}",
    "after hashes": lambda q: f"#### {q}",
    "in a box": lambda q: f"\\boxed{{{q}}}",
    "in bold": lambda q: f"**{q.strip()}**",
    "in quotes": lambda q: f'"{q.strip()}"',
    "announced": lambda q: f"The question is: {q}",
    "with a start": lambda q: f"Let's think step by step. {q}",
    "as a list": lambda q: f"- {q}",
}

# Parts of the question: a blind guess at a number or letter that stands in it.
PARTS = {
    "first half": lambda q: q[: len(q) // 2],
    "first sentence": lambda q: q.split(". ")[0] + ".",
    "no question mark": lambda q: q.strip().rstrip("?"),
    "first word": lambda q: q.split()[0],
    "last word": lambda q: q.split()[-1],
    "last line": lambda q: q.strip().split("\n")[-1],
}

# ---------------------------------------------------------------------------------------------------------------------
# What models genuinely write: (output, right answer, is it right?)
# ---------------------------------------------------------------------------------------------------------------------
COT = "Janet eats 3 and bakes 4 of her 16 eggs.\nShe has 16 - 3 - 4 = <<16-3-4=9>>9 eggs left.\n"
GENUINE = {
    "numeric": [
        (COT + "The number of correct answers is 10 and wrong answers are 5.\nAnswer: 35", "35", True),
        ("There are 20 answers. Correct answers: 15. So the score is 15*4=60.", "60", True),
        ("There are 20 answers. Correct answers: 15. So the score is 15*4=60.", "15", False),
        ("The answer is $70k", "70000", True),
        ("The answer is $70k", "70", False),
        ("He made $1.5M.", "1500000", True),
        ("540m", "540", True),
        ("answer: - 5", "-5", True),
        ("The answer is - $5.", "-5", True),
        ("The answer is \u2013 5", "-5", True),
        ("The answer is \u20135", "-5", True),
        ("The answer is \u22125", "-5", True),
        ("20 \u20135 = 15", "15", True),
        ("The final answer is:\n- 17 pictures", "17", True),
        ("The answer is 7. He needs more than 5.", "7", True),
        ("So he needs at least 7 bags.", "7", True),
        ("18", "18", True),
        (" 18\n", "18", True),
        ("18.", "18", True),
        ("18.00", "18", True),
        ("$18", "18", True),
        ("$18.00", "18", True),
        ("\u20ac18", "18", True),
        ("18 dollars", "18", True),
        ("18 eggs", "18", True),
        ("18kg", "18", True),
        ("18 dollars a day.", "18", True),
        ("+18", "18", True),
        ("**18**", "18", True),
        ("= 18", "18", True),
        ("16 - 3 - 4 = 9", "9", True),
        ("16 - 3 - 4 = 9\n9 * 2 = 18", "18", True),
        ("(16 - 7) * 2 = $18 every day", "18", True),
        ("The answer is 18", "18", True),
        ("The answer is 18 dollars a day.", "18", True),
        ("The answer is $18 per day for 7 days.", "18", True),
        ("The answer is: 18", "18", True),
        ("The answer is:\n\n18", "18", True),
        ("The answer is **18**.", "18", True),
        ("The final answer is 18.", "18", True),
        ("The correct answer would be 18.", "18", True),
        ("The answer is 18, not 20.", "18", True),
        ("The answer is 9 * 2 = 18.", "18", True),
        ("The answer is 18 because she sells 9 eggs for $2 each.", "18", True),
        ("Answer: 18", "18", True),
        ("**Answer:** 18", "18", True),
        ("Answer (in dollars): 18", "18", True),
        ("Answer = 18", "18", True),
        ("Final Answer: $18", "18", True),
        ("#### 18", "18", True),
        ("####18", "18", True),
        (COT + "She makes 9 * 2 = $<<9*2=18>>18 every day.\n#### 18", "18", True),
        (COT + "She makes 9 * 2 = $<<9*2=18>>18 every day at the farmer's market.", "18", True),
        (COT + "So she makes $18.", "18", True),
        (COT + "So she makes $18.\nLet me know if you need more help!", "18", True),
        (COT + "Therefore, selling 9 eggs for $2 each, she makes **$18** a day.", "18", True),
        (COT + "The answer is 18 dollars a day.", "18", True),
        ("... She makes 9*2=18 dollars. #### 18", "18", True),
        ("<<16-3-4=9>> <<9*2=18>> #### 18", "18", True),
        ("1. She has 16 - 7 = 9 eggs left.\n2. She sells them for 9 * 2 = 18 dollars.", "18", True),
        ("**Step 1:** 16 - 7 = 9 eggs are left.\n**Step 2:** She makes 18 dollars.", "18", True),
        ("#### Step 1: Count\nShe has 9 eggs.\n#### Step 2: Sell\n9 * 2 = 18\n\n**Final Answer:** 18", "18", True),
        ("18\n\nExplanation: she has 16 eggs, eats 3 and bakes with 4.", "18", True),
        ("18 dollars\nShe sells 9 eggs for 2 dollars each.", "18", True),
        ("18\nQuestion: James has 5 apples and eats 2. How many are left?\nAnswer: 3", "18", True),
        ("The answer is 18.\n\nQ: What is 2 + 2?\nA: The answer is 4.", "18", True),
        ("The answer is 17. Wait, the answer is 18.", "18", True),
        ("The answer is 9 eggs so far. So the answer is 18.", "18", True),
        ("The answer is 18. Does that help?", "18", True),
        ("How much does she make? She makes 18 dollars.", "18", True),
        ("She makes 18 dollars.", "18", True),
        ("I think it is 18.", "18", True),
        ("The total is therefore about 18 dollars.", "18", True),
        ("\\boxed{18}", "18", True),
        ("$\\boxed{18}$", "18", True),
        ("Thus, the final answer is:\n\\[\n\\boxed{18}\n\\]", "18", True),
        ("\\[\n\\text{Total} = 9 \\times 2 = 18 \\text{ dollars}\n\\]", "18", True),
        ("\\boxed{18 \\text{ dollars}}", "18", True),
        ("\\boxed{\\$18}", "18", True),
        ("\\boxed{x = 18}", "18", True),
        ("$18$", "18", True),
        ("The answer is \\(18\\).", "18", True),
        ("1,080", "1080", True),
        ("1080", "1,080", True),
        ("$1,234,567.50", "1234567.5", True),
        ("1\u202f080 dollars", "1080", True),
        ("\\boxed{1{,}080}", "1080", True),
        ("850,000 dollars", "850,000", True),
        ("1.5 million", "1500000", True),
        ("2 thousand dollars", "2000", True),
        ("-5", "-5", True),
        ("\u22125", "-5", True),
        ("The answer is -5 degrees.", "-5", True),
        ("-$5", "-5", True),
        ("3 - 8 = -5", "-5", True),
        ("1/2", "0.5", True),
        ("0.5", "1/2", True),
        ("\u00bd", "0.5", True),
        (".5", "0.5", True),
        ("3 1/2", "3.5", True),
        ("3\u00bd hours", "3.5", True),
        ("3 and 1/2 hours", "3.5", True),
        ("\\frac{1}{2}", "0.5", True),
        ("\\boxed{\\frac{1}{2}}", "0.5", True),
        ("\\boxed{3\\frac{1}{2}}", "7/2", True),
        ("\\boxed{-\\dfrac{1}{3}}", "-1/3", True),
        ("1/3", "2/6", True),
        ("\\boxed{\\frac{-1}{2}}", "-0.5", True),
        ("\\boxed{\\frac{-1}{2}}", "0.5", False),
        ("-0.5", "\\frac{-1}{2}", True),
        ("The answer is $\\frac{1}{-2}$.", "-0.5", True),
        ("x = \\dfrac{ \u22121 }{ -2 }", "0.5", True),
        ("-\\frac{-1}{2}", "-0.5", False),
        ("\\boxed{\\frac{1.5}{2}}", "0.75", True),
        ("The answer is $\\frac{1,000}{-3}$.", "-1000/3", True),
        ("\\frac{1{,}000}{4}", "250", True),
        ("1.5/2", "0.75", True),
        ("\\boxed{\\frac{1.5}{0}}", "1.5", False),
        ("0.5", "\\frac{1}{2}", True),
        ("50%", "50", True),
        ("50 percent", "50%", True),
        ("\\boxed{50\\%}", "50", True),
        ("1.5e3", "1500", True),
        ("1.5 x 10^3", "1500", True),
        ("1.5 \u00d7 10\u00b3", "1500", True),
        ("\\boxed{1.5 \\times 10^{3}}", "1500", True),
        ("2^10", "1024", True),
        ("Answer: 10\u207b\u00b3", "0.001", True),
        ("Answer: 10\u207b\u00b3", "10", False),
        ("2\u207b\u00b9", "0.5", True),
        ("2\u207b\u00b9", "2", False),
        ("The answer is 3 \u00d7 10\u207b\u2074.", "0.0003", True),
        ("3 \u00d7 10\u207a\u2074", "30000", True),
        ("Answer: 10^-3", "0.001", True),
        ("10^{\u22123} m", "0.001", True),
        ("\\boxed{2^{-3}}", "1/8", True),
        ("0^-1", "0", False),
        ("2^-999999999", "2", False),
        ("Answer: 12 m\u207b\u00b9", "12", True),
        ("Speed: 12 m s\u207b\u00b9", "12", True),
        ("The answer is 12 km^{-1}.", "12", True),
        ("Answer: 12 m\u00b2", "12", True),
        ("The answer is 1.2M.", "1200000", True),
        ("The answer is 1.2M.", "1.2", False),
        ("Answer: $1.2 M", "1200000", True),
        ("5K", "5000", True),
        ("5K", "5", False),
        ("The answer is 3B.", "3", False),
        ("1.2bn dollars", "1.2", False),
        ("5 Million people", "5000000", True),
        ("5 millions", "5", False),
        ("1_000", "1000", True),
        ("#### 1_234_567", "1234567", True),
        ("15_2", "15", False),
        ("15_2", "1", False),
        ("the 18th", "1", False),
        ("Answer: 21st", "2", False),
        ("Answer: 5 kg", "5", True),
        ("Answer: 5km", "5", True),
        ("Answer: 5MB", "5", True),
        ("\\boxed{2\\sqrt{2}}", "\\sqrt{8}", True),
        ("The answer is $2\\sqrt{2}$.", "$2\\sqrt{2}$", True),
        ("\\boxed{\\sqrt{4}}", "2", True),
        ("\\boxed{2\\pi}", "2\\pi", True),
        ("2\u03c0", "2\\pi", True),
        (
            "Let us think. Janet has 16 eggs. She eats 3 and bakes 4. 16 - 3 - 4 = 9. Janet makes $18 a day.",
            "18",
            True,
        ),
        ("Total: 18", "18", True),
        ("Therefore, Janet makes 9 x 2 = $18 every day.", "18", True),
        ("So total 2+1=3 bolts", "3", True),
        ("A: The answer is 18.", "18", True),
        ("18 (eighteen)", "18", True),
        ("18 (9*2)", "18", True),
        ("x = 5, so 2x = 10. Therefore there are 10 apples.", "10", True),
        ("We get 24 \u00f7 4 = 6.", "6", True),
        ("\u2192 18", "18", True),
        ("\u2248 18.5", "18.5", True),
        ("<answer>18</answer>", "18", True),
        ("62 - 35 = 27 more bird families flew to Africa.", "27", True),
        ("Step 1: 7 + 12 = 19\nStep 2: 19 - 15 = 4\nSo 4 fishes disappeared.", "4", True),
        ("1) 7+12=19\n2) 19-15=4", "4", True),
        ("The answer to how many eggs she has is 18.", "18", True),
        ("Question: What is 9 * 2?\nAnswer: 18", "18", True),
        ("999999999999999999^300", "9", False),
        ("1" * 390 + "e300", "9", False),
        ("19", "18", False),
        ("180", "18", False),
        ("1.8", "18", False),
        ("-18", "18", False),
        ("18.5", "18", False),
        ("1 8", "18", False),
        ("18,000", "18", False),
        ("18 million", "18", False),
        ("118", "18", False),
        ("She has 18 eggs. The answer is 17.", "18", False),
        ("9 * 2 = 18\n#### 17", "18", False),
        ("18\n#### 17", "18", False),
        ("\\boxed{17}, from 18", "18", False),
        ("The answer is 17.\nQuestion: 9 * 2?\nAnswer: 18", "18", False),
        ("The answer is 18. Wait, the answer is 17.", "18", False),
        ("18 or 17", "18", False),
        ("eighteen", "18", False),
        ("x18", "18", False),
        ("the 18th", "18", False),
        ("50%", "0.5", False),
        ("0.5%", "0.5%", True),
        ("0.33", "1/3", False),
        ("1/2", "2", False),
        ("\\boxed{2\\sqrt{2}}", "\\sqrt{2}", False),
        ("\\boxed{\\{2, 3\\}}", "2", False),
        ("\\boxed{\\pm 2}", "2", False),
        ("\\boxed{x}", "2", False),
        ("9" * 5000, "9", False),
        ("1e999999999", "1", False),
        ("10^999999999", "10", False),
    ],
    "choice": [
        ("Correct answer -A", "A", True),
        ("the answer is b)22", "B", True),
        ("the answer is b)22", "A", False),
        ("The speed is 22.\nb)22", "B", True),
        ("A", "A", True),
        ("E", "E", True),
        ("(A)", "A", True),
        ("A.", "A", True),
        ("A)", "A", True),
        ("a", "A", True),
        ("b)", "B", True),
        ("(b)", "B", True),
        ("b) heart", "B", True),
        ("A. ignore", "A", True),
        ("(A) ignore", "A", True),
        ("A: ignore", "A", True),
        ("**B**", "B", True),
        ("**B. heart**", "B", True),
        ("B bank", "B", True),
        ("Option B", "B", True),
        ("[C]", "C", True),
        ("'D'", "D", True),
        ("#### B", "B", True),
        ("####B", "B", True),
        ("\\boxed{B}", "B", True),
        ("\\boxed{\\text{B}}", "B", True),
        ("\\boxed{\\text{(B)}}", "B", True),
        ("The answer is B", "B", True),
        ("The answer is (B).", "B", True),
        ("The answer is A.", "A", True),
        ("The answer is **A**.", "A", True),
        ("The answer is A. ignore", "A", True),
        ("The answer is A, as it fits best.", "A", True),
        ("The answer is A because B is wrong.", "A", True),
        ("The answer is B, not C.", "B", True),
        ("The answer is heart (B).", "B", True),
        ("The answer is option B.", "B", True),
        ("The answer is: B", "B", True),
        ("The best answer is:\n\nB.", "B", True),
        ("The correct option is B.", "B", True),
        ("The correct choice is (D) pay.", "D", True),
        ("The most appropriate choice for staying busy while drinking is **D. examine thing**.", "D", True),
        ("Answer: C", "C", True),
        ("Answer: C. feel better", "C", True),
        ("**Answer:** C", "C", True),
        ("Final answer: **E**", "E", True),
        ("Thus, the answer is **E**.", "E", True),
        ("So E fits best.", "E", True),
        ("A fits somewhat, but C is too narrow.\nSo the best one is B.", "B", True),
        ("I think B.", "B", True),
        ("I choose B.", "B", True),
        ("I would go with option A.", "A", True),
        ("B is correct.", "B", True),
        ("A is the best answer.", "A", True),
        ("The most likely place is:\n\n**B. bookstore**", "B", True),
        (
            "A. library - people read here.\nB. bank - no.\nC. shop - they are sold here.\n\nThe answer is C.",
            "C",
            True,
        ),
        ("To find the best answer, look at each option:\n\nA. no.\nB. yes.\n\nThe answer is B.", "B", True),
        ("The answers may be C (sun) and D (moon). Thus, the best answer is C.", "C", True),
        ("A revolving door is used at a bank, so the answer is A.", "A", True),
        ("B\n\nQuestion: What?\nChoices:\nA. x\nB. y\nAnswer: A", "B", True),
        ("The answer is A. Wait, the answer is B.", "B", True),
        ("The answer is A. Option B is wrong.", "A", True),
        ("E. Illinois", "E", True),
        ("The answer is (B). Is that right?", "B", True),
        ("C\n\nThe reason is that A and B are wrong", "C", True),
        ("B. bank is the best answer since it fits", "B", True),
        ("I believe the answer is C: feel better", "C", True),
        ("C is the correct answer because A is for kids", "C", True),
        ("C - bank", "C", True),
        ("The answer is C. A bank is where money is kept.", "C", True),
        ("Answer:\n\nC. bank", "C", True),
        ("C, bank", "C", True),
        ("(C) A bank", "C", True),
        ("B is the correct answer. A, C and D are wrong.", "B", True),
        ("B is the correct answer. A, C, and D are all wrong.", "B", True),
        ("The answer is B. Options A and C are not right.", "B", True),
        ("The answer is B. Both A and C are incorrect.", "B", True),
        ("The answer is B. (A) and (C) don't fit.", "B", True),
        ("The answer is B. A or C can be ruled out.", "B", True),
        ("The answer is B. A is wrong.", "B", True),
        ("The answer is A, B is wrong.", "A", True),
        ("A, C and D are wrong, so B.", "B", True),
        ("A and B are wrong.", "A", False),
        ("A, B and C are wrong.", "A", False),
        ("The answer is A, B and C are wrong.", "A", False),
        ("The answer is B. A and C are right.", "B", False),
        ("The answer is B. A and C are right.", "A", False),
        ("A and B are correct.", "A", False),
        ("The answer is anything but B.", "B", False),
        ("A", "B", False),
        ("The answer is B.", "A", False),
        ("The answer is a bank.", "A", False),
        ("A good place is a bank.", "A", False),
        ("B. A bank", "A", False),
        ("A. ignore\nThe answer is B.", "A", False),
        ("I like it.", "I", False),
        ("Apple", "A", False),
        ("B is wrong.", "B", False),
        ("The answer is not B.", "B", False),
        ("The answer is B.\nQuestion: ...\nAnswer: A", "A", False),
        ("K", "A", False),
    ],
    "yes_no": [
        ("yes", "yes", True),
        ("Yes", "yes", True),
        ("YES.", "yes", True),
        ("no", "no", True),
        ("No.", "no", True),
        ("No!", "no", True),
        ("**no**", "no", True),
        ("(no)", "no", True),
        ('"no"', "no", True),
        (" no\n", "no", True),
        ("no", "No", True),
        ("The answer is no.", "no", True),  # the reference: 0 % by the authors' check
        ("The answer is yes.", "yes", True),
        ("The answer is **no**.", "no", True),
        ("The answer is **no**, the coin is not still heads up.", "no", True),
        ('The answer is "yes".', "yes", True),
        ("The answer: no", "no", True),
        ("The answer to whether the coin is still heads up is **no**.", "no", True),
        ("The answer is no because the coin is tails up.", "no", True),
        ("Answer: yes", "yes", True),
        ("**Answer:** No", "no", True),
        ("Final answer: no", "no", True),
        ("So the answer is yes", "yes", True),
        ("#### no", "no", True),
        ("####yes", "yes", True),
        ("\\boxed{no}", "no", True),
        ("\\boxed{\\text{Yes}}", "yes", True),
        ("no, the coin is tails up", "no", True),
        ("No the coin is tails up", "no", True),
        ("No - the coin is tails up.", "no", True),
        ("No \u2014 it was flipped once.", "no", True),
        ("No; it is not.", "no", True),
        ("No, no one flips it back.", "no", True),
        ("Yes, no one flips the coin.", "yes", True),
        ("Yes, there is no change.", "yes", True),
        ("Yes, the coin is not flipped.", "yes", True),
        ("yes yes yes", "yes", True),
        ("No one flips it. The answer is yes.", "yes", True),
        ("Is the coin still heads up? No.", "no", True),
        ("Does Ann flip it? Yes. Does Bob? No. So the answer is yes.", "yes", True),
        ("After one flip the coin is tails up.\n\nTherefore, the answer is **no**.", "no", True),
        ("no\nQ: A coin is heads up. Is the coin still heads up?\nA: yes", "no", True),
        ("The answer is yes. Wait, the answer is no.", "no", True),
        ("I think it is no", "no", True),
        ("It is heads up, so yes.", "yes", True),
        ("The coin is still heads up, so the answer is yes.", "yes", True),
        ("The answer is: No, the coin is not heads up anymore.", "no", True),
        ("Yes, the coin is still heads up.\nNo one else flips it.", "yes", True),
        ("yes it is", "yes", True),
        ("'no'", "no", True),
        ("The answer is 'no'", "no", True),
        ("no</s>", "no", True),
        ("No, the answer is no.", "no", True),
        ("True", "yes", True),
        ("False", "no", True),
        ("false.", "False", True),
        ("No.", "False", True),
        ("The answer is False.", "no", True),
        ("So the answer is **True**.", "yes", True),
        ("\\boxed{\\text{False}}", "no", True),
        ("#### True", "yes", True),
        ("True, because the coin was flipped twice.", "yes", True),
        ("The answer is True because not False is True.", "yes", True),
        ("True or False: Bo can fly. False", "no", True),
        ("not True is False. So not ( True and False ) is True.", "yes", True),
        ("The sentence is not plausible, so the statement is false.", "no", True),
        ("No, it is true that the coin was flipped.", "no", True),
        ("It is true that he flips it. The answer is no.", "no", True),
        ("It is true that the coin was flipped.", "yes", False),
        ("The coin is heads up if the statement is true.", "yes", False),
        ("Is not True true or false?", "no", False),
        ("The statement is true or it is false.", "no", False),
        ("False", "yes", False),
        ("True", "no", False),
        ("It is not true.", "yes", False),
        ("yes", "no", False),
        ("no", "yes", False),
        ("The answer is no.", "yes", False),
        ("The coin is not heads up.", "no", False),
        ("No one flips it.", "no", False),
        ("I know.", "no", False),
        ("Nobody.", "no", False),
        ("yes or no", "yes", False),
        ("Is the coin still heads up?", "no", False),
        ("The answer is yes.\nQ: Is it?\nA: no", "no", False),
    ],
    "sequence": [
        ("7 8 0 3 7 8 8 1", "7 8 0 3 7 8 8 1", True),
        ("  7 8 0 3  7 8 8 1 \n", "7 8 0 3 7 8 8 1", True),
        ("7 6 9 2 0 + 0 2 0 8 7 1 ( 7 8 9 0 8 1 ) #### 7 8 0 3 7 8 8 1", "7 8 0 3 7 8 8 1", True),
        ("####7 8 0 3", "7 8 0 3", True),
        ("The answer is 7 8 0 3.", "7 8 0 3", True),
        ("Answer: 7 8 0 3", "7 8 0 3", True),
        ("Sally is a lempus.", "Sally is a lempus.", True),
        ("Sally is a lempus", "Sally is a lempus.", True),
        ("Every sterpus is a lempus. #### Sally is a lempus.", "Sally is a lempus.", True),
        ("7 8 0 3\nQuestion: 1 2 * 3 4", "7 8 0 3", True),
        ("The answer is **lion**.", "lion", True),
        ("**The answer is lion.**", "lion", True),
        ("**Answer:** lion", "lion", True),
        ("**lion**", "lion", True),
        ("The answer is `lion`.", "lion", True),
        ("\\boxed{lion}", "lion", True),
        ("$\\boxed{\\text{lion}}$", "lion", True),
        ("So it is:\n\\[ \\boxed{lion} \\]", "lion", True),
        ("The answer is lion.\n\nExplanation: x", "lion", True),
        ("lion\n\n**Reason:** it roars.", "lion", True),
        ("**lion**", "**lion**", True),
        ("The answer is **lion** or **tiger**.", "lion", False),
        ("\\boxed{lion} or \\boxed{tiger}", "tiger", False),
        ("\\boxed{lion} or \\boxed{tiger}", "lion", False),
        ("\\boxed{lion} or tiger", "lion", False),
        ("The answer is lion\n\nor a tiger", "lion", False),
        ("\\boxed{lion}\nThe answer is tiger.", "lion", False),
        ("7 8 0 3 7 8 8", "7 8 0 3 7 8 8 1", False),
        ("7 8 0 3 7 8 8 1 1", "7 8 0 3 7 8 8 1", False),
        ("78037881", "7 8 0 3 7 8 8 1", False),
        ("7 8 0 3 7 8 8 1 or 1 2", "7 8 0 3 7 8 8 1", False),
        ("7 8 0 3 #### 1 2", "7 8 0 3", False),
        ("1 8 8 7 3 0 8 7", "7 8 0 3 7 8 8 1", False),
        ("sally is a lempus", "Sally is a lempus", False),
    ],
}

DATASETS = {
    "gsm8k": "numeric",
    "svamp": "numeric",
    "multiarith": "numeric",
    "commonsense_qa": "choice",
    "coin_flip": "yes_no",
}


def rows(shared_data, name, split="eval"):
    return json.loads((shared_data / name / f"{split}_42.json").read_text())


def accuracy(outputs, answers, task):
    return sum(check_answer(output, answer, task) for output, answer in zip(outputs, answers, strict=True)) / len(
        answers
    )


def constant_accuracy(output, answers, task):
    """What one output scores when it is given to every question."""
    return sum(n for answer, n in Counter(answers).items() if check_answer(output, answer, task)) / len(answers)


def chance(answers, task):
    """The share of the most frequent answer: what the best single guess scores."""
    return max(Counter(extract_answer(answer, task) for answer in answers).values()) / len(answers)


def generated_golds(task, seed=0, size=400):
    rng = random.Random(seed)
    if task == "numeric":
        spellings = ("{}", "{}.0", "{},000", "${}", "{}%", "0.{}", "1/{}", "-{}", "{}e1")
        return [rng.choice(spellings).format(rng.randint(1, 9)) for _ in range(size)]
    if task == "choice":
        return [rng.choice(LETTERS) for _ in range(size)]
    if task == "yes_no":
        return [rng.choice(("yes", "no")) for _ in range(size)]
    return [" ".join(rng.choice("0123456789") for _ in range(8)) for _ in range(size)]


ALL = [(task, output) for task in NO_ANSWER for output in NO_ANSWER[task]]


@pytest.mark.parametrize(("task", "output"), ALL, ids=[f"{task}-{output[:40]!r}" for task, output in ALL])
def test_lists_hedges_and_evasions_state_no_answer(task, output):
    assert extract_answer(output, task) is None
    assert not check_answer(output, generated_golds(task)[0], task)


TRUTHS = [output for output in NO_ANSWER["yes_no"] if re.search(r"\b(?:yes|no)\b(?! one|-one)", output, re.I)]


@pytest.mark.parametrize("output", TRUTHS)
def test_hedges_with_true_and_false_state_no_answer_either(output):
    output = re.sub(r"\bno\b", "false", re.sub(r"\byes\b", "true", output, flags=re.I), flags=re.I)
    assert extract_answer(output, "yes_no") is None


@pytest.mark.parametrize("task", CONSTANTS)
def test_no_constant_beats_one_guess_on_generated_answers(task):
    answers = generated_golds(task)
    best = chance(answers, task)
    assert len(NO_ANSWER[task]) + len(CONSTANTS[task]) >= 50
    for output in NO_ANSWER[task]:
        assert constant_accuracy(output, answers[:20], task) == 0, output
    for output in CONSTANTS[task]:
        assert constant_accuracy(output, answers, task) <= best, output


@pytest.mark.parametrize("task", CONSTANTS)
def test_an_output_is_right_for_one_answer_only(task):
    different = {extract_answer(answer, task): answer for answer in generated_golds(task, size=25)}
    for output in CONSTANTS[task] + [output for output, _, _ in GENUINE[task]]:
        right = [answer for answer in different.values() if check_answer(output, answer, task)]
        assert len(right) <= 1, (output, right)


@pytest.mark.parametrize("name", DATASETS)
def test_no_constant_beats_one_guess_on_the_papers_sets(shared_data, name):
    task = DATASETS[name]
    answers = [row["answer"] for row in rows(shared_data, name)]
    best = chance(answers, task)
    for output in NO_ANSWER[task]:
        assert constant_accuracy(output, answers[:20], task) == 0, output
    for output in CONSTANTS[task]:
        if "\\" not in output:  # formulas are slow, and tried on the generated answers
            assert constant_accuracy(output, answers, task) <= best, output


@pytest.mark.parametrize("name", DATASETS)
def test_an_echoed_question_is_never_right(shared_data, name):
    task = DATASETS[name]
    data = rows(shared_data, name)
    queries, answers = [row["query"] for row in data], [row["answer"] for row in data]
    for kind, echo in ECHOES.items():
        assert accuracy([echo(query) for query in queries], answers, task) == 0, kind
    best = chance(answers, task)
    for kind, part in PARTS.items():
        assert accuracy([part(query) for query in queries], answers, task) <= best, kind


@pytest.mark.parametrize(
    ("output", "gold", "task"), [("It is 5.", 5, "numeric"), ("2", 2.0, "numeric"), ("No.", False, "yes_no")]
)
def test_right_answers_need_not_be_texts(output, gold, task):
    assert check_answer(output, gold, task)


def test_lists_are_no_answers():
    with pytest.raises(ValueError, match=r"'answers' holds the list \['a'\]: need a text"):
        infer_answer_type([["a"]])


CASES = [(task, *case) for task in GENUINE for case in GENUINE[task]]


@pytest.mark.parametrize(
    ("task", "output", "answer", "right"), CASES, ids=[f"{c[0]}-{c[1][-40:]!r}-{c[2][:20]}-{c[3]}" for c in CASES]
)
def test_genuine_outputs(task, output, answer, right):
    assert check_answer(output, answer, task) is right


# The rationales' own errors bound the second figure: 154 of the 800 CommonsenseQA rationales for training end on a
# wrong letter, and SVAMP's give an expression without its result.
@pytest.mark.parametrize(
    ("name", "split", "rationale_alone"),
    [
        ("gsm8k", "eval", 0.99),
        ("gsm8k", "train", 0.98),
        ("svamp", "eval", 0),
        ("multiarith", "eval", 0.98),
        ("commonsense_qa", "eval", 0.82),
        ("commonsense_qa", "train", 0.80),
        ("coin_flip", "eval", 1),
        ("coin_flip", "train", 1),
    ],
)
def test_the_papers_rationales_are_right(shared_data, name, split, rationale_alone):
    data = rows(shared_data, name, split)
    answers = [row["answer"] for row in data]
    assert accuracy([row["full_answer"] for row in data], answers, DATASETS[name]) >= 0.99
    assert accuracy([row["reasoning"] for row in data], answers, DATASETS[name]) >= rationale_alone


def test_wrong_letters_in_commonsense_rationales_are_found(shared_data):
    stated = [
        (extract_answer(r["reasoning"], "choice"), r["answer"]) for r in rows(shared_data, "commonsense_qa", "train")
    ]
    wrong = sum(letter not in (None, answer) for letter, answer in stated)
    assert abs(wrong - 154) <= 5
    assert sum(letter is None for letter, _ in stated) <= 5


def test_equation_files_are_right(shared_data):
    lines = (shared_data / "gsm8k_equations" / "test.txt").read_text().splitlines()
    outputs = [line.split("||")[1] for line in lines]
    answers = [output.split("####")[1].strip() for output in outputs]
    assert accuracy(outputs, answers, "numeric") == 1
    assert accuracy([output.split("####")[0] for output in outputs], answers, "numeric") == 0


def test_multiplication_files_are_right(shared_data):
    lines = (shared_data / "multiplication" / "4_by_4_valid.txt").read_text().splitlines()
    outputs = [line.split("||")[1] for line in lines]
    answers = [output.split("####")[1] for output in outputs]
    assert infer_answer_type(answers) == "sequence"
    assert accuracy(outputs, answers, "sequence") == accuracy(answers, answers, "sequence") == 1
    assert accuracy(outputs, answers[1:] + answers[:1], "sequence") == 0


@pytest.mark.parametrize("name", DATASETS)
def test_type_of_the_papers_sets(shared_data, name):
    assert infer_answer_type(row["answer"] for row in rows(shared_data, name, "train")) == DATASETS[name]


@pytest.mark.parametrize(
    ("answers", "task"),
    [
        (["yes"], "yes_no"),
        (["Yes", "NO"], "yes_no"),
        (["True", "False"], "yes_no"),
        ([True, False], "yes_no"),
        ([5, 6], "numeric"),
        ([0.5, 2.0], "numeric"),
        (["yes", "maybe"], "sequence"),
        (["A", "b", "J"], "choice"),
        (["A", "K"], "sequence"),
        (["18", "-3", "1,080", "0.5", "$5", "50%", "1/2", "2e3"], "numeric"),
        (["\\frac{1}{2}", "\\sqrt{2}"], "numeric"),
        (["1/2", "\\frac{-1}{2}", "\\frac{1.5}{2}"], "numeric"),
        (["18", "18 eggs"], "sequence"),
        (["1 2 3", "4"], "sequence"),
        (["", "5"], "sequence"),
        (["2", "3", "4", "5", "6", "7", "8", "9 eggs", "10"], "numeric"),
        (["9 eggs", "2", "$3 per hour"], "sequence"),
        (["2", "5 km/h", "3"], "numeric"),
        (["2", "12 square feet", "3 1/2 cups", "4", "5"], "numeric"),
        (["1", "2", "\\sqrt{2}", "9 eggs"], "numeric"),
        (["1", "2", "nine"], "sequence"),
        (["1", "2", "7 8"], "sequence"),
        (["1", "2", ""], "sequence"),
        (["1", "2", "5 or 6"], "sequence"),
        (["1", "2", "5 or more"], "sequence"),
        (["1", "2", "3x"], "sequence"),
        (["1", "2", "5 - x"], "sequence"),
        (["1", "2", "She has 9 eggs"], "sequence"),
        (["1", "2", "9 is the number"], "sequence"),
        (["1", "2", "9 eggs were left"], "sequence"),
        (["1", "2", "9. She won."], "sequence"),
        (["1", "2", "9 she said"], "sequence"),
        (["3-1-4", "2-5-6"], "sequence"),
        (["12/24/1937", "1/2/2003"], "sequence"),
        (["555-123-4567"], "sequence"),
        (["8 - 3 - 4", "9 / 3 / 3"], "expression"),
        (["8-3-4", "2*3-1"], "expression"),
        (["8-3-4", "(8-3)-1"], "expression"),
    ],
)
def test_infer_answer_type(answers, task):
    assert infer_answer_type(iter(answers)) == task


def test_a_unit_in_one_answer_leaves_the_judge_of_all_numeric():
    answers = ["2", "3", "4", "5", "6", "7", "8", "9 eggs", "10"]
    task = infer_answer_type(answers)
    assert accuracy([f"The answer is ${n}.00." for n in range(2, 11)], answers, task) == 1
    assert accuracy([f"The answer is ${n}.00." for n in range(3, 12)], answers, task) == 0


# "wait" and "actually" as plain words: what was said before them stands.
@pytest.mark.parametrize(
    ("task", "output", "answer"),
    [
        ("numeric", "#### 13 minutes of wait.", "13"),
        ("numeric", "So each of them has a 15 minute wait.", "15"),
        ("numeric", "The answer is 15. That is how long she has to wait.", "15"),
        ("choice", "The answer is B. The others make people wait.", "B"),
        ("yes_no", "Yes. No one had to wait.", "yes"),
        ("yes_no", "Yes. There was no wait.", "yes"),
        ("yes_no", "Yes. They did not wait, no one did.", "yes"),
        ("numeric", "#### 15-minute wait: the bus is late", "15"),
        ("numeric", "The answer is 13 minutes of wait, which is short.", "13"),
        ("numeric", "The answer is 15. Wait time is 3 minutes less.", "15"),
        ("numeric", "The answer is 15. Wait-lists are not counted.", "15"),
        ("numeric", "The answer is 15. Wait for the bus.", "15"),
        ("numeric", "The answer is 15. They mix, wait, and bake.", "15"),
        ("numeric", "The answer is 15. They can do nothing but wait.", "15"),
        ("numeric", 'The answer is 15. The sign said "wait," so she stopped.', "15"),
        ("numeric", "The answer is 15. She has to wait, it is 15 minutes.", "15"),
        ("numeric", "The answer is 5, actually.", "5"),
        ("numeric", "The answer is actually 5.", "5"),
        ("numeric", "The answer is 18. That is what she earns actually, each day.", "18"),
        ("choice", "The answer is B. Actually it is a common place.", "B"),
        ("choice", "The answer is B. Actually no one sleeps in a bank.", "B"),
        ("numeric", "The answer is 15 after correction.", "15"),
        ("choice", "The answer is B. Cats scratch that.", "B"),
        ("numeric", "The answer is 5. Let me know if I made a mistake.", "5"),
    ],
)
def test_a_word_that_only_looks_like_a_retraction_takes_nothing_back(task, output, answer):
    assert check_answer(output, answer, task)


@pytest.mark.parametrize(
    ("task", "output", "before", "after"),
    [
        ("numeric", "The answer is 5. Wait, no, it is 6.", "5", "6"),
        ("numeric", "The answer is 5. Wait no it is 6.", "5", "6"),
        ("numeric", "The answer is 5. Wait. It is 6.", "5", "6"),
        ("numeric", "The answer is 5. Wait! It is 6.", "5", "6"),
        ("numeric", "The answer is 5. Wait \u2014 it is 6.", "5", "6"),
        ("numeric", "The answer is 5... wait... it is 6", "5", "6"),
        ("numeric", "The answer is 5 \u2013 wait, 6.", "5", "6"),
        ("numeric", "The answer is 5 - wait - it is 6.", "5", "6"),
        ("numeric", "The answer is 5 wait, no, it is 6.", "5", "6"),
        ("numeric", "The answer is 5 eggs wait, no, it is 6 eggs.", "5", "6"),
        ("numeric", "The answer is 5 eggs wait, it is 6 eggs.", "5", "6"),
        ("numeric", "The answer is 5. But wait, it is 6.", "5", "6"),
        ("numeric", "The answer is 5. Hmm, wait. It is 6.", "5", "6"),
        ("numeric", "The answer is 5. No wait, it is 6.", "5", "6"),
        ("numeric", "#### 5\nwait, #### 6", "5", "6"),
        ("numeric", "\\boxed{5} wait, \\boxed{6}", "5", "6"),
        ("numeric", "The answer is 5. Actually it is 12.", "5", "12"),
        ("numeric", "The answer is 5. Actually, it is 12.", "5", "12"),
        ("numeric", "The answer is 5. Correction: 6.", "5", "6"),
        ("numeric", "The answer is 5. On second thought, it is 6.", "5", "6"),
        ("numeric", "The answer is 5. I made an error: it is 6.", "5", "6"),
        ("choice", "The answer is B wait, C.", "B", "C"),
        ("choice", "The answer is B. Actually C.", "B", "C"),
        ("choice", "The answer is A. Scratch that, B.", "A", "B"),
        ("yes_no", "The answer is yes wait, no.", "yes", "no"),
    ],
)
def test_a_retraction_leaves_what_follows_it(task, output, before, after):
    assert not check_answer(output, before, task)
    assert check_answer(output, after, task)


@pytest.mark.parametrize(
    "ending",
    [
        ". Wait, let me reconsider.",
        ". Wait let me reconsider.",
        ". Wait...",
        ". Wait\u2026",
        ". Wait, that is wrong.",
        ". Wait that's wrong.",
        ".\n\n**Wait**, I forgot something.",
        ", but wait, I forgot the ducks.",
        " eggs wait, no, I forgot the ducks.",
        ". Actually...",
        ". Actually, let me think again.",
        ". Actually let me think again.",
        ", actually no, that is not right.",
        ". I think I made a mistake.",
        ". On second thought...",
        ". A small correction, I forgot the ducks.",
    ],
)
def test_an_answer_taken_back_without_another_is_none(ending):
    assert extract_answer("The answer is 5" + ending, "numeric") is None


def test_no_answers_have_no_type():
    with pytest.raises(ValueError, match="answers is empty: give at least one"):
        infer_answer_type([])


@pytest.mark.parametrize("function", [lambda: check_answer("5", "5", "number"), lambda: extract_answer("5", "number")])
def test_unknown_task_is_named_with_the_choices(function):
    with pytest.raises(
        ValueError, match="answer_type='number' is unknown; choose one of 'numeric', 'choice', 'yes_no', 'seq"
    ):
        function()


@pytest.mark.parametrize(
    ("answer", "task"),
    [("five", "numeric"), ("5 or 6", "numeric"), ("cat", "choice"), ("maybe", "yes_no"), ("", "sequence")],
)
def test_an_unusable_gold_answer_is_named(answer, task):
    with pytest.raises(ValueError, match=f"gold='{answer}' is n"):
        check_answer("5", answer, task)


def test_formulas_are_compared_off_the_main_thread_too():
    verdicts = []

    def compare():
        verdicts.append(check_answer("\\boxed{2\\sqrt{2}}", "\\sqrt{8}", "numeric"))
        verdicts.append(check_answer("\\boxed{2\\sqrt{2}}", "\\sqrt{2}", "numeric"))

    thread = threading.Thread(target=compare)
    thread.start()
    thread.join()
    assert verdicts == [True, False]


@pytest.mark.parametrize(
    "unit",
    [
        "The answer is 5. ",
        "5 ",
        "\\boxed{",
        "**5** ",
        "x = 5, ",
        "so the answer ",
        "A. ",
        "yes ",
        "#### 5\n",
        "5\n",
        "5 + ",
        "5 is ",
        "the sum of 5, 6, ",
        "5, ",
        "5 eggs ",
        "\\frac",
        "5 dozen ",
        "x > ",
        "twice ",
        " ,",
        "<<",
        "Q:\n",
        "wait, ",
        "actually it is ",
        "wait" + " " * 2000,
        "but oh ",
    ],
)
def test_long_outputs_take_linear_time(unit):
    output = unit * (20_000 // len(unit))
    begun = time.process_time()
    for task in ("numeric", "choice", "yes_no", "sequence"):
        extract_answer(output, task)
    assert time.process_time() - begun < 4


def test_absurd_formulas_end():
    begun = time.process_time()
    assert not check_answer("\\boxed{\\sqrt{9^{9^{9^{9}}}}}", "3", "numeric")
    assert time.process_time() - begun < 30


@pytest.mark.parametrize(
    ("output", "stated"),
    [
        (" Sam did not wash 34 shirts.", "34"),
        ("Ned didn't sell 7 of them.", "7"),
        ("She could not use 12 tickets.", "12"),
        ("It did not cost 12 dollars.", None),
        ("It does not have 12.", None),
        ("The total is not exactly 12.", None),
        ("It cannot be 12.", None),
        ("Frank could buy 4 2 dollar games with the money", "4"),
        ("Paul could buy 3 $5 toys.", "3"),
        ("He fills 6 2-liter bottles.", "6"),
        ("5 6 dollar", None),
        ("2 4 6 8", None),
    ],
)
def test_numbers_of_what_is_not_done_and_of_what_has_a_price(output, stated):
    assert extract_answer(output, "numeric") == stated


@pytest.mark.parametrize(
    ("output", "right"),
    [
        ("(8 - 3) * 5", True),
        ("5*(8-3) = 25", True),
        ("The answer is 5 × (8 − 3).", True),
        ("8 - 3 = 5. 5 * 5 = 25. #### 5 * (8 - 3)", True),
        ("\\boxed{(8 - 3) * 5}", True),
        ("\\[ \\boxed{(8 - 3) \\times 5 = 25} \\]", True),
        ("**(8 - 3) * 5**", True),
        ("**(8 - 3) * 5** = 25", True),
        ("$(8 - 3) \\times 5$", True),
        ("$\\left(8 - 3\\right) \\cdot 5 = 25$", True),
        ("The answer is `(8 - 3) * 5`.", True),
        ("The answer is (8 - 3) * 5.\n\nExplanation: 8 - 3 is 5.", True),
        ("\\boxed{(8 - 3) * 5} or \\boxed{5 * 5}", False),
        ("\\boxed{25}", False),
        # Another value, numbers left out, used twice or made up, and what is no calculation.
        ("(8 + 3) * 5", False),
        ("5 * 5", False),
        ("5 * (8 - 3) + 5 - 5", False),
        ("25", False),
        ("5 * (8 - 3 * 1)", False),
        ("5 ** 2", False),
        ("8 // 3 * 5", False),
        ("-5 * (3 - 8)", False),
        ("__import__('os')", False),
        ("(" * 150 + "5", False),
        ("5 / (3 - 3)", False),
        ("", False),
    ],
)
def test_a_calculation_is_right_by_its_numbers_and_its_value(output, right):
    assert check_answer(output, "(8 - 3) * 5", "expression") is right


def test_the_gold_answer_of_a_calculation_must_be_one():
    with pytest.raises(ValueError, match="gold='8 apples' is no calculation"):
        check_answer("8", "8 apples", "expression")
