"""Condensing a dataset: through an endpoint that fails, stalls and rate-limits, a local model, and the rules."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import huggingface_hub.constants
import pytest
import torch
from chat_server import ChatServer
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from semcot_hf.cli.main import main
from semcot_hf.condense.config import CondenseConfig
from semcot_hf.condense.dataset import condense_dataset
from semcot_hf.condense.endpoint import EndpointSource
from semcot_hf.condense.journal import Reply, ReplyJournal
from semcot_hf.condense.local import LocalSource
from semcot_hf.condense.requests import Plan, follow, messages
from semcot_hf.condense.rules import EquationSource, SurprisalSource
from semcot_hf.data import load_reasoning_dataset
from semcot_hf.data.loading import write_splits
from semcot_hf.data.schema import FEATURES
from semcot_hf.data.tasks import arithmetic, facts
from semcot_hf.demo import HOST_PATH
from semcot_hf.inference.prompting import ANSWER_PROMPT, prompt_text
from semcot_hf.modeling.thought_prompt_semcot import line_ends

ROWS = arithmetic.generate(12, seed=9, max_steps=3)
REASONING, CONDENSED = "reasoning", "condensed_reasoning"


@pytest.fixture(autouse=True)
def local_requests(monkeypatch):
    """The tests' offline mode also forbids the client to ask 127.0.0.1."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("SEMCOT_BASE_URL", "SEMCOT_API_KEY", "OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    chat = ChatServer(ROWS)
    yield chat
    chat.close()


def condense(dataset, source, **options):
    return condense_dataset(dataset, source, CondenseConfig(**options))


def bare(rows, **fields):
    return [{**row, "reasoning": "", "condensed_reasoning": "", "steps": [], **fields} for row in rows]


def data(rows, **splits):
    return {name: Dataset.from_list(made, features=FEATURES) for name, made in {"train": rows, **splits}.items()}


def endpoint(server, **options):
    defaults = dict(base_url=server.url, concurrency=4, timeout=30, backoff=0.01, max_tries=3)
    return EndpointSource("m", **{**defaults, **options})


def queries(*numbers):
    return [ROWS[number]["query"] for number in numbers]


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".jsonl", ".json")}


def test_an_endpoint_in_trouble_gives_every_row_and_is_paid_once(server, tmp_path):
    limited, broken, stalled, garbled, dropped, wrong, long, empty = queries(*range(8))
    first = {
        (REASONING, limited): (429, {"Retry-After": "0.2"}),
        (CONDENSED, broken): (503, {}),
        (REASONING, stalled): "hold",
        (CONDENSED, garbled): "garbage",
        (REASONING, dropped): "drop",
        (REASONING, wrong): "wrong",
        (CONDENSED, long): "long",
        (CONDENSED, empty): "empty",
    }
    server.behave = lambda stage, query, number: first.get((stage, query), "ok") if number == 1 else "ok"
    made, report = condense(
        data(bare(ROWS)), endpoint(server, timeout=3), output_dir=tmp_path, price_input=2.0, price_output=10.0
    )

    for row, true in zip(made["train"], ROWS, strict=True):
        assert row["reasoning"] == f"{true['reasoning']} The answer is {true['answer']}."
        assert row["condensed_reasoning"] == true["condensed_reasoning"]
        assert row["steps"][:-1] == true["steps"]
    assert report.rows == report.made == {"train": 12}
    assert report.rejected_rows == report.failed_rows == {}
    assert report.rejected_replies == {
        "reasoning: wrong answer": 1,
        "condensed reasoning: over-long": 1,
        "condensed reasoning: empty": 1,
    }
    # 24 good replies and 3 rejected ones were bought, at 100 tokens in and 10 out.
    assert sum(server.answered.values()) == 27
    assert (report.input_tokens, report.output_tokens, report.cost) == (2700, 270, 0.0081)
    assert all(server.asked[about] == (2 if about in first else 1) for about in server.asked)

    before, written = server.asked.copy(), content(tmp_path)
    condense(data(bare(ROWS)), endpoint(server), output_dir=tmp_path, price_input=2.0, price_output=10.0)
    assert server.asked == before and content(tmp_path) == written
    assert load_reasoning_dataset(tmp_path)["train"][0] == made["train"][0]


