"""Speed and memory of both stages against a plain loop that takes one sample at a time, at random weights.

    python examples/bench/train_speed.py --sizes small
    python examples/bench/train_speed.py --sizes small large --dtype bfloat16 --device cuda

The plain loop does the same computation at the same shapes: no batches, the whole sequence through host and head, the
reasoning encoded anew at each step. It steps once per `--batch_size` samples, as the trainers do.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import datasets
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback, set_seed

from semcot_hf import (
    SemCoTAlignmentConfig,
    SemCoTAlignmentTrainer,
    SemCoTDistillationConfig,
    SemCoTDistillationTrainer,
    SemCoTForCausalLM,
    build_alignment_encoder,
)
from semcot_hf.evaluation.environment import environment
from semcot_hf.losses import semantic_alignment_loss

# (vocabulary, then hidden size, intermediate size, layers and heads of host and of generator)
SIZES = {
    "toy": (500, (32, 64, 2, 4), (16, 32, 1, 2)),
    "small": (8_000, (256, 704, 8, 4), (192, 512, 4, 4)),
    "large": (32_000, (768, 3_072, 12, 12), (512, 2_048, 10, 8)),
    "llama-2-7b": (32_000, (4_096, 11_008, 32, 32), (2_048, 5_504, 24, 16)),
}
QUESTION, REASONING, CONDENSED, ANSWER = 100, 100, 12, 3
# The paper's share of the head's phase in stage 1 and of the projection's in stage 2: 7 + 1 and 7 + 2 epochs.
HEAD_EPOCHS, EPOCHS = 7, 8


def make_tokenizer(vocabulary):
    """One token a word, so that lengths are exact."""
    words = ["<pad>", "<s>", "</s>", "Question:", "Answer:", *(f"w{i}" for i in range(vocabulary - 5))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )


def make_model(vocabulary, shape, dtype, device):
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
        eos_token_id=2,
    )
    with torch.device(device):
        return LlamaForCausalLM._from_config(config, dtype=dtype)


def make_rows(count, vocabulary):
    generator = torch.Generator().manual_seed(0)

    def words(length):
        return " ".join(f"w{i}" for i in torch.randint(vocabulary - 5, (length,), generator=generator).tolist())

    rows = []
    for _ in range(count):
        steps = [words(REASONING // 5) for _ in range(5)]
        texts = {"query": words(QUESTION), "reasoning": " ".join(steps), "answer": words(ANSWER)}
        rows.append({**texts, "condensed_reasoning": words(CONDENSED), "steps": steps})
    return Dataset.from_list(rows)


class Clock(TrainerCallback):
    """Time of the steps behind the first."""

    def __init__(self, now):
        self.now = now

    def on_step_end(self, args, state, control, **kwargs):
        if args.device.type == "cuda":
            torch.cuda.synchronize()
        if state.global_step == 1:
            self.start = self.now()
        self.seconds = self.now() - self.start


class Bench:
    """Models, data and both stages at one size."""

    def __init__(self, size, options):
        set_seed(0)
        self.options, self.device = options, torch.device(options.device)
        self.dtype = getattr(torch, options.dtype)
        self.now = time.process_time if options.clock == "cpu" else time.perf_counter
        vocabulary, host, self.generator_shape = SIZES[size]
        self.vocabulary = vocabulary
        self.tokenizer = make_tokenizer(vocabulary)
        self.host = make_model(vocabulary, host, self.dtype, self.device).eval()
        self.rows = make_rows(options.batch_size * options.steps, vocabulary)

    def arguments(self, kind, folder, **extra):
        return kind(
            output_dir=folder,
            per_device_train_batch_size=self.options.batch_size,
            use_cpu=self.device.type == "cpu",
            bf16=self.dtype == torch.bfloat16,
            save_strategy="no",
            logging_steps=10_000,
            disable_tqdm=True,
            **extra,
        )

    def trainer(self, folder, cached_question=True):
        generator = make_model(self.vocabulary, self.generator_shape, self.dtype, self.device)
        model = SemCoTForCausalLM.from_host_generator_pretrained(self.host, generator, num_implicit_tokens=5)
        encoder = build_alignment_encoder(self.host, self.tokenizer)
        args = self.arguments(
            SemCoTDistillationConfig,
            folder,
            max_steps=self.options.steps,
            projection_warmup=0.0,
            cached_question=cached_question,
        )
        return SemCoTDistillationTrainer(
            model=model,
            args=args,
            train_dataset=self.rows,
            processing_class=self.tokenizer,
            alignment_encoder=encoder,
            callbacks=[Clock(self.now)],
        )

    def plain_loss(self, trainer, batch, rows=None):
        """The loss over whole sequences; the reasoning is encoded on the way."""
        encoder, model = trainer.alignment_encoder, trainer.model
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype == torch.bfloat16):
            outputs = model(**{key: value for key, value in batch.items() if key != "reasoning_embedding"})
            if rows is None:
                target = batch["reasoning_embedding"]
            else:
                target = encoder.encode(rows, convert_to_tensor=True, show_progress_bar=False)
            loss = semantic_alignment_loss(trainer._embed(outputs), target)
            return trainer.args.alpha * loss + (1 - trainer.args.alpha) * outputs.loss

    def distillation(self, folder):
        """Samples per second of stage 2: ours and the plain loop's, and the seconds of what is done once."""
        start = self.now()
        trainer = self.trainer(folder)
        once = self.now() - start
        trainer.train()
        clock = next(c for c in trainer.callback_handler.callbacks if isinstance(c, Clock))
        ours = self.options.batch_size * (self.options.steps - 1) / clock.seconds
        optimizer = torch.optim.AdamW([p for p in trainer.model.parameters() if p.requires_grad], lr=1e-4)
        count = self.options.plain_samples
        columns = trainer.train_dataset.remove_columns(["reasoning", "length"])

        def step(index):
            batch = {key: value.to(self.device) for key, value in trainer.data_collator([columns[index]]).items()}
            self.plain_loss(trainer, batch, [self.rows[index]["reasoning"]]).backward()
            if (index + 1) % self.options.batch_size == 0:
                optimizer.step()
                optimizer.zero_grad()

        plain = self.rate(step, count)
        return {"ours": ours, "plain": plain, "seconds_once": once}

    def alignment(self, folder):
        """Samples per second of stage 1 over the paper's 7 + 1 epochs: ours and the plain loop's."""
        args = self.arguments(
            SemCoTAlignmentConfig,
            folder,
            num_train_epochs=EPOCHS,
            head_warmup=HEAD_EPOCHS / EPOCHS,
            eval_strategy="no",
        )
        trainer = SemCoTAlignmentTrainer(
            model=build_alignment_encoder(self.host, self.tokenizer), args=args, train_dataset=self.rows
        )
        start = self.now()
        trainer.train()
        ours = EPOCHS * len(self.rows) / (self.now() - start)
        encoder, seconds = build_alignment_encoder(self.host, self.tokenizer), 0.0
        layers = [p for p in encoder[0].parameters() if p.requires_grad]
        for epochs, layers_train in ((HEAD_EPOCHS, False), (EPOCHS - HEAD_EPOCHS, True)):
            for parameter in layers:
                parameter.requires_grad_(layers_train)
            optimizer = torch.optim.AdamW([p for p in encoder.parameters() if p.requires_grad], lr=1e-4)
            seconds += epochs / self.rate(lambda i, o=optimizer: self.align_plainly(encoder, o, i), 0)
        return {"ours": ours, "plain": EPOCHS / seconds}

    def align_plainly(self, encoder, optimizer, start):
        """One batch of InfoNCE whose texts go through the encoder one by one."""
        vectors = []
        for column in ("reasoning", "condensed_reasoning"):
            texts = self.rows[start : start + self.options.batch_size][column]
            features = [encoder.preprocess([text]) for text in texts]
            features = [{k: v.to(self.device) for k, v in f.items() if torch.is_tensor(v)} for f in features]
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype == torch.bfloat16):
                vectors.append(torch.cat([encoder(f)["sentence_embedding"] for f in features]))
        scores = vectors[0].float() @ vectors[1].float().T / 0.05
        F.cross_entropy(scores, torch.arange(len(scores), device=self.device)).backward()
        optimizer.step()
        optimizer.zero_grad()

    def rate(self, step, count):
        """Samples per second of `step`, called for samples 1 to `count`; with 0 for one batch."""
        indices, samples = (range(1, count + 1), count) if count else ([0], self.options.batch_size)
        if count:
            step(0)
        start = self.now()
        for index in indices:
            step(index)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return samples / (self.now() - start)

    def peak(self, path, folder):
        """MiB over the weights at the peak of loss and backward pass of one batch, on either path."""
        trainer = self.trainer(folder)
        trainer.model.train()
        batch = {key: value.to(self.device) for key, value in next(iter(trainer.get_train_dataloader())).items()}
        start = memory(self.device, reset=True)
        if path == "fast":
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(trainer.model, batch)
        else:
            loss = self.plain_loss(trainer, batch)
        loss.backward()
        return (memory(self.device) - start) / 2**20


