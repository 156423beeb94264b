"""`semcot generate`: many questions of a file, their batches, memory, kills, bad lines and shared prefixes."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from semcot_hf import progress
from semcot_hf.cli.main import main
from semcot_hf.data.tasks import facts
from semcot_hf.demo import HOST_PATH
from semcot_hf.evaluation import answer_questions
from semcot_hf.inference import prompting
from semcot_hf.inference.answering import Answer, Answerer
from semcot_hf.inference.generate_file import WorkFile, generate_file
from semcot_hf.inference.prompting import answer_prompt_ids, pad_left, with_answer_prompt
from semcot_hf.inference.question_file import read_questions
from semcot_hf.inference.settings import AnswerSettings
from semcot_hf.inference.shared_prefix import SHORTEST_PREFIX, SharedPrefix, find_shared_prefix

WORDS = "apples pears plums figs kiwis limes".split()
QUERIES = [f"How many {' and '.join(WORDS[i % 5 : i % 5 + 1 + i % 4])} are {i} + {i * i}?" for i in range(13)]
SYSTEM = "Think hard, then answer with one number and nothing else. "


def encode_prompts(*args, **kwargs):
    return list(prompting.encode_prompts(*args, **kwargs))


def write_rows(path, queries=QUERIES, **more):
    rows = [{"id": f"é{i}", "query": query, **more} for i, query in enumerate(queries)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def run(tmp_path):
    """Function (model, tokenizer, queries, name, **options) -> (rows of the output, summary)."""

    def run(model, tokenizer, queries=QUERIES, name="answers.jsonl", **options):
        source = write_rows(tmp_path / "questions.jsonl", queries)
        questions = read_questions(source, tmp_path / name, overwrite=options.get("overwrite", False))
        summary = generate_file(model, tokenizer, questions, **{"max_new_tokens": 6, **options})
        return read_rows(tmp_path / name), summary

    return run


@pytest.fixture(scope="module")
def model(tiny_semcot, tiny_tokenizer):
    return tiny_semcot(answer_prompt_ids=answer_prompt_ids(tiny_tokenizer))


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return with_answer_prompt(tiny_tokenizer)


@pytest.fixture
def batches(model, monkeypatch):
    """Shapes of the batches that the model is asked to answer."""
    shapes, generate = [], model.generate

    def spy(**kwargs):
        shapes.append(tuple(kwargs["input_ids"].shape))
        return generate(**kwargs)

    monkeypatch.setattr(model, "generate", spy)
    return shapes


def test_prompts_of_many_questions_are_those_of_each(tokenizer):
    queries = [f"{i}?" for i in range(1030)]
    prompts = encode_prompts(tokenizer, queries, method="no_cot")
    assert len(prompts) == 1030
    for index in (0, 1023, 1024, 1029):
        assert encode_prompts(tokenizer, queries[index : index + 1], method="no_cot") == [prompts[index]]
        assert tokenizer.decode(prompts[index]) == f"<user>{index}?\n<assistant>\nAnswer:"


@pytest.mark.parametrize("method", ["no_cot", "cot", "semcot"])
def test_batches_answer_as_one_by_one_does_in_the_order_of_the_file(model, tokenizer, method, run, batches):
    rows, summary = run(model, tokenizer, method=method, tokens_per_batch=200)
    budget = [count * (width + 6 + (3 if method == "semcot" else 0)) for count, width in batches]
    assert max(budget) <= 200 and len(batches) == summary.batches < len(QUERIES)
    assert [width for _, width in batches] == sorted((width for _, width in batches), reverse=True)
    single = answer_questions(model, tokenizer, QUERIES, method=method, batch_size=1, max_new_tokens=6)
    assert rows == [
        {"id": f"é{i}", "query": query, "output": answer.output, "output_tokens": answer.new_tokens}
        for i, (query, answer) in enumerate(zip(QUERIES, single, strict=True))
    ]
    assert len({answer.output for answer in single}) > 3
    assert summary.new_tokens == sum(answer.new_tokens for answer in single)


def test_method_is_semcot_where_there_are_implicit_tokens_and_no_cot_elsewhere(model, tokenizer, run):
    rows = {name: run(model, tokenizer, name=f"{name}.jsonl", method=name)[0] for name in ("semcot", "no_cot")}
    assert rows["semcot"] != rows["no_cot"]
    assert run(model, tokenizer, name="own.jsonl")[0] == rows["semcot"]
    assert run(model.host, tokenizer, name="host.jsonl")[0] == rows["no_cot"]
    assert run(model, tokenizer, name="none.jsonl", num_implicit_tokens=0)[0] == rows["no_cot"]
    with pytest.raises(ValueError, match="num_implicit_tokens=2 needs a method with implicit .*got method='no_cot'"):
        run(model, tokenizer, name="bad.jsonl", method="no_cot", num_implicit_tokens=2)
    with pytest.raises(ValueError, match="tokens_per_batch=0 must lie in"):
        run(model, tokenizer, name="bad.jsonl", tokens_per_batch=0)


def test_conversations(model, tokenizer, tmp_path):
    system, asked = {"role": "system", "content": SYSTEM}, {"role": "user", "content": QUERIES[0]}
    answer = {"role": "assistant", "content": "7"}
    chats = {"messages": [system, asked, answer], "prompt": [system, asked]}
    outputs = set()
    for column, chat in chats.items():
        source = tmp_path / f"{column}.jsonl"
        source.write_text(json.dumps({column: chat}) + "\n")
        questions = read_questions(source, tmp_path / "answers.jsonl", overwrite=True)
        assert questions.queries == [[system, asked]]
        generate_file(model, tokenizer, questions, max_new_tokens=6)
        [row] = read_rows(tmp_path / "answers.jsonl")
        assert row[column] == chat
        outputs.add(row["output"])
    text = f"<system>{SYSTEM}\n<user>{QUERIES[0]}\n<assistant>\nAnswer:"
    prompt = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    wanted = model.generate(prompt, max_new_tokens=6, do_sample=False)[0, prompt.shape[1] :]
    assert outputs == {tokenizer.decode(wanted, skip_special_tokens=True)}


ERRORS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB."),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried."),
    "mps": RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)."),
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_too_little_memory_halves_the_budget_for_good(error, model, tokenizer, run, monkeypatch):
    wanted, _ = run(model, tokenizer)
    sizes, failed, generate = [], [], model.generate

    def limited(**kwargs):
        sizes.append(len(kwargs["input_ids"]))
        if kwargs["input_ids"].numel() > 160:
            failed.append(len(sizes))
            raise error
        return generate(**kwargs)

    monkeypatch.setattr(model, "generate", limited)
    rows, summary = run(model, tokenizer, name="halved.jsonl")
    assert rows == wanted
    assert failed == [1, 2] and sizes[:3] == [13, 6, 3]
    assert summary.halvings == 2 and summary.batches == len(sizes) - 2
    assert 3 < max(sizes[2:]) < 6


def test_too_little_memory_for_one_question_and_other_errors_end_the_run(model, tokenizer, run, monkeypatch):
    generate, calls = model.generate, []

    def limited(**kwargs):
        calls.append(kwargs["input_ids"])
        if len(calls) > 2 and len(kwargs["input_ids"]) > 0:
            raise ERRORS["cpu"]
        return generate(**kwargs)

    monkeypatch.setattr(model, "generate", limited)
    with pytest.raises(ValueError, match="memory is too small for a single question of .* lower max_new_tokens"):
        run(model, tokenizer, tokens_per_batch=130)
    calls.clear()
    monkeypatch.setattr(model, "generate", generate)
    rows, summary = run(model, tokenizer, tokens_per_batch=130)
    assert summary.resumed > 0 and all(row["output_tokens"] == 6 for row in rows)

    def broken(**kwargs):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(model, "generate", broken)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run(model, tokenizer, name="broken.jsonl")


def test_a_lower_budget_outlives_a_kill(model, tokenizer, run, batches, monkeypatch):
    generate = model.generate

    def stop_at_the_fourth(**kwargs):
        if len(batches) == 3:
            raise KeyboardInterrupt
        if len(kwargs["input_ids"]) > 5:
            raise ERRORS["cuda"]
        return generate(**kwargs)

    monkeypatch.setattr(model, "generate", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        run(model, tokenizer)
    monkeypatch.setattr(model, "generate", generate)
    _, summary = run(model, tokenizer)
    assert summary.resumed == sum(count for count, _ in batches[:3])
    assert max(count for count, _ in batches[3:]) <= 6 and summary.halvings == 0


def test_other_settings_are_refused_and_overwrite_discards_them(model, tokenizer, run, monkeypatch, tmp_path):
    def stop(**kwargs):
        raise KeyboardInterrupt

    generate = model.generate
    monkeypatch.setattr(model, "generate", stop)
    with pytest.raises(KeyboardInterrupt):
        run(model, tokenizer)
    assert not (tmp_path / "answers.jsonl").exists() and (tmp_path / "answers.jsonl.partial").exists()
    with pytest.raises(ValueError, match=r"another run \(max_new_tokens: 6 there, 7 now\).* pass --overwrite"):
        run(model, tokenizer, max_new_tokens=7)
    with pytest.raises(ValueError, match=r"another run \(num_candidates: None there, 2 now\)"):
        run(model, tokenizer, num_candidates=2)
    with pytest.raises(ValueError, match="input: .*prompts: "):
        run(model, tokenizer, QUERIES[:-1])
    monkeypatch.setattr(model, "generate", generate)
    _, summary = run(model, tokenizer, max_new_tokens=7, overwrite=True)
    assert summary.resumed == 0 and summary.batches == 1
    assert sorted(os.listdir(tmp_path)) == ["answers.jsonl", "questions.jsonl"]
    with pytest.raises(ValueError, match="answers.jsonl' already exists: name another file, or pass --overwrite"):
        run(model, tokenizer)


def test_questions_longer_than_the_context_get_an_error(model, tokenizer, run):
    queries = [QUERIES[0], "many words " * 60, QUERIES[1]]
    rows, summary = run(model, tokenizer, queries)
    short, _ = run(model, tokenizer, QUERIES[:2], name="short.jsonl")
    assert [rows[0]["output"], rows[2]["output"]] == [row["output"] for row in short]
    assert rows[1]["output"] is None and rows[1]["output_tokens"] == 0
    assert "3 implicit tokens and 6 new tokens are more than the context of 256" in rows[1]["error"]
    assert summary.too_long == 1 and "1 too long" in str(summary)
    rows, summary = run(model, tokenizer, queries[1:2], name="none.jsonl")
    assert summary.too_long == len(rows) == 1


BAD_LINES = {
    "no json": (b"{'query': 1}", "is not JSON (Expecting property name"),
    "torn": (b'{"query": "1 +"', "is not JSON (Expecting ',' delimiter"),
    "no object": (b'["1 + 1?"]', 'is not a JSON object, but ["1 + 1?"]. Write one JSON object per line.'),
    "no column": (
        b'{"question": "1?", "id": 3}',
        "has no column 'query', but 'question', 'id'. Name the right one by",
    ),
    "empty": (b'{"query": "  "}', "has an empty question in column 'query'. Fill it in"),
    "number": (b'{"query": 12}', "column 'query' holds 12. Make it a text, or a list of messages"),
    "no user": (b'{"messages": [{"role": "system", "content": "a"}]}', "has an empty question in column 'messages'"),
    "no role": (b'{"prompt": [{"content": "a"}]}', "column 'prompt' holds"),
    "taken": (b'{"query": "1?", "output": "2"}', "already has a column 'output'. Name another one"),
    "error": (b'{"query": "1?", "error": "2"}', "has a column 'error'"),
    "half a pair": (
        b'{"query": "a \\ud83d?"}',
        "has half a surrogate pair in column 'query', which is not a character.",
    ),
    "half a pair in a chat": (
        b'{"messages": [{"role": "user", "content": "\\ud83d"}]}',
        "has half a surrogate pair in column 'messages'",
    ),
    "half a pair as UTF-8": (b'{"query": "a \xed\xa0\xbd?"}', "is not UTF-8"),
    "latin-1": ('{"query": "é?"}'.encode("latin-1"), "is not UTF-8"),
}


@pytest.mark.parametrize(("line", "told"), BAD_LINES.values(), ids=BAD_LINES)
def test_bad_lines_are_told_before_the_model_is_loaded(line, told, tmp_path, capsys):
    source = tmp_path / "questions.jsonl"
    source.write_bytes(b'{"query": "1 + 1?"}\n\n' + line + b"\n")
    arguments = ["--model", str(tmp_path / "no_model"), "--input", str(source), "--output", str(tmp_path / "a.jsonl")]
    assert main(["generate", *arguments]) == 1
    error = capsys.readouterr().err
    assert f"{source}, line 3: {told}" in error and "no_model" not in error
    assert os.listdir(tmp_path) == ["questions.jsonl"]


def test_many_bad_lines_and_bad_files(tmp_path):
    source, output = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    source.write_text("x\n" * 8)
    with pytest.raises(ValueError, match="line 5: .*\n... and 3 more such lines."):
        read_questions(source, output)
    source.write_text("\n \n")
    with pytest.raises(ValueError, match="holds no question"):
        read_questions(source, output)
    with pytest.raises(FileNotFoundError, match="nowhere.jsonl' is not a file"):
        read_questions(tmp_path / "nowhere.jsonl", output)
    write_rows(source)
    with pytest.raises(FileNotFoundError, match="the folder .*missing' is missing: create it first"):
        read_questions(source, tmp_path / "missing" / "answers.jsonl")
    with pytest.raises(ValueError, match="is the input or a folder"):
        read_questions(source, source, overwrite=True)
    questions = read_questions(source, output)
    write_rows(source, QUERIES[::-1])
    with pytest.raises(ValueError, match="has changed since it was read"):
        questions.write([{}] * len(QUERIES))
    assert not output.exists()


def test_every_field_comes_back_and_the_answers_column_may_be_named(tmp_path):
    source, output = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    # As they stand: numbers beyond a float and half a surrogate pair included.
    lines = [
        b'\xef\xbb\xbf{"q": "1?", "output": [1, {"a": null}], "big": 1e400, "long": 0.10000000000000000555 }',
        b'{"q":"2?","half":"\\ud83d","k":1,"k":2}',
    ]
    source.write_bytes(b"\r\n".join(lines))
    questions = read_questions(source, output, column="q", output_column="mine")
    questions.write([{"mine": "\udc00"}, {"mine": None}])
    assert output.read_bytes().splitlines() == [
        b'{"q": "1?", "output": [1, {"a": null}], "big": 1e400, "long": 0.10000000000000000555, "mine": "\\udc00"}',
        b'{"q":"2?","half":"\\ud83d","k":1,"k":2, "mine": null}',
    ]


def test_work_file_keeps_whole_lines_and_one_writer(tmp_path):
    output, own = tmp_path / "answers.jsonl", {"max_new_tokens": 4}
    with closing(WorkFile(output, own)) as work:
        work.append([3, 1], [Answer("three\n", 2, 0.1, True), Answer("\udc00", 1, 0.1, True)], (100, 50))
        work.append([0], [Answer("zero", 4, 0.1, False)], (100, 25))
        with pytest.raises(ValueError, match="another run is writing .*answers.jsonl.partial: wait for it"):
            WorkFile(output, own)
    whole = work.path.read_bytes()
    for torn in (b'{"tokens_per_batch": [100, 25], "ans', b'{"answers": []}\n', b"\0" * 20 + b"\n", b"[1]\n", b"7"):
        work.path.write_bytes(whole + torn)
        with closing(WorkFile(output, own)) as work:
            assert work.answers == {3: ("three\n", 2), 1: ("\udc00", 1), 0: ("zero", 4)} and work.budget == (100, 25)
        assert work.path.read_bytes() == whole
    work.path.write_bytes(whole[:9])
    with closing(WorkFile(output, own)) as work:
        assert not work.answers
    work.path.write_bytes(b"something else\n")
    with pytest.raises(ValueError, match="answers.jsonl.partial holds another run"):
        WorkFile(output, own)
    assert work.path.read_bytes() == b"something else\n"


def command(*arguments):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    arguments = [sys.executable, "-m", "semcot_hf.cli.main", "generate", *map(str, arguments)]
    return subprocess.Popen(arguments, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_command_goes_on_and_writes_the_same_bytes(tmp_path):
    queries = [row["query"] for row in facts.generate(60, seed=4, split="test")]
    source = write_rows(tmp_path / "questions.jsonl", queries)
    options = ["--model", HOST_PATH, "--input", source, "--method", "cot", "--max_new_tokens", 70]
    options += ["--tokens_per_batch", 300]
    output, work = tmp_path / "answers.jsonl", tmp_path / "answers.jsonl.partial"
    process = command(*options, "--output", output)
    try:
        while not work.exists() or work.read_bytes().count(b"\n") < 4:
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
    finally:
        process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not output.exists()
    done = sum(len(json.loads(line)["answers"]) for line in work.read_text().splitlines()[1:] if line.endswith("}"))
    assert 3 <= done < len(queries)
    with work.open("ab") as file:
        file.write(b'{"tokens_per_batch": [300, 300], "answers": [[5, "Ann ke')

    process = command(*options, "--output", output)
    printed, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    assert f"; {done} before; " in printed and "questions/s" in printed
    assert errors == ""
    assert sorted(os.listdir(tmp_path)) == ["answers.jsonl", "questions.jsonl"]

    host, tokenizer = AutoModelForCausalLM.from_pretrained(HOST_PATH), AutoTokenizer.from_pretrained(HOST_PATH)
    whole = tmp_path / "whole.jsonl"
    generate_file(
        host, tokenizer, read_questions(source, whole), method="cot", max_new_tokens=70, tokens_per_batch=300
    )
    assert output.read_bytes() == whole.read_bytes()
    assert [row["query"] for row in read_rows(output)] == queries
    assert len({row["output_tokens"] for row in read_rows(output)}) > 5


def test_the_command_answers_by_a_saved_checkpoint_as_set_in_a_file(model, tokenizer, tmp_path, run, capsys):
    wanted, _ = run(model, tokenizer)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    source, output = tmp_path / "asked.jsonl", tmp_path / "told.jsonl"
    rows = [{"question": query, "gold": i} for i, query in enumerate(QUERIES)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"model": tmp_path / "model", "input": source, "output": output, "column": "question"}
    config = tmp_path / "generate.yaml"
    config.write_text("".join(f"{name}: {value}\n" for name, value in settings.items()) + "max_new_tokens: 6\n")
    assert main(["generate", "--config", str(config), "--output_column", "said"]) == 0
    assert read_rows(output) == [
        {**row, "said": answer["output"], "said_tokens": 6} for row, answer in zip(rows, wanted, strict=True)
    ]
    summary, place = capsys.readouterr().out.splitlines()
    assert (
        summary.startswith("13 questions answered in ") and "78 written" in summary and "1 batches, 0 hal" in summary
    )
    assert place == f"The answers are in {output}."
    assert main(["generate", "--config", str(config), "--overwrite", "--shared_prefix", "on"]) == 1
    assert "shared_prefix='on': must be 'auto' or 'off'" in capsys.readouterr().err


def test_the_bar_tells_rates_and_time_left_on_a_terminal_alone(monkeypatch, model, tokenizer, run):
    for terminal in (True, False):
        stream = io.StringIO()
        console = Console(file=stream, force_terminal=terminal, width=160)
        monkeypatch.setattr(progress, "Console", lambda console=console, **_: console)
        run(model, tokenizer, name=f"{terminal}.jsonl", tokens_per_batch=200)
        printed = stream.getvalue()
        assert ("13/13" in printed and "questions/s" in printed and "tokens/s" in printed) == terminal
        assert bool(printed.strip()) == terminal


# Shared prefixes

SHOWN = [{"role": "system", "content": SYSTEM * 3}, {"role": "user", "content": "1 + 1?"}]
CHATS = [[*SHOWN, {"role": "assistant", "content": "2"}, {"role": "user", "content": query}] for query in QUERIES]
FAMILIES = {
    "llama": {},
    "gpt2": {},
    "qwen2": {},
    "mistral": {"sliding_window": None},
    "gpt_neox": {},
    "opt": {"word_embed_proj_dim": 32},
}


def host_columns(decoder, call):
    """Columns that a decoder's forward is run on in its passes over more than one column a row."""
    seen = []

    def count(module, args, kwargs):
        given = (*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        inputs = next(tensor for tensor in given if tensor is not None)
        if inputs.shape[1] > 1:
            seen.append(inputs.shape[0] * inputs.shape[1])

    hook = decoder.register_forward_pre_hook(count, with_kwargs=True)
    try:
        return call(), sum(seen)
    finally:
        hook.remove()


def answer_chats(model, tokenizer, tmp_path, shared, **options):
    source, output = tmp_path / "questions.jsonl", tmp_path / f"{shared}.jsonl"
    source.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in CHATS))
    questions = read_questions(source, output)
    options = {"max_new_tokens": 5, "tokens_per_batch": 1200, "shared_prefix": "auto" if shared else "off", **options}
    return host_columns(model.get_decoder(), lambda: generate_file(model, tokenizer, questions, **options))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shared_prefix_is_read_once_and_changes_no_answer(family, tiny_lm, tokenizer, tmp_path):
    model = tiny_lm(family, max_position_embeddings=1024, **FAMILIES[family])
    plain, all_columns = answer_chats(model, tokenizer, tmp_path, False)
    fast, fewer = answer_chats(model, tokenizer, tmp_path, True)
    assert read_rows(tmp_path / "True.jsonl") == read_rows(tmp_path / "False.jsonl")
    assert plain.shared_prefix == 0 and fast.shared_prefix > 100
    assert (plain.host_columns, fast.host_columns) == (all_columns, fewer)
    assert fewer == all_columns - (len(CHATS) - 1) * fast.shared_prefix
    assert fewer < all_columns / 2