def test_half_a_surrogate_pair_stops_nothing(server, tmp_path):
    server.behave = lambda stage, query, number: "half" if stage == REASONING else "ok"
    made, report = condense(data(bare(ROWS[:2])), endpoint(server), output_dir=tmp_path / "out")
    assert report.made == {"train": 2} and made["train"][0]["reasoning"].endswith(f"{ROWS[0]['answer']}. \ufffd")
    before = server.asked.copy()
    again, _ = condense(data(bare(ROWS[:2])), endpoint(server), output_dir=tmp_path / "out")
    assert again["train"][:] == made["train"][:] and server.asked == before
    with ReplyJournal(tmp_path / "journal.jsonl") as journal:
        journal.add_failure("a", "HTTP 500: \ud83d", {})
    assert json.loads((tmp_path / "journal.jsonl").read_text())["failure"] == "HTTP 500: \ufffd"


@pytest.mark.slow
def test_killed_at_any_point_it_goes_on_and_buys_nothing_twice(server, tmp_path):
    write_splits(data(bare(ROWS[:8])), tmp_path / "data")
    (tmp_path / "data" / "test.jsonl").write_text(json.dumps(ROWS[8]) + "\n")
    (tmp_path / "data" / "validation.jsonl").write_text(json.dumps(ROWS[9]) + "\n")
    lock, sent = threading.Lock(), []

    def some_then_none(stage, query, number):
        with lock:
            sent.append(query)
            return "ok" if len(sent) <= 10 else "hold"

    server.behave = some_then_none
    folder = tmp_path / "out"
    command = [sys.executable, "-m", "semcot_hf.cli.main", "condense", "--dataset", str(tmp_path / "data")]
    command += ["--output_dir", str(folder), "--source", "endpoint", "--model", "m", "--concurrency", "3"]
    env = {
        **os.environ,
        "SEMCOT_BASE_URL": server.url,
        "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_CACHE": str(tmp_path / "c"),
    }
    journal = folder / "journal.jsonl"
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 200
        while not (journal.exists() and journal.read_bytes().count(b"\n") == 10 and len(sent) == 13):
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "train.jsonl").exists()

    # A kill may also leave half a line.
    with journal.open("ab") as file:
        file.write(b'{"key": "123", "stage": "reas')
    held = server.asked - server.answered
    server.behave = lambda stage, query, number: "ok"
    made, report = condense(
        load_reasoning_dataset(tmp_path / "data"), endpoint(server), output_dir=folder, splits=("train", "validation")
    )
    assert report.made == {"train": 8, "validation": 1}
    assert len(server.answered) == 16 and set(server.answered.values()) == {1}
    assert sum(held.values()) == 3 and all(server.asked[about] == 1 + held[about] for about in server.asked)
    assert all(json.loads(line) for line in journal.read_text().splitlines())
    assert made["test"][0] == made["test"][0] | ROWS[8]


def test_a_question_without_reply_is_a_failure_and_asked_again(server, tmp_path):
    bad, too_long = queries(1, 2)
    server.behave = lambda stage, query, number: {bad: (500, {}), too_long: (400, {})}.get(query, "ok")
    made, report = condense(data(bare(ROWS[:4])), endpoint(server), output_dir=tmp_path)
    assert list(made["train"]["query"]) == queries(0, 3)
    assert all(row["reasoning"] and row["condensed_reasoning"] for row in made["train"])
    assert sum(report.failed_rows.values()) == 2 and report.made == {"train": 2}
    failures = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert [(f["row"], f["status"], f["reason"][:8]) for f in failures] == [
        (1, "failed", "HTTP 500"),
        (2, "failed", "HTTP 400"),
    ]
    # What passes is tried again (max_tries), a fault of the request itself is not.
    assert server.asked[REASONING, bad] == 3 and server.asked[REASONING, too_long] == 1

    server.behave = lambda stage, query, number: "ok"
    server.asked.clear()
    made, report = condense(data(bare(ROWS[:4])), endpoint(server), output_dir=tmp_path)
    assert list(made["train"]["query"]) == queries(0, 1, 2, 3) and report.failed_rows == {}
    assert {query for _, query in server.asked} == {bad, too_long}
    assert (tmp_path / "failures.jsonl").read_text() == ""


