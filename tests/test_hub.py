"""Sharing over the Hub, by a stand-in on 127.0.0.1: one process pushes, another loads with a fresh cache."""

import json
import re

import pytest
import torch
import yaml
from hub_stand_in import hub_stand_in, run

from semcot_hf import SemCoTConfig, SemCoTForCausalLM
from semcot_hf.inference.prompting import answer_prompt_ids, with_answer_prompt
from semcot_hf.training.model_card import model_card

PUSH = """
import json, sys
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
from semcot_hf import SemCoTConfig, SemCoTForCausalLM
from semcot_hf.training.model_card import model_card

root = Path(sys.argv[1])
for name in ("host", "generator"):
    AutoModelForCausalLM.from_pretrained(root / name).push_to_hub(f"lab/{name}")
model = SemCoTForCausalLM.from_host_generator_pretrained(
    "lab/host", "lab/generator", num_implicit_tokens=3, answer_prompt_ids=json.loads(sys.argv[2])
)
host = AutoModelForCausalLM.from_pretrained(root / "host")
host.model.embed_tokens.weight.data.zero_()
host.push_to_hub("lab/host")  # the host's repository moves on
tokenizer = AutoTokenizer.from_pretrained(root / "tokenizer")
for repo, include_host in (("lab/semcot", False), ("lab/semcot-whole", True)):
    model.push_to_hub(repo, include_host=include_host)
    tokenizer.push_to_hub(repo)
    config = SemCoTConfig.from_pretrained(repo)
    model_card(config, model_id=repo, datasets=["lab/coin_flip"]).push_to_hub(repo)
"""
LOAD = """
import contextlib, io, json, sys
sys.modules["semcot_hf"] = None
from pathlib import Path
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline
from huggingface_hub import ModelCard, model_info

found = {}
for repo in ("lab/semcot", "lab/semcot-whole"):
    config = AutoConfig.from_pretrained(repo, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(repo, trust_remote_code=True)
    ids = torch.tensor([json.loads(sys.argv[2])])
    chat = [{"role": "user", "content": "How many?"}]
    card = ModelCard.load(repo).text
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(card.partition("```python\\n")[2].partition("```")[0], {})
    new = {"max_new_tokens": 6, "do_sample": False}
    pipe = pipeline("text-generation", model=repo, trust_remote_code=True)
    found[repo] = {
        "host_revision": config.host_revision,
        "ids": [
            auto.from_pretrained(repo, trust_remote_code=True).generate(ids, **new).tolist()
            for auto in (AutoModel, AutoModelForCausalLM)
        ],
        "chat": tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False),
        "piped": pipe(chat, **new)[0]["generated_text"][-1]["content"],
        "printed": printed.getvalue(),
        "files": [file.rfilename for file in model_info(repo).siblings],
    }
Path(sys.argv[1]).write_text(json.dumps(found))
"""
PROMPT = [10, 11, 12, 13]


@pytest.fixture(scope="module")
def shared(tiny_lm, tiny_tokenizer, tmp_path_factory):
    """The stand-in after pushing and loading, the folder of the parts, and what the loading process found."""
    root = tmp_path_factory.mktemp("hub")
    tiny_lm("llama", dtype=torch.float32).save_pretrained(root / "host")
    tiny_lm("gpt2", hidden_size=16, dtype=torch.float32).save_pretrained(root / "generator")
    with_answer_prompt(tiny_tokenizer).save_pretrained(root / "tokenizer")
    with hub_stand_in() as hub:
        run(PUSH, hub, root / "pusher", root, json.dumps(answer_prompt_ids(tiny_tokenizer)))
        run(LOAD, hub, root / "loader", root / "found.json", json.dumps(PROMPT))
    return hub, root, json.loads((root / "found.json").read_text())


def test_what_cannot_be_shared_is_not_pushed(tiny_semcot):
    """No repository is made for it."""
    model = tiny_semcot()
    model.config.host_name_or_path = None
    with hub_stand_in() as hub:
        with pytest.raises(ValueError, match="include_host=False needs config.host_name_or_path"):
            model.push_to_hub("lab/refused", include_host=False)
        assert not hub.repos


def local_copy(hub, repo, folder):
    for path, content in hub.files(repo)[1].items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


