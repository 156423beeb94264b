"""Pushing by the two trainers to a stand-in for the Hub; a process without semcot_hf loads what it finds there."""

import json
import re

import pytest
import torch
import yaml
from hub_stand_in import hub_stand_in, run

pytest_plugins = ["distillation_fixtures"]

# By `push_to_hub()` under the output folder's name, by `save_model()` with `hub_strategy="end"`, and, of the last
# step's checkpoint alone, by the default `hub_strategy="every_save"`.
PUSH = """
import json, sys
from pathlib import Path
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from semcot_hf import (
    SemCoTAlignmentConfig,
    SemCoTAlignmentTrainer,
    SemCoTDistillationConfig,
    SemCoTDistillationTrainer,
    SemCoTForCausalLM,
)
from semcot_hf.data.tasks import coin_flip

root = Path(sys.argv[1])
for name in ("host", "generator"):
    AutoModelForCausalLM.from_pretrained(root / name).push_to_hub(f"lab/{name}")
    AutoTokenizer.from_pretrained(root / name).push_to_hub(f"lab/{name}")
rows = Dataset.from_list(coin_flip.generate(16, seed=0, min_people=1, max_people=3))
common = dict(max_steps=2, per_device_train_batch_size=4, use_cpu=True, bf16=False)
common |= dict(save_strategy="no", disable_tqdm=True)
BY_END = dict(push_to_hub=True, hub_strategy="end")
BY_SAVE = dict(push_to_hub=True, save_strategy="steps", save_steps=2)
found = {}


def pushed(trainer):
    trainer.train()
    if trainer.args.hub_strategy == "every_save" and trainer.args.push_to_hub:
        trainer._finish_current_push()
    elif trainer.args.push_to_hub:
        trainer.save_model()
    else:
        trainer.push_to_hub()
    return trainer.model


for repo, options in (
    ("semcot-pushed", {}),
    ("semcot-end", BY_END | {"hub_model_id": "lab/semcot-end"}),
    ("semcot-saves", BY_SAVE | {"hub_model_id": "lab/semcot-saves", "keep_step_decoder": False}),
):
    torch.manual_seed(0)
    tokenizers = dict.fromkeys(("host_tokenizer", "generator_tokenizer"), "lab/host") if "saves" in repo else {}
    model = SemCoTForCausalLM.from_host_generator_pretrained(
        "lab/host", "lab/generator", num_implicit_tokens=2, **tokenizers
    )
    options["include_host"] = repo == "semcot-end"
    options["step_decoder"] = "lab/generator"
    args = SemCoTDistillationConfig(
        str(root / repo), alpha=0.0, learning_rate=1e-1, step_weight=1.0, **{**common, **options}
    )
    trainer = SemCoTDistillationTrainer(
        model=model, args=args, train_dataset=rows, processing_class=AutoTokenizer.from_pretrained("lab/host")
    )
    ids = torch.tensor([json.loads(sys.argv[2])])
    before = model.implicit_embeddings(ids).tolist()
    model = pushed(trainer).eval()
    out = model.generate(ids, max_new_tokens=6).tolist()
    found["lab/" + repo] = {"before": before, "after": model.implicit_embeddings(ids).tolist(), "out": out}

for repo, options in (("encoder-pushed", {}), ("encoder-end", BY_END | {"hub_model_id": "lab/encoder-end"})):
    args = SemCoTAlignmentConfig(
        str(root / repo), eval_strategy="no", head_learning_rate=1e-2, embedding_dim=8, **common, **options
    )
    trainer = SemCoTAlignmentTrainer(model="lab/host", args=args, train_dataset=rows)
    texts = rows["reasoning"][:3]
    before = trainer.model.encode(texts, show_progress_bar=False).tolist()
    after = pushed(trainer).encode(texts, show_progress_bar=False).tolist()
    found["lab/" + repo] = {"before": before, "after": after, "texts": texts}
Path(sys.argv[3]).write_text(json.dumps(found))
"""
LOAD = """
import json, sys
sys.modules["semcot_hf"] = None
from pathlib import Path
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer

ids, pushed, found = torch.tensor([json.loads(sys.argv[2])]), json.loads(Path(sys.argv[3]).read_text()), {}
for repo, given in pushed.items():
    if "texts" in given:
        found[repo] = {"after": SentenceTransformer(repo).encode(given["texts"], show_progress_bar=False).tolist()}
    else:
        model = AutoModelForCausalLM.from_pretrained(repo, trust_remote_code=True)
        chat = [{"role": "user", "content": "How many?"}]
        tokenizer = AutoTokenizer.from_pretrained(repo)
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        out = model.generate(ids, max_new_tokens=6).tolist()
        found[repo] = {"after": model.implicit_embeddings(ids).tolist(), "out": out, "chat": text}
Path(sys.argv[1]).write_text(json.dumps(found))
"""
PROMPT = [10, 11, 12, 13]
MODELS = ["lab/semcot-pushed", "lab/semcot-end", "lab/semcot-saves"]
ENCODERS = ["lab/encoder-pushed", "lab/encoder-end"]


@pytest.fixture(scope="module")
def shared(tiny_folder, tmp_path_factory):
    """The stand-in, what the pushing process had (before and after training), and what the loading one found."""
    root = tmp_path_factory.mktemp("trainers")
    for name in ("host", "generator"):
        (root / name).symlink_to(tiny_folder / name)
    with hub_stand_in() as hub:
        run(PUSH, hub, root / "pusher", root, json.dumps(PROMPT), root / "pushed.json")
        run(LOAD, hub, root / "loader", root / "found.json", json.dumps(PROMPT), root / "pushed.json")
    pushed, found = (json.loads((root / f"{name}.json").read_text()) for name in ("pushed", "found"))
    return hub, pushed, found


@pytest.mark.parametrize("repo", MODELS + ENCODERS)
def test_what_was_trained_is_what_was_pushed(shared, repo):
    _, pushed, found = shared
    before, after, loaded = (
        torch.tensor(part) for part in (pushed[repo]["before"], pushed[repo]["after"], found[repo]["after"])
    )
    torch.testing.assert_close(loaded, after)
    assert (after - before).abs().max() > 1e-3
    if repo in MODELS:
        assert found[repo]["out"] == pushed[repo]["out"]
        assert found[repo]["chat"].endswith("<assistant>\nAnswer:")


@pytest.mark.parametrize("repo", MODELS + ENCODERS)
def test_files_and_card(shared, repo):
    hub, _, _ = shared
    files = hub.files(repo)[1]
    assert not any(path.startswith("checkpoint-") for path in files)
    card = files["README.md"].decode()
    head = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1])
    if repo in ENCODERS:
        assert {"modules.json", "config_sentence_transformers.json"} < files.keys()
        assert head["library_name"] == "sentence-transformers" and not any(path.endswith(".py") for path in files)
        return
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
        "modeling_semcot.py",
    } < files.keys()
    assert not files.keys() & {
        "optimizer.pt",
        "trainer_state.json",
        "adapters.safetensors",
        "step_decoder.safetensors",
    }
    tells_steps = json.loads(files["config.json"]).get("step_decoder_config") is not None
    assert tells_steps == (b"step_decoder." in files["model.safetensors"]) == (repo != "lab/semcot-saves")
    assert head["base_model"] == ["lab/host", "lab/generator"] and "semcot" in head["tags"]
    assert head["base_model_relation"] == ("finetune" if repo.endswith("end") else "adapter")
    assert f'"{repo}"' in card
