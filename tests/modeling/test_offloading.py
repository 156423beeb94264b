"""Offloaded weights: answers and checkpoints are those of the model in memory, whatever part is offloaded, and how."""

import accelerate
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from semcot_hf import SemCoTForCausalLM

# peft 0.21 still reads the property that transformers 5.23 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
IDS = torch.tensor([[10, 11, 12, 13], [0, 14, 15, 16]])
MASK = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
WORDS = {"generator_mode": "sequential", "projection": "vocabulary"}
DISK = {"host": "disk", "generator": "disk", "projection": "cpu", "thought_embedding": "disk"}
KINDS = {
    "linear": {},
    "all-words": WORDS,
    "thoughts": {
        **WORDS,
        "mixture_top_k": 4,
        "thought_length": "adaptive",
        "end_of_thought_token_ids": [5, 6],
        "thought_prompt_ids": [[20, 21], [22]],
        "starts_with_thought_token": False,
    },
}


@pytest.fixture(scope="module")
def folders(tiny_lm, tmp_path_factory):
    """A host of about 100 kB, as the generator, and a checkpoint of each kind in either layout."""
    root = tmp_path_factory.mktemp("offloading")
    for seed, name in enumerate(("host", "generator")):
        tiny_lm(seed=seed, dtype=torch.float32, tie_word_embeddings=name == "host").save_pretrained(root / name)
    for kind, fields in KINDS.items():
        model = SemCoTForCausalLM.from_host_generator_pretrained(
            root / "host", root / "generator", num_implicit_tokens=3, **fields
        )
        model.save_pretrained(root / kind)
        model.save_pretrained(root / f"{kind}-whole", include_host=True)
    return root


def outputs(model):
    found = [
        model.generate(IDS, attention_mask=MASK, max_new_tokens=4),
        model(IDS, attention_mask=MASK, labels=IDS.masked_fill(torch.arange(4) < 2, -100)).loss,
        model.implicit_embeddings(IDS, MASK),
    ]
    return found + (list(model.implicit_words(IDS, MASK)) if model.config.projection == "vocabulary" else [])


def assert_same(model, expected):
    for value, wanted in zip(outputs(model), expected, strict=True):
        assert torch.equal(value, wanted)


def by_cpu_offload(folder, _):
    return accelerate.cpu_offload(SemCoTForCausalLM.from_pretrained(folder))


def by_disk_offload(folder, path):
    return accelerate.disk_offload(SemCoTForCausalLM.from_pretrained(folder), path / "offloaded")


def by_max_memory(folder, _):
    return SemCoTForCausalLM.from_pretrained(folder, device_map="auto", max_memory={"cpu": "60KB"})


def by_device_map(folder, _):
    return SemCoTForCausalLM.from_pretrained(folder, device_map=DISK)


WAYS = [by_cpu_offload, by_disk_offload, by_max_memory, by_device_map]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", [*KINDS, "linear-whole", "all-words-whole"])
def test_an_offloaded_model_answers_and_is_saved_as_in_memory(folders, way, layout, tmp_path):
    expected = outputs(SemCoTForCausalLM.from_pretrained(folders / layout))
    model = way(folders / layout, tmp_path)
    assert any(value.is_meta for value in model.host.parameters())
    assert any(value.is_meta for value in model.generator.parameters())
    assert_same(model, expected)
    for include_host in (None, True):
        model.save_pretrained(tmp_path / "saved", include_host=include_host)
        loaded, info = SemCoTForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert loaded.config.includes_host is bool(include_host or layout.endswith("whole"))
        assert_same(loaded, expected)
    with safe_open(tmp_path / "saved" / "model.safetensors", "pt") as file:
        assert "host.lm_head.weight" not in file.keys()


def test_max_memory_is_for_both_parts(folders):
    model = SemCoTForCausalLM.from_pretrained(folders / "linear", device_map="auto", max_memory={"cpu": 150_000})
    parts = [
        sum(value.nbytes for value in part.parameters() if not value.is_meta) for part in (model.host, model.generator)
    ]
    assert parts[1] > 0 and sum(parts) <= 150_000
    assert model.hf_device_map == {"": "cpu", "host": "disk"}


def test_one_offloaded_object_as_host_and_generator_is_two(folders):
    for offload in (accelerate.cpu_offload, lambda model: model):
        one = offload(AutoModelForCausalLM.from_pretrained(folders / "host"))
        torch.manual_seed(0)
        model = SemCoTForCausalLM.from_host_generator_pretrained(one, one, num_implicit_tokens=3)
        assert not set(model.generator.modules()) & set(model.host.modules())
        assert all(value.requires_grad for value in model.generator.parameters())
        if offload is accelerate.cpu_offload:
            expected = outputs(model)
        else:
            assert_same(model, expected)


def test_an_offloaded_host_is_compared(folders, tiny_lm):
    host = accelerate.cpu_offload(AutoModelForCausalLM.from_pretrained(folders / "host"))
    model = SemCoTForCausalLM.from_pretrained(folders / "linear", host=host)
    assert_same(model, outputs(SemCoTForCausalLM.from_pretrained(folders / "linear")))
    other = tiny_lm(seed=7, dtype=torch.float32, tie_word_embeddings=True)
    other.config.name_or_path = str(folders / "host")
    with pytest.raises(ValueError, match="has other weights"):
        model.attach_host(accelerate.cpu_offload(other))


