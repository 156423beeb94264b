"""semcot_hf: implicit chain-of-thought for the Hugging Face ecosystem."""

from importlib import import_module

from .modeling import SemCoTConfig, SemCoTForCausalLM

# The model classes register with transformers' Auto classes on import; the rest is loaded on first use.
_LAZY = {
    "SemCoTAlignmentConfig": "alignment.config",
    "SemCoTAlignmentTrainer": "alignment.trainer",
    "SemCoTDistillationConfig": "distillation.config",
    "SemCoTDistillationTrainer": "distillation.trainer",
    "build_alignment_encoder": "alignment.encoder",
    "check_answer": "answers",
    "evaluate": "evaluation",
    "load_reasoning_dataset": "data",
}

__version__ = "0.2.0"
__all__ = ["SemCoTConfig", "SemCoTForCausalLM", *_LAZY]


def __getattr__(name):
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