@pytest.mark.parametrize("implicit", [True, False])
def test_a_shared_prefix_where_the_checkpoint_names_the_kind_of_cache(
    implicit, tiny_lm, tiny_semcot, tokenizer, tmp_path
):
    model = tiny_lm(max_position_embeddings=1024)
    if implicit:
        ends = tokenizer("\nAnswer:", add_special_tokens=False)["input_ids"]
        generator = tiny_lm(hidden_size=16, max_position_embeddings=1024)
        model = tiny_semcot(model, generator, answer_prompt_ids=ends)
    model.generation_config.cache_implementation = "dynamic"
    answer_chats(model, tokenizer, tmp_path, False)
    summary, _ = answer_chats(model, tokenizer, tmp_path, True)
    assert summary.shared_prefix > 100
    assert read_rows(tmp_path / "True.jsonl") == read_rows(tmp_path / "False.jsonl")


@pytest.mark.parametrize("method", ["no_cot", "cot", "semcot"])
@pytest.mark.parametrize("mode", ["parallel", "sequential"])
def test_a_shared_prefix_with_implicit_tokens(method, mode, tiny_lm, tiny_semcot, tokenizer, tmp_path):
    host = tiny_lm(max_position_embeddings=1024)
    generator = tiny_lm(hidden_size=16, max_position_embeddings=1024)
    ends = tokenizer("\nAnswer:", add_special_tokens=False)["input_ids"]
    model = tiny_semcot(host, generator, generator_mode=mode, answer_prompt_ids=ends)
    plain, all_columns = answer_chats(model, tokenizer, tmp_path, False, method=method)
    fast, fewer = answer_chats(model, tokenizer, tmp_path, True, method=method)
    assert read_rows(tmp_path / "True.jsonl") == read_rows(tmp_path / "False.jsonl")
    assert fast.shared_prefix > 100 and fast.batches == plain.batches > 1
    assert fewer == all_columns - (len(CHATS) - 1) * fast.shared_prefix