def test_bad_replies_are_bounded_and_counted(server, tmp_path):
    wrong, long, cut = queries(0, 1, 2)
    server.behave = lambda stage, query, number: {
        (REASONING, wrong): "wrong",
        (CONDENSED, long): "long",
        (REASONING, cut): "cut",
    }.get((stage, query), "ok")
    made, report = condense(data(bare(ROWS[:4])), endpoint(server), output_dir=tmp_path, max_attempts=2)
    assert list(made["train"]["query"]) == queries(3)
    assert report.rejected_rows == {
        "reasoning: wrong answer": 1,
        "condensed reasoning: over-long": 1,
        "reasoning: cut off": 1,
    }
    assert server.asked[REASONING, wrong] == server.asked[CONDENSED, long] == server.asked[REASONING, cut] == 2
    again = [body for body in server.bodies if len(body["messages"]) == 3]
    assert [body["messages"][-1]["content"] for body in again] == [
        "That is 31 words. Condense it further, to at most 10 words."
    ]
    # First replies are greedy, the second ones are not, or they would be the same.
    assert sorted({body["temperature"] for body in server.bodies}) == [0.0, 0.7]

    # More attempts go on from those that were made.
    condense(data(bare(ROWS[:4])), endpoint(server), output_dir=tmp_path, max_attempts=3)
    assert server.asked[REASONING, wrong] == server.asked[CONDENSED, long] == 3
    # Another limit of words leaves the rationales as they are.
    before = server.asked.copy()
    condense(data(bare(ROWS[3:4])), endpoint(server), output_dir=tmp_path, max_words=9)
    assert server.asked - before == {(CONDENSED, queries(3)[0]): 1}


def test_a_given_rationale_with_a_wrong_answer_is_made_anew(server, tmp_path):
    rows = [dict(row) for row in ROWS[:3]]
    rows[1]["reasoning"] = f"The answer is {int(rows[1]['answer']) + 5}."
    rows[2]["condensed_reasoning"] = ""
    made, report = condense(data(rows), endpoint(server), output_dir=tmp_path)
    assert report.wrong_given == 1 and report.made == {"train": 3}
    assert set(server.asked) == {(REASONING, queries(1)[0]), (CONDENSED, queries(1)[0]), (CONDENSED, queries(2)[0])}
    assert made["train"][0] == rows[0] and made["train"][2] == ROWS[2]
    assert made["train"][1]["reasoning"].startswith(ROWS[1]["reasoning"])


def test_requests_run_at_once_and_a_rate_limit_stops_all(server, tmp_path):
    together = threading.Barrier(4, timeout=60)

    def behave(stage, query, number):
        if stage == REASONING:
            together.wait()
        return "ok"

    server.behave = behave
    condense(data(bare(ROWS[:4])), endpoint(server), output_dir=tmp_path / "a", make=(REASONING,))

    server.arrivals.clear()
    server.behave = lambda stage, query, number: (429, {"Retry-After": "0.7"}) if len(server.arrivals) == 1 else "ok"
    source = endpoint(server, concurrency=1)
    condense(data(bare(ROWS[4:8])), source, output_dir=tmp_path / "b", make=(REASONING,))
    times = [arrival for arrival, _, _ in server.arrivals]
    assert len(times) == 5 and times[1] - times[0] >= 0.65
    assert server.keys == {"Bearer none"}


def test_an_endpoint_that_refuses_or_is_down_ends_the_run(server, tmp_path):
    server.behave = lambda stage, query, number: (401, {})
    with pytest.raises(ValueError, match="the endpoint refuses model='m' with HTTP 401.*SEMCOT_API_KEY"):
        condense(data(bare(ROWS)), endpoint(server, concurrency=1), output_dir=tmp_path)
    assert sum(server.asked.values()) == 1
    server.asked.clear()
    server.behave = lambda stage, query, number: (502, {})
    with pytest.raises(ValueError, match="10 questions in a row, the last time with HTTP 502.*rerun"):
        condense(data(bare(ROWS)), endpoint(server, concurrency=1, max_tries=1), output_dir=tmp_path)
    assert sum(server.asked.values()) == 10


def test_one_question_twice_is_asked_once(server, tmp_path):
    made, report = condense(
        data(bare([ROWS[0], ROWS[1], ROWS[0]])),
        endpoint(server),
        output_dir=tmp_path,
        price_input=0.0,
        price_output=0.0,
    )
    assert set(server.answered.values()) == {1} and report.input_tokens == 400
    assert made["train"][0] == made["train"][2]


