"""What both trainers' settings take from the device."""

import warnings

import pytest
import torch
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import AcceleratorConfig

from semcot_hf import SemCoTAlignmentConfig, SemCoTDistillationConfig
from semcot_hf.training import device_defaults

CONFIGS = [SemCoTAlignmentConfig, SemCoTDistillationConfig]


@pytest.mark.parametrize("config", CONFIGS)
def test_nothing_is_pinned_without_an_accelerator(config, tmp_path):
    args = config(str(tmp_path), use_cpu=True)
    assert args.dataloader_pin_memory is False and args.bf16 is False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(DataLoader([torch.ones(1)], pin_memory=args.dataloader_pin_memory))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("supported", [True, False])
def test_an_accelerator_gets_pinned_memory_and_bfloat16_where_it_has_it(config, supported, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: supported)
    seen = {}
    parent = config.__mro__[1]

    def note(self):
        self.accelerator_config = AcceleratorConfig()
        seen.update(bf16=self.bf16, pin=self.dataloader_pin_memory)

    monkeypatch.setattr(parent, "__post_init__", note)
    config(str(tmp_path))
    assert seen == {"bf16": supported, "pin": True}
    config(str(tmp_path), bf16=not supported, dataloader_pin_memory=False)
    assert seen == {"bf16": not supported, "pin": False}
    monkeypatch.setattr(device_defaults, "cpu_has_bfloat16", lambda: False)
    config(str(tmp_path), use_cpu=True)
    assert seen == {"bf16": False, "pin": False}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("supported", [True, False])
def test_a_cpu_computes_in_bfloat16_where_it_does_so_in_hardware(config, supported, tmp_path, monkeypatch):
    monkeypatch.setattr(device_defaults, "cpu_has_bfloat16", lambda: supported)
    assert config(str(tmp_path), use_cpu=True).bf16 is supported
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    args = config(str(tmp_path))
    assert args.bf16 is supported and args.device.type == "cpu"
    assert config(str(tmp_path), use_cpu=True, bf16=not supported).bf16 is not supported


@pytest.mark.parametrize(
    "capabilities, expected",
    [({"avx512_bf16": True}, True), ({"avx512_bf16": False, "amx_bf16": True}, True), ({"avx512_f": True}, False)],
)
def test_the_cpus_own_capabilities_decide(capabilities, expected, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert device_defaults.cpu_has_bfloat16() is expected
