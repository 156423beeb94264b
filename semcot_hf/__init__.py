"""semcot_hf: implicit chain-of-thought for the Hugging Face ecosystem."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .modeling import SemCoTConfig, SemCoTForCausalLM

if TYPE_CHECKING:
    from .alignment.config import SemCoTAlignmentConfig
    from .alignment.encoder import build_alignment_encoder
    from .alignment.trainer import SemCoTAlignmentTrainer
    from .answers import check_answer
    from .data import load_reasoning_dataset
    from .distillation.config import SemCoTDistillationConfig
    from .distillation.trainer import SemCoTDistillationTrainer
    from .evaluation import evaluate

# The model classes register with transformers' Auto classes on import; everything else is imported on first use.
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
__all__ = [
    "SemCoTAlignmentConfig",
    "SemCoTAlignmentTrainer",
    "SemCoTConfig",
    "SemCoTDistillationConfig",
    "SemCoTDistillationTrainer",
    "SemCoTForCausalLM",
    "build_alignment_encoder",
    "check_answer",
    "evaluate",
    "load_reasoning_dataset",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