def memory(device, reset=False):
    """Bytes in use after a reset of the peak, or the peak since then: of the GPU, or resident ones of this process."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:" if reset else "VmHWM:")[2].split()[0]) * 1024


def peak_in_own_process(path, size, options):
    """`Bench.peak` where nothing ran before it."""
    flags = ["--device", options.device, "--dtype", options.dtype, "--batch_size", str(options.batch_size)]
    command = [sys.executable, __file__, "--sizes", size, "--steps", "1", "--peak", path, *flags]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise RuntimeError(f"the measurement of the {path} path failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.strip().splitlines()[-1])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["small", "large"])
    parser.add_argument(
        "--parts", nargs="+", choices=("stage1", "stage2", "memory"), default=["stage1", "stage2", "memory"]
    )
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8, help="steps of the trainer, the first not timed")
    parser.add_argument("--plain_samples", type=int, default=16, help="samples of the plain loop")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: this process's seconds, on a busy machine"
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--peak", choices=("fast", "full"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        # Embeddings of the reasoning are computed here, not found in the user's cache.
        datasets.config.HF_DATASETS_CACHE = Path(folder)
        if options.peak:
            print(Bench(options.sizes[0], options).peak(options.peak, folder))
            return
        rows = []
        for size in options.sizes:
            bench = Bench(size, options)
            millions = sum(p.numel() for p in bench.host.parameters()) / 1e6
            row = {"size": size, "host_millions": round(millions, 1)}
            if "stage1" in options.parts:
                row["stage1"] = bench.alignment(folder)
            if "stage2" in options.parts:
                row["stage2"] = bench.distillation(folder)
            if "memory" in options.parts:
                row["memory_mib"] = {path: peak_in_own_process(path, size, options) for path in ("fast", "full")}
            rows.append(row)
    print("| size | stage | plain samples/s | ours | ratio |\n|---|---|---:|---:|---:|")
    for row in rows:
        for stage in ("stage1", "stage2"):
            if stage in row:
                plain, ours = row[stage]["plain"], row[stage]["ours"]
                print(f"| {row['size']} | {stage} | {plain:.2f} | {ours:.2f} | {ours / plain:.1f} |")
        if "memory_mib" in row:
            fast, full = row["memory_mib"]["fast"], row["memory_mib"]["full"]
            print(f"| {row['size']} | peak MiB over the weights | {full:.0f} | {fast:.0f} | {fast / full:.2f} |")
    settings = {key: value for key, value in vars(options).items() if key not in ("output", "peak")}
    result = {"environment": environment(torch.device(options.device)), "settings": settings, "rows": rows}
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"train_speed-{options.device}-{'-'.join(options.sizes)}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"Written to {path}")


if __name__ == "__main__":
    main()
