r"""A generator that reasons in one word a step, and hands each word over as a mixture of the host's word embeddings.

    python examples/soft_words.py --learning_rate 2e-3 --max_steps 900 --per_device_train_batch_size 32 \
        --activation_checkpointing false --output_dir runs/soft_words

TRL's SFTTrainer teaches the generator to write each row's `words`; attached to the host with
`projection="vocabulary"`, it need not write them any more: its distribution over the next word is the implicit token.
The host stays as it is. What comes out is an ordinary checkpoint, which `SemCoTDistillationTrainer` can train on.
A host reads words that look like reasoning it knows and end in the answer; others it may not understand.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer, TrlParser

from semcot_hf import SemCoTForCausalLM
from semcot_hf.answers import check_answer
from semcot_hf.bench.tasks.definitions import BENCH_TASKS
from semcot_hf.evaluation import answer_questions
from semcot_hf.inference.prompting import answer_prompt_ids, prompt_text
from semcot_hf.storage import read_json_lines

MODELS = Path(__file__).parent / "bench" / "models" / "graph"


@dataclass
class Arguments:
    """Which models, questions and words."""

    host: str = field(default=str(MODELS / "host"), metadata={"help": "Id or path of the host."})
    generator: str = field(default=str(MODELS / "generator"), metadata={"help": "Id or path of the generator."})
    train: str | None = field(default=None, metadata={"help": "JSON lines of query, words, answer; else the graph."})
    validation: str | None = field(default=None, metadata={"help": "The same for the questions answered at the end."})
    answer_type: str = field(default="sequence", metadata={"help": "How answers are judged: numeric, yes_no, ..."})
    max_train_samples: int = field(default=20_000, metadata={"help": "Use the first so many training rows."})
    max_eval_samples: int = field(default=200, metadata={"help": "Answer the first so many validation questions."})


def rows_of(path, count, split):
    rows = read_json_lines(Path(path))[:count] if path else BENCH_TASKS["graph"].generate(count, 0, split)
    return [{**row, "words": row["words"].replace(" ", f"{row.get('start', '')} ", 1)} for row in rows]


def tokens_of(tokenizer, rows):
    """Id of the token that all rows' words start with, and k, the number of tokens behind it.

    Raises:
        ValueError: when rows differ in either.
    """
    ids = [tokenizer(row["words"].rstrip("."), add_special_tokens=False)["input_ids"] for row in rows]
    kinds = {(found[0], len(found) - 1) for found in ids}
    if len(kinds) != 1:
        raise ValueError(
            f"words: rows differ in their first token or number of tokens ({len(kinds)} kinds): start all with the "
            "same token, use words of one token each, and repeat the last one up to the same number."
        )
    return kinds.pop()


def main(argv=None):
    parser = TrlParser((Arguments, SFTConfig))
    parser.set_defaults(bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported())
    arguments, args = parser.parse_args_and_config(args=argv)
    tokenizer = AutoTokenizer.from_pretrained(arguments.generator)
    rows = rows_of(arguments.train, arguments.max_train_samples, "train")
    thought, count = tokens_of(tokenizer, rows)
    texts = [{"prompt": prompt_text(tokenizer, row["query"]), "completion": row["words"]} for row in rows]
    generator = AutoModelForCausalLM.from_pretrained(arguments.generator)
    SFTTrainer(generator, args, train_dataset=Dataset.from_list(texts), processing_class=tokenizer).train()
    tokenizer = AutoTokenizer.from_pretrained(arguments.host)
    model = SemCoTForCausalLM.from_host_generator_pretrained(
        arguments.host,
        generator.cpu(),
        num_implicit_tokens=count,
        generator_mode="sequential",
        projection="vocabulary",
        thought_token_id=thought,
        answer_prompt_ids=answer_prompt_ids(tokenizer),
    ).eval()
    model.save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)
    asked = rows_of(arguments.validation, arguments.max_eval_samples, "validation")
    queries = [row["query"] for row in asked]
    for method in ("no_cot", "semcot"):
        with torch.no_grad():
            answers = answer_questions(model, tokenizer, queries, method=method, max_new_tokens=16)
        checked = zip(answers, asked, strict=True)
        right = sum(check_answer(answer.output, row["answer"], arguments.answer_type) for answer, row in checked)
        print(f"{method}: {right} of {len(asked)} right")
    prompt = tokenizer(prompt_text(tokenizer, queries[0]), return_tensors="pt", add_special_tokens=False)["input_ids"]
    print(queries[0], "->", tokenizer.decode(model.implicit_words(prompt)[0][0]))


if __name__ == "__main__":
    main()
