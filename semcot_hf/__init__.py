"""semcot_hf: implicit chain-of-thought for the Hugging Face ecosystem."""

from .modeling import SemCoTConfig, SemCoTForCausalLM

__all__ = ["SemCoTConfig", "SemCoTForCausalLM"]
