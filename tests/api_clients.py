"""Clients of OpenAI's API, unmodified, as commands of their own: `transformers chat`, LangChain and lm-eval."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

QUESTIONS = ["Ann flips the coin. Is it still heads up?", "Bob does not flip the coin. Is it still heads up?"]
NEW_TOKENS = 6
# Where LangChain and lm-eval are installed; `make vllm-test` sets it.
PYTHON = os.environ.get("SEMCOT_CLIENTS")

LANGCHAIN = """
import json, sys
from langchain_openai import ChatOpenAI
url, name, new, questions = json.loads(sys.argv[1])
chat = ChatOpenAI(model=name, base_url=url + "/v1", api_key="none", temperature=0, max_tokens=new)
found = {"batch": [answer.content for answer in chat.batch(questions)]}
found["stream"] = ["".join(part.content for part in chat.stream(question)) for question in questions]
bare = chat.model_copy(update={"extra_body": {"implicit_tokens": 0}})
found["host alone"] = [bare.invoke(question).content for question in questions]
print(json.dumps(found))
"""
TASK = """
task: asked
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: ["\\n\\n\\n"]
  max_gen_toks: {new}
  do_sample: false
metric_list:
  - metric: exact_match
"""


def run(command, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **options.pop("env", {})}
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=1200, **options
    )
    return done


def transformers_chat(url, name, question, folder):
    """Return what `transformers chat` shows as the answer to a question."""
    command = [Path(sys.executable).with_name("transformers"), "chat", name, f"{url}/v1"]
    done = run(
        [*command, "do_sample=False", f"max_new_tokens={NEW_TOKENS}"],
        input=f"{question}\n!exit\n!exit\n",
        cwd=folder,
        # Its client takes offline mode for all hosts.
        env={"COLUMNS": "500", "HF_HUB_OFFLINE": "0"},
    )
    shown = re.search(rf"^<{re.escape(name)}>:\n(.*?)\n", done.stdout, re.MULTILINE | re.DOTALL)
    assert shown, done.stdout + done.stderr
    return shown[1].strip()


def langchain(url, name):
    """Return LangChain's answers to QUESTIONS: several at once, streamed, and of the host alone."""
    done = run([PYTHON, "-c", LANGCHAIN, json.dumps([url, name, NEW_TOKENS, QUESTIONS])])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def lm_eval(url, name, answers, folder):
    """Return the answers to QUESTIONS that lm-eval's `local-chat-completions` logs, and its share of exact matches."""
    rows = [json.dumps(dict(question=q, answer=a)) for q, a in zip(QUESTIONS, answers, strict=True)]
    (folder / "asked.jsonl").write_text("\n".join(rows))
    (folder / "asked.yaml").write_text(TASK.format(file=folder / "asked.jsonl", new=NEW_TOKENS))
    settings = f"model={name},base_url={url}/v1/chat/completions,num_concurrent=2,max_retries=1"
    command = [PYTHON, "-m", "lm_eval", "--model", "local-chat-completions", "--model_args", settings]
    command += ["--tasks", "asked", "--include_path", folder, "--apply_chat_template", "--log_samples"]
    done = run(
        [*command, "--output_path", folder / "out"], cwd=folder, env={"HF_DATASETS_CACHE": str(folder / "cache")}
    )
    assert done.returncode == 0, done.stderr
    [samples] = (folder / "out").glob("*/samples_asked_*.jsonl")
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    [results] = (folder / "out").glob("*/results_*.json")
    share = json.loads(results.read_text())["results"]["asked"]["exact_match,none"]
    return [row["resps"][0][0] for row in rows], share
