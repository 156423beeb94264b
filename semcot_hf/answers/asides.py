"""Parts of an output that state no answer: thinking in tags, checks, refusals, and reasoning that is cut off."""

import re

_TAG = r"(?:think(?:ing)?|thoughts?|reasoning|scratchpad|reflection)"
# The last of each are gpt-oss's channels, with their special tokens and as they are decoded without them.
_OPENED = re.compile(
    rf"<{_TAG}>|\[THINK\]|\u25c1think\u25b7|<\|channel\|>(?:analysis|commentary)\b[^<]*(?:<\|message\|>)?"
    r"|\A(?-i:analysis)(?=(?-i:[A-Z]))",
    re.IGNORECASE,
)
_CLOSED = re.compile(
    rf"</{_TAG}>|\[/THINK\]|\u25c1/think\u25b7|<\|channel\|>final\b[^<]*<\|message\|>|assistantfinal(?=\S)",
    re.IGNORECASE,
)

_WORK = r"(?:\s+(?:this|that|it|(?:the|our|my|your)\s+(?:\w+\s+)?(?:answer|result|solution|work|calculations?|total)))"
_CHECK = re.compile(
    r"(?:\A|(?<=[.!?:*)\]}\n]))\s*[*_#\s]*(?:"
    rf"(?:to|let['\u2019]?s|let\s+(?:us|me)|(?:we|you)\s+can|i\s+will)\s+(?:also\s+|now\s+)?"
    rf"(?:double[-\s]?check|check|verify|confirm|prove){_WORK}?\s*[,:.]"
    rf"|(?:to|let['\u2019]?s|let\s+(?:us|me)|(?:we|you)\s+can)\s+(?:double[-\s]?check|check|verify|confirm){_WORK}\b"
    r"|(?:(?:double[-\s]?)?check(?:ing)?|verif(?:y|ication|ying)|proof)\s*[*_]*:)",
    re.IGNORECASE,
)
CONCLUDES = re.compile(r"\b(?:so|therefore|thus|hence|consequently|in\s+conclusion|finally)\b", re.IGNORECASE)
_OPENS_CONCLUSION = re.compile(r"[\s\W]*" + CONCLUDES.pattern, re.IGNORECASE)

_KNOW = (
    r"(?:determin|answer|solv|calculat|comput|know|sa(?:y|id)|t(?:ell|old)|choos|provid|see|view|access|help|find|found"
    r"|conclu|infer|deduc|decid|figur|work(?=(?:\s+\w+){0,3}\s+out\b))\w*"
)
_REFUSAL = re.compile(
    r"\b(?:not|in)[-\s]?(?:enough|sufficient)\s+(?:\w+\s+)?(?:information|data|context|details?)\b"
    r"|\b(?:lacks?|missing|without)\s+(?:more|enough|sufficient|further|additional)\s+(?:information|context|data|details?)\b"
    rf"|\b(?:cannot|can\s+not|can['\u2019]?t|could\s*n['\u2019]?t|unable\s+to|not\s+able\s+to)\s+(?:\w+ly\s+)?(?:be\s+)?{_KNOW}"
    rf"|\b(?:impossible|not\s+possible|no\s+way)\s+(?:for\s+\w+\s+)?to\s+(?:\w+ly\s+)?(?:be\s+)?{_KNOW}"
    r"|\b(?:do\s+not|don['\u2019]?t|does\s+not|doesn['\u2019]?t|did\s+not|didn['\u2019]?t)\s+"
    r"(?:say|state|tell|specify|mention|give|provide)\s+(?:us\s+)?(?:how|what|which|whether|enough)\b"
    r"|\b(?:(?:do|does|did)(?:\s+not|n['\u2019]t)\s+have|ha(?:s|ve)\s+no)\s+(?:(?:any|enough|sufficient)\s+)?"
    r"(?:access|information|data|details?|way\s+(?:to|of)\s+(?:\w+ly\s+)?(?:tell|know|determin|find|calculat)\w*)\b"
    r"|\bnone\s+of\s+(?:the|these|those)\s+(?:\w+\s+)?(?:options|choices|answers)\b"
    r"|\b(?P<unsure>(?:not|n['\u2019]t)\s+(?:\w+\s+)?(?:sure|certain)|unsure|no\s+idea"
    r"|(?:do\s+not|don['\u2019]?t)\s+know)\b",
    re.IGNORECASE,
)
_MATH = re.compile(r"\\[\[\]()]")
_GOES_ON = re.compile(
    r"[\s\W]*(?:next|now|then|therefore|thus|hence|so|first|finally|since|to|let['\u2019]?s|we|after)\b", re.IGNORECASE
)
_GUESS = re.compile(r"\b(?:think|guess|believe|say|suppose|probably|likely|answer)\b", re.IGNORECASE)


