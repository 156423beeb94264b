"""Requests of hostile clients, byte by byte: each is refused with the field's name, and the server goes on."""

import json
import re
import socket
import time

import httpx2
import pytest
from served import running

from semcot_hf.inference.prompting import answer_prompt_ids, with_answer_prompt
from semcot_hf.serve.config import ServeConfig
from semcot_hf.serve.launch import app_of

HUGE = "9" * 400


@pytest.fixture(scope="module")
def url(tiny_lm, tiny_semcot, tiny_tokenizer):
    model = tiny_semcot(tiny_lm(), answer_prompt_ids=answer_prompt_ids(tiny_tokenizer))
    config = ServeConfig(model="tiny", max_answer_tokens=100, log_prompts=True)
    with running(app_of(model, with_answer_prompt(tiny_tokenizer), config)) as address:
        yield address


def sent(url, *parts, answers=1):
    """Send bytes as they are; return the statuses and the text of what comes back."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=120) as client:
        for part in parts:
            client.sendall(part)
            time.sleep(0.02)
        got = b""
        # The end of the last answer: its length is known, or the server hangs up.
        while len(heads := list(re.finditer(rb"HTTP/1\.1 (\d+) .*?\r\n\r\n", got, re.DOTALL))) < answers or (
            (size := re.search(rb"(?i)content-length: (\d+)", heads[-1].group()))
            and len(got) < heads[-1].end() + int(size.group(1))
        ):
            more = client.recv(65536)
            if not more:
                break
            got += more
    return [int(head.group(1)) for head in heads], got.decode()


def request(body, path="/v1/completions", kind="application/json", host="127.0.0.1", version="1.1", more=""):
    head = f"POST {path} HTTP/{version}\r\nHost: {host}\r\n" + (f"Content-Type: {kind}\r\n" if kind else "")
    return f"{head}Content-Length: {len(body)}\r\n{more}\r\n".encode("latin-1") + body


def chunked(*chunks):
    head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Transfer-Encoding: chunked\r\n\r\n".encode(), *chunks


GOOD = b'{"prompt": "Ann has", "max_tokens": 2, "temperature": 0}'


@pytest.mark.parametrize(
    ("more", "param", "said"),
    [
        # Names that are no fields, some of them those that pydantic gives to members of unions.
        ('"max-tokens": 3', "max-tokens", "'max-tokens' is no field"),
        ('"max tokens": 3', "max tokens", "'max tokens' is no field"),
        ('"": 3', "", "'' is no field"),
        ('"str": 3', "str", "'str' is no field"),
        ('"body": 3', "body", "'body' is no field"),
        (f'"{"x" * 100_000}": 3', "x" * 200 + "...", "is no field"),
        ('"\\ud83d": 3', None, "unicode"),
        # Numbers.
        (f'"n": {HUGE}', "n", "answers are more than the 16"),
        ('"n": 1.0', "n", "valid integer"),
        ('"n": true', "n", "valid integer"),
        (f'"max_tokens": {HUGE}', "max_tokens", "must lie from 1 to 100"),
        (f'"max_tokens": {HUGE * 20}', None, "cannot be read as JSON in UTF-8"),
        ('"max_tokens": -0', "max_tokens", "greater than or equal to 1"),
        ('"max_tokens": 1e999', "max_tokens", "valid integer"),
        ('"top_k": 2147483648', "top_k", "less than 2147483648"),
        (f'"seed": {HUGE}', "seed", "less than 9223372036854775808"),
        (f'"implicit_tokens": {HUGE}', "implicit_tokens", "less than or equal to 4096"),
        ('"implicit_tokens": true', "implicit_tokens", "valid integer"),
        ('"temperature": NaN', "temperature", "finite"),
        ('"temperature": -Infinity', "temperature", "finite"),
        ('"top_p": 1e999', "top_p", "finite"),
        ('"logprobs": 1000000000', "logprobs", "less than or equal to 20"),
        ('"escalation": NaN', "escalation", "valid boolean; or: "),
        ('"escalation": 2', "escalation", "less than or equal to 1"),
        ('"escalation": "true"', "escalation", "valid number"),
        ('"generation_config": "{\\"temperature\\": NaN}"', "generation_config", "finite"),
        (f'"generation_config": "{{\\"max_new_tokens\\": {HUGE}}}"', "generation_config", "from 1 to 100"),
        # Repeated fields: the last one counts.
        ('"max_tokens": 2, "max_tokens": 0', "max_tokens", "greater than or equal to 1"),
        # Nothing where something must be.
        ('"prompt": null', "prompt", "valid string; or: "),
        ('"prompt": [[]]', "prompt", "at least one token"),
        ('"prompt": [[[1]]]', "prompt.0.0", "valid integer"),
        ('"prompt": [1, "a"]', "prompt.0", "valid string"),
        ('"prompt": [1e2]', "prompt.0", "valid string"),
        (f'"prompt": [{HUGE}]', "prompt", "from 0 to 319"),
        ('"prompt": ["a", "b"], "n": 9', "n", "18 answers are more than the 16"),
        ('"stream": "yes"', "stream", "valid boolean"),
        ('"stream_options": []', "stream_options", "valid dictionary"),
        ('"stop": [null]', "stop.0", "valid string"),
        ('"logit_bias": ' + "[" * 900 + "]" * 900, "logit_bias", "not supported"),
        ('"model": "' + "m" * 500_000 + '"', "model", "is not served here"),
        ('"model": "\\u65e5\\u202e\\n\\ud83d"', "model", "is not served here"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_fields_with_odd_values(url, more, param, said):
    body = b'{"prompt": "Ann has", ' + more.encode() + b"}"
    [status], text = sent(url, request(body))
    error = json.loads(text.partition("\r\n\r\n")[2])["error"]
    assert status == (404 if param == "model" else 400) and said in error["message"]
    assert error["param"] == param and len(error["message"]) < 600


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ('"messages": null', "messages"),
        ('"messages": {"0": {}}', "messages"),
        ('"messages": [null]', "messages.0"),
        ('"messages": [{"role": null, "content": "x"}]', "messages.0.role"),
        ('"messages": [{"role": "user", "content": null}]', "messages.0.content"),
        ('"messages": [{"role": "user", "content": [{"type": "text"}]}]', "messages.0.content.0.text"),
        ('"messages": [{"role": "user", "content": "x", "a-b": 1}]', "messages.0.a-b"),
    ],
)
def test_messages_with_odd_values(url, field, param):
    [status], text = sent(url, request(f"{{{field}}}".encode(), "/v1/chat/completions"))
    assert (status, json.loads(text.partition("\r\n\r\n")[2])["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("parts", "statuses", "said"),
    [
        ([request(GOOD, kind="")], [400], "Content-Type: application/json"),
        ([request(GOOD, kind="text/plain")], [400], "Content-Type: application/json"),
        ([request(b"prompt=a", kind="application/x-www-form-urlencoded")], [400], "Content-Type: application/json"),
        ([request(b"")], [400], "required"),
        ([request(b"null")], [400], "body: "),
        ([request(b'{"prompt": "\xff"}')], [400], "JSON in UTF-8"),
        ([request(b"\x1f\x8b\x08\x00", more="Content-Encoding: gzip\r\n")], [400], "JSON in UTF-8"),
        ([request(GOOD + b"}")], [400], "is not JSON"),
        ([request(GOOD, version="1.0")], [200], "Ann"),
        ([b"POST /v1/completions HTTP/1.0\r\n\r\n"], [403], "Host '' is not this machine"),
        ([request(GOOD, host="evil.example:80")], [403], "is not this machine"),
        ([request(GOOD, host="127.0.0.1.evil.example")], [403], "is not this machine"),
        ([request(GOOD, host="127.0.0.2:80")], [200], "Ann"),
        ([request(GOOD, host="[::1]:80")], [200], "Ann"),
        ([request(GOOD, host="LOCALHOST")], [200], "Ann"),
        ([request(GOOD, more="Host: evil.example\r\n")], [400], ""),
        ([request(GOOD)[:-9] + b"\r\n"], None, ""),
        ([request(GOOD).replace(b"Length: ", b"Length: -")], [400], ""),
        ([request(GOOD).replace(b"Length: ", b"Length: " + b"9" * 30)], [400, 413], ""),
        (chunked(*(b"1\r\n%c\r\n" % byte for byte in GOOD), b"0\r\n\r\n"), [200], "Ann"),
        (chunked(b"zz\r\n{}\r\n0\r\n\r\n"), [400], ""),
        ([request(GOOD, more="Transfer-Encoding: gzip, chunked\r\n")], [400], ""),
        ([request(GOOD)[:40], request(GOOD)[40:90], request(GOOD)[90:]], [200], "Ann"),
        ([request(b"", "/v1/%ff%0a%00")], [404], ""),
        ([request(GOOD).replace(b"POST", b"BREW")], [405], ""),
        ([b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"], [400], ""),
        ([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"], [400, 403], ""),
    ],
)
def test_odd_bytes(url, parts, statuses, said):
    if statuses is None:
        # The client leaves before its body is complete.
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as client:
            client.sendall(parts[0])
    else:
        found, text = sent(url, *parts)
        assert found[0] in statuses and said in text + " Ann"
    answer = httpx2.post(f"{url}/v1/completions", json=json.loads(GOOD), timeout=120)
    assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 2


def test_requests_behind_each_other_are_answered_in_their_order(url):
    """Also behind one that is refused before its body is read."""
    other = request(GOOD.replace(b"2", b"3"))
    bad = request(GOOD.replace(b"2", b"0"))
    found, text = sent(url, request(GOOD, host="evil.example") + other + bad + request(GOOD), answers=4)
    assert found == [403, 200, 400, 200]
    assert re.findall(r'"completion_tokens":(\d)', text) == ["3", "2"]


def test_values_that_are_not_read_may_be_anything(url):
    odd = '{"a": ' * 300 + "NaN" + "}" * 300
    [status], _ = sent(url, request(GOOD[:-1] + f', "metadata": {odd}, "user": -0.0}}'.encode()))
    assert status == 200


def test_many_prompts_are_refused_before_they_are_encoded(url, tiny_tokenizer, monkeypatch):
    calls = []
    own = type(tiny_tokenizer).__call__
    monkeypatch.setattr(type(tiny_tokenizer), "__call__", lambda *given, **options: calls.append(1) or own(*given))
    body = json.dumps({"prompt": ["a"] * 100_000}).encode()
    [status], text = sent(url, request(body))
    assert status == 400 and "100000 answers are more than the 16" in text and not calls
    assert sent(url, request(GOOD))[0] == [200] and calls
