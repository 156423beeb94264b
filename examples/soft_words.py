r"""A generator that reasons in one word a step, and passes each word on as a mixture of the host's word embeddings.

    python examples/soft_words.py --learning_rate 2e-3 --max_steps 900 --per_device_train_batch_size 32 \
        --activation_checkpointing false --output_dir runs/soft_words

TRL's SFTTrainer teaches the generator to write each row's `words`. Attached to the host, which stays unchanged, with
`projection="vocabulary"`, its distribution over the next word is the implicit token. The output is an ordinary
checkpoint. Choose words that resemble reasoning known to the host and that end in the answer.
"""

from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer, TrlParser

from semcot_hf import SemCoTForCausalLM
from semcot_hf.answers import check_answer
from semcot_hf.bench.tasks.definitions import BENCH_TASKS
from semcot_hf.evaluation import answer_questions
from semcot_hf.inference.prompting import answer_prompt_ids, prompt_text
from semcot_hf.storage import read_json_lines
from semcot_hf.training.device_defaults import set_device_defaults

MODELS = Path(__file__).parent / "bench" / "models" / "graph"


@dataclass
class Arguments:
    host: str = field(default=str(MODELS / "host"), metadata={"help": "Id or path of the host."})
    generator: str = field(default=str(MODELS / "generator"), metadata={"help": "Id or path of the generator."})
    train: str | None = field(default=None, metadata={"help": "JSON lines: query, words, answer; else graph rows."})
    validation: str | None = field(default=None, metadata={"help": "Questions to answer at the end, in that format."})
    answer_type: str = field(default="sequence", metadata={"help": "How to check answers: numeric, yes_no, ..."})
    max_train_samples: int = field(default=20_000, metadata={"help": "Use at most this many training rows."})
    max_eval_samples: int = field(default=200, metadata={"help": "Answer at most this many validation questions."})


@dataclass
class Config(SFTConfig):
    """TRL's settings, with bfloat16 only where the device supports it."""

    def __post_init__(self):
        set_device_defaults(self)
        super().__post_init__()


def rows_of(path, count, split):
    rows = read_json_lines(Path(path))[:count] if path else BENCH_TASKS["graph"].generate(count, 0, split)
    return [{**row, "words": row["words"].replace(" ", f"{row.get('start', '')} ", 1)} for row in rows]


def tokens_of(tokenizer, rows):
    """Return the id of the token with which all rows' words start, and k, the number of tokens after it."""
    ids = [tokenizer(row["words"].rstrip("."), add_special_tokens=False)["input_ids"] for row in rows]
    kinds = {(found[0], len(found) - 1) for found in ids}
    if len(kinds) != 1:
        raise ValueError(
            f"words: rows differ in their first token or number of tokens ({len(kinds)} kinds): start all with the "
            "same token, use words of one token each, and repeat the last one up to the same number."
        )
    return kinds.pop()


def main(argv=None):
    arguments, args = TrlParser((Arguments, Config)).parse_args_and_config(args=argv)
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
        answers = answer_questions(model, tokenizer, queries, method=method, max_new_tokens=16)
        checked = zip(answers, asked, strict=True)
        right = sum(check_answer(answer.output, row["answer"], arguments.answer_type) for answer, row in checked)
        print(f"{method}: {right} of {len(asked)} right")
    prompt = tokenizer(prompt_text(tokenizer, queries[0]), return_tensors="pt", add_special_tokens=False)["input_ids"]
    print(queries[0], "->", tokenizer.decode(model.implicit_words(prompt)[0][0]))


if __name__ == "__main__":
    main()