@pytest.mark.parametrize("repo", ["lab/semcot", "lab/semcot-whole"])
def test_a_fresh_cache_gives_the_pushed_model(shared, tiny_tokenizer, repo, tmp_path):
    hub, root, found = shared
    model = SemCoTForCausalLM.from_pretrained(
        local_copy(hub, repo, tmp_path), **({} if repo.endswith("whole") else {"host": root / "host"})
    )
    expected = model.generate(torch.tensor([PROMPT]), max_new_tokens=6).tolist()
    assert found[repo]["ids"] == [expected, expected]
    assert found[repo]["chat"].endswith("<assistant>\nAnswer:")
    ids = torch.tensor([tiny_tokenizer(found[repo]["chat"], add_special_tokens=False)["input_ids"]])
    out = model.generate(ids, max_new_tokens=6)
    assert found[repo]["piped"] == tiny_tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_the_attached_host_comes_at_its_recorded_commit(shared):
    """The host's repository has a later commit with other weights; the checkpoint names the one it was made with."""
    hub, _, found = shared
    commits = [sha for sha, files in hub.repos["lab/host"] if files]
    assert len(commits) == 2
    assert found["lab/semcot"]["host_revision"] == commits[0] != hub.files("lab/host")[0]


@pytest.mark.parametrize("repo", ["lab/semcot", "lab/semcot-whole"])
def test_what_was_pushed(shared, repo):
    hub, _, found = shared
    files = hub.files(repo)[1]
    assert sorted(found[repo]["files"]) == sorted(files)
    expected = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "modeling_semcot.py"}
    assert expected < files.keys() and not any(path.endswith((".bin", ".pt", ".pkl")) for path in files)
    attached, whole = (len(hub.files(name)[1]["model.safetensors"]) for name in ("lab/semcot", "lab/semcot-whole"))
    assert attached < 0.35 * whole


@pytest.mark.parametrize("repo", ["lab/semcot", "lab/semcot-whole"])
def test_the_pushed_card(shared, repo):
    hub, _, found = shared
    card = hub.files(repo)[1]["README.md"].decode()
    head = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1])
    assert head["base_model"] == ["lab/host", "lab/generator"]
    assert head["base_model_relation"] == ("finetune" if repo.endswith("whole") else "adapter")
    assert (head["pipeline_tag"], head["library_name"]) == ("text-generation", "transformers")
    assert head["datasets"] == ["lab/coin_flip"]
    assert found[repo]["printed"].strip(), "the card's snippet printed no answer"


def test_card_text():
    config = SemCoTConfig(num_implicit_tokens=3, host_name_or_path="lab/host", host_revision="abc123")
    weights = {"alpha": 0.25, "step_weight": 1.0, "kl_weight": 0.0, "hidden_weight": 0.0}
    text = model_card(config, model_id="lab/semcot", training={"learning_rate": 1e-3, **weights}).text
    assert "also loads `lab/host` at commit `abc123`" in text
    assert "| `learning_rate` | 0.001 |" in text
    assert "the generator, the projection to the host's hidden size and the embedding of `<thought>`" in text
    assert "on the host's loss on the answer, the meaning of the reasoning and a" in text
    assert "a step decoder's loss on the reasoning's steps." in text and "distribution" not in text


def test_the_card_tells_what_was_trained_on_what():
    weights = {"alpha": 1.0, "step_weight": 0.0, "kl_weight": 0.5, "hidden_weight": 0.5}
    text = model_card(SemCoTConfig(projection="vocabulary"), model_id="m", training=weights, adapters=True).text
    assert "adapters merged into the generator" in text and "the LM head" in text
    assert "projection to" not in text and "loss on the answer" not in text and "steps." not in text
    assert "the meaning of the reasoning" in text and "the host's answer distribution" in text
    alone = model_card(SemCoTConfig(projection="identity"), model_id="m", training={**weights, "alpha": 0.0}).text
    assert "the generator and the embedding of `<thought>` are trained on the host's loss on the answer" in alone


def test_a_card_without_hub_parents(tmp_path):
    config = SemCoTConfig(host_name_or_path=str(tmp_path), generator_name_or_path="./generator", includes_host=True)
    card = model_card(config, model_id="runs/model")
    head = card.data.to_dict()
    assert not {"base_model", "base_model_relation", "model-index", "license"} & head.keys()
    assert "are trained.\n" in card.text and "set `license` at the head" in card.text
    assert "includes the host" in card.text