def test_a_pair_of_offloaded_models(folders):
    pairs = []
    for offloaded in (False, True):
        parts = [AutoModelForCausalLM.from_pretrained(folders / name) for name in ("host", "generator")]
        parts = [accelerate.cpu_offload(part) for part in parts] if offloaded else parts
        torch.manual_seed(0)
        pairs.append(SemCoTForCausalLM.from_host_generator_pretrained(*parts, num_implicit_tokens=3, **WORDS))
    assert_same(pairs[1], outputs(pairs[0]))


def test_weights_that_are_nowhere_are_not_saved(folders, tmp_path):
    model = SemCoTForCausalLM.from_pretrained(folders / "linear")
    model.generator.to("meta")
    with pytest.raises(ValueError, match="have no values .device meta., such as 'generator"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


TARGETS = {"host": r"host\..*q_proj", "generator": r"generator\..*q_proj", "both": ["q_proj"]}


@pytest.fixture(scope="module")
def adapters(folders):
    """Function (part) -> a folder of adapters for a part, with the outputs of the adapted model in memory."""
    made = {}

    def of(part):
        if part not in made:
            config = LoraConfig(r=2, target_modules=TARGETS[part], modules_to_save=["projection"])
            config.init_lora_weights = False
            folder = folders / f"adapters-{part}"
            get_peft_model(SemCoTForCausalLM.from_pretrained(folders / "linear"), config).save_pretrained(folder)
            made[part] = folder, outputs(SemCoTForCausalLM.from_pretrained(folder))
        return made[part]

    return of


@pytest.mark.parametrize("part", TARGETS)
@pytest.mark.parametrize("way", [by_device_map, by_max_memory])
def test_adapters_of_offloaded_modules_are_refused(folders, adapters, part, way, tmp_path):
    """The model is as it was."""
    folder, _ = adapters(part)
    for load in (SemCoTForCausalLM.from_pretrained, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(
            ValueError, match="The adapters are for .* whose weights are offloaded, such as '(host|generator)"
        ):
            way(folder, tmp_path) if load is SemCoTForCausalLM.from_pretrained else load(folder, device_map=DISK)
    model = way(folders / "linear", tmp_path)
    for arguments in ({"peft_model_id": str(folder)}, {"peft_config": LoraConfig(target_modules=TARGETS[part])}):
        with pytest.raises(ValueError, match="whose weights are offloaded"):
            model.load_adapter(**arguments)
    with pytest.raises(ValueError, match="whose weights are offloaded"):
        model.add_adapter(LoraConfig(target_modules=TARGETS[part]))
    assert_same(model, outputs(SemCoTForCausalLM.from_pretrained(folders / "linear")))


def test_adapters_of_a_generator_beside_an_offloaded_host(adapters, tmp_path):
    folder, expected = adapters("generator")
    model = SemCoTForCausalLM.from_pretrained(folder, device_map={**DISK, "generator": "cpu"})
    assert all(value.is_meta for value in model.host.parameters())
    assert_same(model, expected)
    model.save_pretrained(tmp_path / "merged")
    assert_close(SemCoTForCausalLM.from_pretrained(tmp_path / "merged"), expected)


def assert_close(model, expected):
    for value, wanted in zip(outputs(model), expected, strict=True):
        torch.testing.assert_close(value, wanted)


def test_an_adapted_model_that_is_offloaded(adapters, tmp_path):
    folder, expected = adapters("both")
    model = accelerate.cpu_offload(SemCoTForCausalLM.from_pretrained(folder))
    assert all(value.is_meta for value in model.host.parameters())
    assert_same(model, expected)
    with pytest.raises(ValueError, match="have no values .device meta., .*: load the model without offloading it"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("part", TARGETS)
@pytest.mark.parametrize("way", WAYS)
def test_adapters_that_peft_adds_without_values_are_refused_when_they_would_compute(
    folders, adapters, part, way, tmp_path
):
    """peft's own functions ask no model whether it is offloaded, and its layers would compute with any numbers."""
    config = LoraConfig(r=2, target_modules=TARGETS[part])
    calls = [
        lambda model: model.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=2),
        lambda model: model(IDS, attention_mask=MASK, num_implicit_tokens=3),
        lambda model: model(IDS, attention_mask=MASK),
        lambda model: model.implicit_embeddings(IDS, MASK),
    ]
    adapted = [get_peft_model(way(folders / "linear", tmp_path / "new"), config)]
    if way in (by_cpu_offload, by_disk_offload):
        # With a device map, peft itself fails (KeyError) where weights are on the disk.
        adapted.append(PeftModel.from_pretrained(way(folders / "linear", tmp_path / "old"), adapters(part)[0]))
    for model in adapted:
        for call in calls:
            with pytest.raises(ValueError, match="have no values, such as .*offloaded.* Load the model in memory"):
                call(model)
        with pytest.raises(ValueError, match="have no values"):
            model.get_base_model().save_pretrained(tmp_path / "saved")
        assert not (tmp_path / "saved").exists()


def test_adapters_that_peft_adds_beside_offloaded_modules_compute(folders, adapters):
    folder, expected = adapters("generator")
    model = SemCoTForCausalLM.from_pretrained(folders / "linear", device_map={**DISK, "generator": "cpu"})
    fresh = get_peft_model(model, LoraConfig(r=2, target_modules=TARGETS["generator"]))
    assert_close(fresh, outputs(SemCoTForCausalLM.from_pretrained(folders / "linear")))
