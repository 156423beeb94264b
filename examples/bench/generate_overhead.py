"""Overhead of `generate` over its two parts, and the size of both checkpoint layouts, at random weights.

    OMP_NUM_THREADS=1 python examples/bench/generate_overhead.py
    OMP_NUM_THREADS=1 python examples/bench/generate_overhead.py --sizes tiny --seconds 60

The parts are the generator's forward over [query, <thought> ...] (k cached forwards in sequential mode) with the
projection, and the host's `generate` on a prompt as long as prompt and implicit tokens together. Whole and parts take
turns, in changing order; the overhead is the median of the ratios of neighbours, its spread their quartiles.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, set_seed
from transformers.utils import logging

from semcot_hf import SemCoTForCausalLM
from semcot_hf.evaluation.environment import environment

# (vocabulary, then hidden size, intermediate size, layers and heads of host and of generator)
SIZES = {
    "toy": (500, (32, 64, 2, 4), (16, 32, 1, 2)),
    "tiny": (2_000, (128, 352, 4, 4), (64, 176, 2, 4)),
    "100M": (32_000, (640, 1_720, 12, 10), (320, 860, 6, 5)),
}
PROMPT, COUNT, FEWEST_PAIRS = 32, 5, 7


def make_lm(vocabulary, shape):
    hidden, intermediate, layers, heads = shape
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def make_model(size, mode):
    set_seed(0)
    vocabulary, host, generator = SIZES[size]
    return SemCoTForCausalLM.from_host_generator_pretrained(
        make_lm(vocabulary, host), make_lm(vocabulary, generator), num_implicit_tokens=COUNT, generator_mode=mode
    )


@torch.no_grad()
def generator_pass(model, ids):
    """The least that makes k implicit tokens: plain forwards of the backbone, and the projection."""
    generator = model.generator
    query = generator.get_input_embeddings()(ids)
    thought = model.thought_embedding.expand(len(ids), 1, -1)
    if model.config.generator_mode == "parallel":
        inputs = torch.cat([query, thought.expand(-1, COUNT, -1)], dim=1)
        states = generator(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, -COUNT:]
        return model.projection(states)
    cache, step, states = DynamicCache(config=generator.config), torch.cat([query, thought], dim=1), []
    for _ in range(COUNT):
        outputs = generator(inputs_embeds=step, past_key_values=cache, use_cache=True)
        states.append(outputs.last_hidden_state[:, -1:])
        step = states[-1] * model.config.feedback_scale
    return model.projection(torch.cat(states, dim=1))


def timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(model, batch, new_tokens, seconds):
    """Medians in milliseconds of whole and parts, and quartiles of the ratios of neighbours."""
    vocabulary = model.config.vocab_size
    ids = torch.randint(3, vocabulary, (batch, PROMPT))
    longer = torch.randint(3, vocabulary, (batch, PROMPT + COUNT))
    options = {"max_new_tokens": new_tokens, "do_sample": False}

    def whole():
        model.generate(ids, attention_mask=torch.ones_like(ids), **options)

    def parts():
        generator_pass(model, ids)
        model.host.generate(longer, attention_mask=torch.ones_like(longer), **options)

    whole(), parts()
    times = {whole: [], parts: []}
    start = time.perf_counter()
    while len(times[whole]) < FEWEST_PAIRS or time.perf_counter() - start < seconds:
        for function in (whole, parts) if len(times[whole]) % 2 else (parts, whole):
            times[function].append(timed(function))
    ratios = [ours / theirs for ours, theirs in zip(times[whole], times[parts], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "pairs": len(ratios),
        "whole_ms": round(1e3 * statistics.median(times[whole]), 2),
        "parts_ms": round(1e3 * statistics.median(times[parts]), 2),
        "overhead": round(middle, 3),
        "overhead_of_the_fastest": round(min(times[whole]) / min(times[parts]), 3),
        "quartiles": [round(low, 3), round(high, 3)],
    }


def layout_bytes(model):
    """Bytes on disk of the attached checkpoint and of the whole one."""
    sizes = {}
    for name, include_host in (("attached", False), ("whole", True)):
        with tempfile.TemporaryDirectory() as folder:
            model.config.host_name_or_path = "the/host"
            model.save_pretrained(folder, include_host=include_host)
            sizes[name] = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return sizes


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["tiny", "100M"])
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--modes", nargs="+", choices=("parallel", "sequential"), default=["parallel", "sequential"])
    parser.add_argument("--new_tokens", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=25.0, help=f"of each row; {FEWEST_PAIRS} pairs at least")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "generate_overhead.json")
    options = parser.parse_args(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rows, layouts = [], {}
    for size in options.sizes:
        for mode in options.modes:
            model = make_model(size, mode)
            for batch in options.batch_sizes:
                figures = measure(model, batch, options.new_tokens, options.seconds)
                rows.append({"size": size, "mode": mode, "batch": batch, **figures})
        layouts[size] = {
            "host_parameters": sum(parameter.numel() for parameter in model.host.parameters()),
            "generator_parameters": sum(parameter.numel() for parameter in model.generator.parameters()),
            **layout_bytes(model),
        }
    print("| size | mode | batch | pairs | generate, ms | parts, ms | overhead | quartiles |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        low, high = row["quartiles"]
        print(
            f"| {row['size']} | {row['mode']} | {row['batch']} | {row['pairs']} | {row['whole_ms']:.1f} "
            f"| {row['parts_ms']:.1f} | {row['overhead']:.3f} | {low:.3f} to {high:.3f} |"
        )
    print(
        "\n| size | host, M | generator, M | attached, bytes | whole, bytes | share |\n|---|---:|---:|---:|---:|---:|"
    )
    for size, layout in layouts.items():
        millions = [layout[f"{part}_parameters"] / 1e6 for part in ("host", "generator")]
        print(
            f"| {size} | {millions[0]:.1f} | {millions[1]:.1f} | {layout['attached']:,} | {layout['whole']:,} "
            f"| {layout['attached'] / layout['whole']:.3f} |"
        )
    result = {
        "command": "python examples/bench/generate_overhead.py " + " ".join(sys.argv[1:] if argv is None else argv),
        "environment": environment(torch.device("cpu")),
        "settings": {"prompt_tokens": PROMPT, "implicit_tokens": COUNT, "new_tokens": options.new_tokens}
        | {"seconds": options.seconds, "dtype": "float32"},
        "rows": rows,
        "checkpoints": layouts,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"Written to {options.output}")


if __name__ == "__main__":
    main()
