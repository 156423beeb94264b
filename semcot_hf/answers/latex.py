"""LaTeX and typographic signs: written as plain text where that loses nothing, else compared by math-verify."""

import json
import re
import signal
import subprocess
import sys
import threading
import unicodedata

from .number_grammar import BEGINS, DECIMAL, MINUS

_SPACES = "\u00a0\u2007\u2009\u202f"
_VULGAR = re.compile("(?P<whole>[0-9]?)(?P<part>[\u00bc-\u00be\u2150-\u215e])")
_SUPERSCRIPT = re.compile("([\u207a\u207b]?)([\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+)")
_FRACTION = re.compile(r"(?:(?P<whole>\d)\s*)?\\[dt]?frac\s*(?:\{([^{}\\]*)\}\s*\{([^{}\\]*)\}|(\d)\s*(\d))")
_PART = re.compile(rf"\s*(-?)\s*({DECIMAL})\s*")
# A letter before a fraction is a factor, unless it ends a command (`\times`).
_FACTOR = re.compile(r"(?<![\\A-Za-z])[A-Za-z]+\Z")
# What a negative fraction is multiplied with, or a minus before it.
_TERM = re.compile(r"(?:[\d)\]}]|-\s*)\Z")
_WORDS = re.compile(r"\\(?:text(?:bf|it|rm)?|math(?:bf|rm|it)|mbox|operatorname)\s*\{([^{}]*)\}")
_COMMANDS = {
    **dict.fromkeys([*r"\quad \qquad \( \) \[ \] \, \; \:".split(), "\\ "], " "),
    **dict.fromkeys(r"\left \right \displaystyle \!".split(), ""),
    **dict.fromkeys(r"\approx \implies \Rightarrow".split(), "="),
    **{r"\$": "$", r"\%": "%", r"\times": "*", r"\cdot": "*", r"\div": "/", r"\\": "\n"},
}
_COMMAND = re.compile("|".join(re.escape(c) + (r"(?![A-Za-z])" if c[-1].isalpha() else "") for c in _COMMANDS))
_FORMULA = re.compile(r"\\[A-Za-z]+")
_CODE = """
import json, sys
from math_verify import parse, verify
gold, answer = (parse(text) for text in json.load(sys.stdin))
print(json.dumps(bool(verify(gold, answer))))
"""
_SECONDS = 30


def plain(text: str) -> str:
    r"""Return a text with simple LaTeX and typographic signs written as plain text; `\boxed` stays.

    Calculator notes of GSM8K (`<<9*2=18>>`) are dropped, since the text repeats their result.

    >>> plain(r"\[ \text{Total} = 3\frac{1}{2} \times \$1{,}000 \]").split()
    ['Total', '=', '3', '1/2', '*', '$1,000']
    >>> plain("9*2=$<<9*2=18>>18, \u22125, 2\u00bd, 10\u00b2, 10\u207b\u00b2, 1_000")
    '9*2=$18, -5, 2 1/2, 10^2, 10^-2, 1000'
    """
    text = re.sub(MINUS, "-", re.sub(r"<<[^<>]*>>", "", text)).replace("\u2248", "=")
    # An en dash right before a number is a minus, unless it joins a range.
    text = re.sub(rf"(?<!\w)\u2013{BEGINS}", "-", text)
    text = re.sub(rf"(?<=\d)(?:[{_SPACES}_]|\\[,;])(?=\d{{3}}(?!\d))", "", text)
    text = re.sub(f"[{_SPACES}]", " ", text)
    text = _VULGAR.sub(_vulgar, text)
    text = _SUPERSCRIPT.sub(_superscript, text)
    text = re.sub("\u221a(\\d+)", r"\\sqrt{\1}", text).replace("\u03c0", r"\pi")
    text = text.replace("{,}", ",")
    if "\\" not in text:
        return text
    text = _WORDS.sub(r"\1", text)
    return with_signs(_FRACTION.sub(_fraction, text))


def with_signs(text: str) -> str:
    r"""Return a text with LaTeX's commands for signs and spaces as plain text.

    >>> with_signs(r"\left(8 - 3\right) \times 5")
    '(8 - 3) * 5'
    """
    return _COMMAND.sub(lambda match: _COMMANDS[match.group()], text)


def is_formula(text: str) -> bool:
    r"""Return whether a text holds LaTeX that is more than a way to write a number.

    >>> is_formula(r"\sqrt{2}"), is_formula(r"\frac{1}{2}"), is_formula("18")
    (True, False, False)
    """
    return bool(_FORMULA.search(plain(text)))


def same_formula(gold: str, answer: str) -> bool:
    r"""Return whether two formulas have one value, by math-verify; False where it cannot tell in time.

    math-verify limits its time by SIGALRM, which works in the main thread only and not on Windows. Elsewhere the
    comparison runs in a subprocess, which is ended after 30 seconds.

    >>> same_formula(r"2\sqrt{2}", r"\sqrt{8}"), same_formula(r"\sqrt{2}", "2")
    (True, False)
    """
    pair = [f"\\boxed{{{text}}}" for text in (gold, answer)]
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGALRM"):
        from math_verify import parse, verify

        return bool(verify(*map(parse, pair)))
    command = [sys.executable, "-c", _CODE]
    try:
        run = subprocess.run(command, input=json.dumps(pair), capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    if run.returncode:
        raise RuntimeError(f"math-verify failed on gold={gold!r}, answer={answer!r}: {run.stderr[-500:]}")
    return json.loads(run.stdout)


def _vulgar(match: re.Match) -> str:
    """Return a fraction sign such as "\u00bd", with the digit before it, as plain text."""
    part = unicodedata.normalize("NFKC", match["part"]).replace("\u2044", "/")
    return f"{match['whole']} {part}" if match["whole"] else part


def _superscript(match: re.Match) -> str:
    """Return a whole number in superscript, such as "\u207b\u00b2", as plain text."""
    sign = {"\u207b": "-"}.get(match[1], "")
    return f"^{sign}{unicodedata.normalize('NFKC', match[2])}"


def _fraction(match: re.Match) -> str:
    r"""Return `\frac{a}{b}`, with the digit before it, as plain text; as it is where it has a factor before it.

    The minus of a number in it is put before the fraction.
    """
    before = match.string[max(0, match.start() - 20) : match.start()]
    if _FACTOR.search(before):
        return match.group()
    top, bottom = (match[2], match[3]) if match[2] is not None else (match[4], match[5])
    over, under = _PART.fullmatch(top), _PART.fullmatch(bottom)
    part = f"({top})/({bottom})"
    if over and under:
        signed = over[1] or under[1]
        if not signed or not (match["whole"] or _TERM.search(before)):
            part = f"{'-' if over[1] != under[1] else ''}{over[2]}/{under[2]}"
    return f"{match['whole']} {part}" if match["whole"] else part