def without_thinking(output: str) -> str:
    """Return an output without what the model thought in tags, such as `<think>...</think>`.

    Chat templates may put the opening tag into the prompt, so what precedes a lone closing tag is thinking too; what
    follows an opening tag that is never closed is unfinished thinking. Where nothing follows the thinking, its text
    is kept: the model answered inside.

    >>> without_thinking("<think>It is 5.</think> 6"), without_thinking("It is 5.</think> 6")
    (' 6', ' 6')
    >>> without_thinking("6 <think>5 or"), without_thinking("<think>It is 5.</think>")
    ('6 ', 'It is 5.')
    """
    closings = list(_CLOSED.finditer(output))
    behind = output[closings[-1].end() :] if closings else output
    opened = _OPENED.search(behind)
    answer = behind[: opened.start()] if opened else behind
    if re.search(r"\w", answer) or not closings:
        return answer
    # Text before the first opening tag, else the thoughts themselves.
    first = _OPENED.search(output)
    before = output[: first.start()] if first else ""
    return before if re.search(r"\w", before) else _OPENED.sub("", _CLOSED.sub("", output))


def without_check(text: str) -> str:
    """Return a text up to a check of its answer ("To check: 12 + 3 = 15"), unless a conclusion follows the check.

    >>> without_check("12 are left. To check: 12 + 3 = 15.")
    '12 are left.'
    >>> without_check("15 - 3 is 12. Let me check: 16 - 3 = 13. So 13 are left.")
    '15 - 3 is 12. Let me check: 16 - 3 = 13. So 13 are left.'
    """
    for match in _CHECK.finditer(text):
        before, check = text[: match.start()], text[match.end() :]
        later = re.split(r"(?<=[.!?:])\s|\n", check)[1:]
        if re.search(r"\w", before) and not any(
            _OPENS_CONCLUSION.match(part) and re.search(r"\d", part) for part in later
        ):
            return before
    return text


def refuses(text: str) -> bool:
    """Return whether a sentence says that the question cannot be answered, and gives no guess.

    >>> refuses("There is not enough information; it mentions 12."), refuses("I am not sure, but 12 appears.")
    (True, True)
    >>> refuses("I am not sure, but I think it is 12."), refuses("We cannot tell yet, so let x = 3.")
    (False, False)
    """
    match = _REFUSAL.search(text)
    if match is None:
        return False
    rest = text[match.end() :]
    return not (CONCLUDES.search(rest) or "=" in rest or (match["unsure"] and _GUESS.search(rest)))


def position_of_refusal(texts: list[str]) -> int | None:
    """Return which sentence refuses to answer, None where none does or a later one still draws a conclusion.

    >>> position_of_refusal(["It is unclear.", "I cannot tell how many.", "It has 12."])
    1
    >>> position_of_refusal(["I cannot tell how many.", "So 3 + 9 = 12."]) is None
    True
    """
    for position in range(len(texts) - 1, -1, -1):
        text = texts[position]
        if refuses(text):
            return position
        if "=" in text or CONCLUDES.search(text):
            return None
    return None


def is_cut_off(output: str) -> bool:
    r"""Return whether an output ends before its conclusion: in a formula, or in a sentence that announces a number.

    The last number of such an output is one of its way to the answer.

    >>> is_cut_off(r"He sells 4 a day. So \[ 4 \times"), is_cut_off("It is 4 a day. Therefore, we"), is_cut_off("4,")
    (True, True, True)
    >>> is_cut_off("He sells 4 a day"), is_cut_off(r"\[ 2 \times 2 = 4 \]"), is_cut_off("So he has 4")
    (False, False, False)
    """
    text = output.rstrip()
    marks = _MATH.findall(text)
    if marks and marks[-1] in (r"\[", r"\("):
        return True
    last = re.split(r"(?<=[.!?])\s|\n", text)[-1]
    if re.search(r"[,:]$", last) or (last and not re.search(r"\w", last) and re.fullmatch(r"\s*[-*\u2022]+", last)):
        return True
    return not re.search(r"[\d.!?)}\]*\"']$", last) and not re.search(r"\d", last) and bool(_GOES_ON.match(last))
