"""Checkpoints in a process that cannot import semcot_hf, against the installed package; one process serves all tests.

The process also measures the peak of memory while it loads an attached checkpoint of about 100 MB.
"""

import json
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline

from semcot_hf import SemCoTConfig, SemCoTForCausalLM
from semcot_hf.inference.prompting import answer_prompt_ids, with_answer_prompt
from semcot_hf.inference.templates import change_few_shot

# peft 0.21 still reads the property that transformers 5.23 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
THOUGHTS = ("thoughts-attached", "thoughts-whole", "thoughts-two-tokenizers")
LAYOUTS = ("attached", "whole", "few-shot", "two-tokenizers", "steps", *THOUGHTS)
EXAMPLE = {"query": "How many apples has Bob?", "words": "1", "answer": "one"}
QUESTION = [{"role": "user", "content": "How many apples has Ann now?"}]
NEW = {"max_new_tokens": 6, "do_sample": False}
SCRIPT = """
import json, sys
sys.modules["semcot_hf"] = None
import builtins
from pathlib import Path
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline

builtins.input = lambda *_: sys.exit("a question was asked")
root, question, new = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
found = {}

def escalated(model, ids, new):
    rule = {"threshold": 1.0, "max_reasoning_tokens": 4}
    out = model.generate(ids, escalation=rule, return_dict_in_generate=True, **new)
    return [out.sequences.tolist(), out.route, out.confidence.tolist()]

for layout in json.loads(sys.argv[4]):
    folder = root / layout
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    without_code = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    assert without_code.get_vocab() == tokenizer.get_vocab()
    assert without_code.chat_template == tokenizer.chat_template
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    other = AutoModel.from_pretrained(folder, trust_remote_code=True)
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    pipe = pipeline("text-generation", model=str(folder), trust_remote_code=True)
    found[layout] = {
        "config": config.to_json_string(),
        "modules": [type(config).__module__, type(model).__module__, type(other).__module__],
        "ids": model.generate(ids, **new).tolist(),
        "escalated": escalated(model, ids, new),
        "other": other.generate(ids, **new).tolist(),
        "text": model.implicit_text(ids) if layout.startswith(("thoughts", "steps")) else None,
        "piped": pipe(question, **new)[0]["generated_text"][-1]["content"],
    }
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, root / f"{layout}.safetensors")
    model.save_pretrained(root / f"{layout}-again")
    if layout == "attached":
        model.compile_generator(backend="eager")  # graphs are captured and run as they are
        found[layout]["compiled"] = model.generate(ids, **new).tolist()
    del model, other, pipe

for part in ("host", "both"):
    folder = root / f"adapters-{part}"
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    pipe = pipeline("text-generation", model=str(folder), trust_remote_code=True)
    ids = torch.tensor([[10, 11, 12]])
    found[folder.name] = [[m(ids, num_implicit_tokens=2).logits.tolist()] for m in (model, pipe.model)]

def memory(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

if sys.platform.startswith("linux"):
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory("VmRSS")
    model = AutoModelForCausalLM.from_pretrained(root / "large", trust_remote_code=True)
    found["weights"] = sum(value.numel() * value.element_size() for value in model.parameters())
    model.generate(torch.tensor([[5, 6, 7]]), **new)  # touches every weight that is mapped from the files
    found["peak"] = memory("VmHWM") - before
(root / "found.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def root(tiny_lm, tiny_tokenizer, char_tokenizer, tmp_path_factory):
    root = tmp_path_factory.mktemp("remote")
    tiny_lm("llama", dtype=torch.float32).save_pretrained(root / "host")
    tiny_lm("gpt2", hidden_size=16, dtype=torch.float32).save_pretrained(root / "generator")
    model = SemCoTForCausalLM.from_host_generator_pretrained(
        root / "host", root / "generator", num_implicit_tokens=3, answer_prompt_ids=answer_prompt_ids(tiny_tokenizer)
    )
    for layout in LAYOUTS:
        if layout.startswith("thoughts"):
            tokenizers = {"tokenizer": tiny_tokenizer}
            if layout == "thoughts-two-tokenizers":
                tokenizers = {"host_tokenizer": tiny_tokenizer, "generator_tokenizer": char_tokenizer}
            model = SemCoTForCausalLM.from_host_generator_pretrained(
                root / "host", root / "generator", recipe="prompted", thought_prompt=QUESTION, **tokenizers
            )
        if layout == "two-tokenizers":
            model.config.separate_generator_tokenizer = True
            model.host_tokenizer, model.generator_tokenizer = tiny_tokenizer, char_tokenizer
        if layout == "steps":
            model.config.separate_generator_tokenizer, model.generator_tokenizer = False, tiny_tokenizer
            model.add_step_decoder(tiny_lm("qwen2", hidden_size=16, dtype=torch.float32))
        examples = [EXAMPLE] if layout == "few-shot" else []
        tokenizer = change_few_shot(model, with_answer_prompt(tiny_tokenizer), examples)
        model.save_pretrained(root / layout, include_host=layout.endswith("whole"))
        tokenizer.save_pretrained(root / layout)
    for part, targets in (("host", r"host\..*q_proj"), ("both", r".*q_proj")):
        config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
        adapted = get_peft_model(SemCoTForCausalLM.from_pretrained(root / "attached"), config)
        adapted.save_pretrained(root / f"adapters-{part}")
        tiny_tokenizer.save_pretrained(root / f"adapters-{part}")
    sizes = dict(intermediate_size=1024, num_hidden_layers=4, num_key_value_heads=4, dtype=torch.float32)
    host = tiny_lm("llama", hidden_size=768, **sizes)
    host.save_pretrained(root / "large-host")
    host.config.name_or_path = str(root / "large-host")
    SemCoTForCausalLM.from_host_generator_pretrained(host, tiny_lm("llama", hidden_size=384, **sizes)).save_pretrained(
        root / "large"
    )
    return root


@pytest.fixture(scope="module")
def found(root):
    """What the fresh process found."""
    arguments = [root, json.dumps(QUESTION), json.dumps(NEW), json.dumps(LAYOUTS)]
    run = subprocess.run([sys.executable, "-c", SCRIPT, *map(str, arguments)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads((root / "found.json").read_text())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_process_without_the_package_gets_the_same(root, found, layout):
    folder, found = root / layout, found[layout]
    assert all(module.startswith("transformers_modules.") for module in found["modules"])
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    assert (EXAMPLE["query"] in tokenizer.decode(ids[0])) == (layout == "few-shot")
    expected = model.generate(ids, **NEW)
    assert found["ids"] == found["other"] == expected.tolist()
    rule = {"threshold": 1.0, "max_reasoning_tokens": 4}
    out = model.generate(ids, escalation=rule, return_dict_in_generate=True, **NEW)
    assert found["escalated"][:2] == [out.sequences.tolist(), out.route] and out.route == ["explicit"]
    assert found["escalated"][2] == pytest.approx(out.confidence.tolist(), abs=1e-5)
    if layout == "attached":
        assert found["compiled"] == found["ids"]
    assert found["piped"] == tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)
    if layout.startswith("thoughts"):
        own = None if layout == "thoughts-two-tokenizers" else tokenizer
        assert found["text"] == model.implicit_text(ids, tokenizer=own)
        return
    if layout == "steps":
        assert found["text"] == ["\n".join(model.implicit_steps(ids)[0])] and found["text"][0].count("\n") >= 2
    else:
        assert (model.generator_tokenizer is not None) == (layout == "two-tokenizers")
    assert found["config"] == AutoConfig.from_pretrained(folder).to_json_string()
    tensors = load_file(root / f"{layout}.safetensors")
    state = model.state_dict()
    assert tensors.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in tensors.items())


@pytest.mark.parametrize("part", ["host", "both"])
def test_a_process_without_the_package_applies_adapters(root, found, part):
    model = SemCoTForCausalLM.from_pretrained(root / f"adapters-{part}")
    expected = model(torch.tensor([[10, 11, 12]]), num_implicit_tokens=2).logits
    for logits in found[f"adapters-{part}"]:
        torch.testing.assert_close(torch.tensor(logits[0]), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("flag", [None, True])
def test_the_imported_package_needs_no_flag_and_wins_over_it(root, layout, flag):
    folder = root / layout
    assert type(AutoConfig.from_pretrained(folder, trust_remote_code=flag)) is SemCoTConfig
    for auto in (AutoModel, AutoModelForCausalLM):
        assert type(auto.from_pretrained(folder, trust_remote_code=flag)) is SemCoTForCausalLM
    assert len(pipeline("text-generation", model=str(folder), trust_remote_code=flag)(QUESTION, **NEW)) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_process_without_the_package_saves_a_full_checkpoint(root, found, layout):
    again, first = root / f"{layout}-again", root / layout
    assert found[layout]
    code = {path.name for path in first.glob("*.py")}
    assert {path.name for path in again.glob("*.py")} == code != set()
    assert (again / "config.json").read_text() == (first / "config.json").read_text()
    ids = torch.tensor([[10, 11, 12]])
    assert torch.equal(
        SemCoTForCausalLM.from_pretrained(again).generate(ids, **NEW),
        SemCoTForCausalLM.from_pretrained(first).generate(ids, **NEW),
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
def test_loading_attached_takes_little_more_than_the_weights(found):
    assert found["weights"] > 100e6
    assert 0.8 < found["peak"] / found["weights"] <= 1.15