@pytest.mark.parametrize("family", FAMILIES)
def test_first_token_logits_behind_a_shared_prefix(family, tiny_lm):
    model = tiny_lm(family, dtype=torch.float32, **FAMILIES[family])
    ids = torch.randint(3, 320, (4, 60), generator=torch.Generator().manual_seed(0))
    # Rows with less padding than the prefix is long, with as much, and with more.
    ids[:, :60], lengths = ids, [60, 52, 40, 17]
    mask = torch.zeros_like(ids)
    prefix = ids[0, :20].tolist()
    for row, length in enumerate(lengths):
        mask[row, 60 - length :] = 1
        shared = min(20, length - 1)
        ids[row, 60 - length : 60 - length + shared] = torch.tensor(prefix[:shared])
    options = dict(max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True, pad_token_id=0)
    plain = model.generate(ids, attention_mask=mask, **options)
    cache = SharedPrefix(model, prefix).cache(lengths)
    fast = model.generate(ids, attention_mask=mask, past_key_values=cache, **options)
    assert torch.equal(plain.sequences, fast.sequences)
    torch.testing.assert_close(fast.logits[0], plain.logits[0], atol=1e-4, rtol=0)
    assert plain.logits[0].std() > 0.1


def test_no_prefix_is_shared_where_it_would_change_answers_or_save_nothing(tiny_lm, model, tokenizer, run):
    prompts = encode_prompts(tokenizer, CHATS, method="no_cot")
    assert len(find_shared_prefix(tiny_lm(), prompts)) > SHORTEST_PREFIX
    for other in (
        tiny_lm("mistral", sliding_window=16),
        tiny_lm("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
        tiny_lm("bloom"),
        tiny_lm("mamba"),
    ):
        assert find_shared_prefix(other, prompts) is None
    assert find_shared_prefix(tiny_lm(), encode_prompts(tokenizer, QUERIES, method="no_cot")) is None
    assert find_shared_prefix(tiny_lm(), prompts[:1]) is None
    assert len(find_shared_prefix(tiny_lm(), [prompts[0]] * 2)) == len(prompts[0]) - 1
    same = Answerer(model, tokenizer, AnswerSettings(max_new_tokens=2))
    same.share_prefix([prompts[0]] * 2)
    assert len(same.prefix) == len(prompts[0]) - len(model.config.answer_prompt_ids)


def test_little_memory_with_a_shared_prefix(tiny_lm, tokenizer, tmp_path, monkeypatch):
    model = tiny_lm(max_position_embeddings=1024)
    answer_chats(model, tokenizer, tmp_path, False, tokens_per_batch=10**6)
    generate = model.generate

    def limited(**kwargs):
        if len(kwargs["input_ids"]) > 3:
            raise ERRORS["cuda"]
        return generate(**kwargs)

    monkeypatch.setattr(model, "generate", limited)
    summary, _ = answer_chats(model, tokenizer, tmp_path, True, tokens_per_batch=10**6)
    assert summary.halvings == 2 and summary.shared_prefix > 100
    assert (tmp_path / "True.jsonl").read_bytes() == (tmp_path / "False.jsonl").read_bytes()


def test_first_token_logits_behind_a_shared_prefix_with_implicit_tokens(tiny_lm, tiny_semcot):
    model = tiny_semcot(
        tiny_lm(dtype=torch.float32), tiny_lm(hidden_size=16, dtype=torch.float32), answer_prompt_ids=[7, 8]
    )
    prefix = list(range(20, 60))
    ids, mask = pad_left([prefix + list(range(70, 70 + size)) + [7, 8] for size in (30, 9, 1)])
    options = dict(max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True)
    plain = model.generate(ids, attention_mask=mask, **options)
    cache = SharedPrefix(model, prefix).cache(mask.sum(dim=1).tolist())
    fast = model.generate(ids, attention_mask=mask, past_key_values=cache, **options)
    assert torch.equal(plain.sequences, fast.sequences)
    torch.testing.assert_close(fast.logits[0], plain.logits[0], atol=1e-4, rtol=0)
    assert plain.logits[0].std() > 0.1


def test_a_run_killed_between_its_output_and_the_end_of_its_work_file_can_be_run_again(tmp_path):
    source, output = write_rows(tmp_path / "questions.jsonl", ["1 + 1?"]), tmp_path / "answers.jsonl"
    output.write_text("{}\n")
    with pytest.raises(ValueError, match="already exists"):
        read_questions(source, output)
    (tmp_path / "answers.jsonl.partial").write_text("")
    assert read_questions(source, output).queries == ["1 + 1?"]