def test_the_journal_belongs_to_one_run_and_must_be_whole(tmp_path):
    path = tmp_path / "journal.jsonl"
    with ReplyJournal(path) as journal:
        journal.add_reply("k", Reply("two", True, 3, 4, (0.5, 0.25)), {"stage": REASONING})
        journal.add_failure("f", "HTTP 500", {})
        with pytest.raises(
            ValueError, match="another run is writing .*journal.jsonl: wait for it to end, or choose another output"
        ):
            ReplyJournal(path)
    with ReplyJournal(path) as journal:
        assert journal.replies == {"k": [Reply("two", True, 3, 4, (0.5, 0.25))]} and journal.failures == {}
    content = path.read_bytes()
    for line, problem in ((b"nonsense", "a record of this run"), (b'{"key": "k"}', r"a record of a reply \(KeyError")):
        path.write_bytes(line + b"\n" + content)
        with pytest.raises(ValueError, match=f"line 1 of .* is not {problem}.*delete that line"):
            ReplyJournal(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(max_words=0), "max_words=0 must be at least 1"),
        (dict(make=("steps",)), r"make=\['steps'\] must be one or both"),
        (dict(splits=("test",)), r"splits=\['test'\]: the dataset has rows in none of them, but train"),
        (dict(make=(REASONING,)), "a rule makes no reasoning"),
    ],
)
def test_bad_arguments_are_told(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        condense(data(ROWS), EquationSource(), output_dir=tmp_path, **options)


def test_equations_are_kept_and_rows_without_any_are_told(tmp_path):
    rows = [{**row, "condensed_reasoning": ""} for row in ROWS[:4]]
    rows[1]["reasoning"] = f"It must be {rows[1]['answer']}."
    rows[2]["reasoning"] = "<<1+1=3>> The answer is 3000."
    rows[3]["reasoning"] = ""
    made, report = condense(data(rows), EquationSource(), output_dir=tmp_path)
    assert list(made["train"]["condensed_reasoning"]) == [ROWS[0]["condensed_reasoning"]]
    assert report.rejected_rows == {
        "condensed reasoning: empty": 1,
        "the given reasoning ends on a wrong answer": 1,
        "there is no reasoning to condense": 1,
    }
    with pytest.raises(ValueError, match="none of the 1 rows of train could be completed.*failures.jsonl"):
        condense(data(rows[3:]), EquationSource(), output_dir=tmp_path / "none")


@pytest.mark.parametrize("name", ["validation.jsonl", "train_42.json", "test.csv", "data/train.parquet"])
def test_data_of_another_origin_is_neither_replaced_nor_mixed_with(name, tmp_path):
    theirs = tmp_path / name
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text("theirs\n")
    with pytest.raises(ValueError, match=f"holds {name}, data which this command did not write"):
        condense(data(ROWS[:4]), EquationSource(), output_dir=tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [theirs] and theirs.read_text() == "theirs\n"


def test_files_that_name_no_split_stay_beside_the_dataset(tmp_path):
    (tmp_path / "notes.txt").write_text("mine\n")
    rows = [{**row, "condensed_reasoning": ""} for row in ROWS[:4]]
    for _ in range(2):
        condense(data(rows, validation=rows, test=rows), EquationSource(), output_dir=tmp_path)
    assert list(load_reasoning_dataset(tmp_path)["train"]) == ROWS[:4]


def test_the_command_condenses_a_file(tmp_path, capsys):
    write_splits(
        data([{**row, "condensed_reasoning": ""} for row in ROWS[:4]], validation=ROWS[4:6], test=ROWS[6:]),
        tmp_path / "in",
    )
    flags = ["--dataset", str(tmp_path / "in"), "--output_dir", str(tmp_path / "out")]
    assert main(["condense", *flags, "--source", "equations"]) == 0
    printed = capsys.readouterr().out
    assert "4 of 4" in printed and "Nothing was made" not in printed
    assert list(load_reasoning_dataset(tmp_path / "out")["train"]) == ROWS[:4]
    whole = ["--dataset", str(tmp_path / "out"), "--output_dir", str(tmp_path / "anew"), "--source", "equations"]
    for more in ([], ["--replace"]):
        assert main(["condense", *whole, *more]) == 0
        assert ("Nothing was made: no row lacks it. Add --replace" in capsys.readouterr().out) == (not more)
    for wrong, message in (
        (["--source", "rules"], "source='rules' is unknown: choose one of endpoint, local, equations, surprisal"),
        (["--source", "local"], "source='local' needs a model: add --model"),
        (
            ["--source", "equations", "--thought_prompt", "equations"],
            "thought_prompt='equations' needs source='local'",
        ),
        (
            ["--source", "local", "--model", "m", "--thought_prompt", "no.json"],
            "thought_prompt='no.json' is not a file",
        ),
        (["--source", "equations", "--price_input", "1"], "price_input and price_output go together"),
    ):
        assert main(["condense", *flags, *wrong]) == 1
        assert message in capsys.readouterr().err


def local(tiny_lm, tiny_tokenizer, **options):
    model = tiny_lm("llama", max_position_embeddings=1024)
    return LocalSource(model, tiny_tokenizer, name="tiny", max_new_tokens=6, **options)


def first_requests(rows):
    plan = Plan((REASONING,), False, "numeric", 10, 2, {})
    return [follow(row, plan, {}).request for row in bare(rows)]


def test_a_local_model_answers_in_batches_as_one_by_one(tiny_lm, tiny_tokenizer):
    source = local(tiny_lm, tiny_tokenizer, batch_size=3)
    requests, replies = first_requests(ROWS[:5]), {}
    source.complete(requests, lambda request, reply: replies.update({request.key: reply}), pytest.fail)
    for request in requests:
        prompt = tiny_tokenizer(prompt_text(tiny_tokenizer, messages(request)), return_tensors="pt")
        size = prompt["input_ids"].shape[1]
        tokens = source.model.generate(**prompt, do_sample=False, max_new_tokens=6)[0, size:]
        text = tiny_tokenizer.decode(tokens, skip_special_tokens=True)
        ended = tiny_tokenizer.eos_token_id in tokens
        assert replies[request.key] == Reply(text, not ended, size, len(tokens))


def test_a_local_model_computes_nothing_twice(tiny_lm, tiny_tokenizer, tmp_path):
    source, batches = local(tiny_lm, tiny_tokenizer, batch_size=2), []
    generate = source._generate

    def interrupted(batch, prompts):
        if len(batches) == 2:
            raise KeyboardInterrupt
        batches.append([request.query for request in batch])
        return generate(batch, prompts)

    source._generate = interrupted
    with pytest.raises(KeyboardInterrupt):
        condense(data(bare(ROWS[:6])), source, output_dir=tmp_path, max_attempts=1)
    source._generate = lambda batch, prompts: batches.append([r.query for r in batch]) or generate(batch, prompts)
    # A random model solves no problem: every row is rejected, and none becomes an empty string.
    with pytest.raises(ValueError, match="none of the 6 rows"):
        condense(data(bare(ROWS[:6])), source, output_dir=tmp_path, max_attempts=1)
    assert sorted(query for batch in batches for query in batch) == sorted(queries(*range(6)))
    report = json.loads((tmp_path / "report.json").read_text())
    assert sum(report["rejected_rows"].values()) == 6 and report["output_tokens"] > 0

    source = local(tiny_lm, tiny_tokenizer)
    source.max_new_tokens = 1000
    with pytest.raises(ValueError, match="1000 new tokens are more than the context of 1024"):
        condense(data(bare(ROWS[:1])), source, output_dir=tmp_path / "context")


SHORT = [
    {"role": "system", "content": "Write equations."},
    {"role": "user", "content": "Two and two?"},
    {"role": "assistant", "content": "2+2=4"},
]


def thought_requests(rows):
    plan = Plan((CONDENSED,), False, "numeric", None, 2, {}, from_question=True)
    return [follow(row, plan, {}).request for row in bare(rows)]


def test_a_thought_prompt_as_by_hand(tiny_lm, tiny_tokenizer):
    source = local(tiny_lm, tiny_tokenizer, batch_size=3, thought_prompt=SHORT)
    source.max_new_tokens = 20
    ends = line_ends(tiny_tokenizer)
    requests, replies = thought_requests(ROWS[:5]), {}
    source.complete(requests, lambda request, reply: replies.update({request.key: reply}), pytest.fail)
    for request in requests:
        chat = [*SHORT, {"role": "user", "content": request.query}]
        text = tiny_tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        prompt = tiny_tokenizer(text, return_tensors="pt", add_special_tokens=False)
        size = prompt["input_ids"].shape[1]
        tokens = source.model.generate(**prompt, do_sample=False, max_new_tokens=20, eos_token_id=ends)[0, size:]
        text = tiny_tokenizer.decode(tokens, skip_special_tokens=True)
        assert replies[request.key] == Reply(text, tokens[-1] not in ends, size, len(tokens))
    assert local(tiny_lm, tiny_tokenizer).fingerprint != source.fingerprint


def test_thoughts_are_kept_where_they_end_on_the_answer(tiny_lm, tiny_tokenizer, tmp_path):
    """Rows need no reasoning; a wrong thought is asked for again, and a row without a right one is left out."""
    source, asked = local(tiny_lm, tiny_tokenizer, thought_prompt=SHORT), []
    wrong, silent, late = queries(1, 2, 3)

    def replies(batch, prompts):
        asked.extend((request.query, len(request.earlier)) for request in batch)
        for request in batch:
            right = f" 1+1=2;\n {request.answer}-0={request.answer} \n"
            worse = {wrong: "1+1=77777", silent: "I cannot say."}.get(request.query, right)
            yield Reply("3*3=77777" if request.query == late and not request.earlier else worse)

    source._generate = replies
    rows = [
        *bare(ROWS[:4]),
        {**ROWS[4], "condensed_reasoning": "kept"},
        {**bare(ROWS[5:6])[0], "reasoning": "It is 7."},
    ]
    made, report = condense(data(rows), source, output_dir=tmp_path, max_attempts=2)
    wanted = [0, 3, 4, 5]
    assert [row["query"] for row in made["train"]] == queries(*wanted)
    thoughts = [f"1+1=2; {ROWS[number]['answer']}-0={ROWS[number]['answer']}" for number in wanted]
    assert [row["condensed_reasoning"] for row in made["train"]] == [*thoughts[:2], "kept", thoughts[3]]
    assert [row["reasoning"] for row in made["train"]] == ["", "", ROWS[4]["reasoning"], "It is 7."]
    assert report.rejected_rows == {"condensed reasoning: wrong answer": 1, "condensed reasoning: no answer": 1}
    assert report.rejected_replies == {"condensed reasoning: wrong answer": 3, "condensed reasoning: no answer": 2}
    assert len(asked) == 8 and (late, 1) in asked
    condense(data(rows), source, output_dir=tmp_path, max_attempts=2)
    assert len(asked) == 8
    with pytest.raises(ValueError, match="a thought prompt makes no reasoning"):
        condense(data(rows), source, output_dir=tmp_path, make=[REASONING])


def plain_surprisal(model, tokenizer, query, steps, answer):
    context = prompt_text(tokenizer, query) + " ".join(steps) + ANSWER_PROMPT
    ids, target = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (context, f" {answer}"))
    with torch.no_grad():
        chances = model(torch.tensor([ids + target])).logits[0].log_softmax(-1)
    return -sum(chances[len(ids) - 1 + place, token].item() for place, token in enumerate(target))


def test_surprisal_drops_the_steps_that_the_answer_can_do_without():
    """On the embedded host, against the definition spelt out without batches."""
    model = AutoModelForCausalLM.from_pretrained(HOST_PATH)
    tokenizer = AutoTokenizer.from_pretrained(HOST_PATH)
    rows = facts.generate(6, seed=3, max_steps=4)
    plan = Plan((CONDENSED,), True, "sequence", None, 1, {})
    requests = [follow(row, plan, {}).request for row in rows]
    source = SurprisalSource(model, tokenizer, batch_size=5)
    found = source.kept_steps(requests)
    for row, (steps, before, after) in zip(rows, found, strict=True):

        def score(steps, row=row):
            return plain_surprisal(model, tokenizer, row["query"], steps, row["answer"])

        kept = list(row["steps"])
        assert before == pytest.approx(score(kept), abs=1e-4)
        while len(kept) > 1:
            tried = [kept[:i] + kept[i + 1 :] for i in range(len(kept))]
            best = min(tried, key=score)
            if score(best) > before + 0.1:
                break
            kept = best
        assert steps == kept and after == pytest.approx(score(kept), abs=1e-4)
    assert all(after <= before + 0.1 for _, before, after in found)
    assert sum(len(steps) for steps, *_ in found) < sum(len(row["steps"]) for row in rows)
