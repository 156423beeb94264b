"""Stage 2 and everything after it with tokenizers that join the chat template's last line break with what follows."""

import copy
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
from transformers.utils import logging

from semcot_hf.cli.main import main
from semcot_hf.data.tasks import coin_flip
from semcot_hf.inference.answering import Answerer
from semcot_hf.inference.prompting import encode_prompt
from semcot_hf.lm_eval_tasks.utils import load_questions

pytest_plugins = ["distillation_fixtures"]
pytestmark = pytest.mark.usefixtures("datasets_cache")

CHATML = (
    "{% for m in messages %}<bos>{{ m.role }}\n{{ m.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant\n{% endif %}"
)


@pytest.mark.parametrize("template, answer_prompt", [(CHATML, "Answer:"), (None, " Answer:")])
def test_the_command_trains_and_every_way_to_answer_ends_prompts_alike(
    joining_tokenizer, tiny_lm, template, answer_prompt, tmp_path, capsys, caplog
):
    tokenizer = copy.deepcopy(joining_tokenizer)
    tokenizer.chat_template = template
    for name in ("host", "generator"):
        tiny_lm("llama", dtype=torch.float32, max_position_embeddings=2048, eos_token_id=2).save_pretrained(
            tmp_path / name
        )
        tokenizer.save_pretrained(tmp_path / name)
    rows = coin_flip.generate(6, max_people=3)
    (tmp_path / "rows").mkdir()
    for split, some in (("train", rows[:4]), ("test", rows[4:])):
        (tmp_path / "rows" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    folder, data = str(tmp_path / "model"), ["--dataset", str(tmp_path / "rows")]
    parts = ["--host", str(tmp_path / "host"), "--generator", str(tmp_path / "generator")]
    flags = ["--alpha", "0", "--kl_weight", "1", "--curriculum", "0.5", "--num_implicit_tokens", "2"]
    flags += ["--max_steps", "2", "--use_cpu", "--save_strategy", "no", "--report_to", "none"]
    assert main(["distill", *parts, *data, *flags, "--output_dir", folder]) == 0

    own, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = model.config.answer_prompt_ids
    assert ids and own.decode(ids) == answer_prompt
    answerer = Answerer(model, own)
    [prompt] = answerer.prompts([rows[4]["query"]])
    assert prompt[-len(ids) :] == ids
    harness = load_questions(dataset=data[1], pretrained=folder)["test"]["prompt"]
    assert encode_prompt(own, harness[0]) == prompt

    logging.enable_propagation()
    pipe = pipeline("text-generation", model=model, tokenizer=own)
    chat = [{"role": "user", "content": rows[4]["query"]}]
    text = pipe(chat, max_new_tokens=4, do_sample=False)[0]["generated_text"][-1]["content"]
    answers = answerer.answers([rows[4]["query"]])
    assert text and answers[0].output.startswith(text)
    assert "answer prompt" not in caplog.text
    assert (
        main(
            ["evaluate", "--model", folder, *data, "--output_dir", str(tmp_path / "report"), "--latency_samples", "0"]
        )
        == 0
    )
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert {row["method"] for row in report["rows"]} >= {"no_cot", "cot", "semcot"}
    # The untouched host is asked with the same ids.
    host = AutoModelForCausalLM.from_pretrained(tmp_path / "host")
    assert next(Answerer(host, AutoTokenizer.from_pretrained(tmp_path / "host")).prompts([rows[4]["query"]])) == prompt
