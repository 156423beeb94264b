"""What the YAML tasks call: the questions as the model's own prompts, and `check_answer` as the metric.

    lm_eval --model hf --model_args pretrained=DIR,trust_remote_code=True,dtype=float32 --tasks semcot_coin_flip \
        --include_path "$(python -c 'from semcot_hf.lm_eval_tasks import INCLUDE_PATH; print(INCLUDE_PATH)')" \
        --device cpu --log_samples --output_path runs/lm_eval

gives the answers of `semcot evaluate`, question by question: of its method "semcot" for a SemCoT checkpoint, of
"no_cot" for any other causal LM. `--metadata '{"dataset": "my.jsonl"}'` puts another dataset behind a task, and
`--gen_kwargs max_gen_toks=N` is `--max_new_tokens N`. The prompts are rendered by the model's chat template already:
leave `--apply_chat_template` and `--num_fewshot` out. Log-likelihood tasks, the harness's own included, call the
model's `forward` on the text alone and so run without implicit tokens.
"""

import datasets
from transformers import AutoConfig, AutoTokenizer

from semcot_hf.answers import check_answer, infer_answer_type
from semcot_hf.data import load_reasoning_dataset
from semcot_hf.inference.answering import NEXT_QUESTION
from semcot_hf.inference.prompting import ANSWER_PROMPT, encode_prompt, prompt_text


def load_questions(
    dataset=None,
    answer_type=None,
    pretrained=None,
    tokenizer=None,
    revision=None,
    trust_remote_code=False,
    **model_args,
) -> datasets.DatasetDict:
    """Load the test questions of a dataset, each with the prompt of the model that is evaluated.

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
    tokenizer = AutoTokenizer.from_pretrained(tokenizer or pretrained, **options)
    answer_prompt = ANSWER_PROMPT
    if config.model_type == "semcot":
        answer_prompt = tokenizer.decode(config.answer_prompt_ids)
    prompts = [prompt_text(tokenizer, query).removesuffix(answer_prompt) + answer_prompt for query in rows["query"]]
    _check_tokens(tokenizer, prompts[0], model_args)
    answer_type = answer_type or infer_answer_type(rows["answer"])
    return datasets.DatasetDict(
        test=datasets.Dataset.from_dict(
            {
                "prompt": prompts,
                "query": rows["query"],
                "answer": rows["answer"],
                "answer_type": [answer_type] * len(rows),
                # Without a chat template, a model may go on to make up the next question.
                "stop": ["" if tokenizer.chat_template else NEXT_QUESTION] * len(rows),
            }
        )
    )


def _check_tokens(tokenizer, prompt, model_args):
    """The harness tokenizes by the tokenizer's defaults; the prompts hold all the special tokens that belong there."""
    starts_with_bos = bool(tokenizer.bos_token) and prompt.startswith(tokenizer.bos_token)
    if starts_with_bos or model_args.get("add_bos_token") is False:
        return
    if tokenizer(prompt)["input_ids"] != encode_prompt(tokenizer, prompt):
        raise ValueError(
            "the tokenizer would add special tokens to prompts that have them: add add_bos_token=False to "
            "--model_args."
        )


def score_answer(doc, results) -> dict[str, float]:
    """Judge one answer by `check_answer`, as a float for the harness's mean.

    >>> score_answer({"answer": "no", "answer_type": "yes_no", "stop": "\\nQuestion:"}, [" no\\nQuestion: Is it? yes"])
    {'accuracy': 1.0}
    """
    output = results[0].partition(doc["stop"])[0] if doc["stop"] else results[0]
    return {"accuracy": float(check_answer(output, doc["answer"], doc["answer_type"]))}
