"""What both trainers' settings take from the device."""

import warnings

import pytest
import torch
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import AcceleratorConfig

from semcot_hf import SemCoTAlignmentConfig, SemCoTDistillationConfig

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
    config(str(tmp_path), use_cpu=True)
    assert seen == {"bf16": False, "pin": False}
