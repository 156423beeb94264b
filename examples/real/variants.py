"""The sets, pairs and variants of the table of pretrained models."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from semcot_hf.data.loading import write_splits
from semcot_hf.data.tasks import GENERATED_TASKS

# MultiArith's training rows alone are few.
TRAIN = {
    "multiarith": ("multiarith", "gsm8k"),
    **{name: (name,) for name in ("gsm8k", "svamp", "commonsense_qa", "coin_flip")},
}
# Rows of the sets that are made here: what a pretrained host knows, behind a walk that the generator can learn.
GENERATED = {"elements": {"train": 720, "test": 200}}
SETS = (*TRAIN, *GENERATED)
# A set's words and answer prompt, where the recipe does not choose them by itself.
WORDS = {"elements": "--words_column reasoning --num_implicit_tokens 64"}
ANSWER_PROMPTS = {
    "elements": "--answer_prompt 'The atomic number is'",
    "coin_flip": "--answer_prompt 'The answer (yes or no) is:'",
}
ARITHMETIC = ("multiarith", "gsm8k", "svamp")
# For the host's explicit CoT, where it would answer at once or in programs.
INSTRUCTIONS = {
    "elements": "Follow the walk bottle by bottle, then state the atomic number.",
    "commonsense_qa": "Think step by step, and end with the letter of the answer.",
    "coin_flip": "Think step by step, and end with yes or no.",
}
# Worked examples of the host's condensed CoT; the built-in ones are equations.
PROMPTS = {"elements": "elements_prompt.json", "coin_flip": "coin_flip_prompt_closing.json"}
PAIRS = [f"qwen2.5-coder-{pair}" for pair in ("1.5b+qwen2.5-coder-0.5b", "1.5b+gemma-3-270m", "0.5b+gemma-3-270m")]
AT_ONCE = ("no_cot", "semcot")
WORD_METHODS = ("no_cot", "semcot", "semcot_hard", "words", "generator", "generator_no_cot")
TUNED = "--use_peft True --lora_r 32 --lora_alpha 64 --lora_dropout 0 --lora_target_modules all-linear"

STAGE_2 = f"{TUNED} --learning_rate 2e-4 --lr_scheduler_type cosine --per_device_train_batch_size 16"
STAGE_1 = "--learning_rate 2e-5 --per_device_train_batch_size 32 --save_strategy no --eval_strategy no"
# The control of the paper's tokens: as many learned embeddings, the same for every question.
PROMPT_TUNING = "--learning_rates 1e-3 1e-2 --steps 135 --batch_size 16 --num_implicit_tokens 5"


@dataclass(frozen=True)
class Variant:
    """How a pair is trained.

    Args:
        recipe, flags, methods: of `semcot distill` and `semcot evaluate`.
        sets: those for which it has rows.
        align: flags of `semcot align`, for stage 1 before it; without it, there is no encoder.
    """

    recipe: str
    flags: str
    methods: tuple[str, ...]
    sets: tuple[str, ...]
    align: str | None = None

    def flags_for(self, name: str) -> str:
        """Return the flags of `semcot distill` for a set, in one text."""
        words = WORDS.get(name, "") if self.recipe == "words" else ""
        return f"{self.flags} {words} {ANSWER_PROMPTS.get(name, '')}"


VARIANTS = {
    # Words that end in the answer, which the host copies.
    "words": Variant("words", "", WORD_METHODS, SETS),
    # The calculation without its results, or without its last one, which the host computes.
    "plan": Variant("words", "--words_column plan", WORD_METHODS, ARITHMETIC),
    "open": Variant("words", "--words_column open_equations", WORD_METHODS, ARITHMETIC),
    # The same, and four worked examples that show the host how to go on.
    "few_shot": Variant("words", "--words_column open_equations --few_shot_examples 4", WORD_METHODS, ARITHMETIC),
    # Five tokens from one pass, trained through the host; stage 2 of the paper without alignment.
    "paper": Variant("paper", f"{STAGE_2} --alpha 0", AT_ONCE, SETS),
    # Both stages of the paper, with five tokens and with one.
    "stages": Variant("paper", f"{STAGE_2} --alpha 0.25", AT_ONCE, SETS, STAGE_1),
    "stages_k1": Variant("paper", f"{STAGE_2} --alpha 0.25 --num_implicit_tokens 1", AT_ONCE, SETS, STAGE_1),
}


def host_flags(name: str) -> list[str]:
    """Return the flags of `semcot evaluate` for a host alone: its methods, and what it is told and shown."""
    # Thoughts as long as the pairs' longest.
    condensed = ["condensed", "--max_thought_tokens", "64"] if name in (*ARITHMETIC, *PROMPTS) else []
    told = ["--cot_instruction", INSTRUCTIONS[name]] if name in INSTRUCTIONS else []
    shown = ["--thought_prompt", str(Path(__file__).with_name(PROMPTS[name]))] if name in PROMPTS else []
    return ["--methods", "cot", *condensed, *told, *shown, *shlex.split(ANSWER_PROMPTS.get(name, ""))]


def files_of(name: str, data: Path, output: Path) -> tuple[list[Path], Path]:
    """Return the files of a set's training rows and the file of its test rows, which are made for a generated set."""
    if name not in GENERATED:
        return [data / part / "train_42.json" for part in TRAIN[name]], data / name / "eval_42.json"
    folder = output / "data" / name
    if not folder.is_dir():
        generate = GENERATED_TASKS[name].generate
        write_splits({split: generate(number, split=split) for split, number in GENERATED[name].items()}, folder)
    return [folder / "train.jsonl"], folder / "test.jsonl"
