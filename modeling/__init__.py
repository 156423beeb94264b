"""The model files that travel to the Hub with every SemCoT checkpoint; installed as `semcot_hf.modeling`."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .configuration_semcot import SemCoTConfig
from .modeling_semcot import SemCoTCausalLMOutput, SemCoTForCausalLM

AutoConfig.register(SemCoTConfig.model_type, SemCoTConfig, exist_ok=True)
AutoModel.register(SemCoTConfig, SemCoTForCausalLM, exist_ok=True)
AutoModelForCausalLM.register(SemCoTConfig, SemCoTForCausalLM, exist_ok=True)
SemCoTConfig.register_for_auto_class()
SemCoTForCausalLM.register_for_auto_class("AutoModelForCausalLM")

__all__ = ["SemCoTCausalLMOutput", "SemCoTConfig", "SemCoTForCausalLM"]
