"""What the YAML tasks call: the questions as the model's own prompts, and `check_answer` as the metric.

    lm_eval --model hf --model_args pretrained=DIR,trust_remote_code=True,dtype=float32 --tasks semcot_coin_flip \
        --include_path "$(python -c 'from semcot_hf.lm_eval_tasks import INCLUDE_PATH; print(INCLUDE_PATH)')" \
        --device cpu --log_samples --output_path runs/lm_eval

gives the answers of `semcot evaluate`, question by question: those of its method "semcot" for a SemCoT checkpoint and
of "no_cot" for any other causal LM. `--metadata '{"dataset": "my.jsonl"}'` runs a task on another dataset;
`--gen_kwargs max_gen_toks=N` is `--max_new_tokens N`. The prompts are already rendered by the model's chat template:
leave `--apply_chat_template` and `--num_fewshot` out. Log-likelihood tasks, also the harness's own, call the model's
`forward` on the text alone and therefore run without implicit tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from semcot_hf.answers import check_answer, infer_answer_type
from semcot_hf.data import load_reasoning_dataset
from semcot_hf.inference.prompting import encode_prompt, render_prompts
from semcot_hf.inference.settings import NEXT_QUESTION, answer_prompt_of


def load_questions(
    dataset: str | None = None,
    answer_type: str | None = None,
    pretrained: str | None = None,
    tokenizer: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **model_args: Any,
) -> datasets.DatasetDict:
    """Load the test questions of a dataset, each with the prompt of the evaluated model.

    Args:
        dataset: what `load_reasoning_dataset` takes.
        answer_type: inferred from the answers when `None`.
        pretrained, tokenizer, revision, trust_remote_code, model_args: the harness's `--model_args`.

    Raises:
        ValueError: when the dataset, its test rows or the model are missing, or when the harness would put a special
            token before the prompts.
    """
    if not dataset:
        raise ValueError('this task has no dataset of its own: add --metadata \'{"dataset": "NAME_OR_PATH"}\'.')
    if not pretrained:
        raise ValueError("the prompts need the model's tokenizer: pass --model hf --model_args pretrained=DIR_OR_ID.")
    loaded = load_reasoning_dataset(dataset)
    if "test" not in loaded:
        raise ValueError(f"dataset={dataset!r} has the splits {sorted(loaded)}, but no test rows.")
    rows = loaded["test"]
    options = {"revision": revision or "main", "trust_remote_code": bool(trust_remote_code)}
    config = AutoConfig.from_pretrained(pretrained, **options)
    own = AutoTokenizer.from_pretrained(tokenizer or pretrained, **options)
    answer_prompt = answer_prompt_of(config, own)
    prompts = list(render_prompts(own, rows["query"], method="semcot", answer_prompt=answer_prompt))
    _check_tokens(own, prompts[0], model_args)
    columns = {
        "prompt": prompts,
        "query": rows["query"],
        "answer": rows["answer"],
        "answer_type": [answer_type or infer_answer_type(rows["answer"])] * len(rows),
        "stop": ["" if own.chat_template else NEXT_QUESTION] * len(rows),
    }
    return datasets.DatasetDict(test=datasets.Dataset.from_dict(columns))


def _check_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str, model_args: Mapping[str, Any]) -> None:
    """Raise when the harness, which adds the tokenizer's default special tokens, would double those of the prompt."""
    starts_with_bos = bool(tokenizer.bos_token) and prompt.startswith(tokenizer.bos_token)
    if starts_with_bos or model_args.get("add_bos_token") is False:
        return
    if tokenizer(prompt)["input_ids"] != encode_prompt(tokenizer, prompt):
        raise ValueError(
            "the tokenizer would add special tokens to prompts that have them: add add_bos_token=False to "
            "--model_args."
        )


def score_answer(doc: Mapping[str, str], results: Sequence[str]) -> dict[str, float]:
    """Return the verdict of `check_answer` on one answer, as a float for the harness's mean.

    >>> score_answer({"answer": "no", "answer_type": "yes_no", "stop": "\\nQuestion:"}, [" no\\nQuestion: Is it? yes"])
    {'accuracy': 1.0}
    """
    output = results[0].partition(doc["stop"])[0] if doc["stop"] else results[0]
    return {"accuracy": float(check_answer(output, doc["answer"], doc["answer_type"]))}
