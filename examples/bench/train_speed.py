"""Speed and memory of both stages against plain loops that take one sample at a time, at random weights.

    python examples/bench/train_speed.py --sizes small large --threads 1 2
    python examples/bench/train_speed.py --sizes llama-2-7b --dtype bfloat16 --device cuda --question_cache_gb 16

`plain_loop.py` says what the plain loops do. Figures are given for the first epoch, for later ones, and for the
paper's number of epochs; ratios against a plain loop that keeps the reasoning's states or embeddings for the run, as
the authors' does, and against one that keeps nothing.
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
from plain_loop import PlainAlignment, PlainDistillation, seconds_a_sample
from random_models import SIZES, make_model, make_rows, make_tokenizer
from transformers import TrainerCallback, set_seed

from semcot_hf import (
    SemCoTAlignmentConfig,
    SemCoTAlignmentTrainer,
    SemCoTDistillationConfig,
    SemCoTDistillationTrainer,
    SemCoTForCausalLM,
    build_alignment_encoder,
)
from semcot_hf.evaluation.environment import environment
from semcot_hf.training.operations import OperationCounter, operation_counter

PARTS = ("stage1", "stage2", "operations", "memory")
# Where memory is measured: the trainer's, the same with activation checkpointing, the whole sequence through the host.
PATHS = ("fast", "checkpointed", "full")
# The paper's epochs of either phase: the linear layer and the layers, the projection and the generator.
STAGE1_EPOCHS, STAGE2_EPOCHS = (7, 1), (7, 2)


class Clock(TrainerCallback):
    """Seconds of each epoch."""

    def __init__(self, now):
        self.now, self.seconds = now, []

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.start = self.now()

    def on_epoch_end(self, args, state, control, **kwargs):
        if args.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds.append(self.now() - self.start)


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

    def distillation_trainer(self, folder, clock):
        """Three epochs: two of the projection's phase, one of the generator's."""
        generator = make_model(self.vocabulary, self.generator_shape, self.dtype, self.device)
        model = SemCoTForCausalLM.from_host_generator_pretrained(self.host, generator, num_implicit_tokens=5)
        args = self.arguments(
            SemCoTDistillationConfig,
            folder,
            num_train_epochs=3,
            projection_warmup=2 / 3,
            question_cache_gb=self.options.question_cache_gb,
        )
        return SemCoTDistillationTrainer(
            model=model,
            args=args,
            train_dataset=self.rows,
            processing_class=self.tokenizer,
            alignment_encoder=build_alignment_encoder(self.host, self.tokenizer),
            callbacks=[clock],
        )

    def distillation(self, folder):
        """Seconds a sample of stage 2."""
        clock, count = Clock(self.now), len(self.rows)
        start = self.now()
        trainer = self.distillation_trainer(folder, clock)
        once = (self.now() - start) / count
        trainer.train()
        first, projection, generator = (seconds / count for seconds in clock.seconds)
        ours = {"once": once, "first": first, "projection": projection, "generator": generator}
        plain = PlainDistillation(trainer, self.rows["reasoning"], self.options.batch_size)
        samples = min(self.options.plain_samples, count - 1)
        slow = {"once": seconds_a_sample(plain.encode, samples, self.now, self.device)}
        for name, generator_trains in (("projection", False), ("generator", True)):
            plain.phase(generator_trains)
            slow[name] = seconds_a_sample(plain.step, samples, self.now, self.device)
        early, late = STAGE2_EPOCHS
        return {
            "ours": {**ours, "run": once + first + (early - 1) * projection + late * generator},
            "kept": {
                "first": slow["projection"],
                "projection": slow["projection"],
                "generator": slow["generator"],
                "run": slow["once"] + early * slow["projection"] + late * slow["generator"],
            },
            "nothing kept": {
                "first": slow["once"] + slow["projection"],
                "projection": slow["once"] + slow["projection"],
                "generator": slow["once"] + slow["generator"],
                "run": early * slow["projection"] + late * slow["generator"] + (early + late) * slow["once"],
            },
        }

    def align(self, folder):
        """Seconds a sample of stage 1's trainer: first epoch, a later one of each phase, and the whole run."""
        early, late = STAGE1_EPOCHS
        args = self.arguments(
            SemCoTAlignmentConfig,
            folder,
            num_train_epochs=early + late,
            head_warmup=early / (early + late),
            eval_strategy="no",
        )
        clock, encoder = Clock(self.now), build_alignment_encoder(self.host, self.tokenizer)
        trainer = SemCoTAlignmentTrainer(model=encoder, args=args, train_dataset=self.rows, callbacks=[clock])
        start = self.now()
        trainer.train()
        run, count = (self.now() - start) / len(self.rows), len(self.rows)
        head = sum(clock.seconds[1:early]) / (early - 1)
        first, layers = clock.seconds[0], sum(clock.seconds[early:]) / late
        return trainer, {"first": first / count, "head": head / count, "layers": layers / count, "run": run}

    def alignment(self, folder):
        """Seconds a sample of stage 1."""
        _, first_run = self.align(folder)
        trainer, later_run = self.align(folder)
        size, (early, late) = self.options.batch_size, STAGE1_EPOCHS
        batch = [self.rows[:size][name] for name in ("reasoning", "condensed_reasoning")]
        encoder = build_alignment_encoder(self.host, self.tokenizer).float()
        plain, slow = PlainAlignment(encoder, batch, trainer.accelerator.autocast), {}
        start = self.now()
        plain.keep_states()
        once, states = (self.now() - start) / size, plain.states
        for kind, kept in (("kept", states), ("nothing kept", None)):
            plain.states, slow[kind] = kept, {}
            for name, layers_train in (("head", False), ("layers", True)):
                plain.phase(layers_train)
                slow[kind][name] = seconds_a_sample(plain.step, 1, self.now, self.device) / size
            slow[kind]["run"] = early * slow[kind]["head"] + late * slow[kind]["layers"]
        slow["kept"]["run"] += once
        return {"ours": first_run, "ours, later run": later_run, **slow}

    def operations(self, folder):
        """Floating point operations a sample of stage 2, forward and backward, by phase and path.

        Where both paths keep a core equally busy, their ratio is the most that a trainer can gain.
        """
        counter = OperationCounter(samples=3 * self.options.steps)
        trainer = self.distillation_trainer(folder, counter)
        trainer.train()
        plain, found = PlainDistillation(trainer, self.rows["reasoning"], self.options.batch_size), {}
        for epoch, phase in enumerate(("first", "projection", "generator")):
            counted = list(counter.counted.values())[epoch * self.options.steps :][: self.options.steps]
            plain.phase(phase == "generator")
            with operation_counter() as counted_plain:
                plain.step(0)
            found[phase] = {
                "ours": sum(counted) / len(counted) / self.options.batch_size,
                "plain": counted_plain.get_total_flops(),
            }
        return found

    def peak(self, path, folder):
        """MiB over the weights at the peak of loss and backward pass of one batch, on one of `PATHS`."""
        trainer = self.distillation_trainer(folder, Clock(self.now))
        plain = PlainDistillation(trainer, self.rows["reasoning"], self.options.batch_size)
        batch = {key: value.to(self.device) for key, value in next(iter(trainer.get_train_dataloader())).items()}
        if path == "checkpointed":
            trainer.model.activation_checkpointing_enable()
        start = memory(self.device, reset=True)
        with trainer.accelerator.autocast():
            loss = plain.loss(batch) if path == "full" else trainer.compute_loss(trainer.model, batch)
        loss.backward()
        # The kernel's count of resident memory lags a little, so a small peak can come out below the start.
        return max(memory(self.device) - start, 0) / 2**20


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


def table(rows):
    """The figures as lines of markdown."""
    lines = ["| size | threads | stage | what | samples/s | plain, kept | plain | ratio, kept | ratio |"]
    lines.append("|---|---:|---|---|---:|---:|---:|---:|---:|")
    for row in rows:
        for stage, ways in ((name, row[name]) for name in ("stage1", "stage2") if name in row):
            for way in (name for name in ways if name.startswith("ours")):
                for what in (name for name in ways[way] if name != "once"):
                    # The plain loops have no first epoch of their own.
                    slow = "head" if (stage, what) == ("stage1", "first") else what
                    kept, plain, seconds = ways["kept"][slow], ways["nothing kept"][slow], ways[way][what]
                    epochs = sum(STAGE1_EPOCHS if stage == "stage1" else STAGE2_EPOCHS) if what == "run" else 1
                    rates = " | ".join(f"{epochs / value:.2f}" for value in (seconds, kept, plain))
                    label = f"{'later run: ' if way != 'ours' else ''}{what}"
                    ratios = f"{kept / seconds:.1f} | {plain / seconds:.1f}"
                    lines.append(f"| {row['size']} | {row['threads']} | {stage} | {label} | {rates} | {ratios} |")
        for phase, counts in row.get("operations", {}).items():
            ours, plain = (counts[path] / 1e9 for path in ("ours", "plain"))
            lines.append(
                f"\n{row['size']}, stage 2, {phase}: GFLOP a sample {ours:.1f} of {plain:.1f}: {plain / ours:.1f}"
            )
        if "memory_mib" in row:
            full = row["memory_mib"]["full"]
            for path in PATHS[:-1]:
                part = row["memory_mib"][path]
                lines.append(
                    f"\n{row['size']}: peak MiB over the weights {part:.0f} of {full:.0f}, {path}: {part / full:.2f}"
                )
    return lines


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["small", "large"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3, help="steps an epoch of the trainers")
    parser.add_argument("--plain_samples", type=int, default=16, help="samples of the plain loop of stage 2")
    parser.add_argument("--question_cache_gb", type=float, default=4.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: this process's seconds, on a busy machine"
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--peak", choices=PATHS, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    datasets.disable_progress_bars()
    rows = []
    for size in options.sizes:
        for threads in options.threads:
            torch.set_num_threads(threads)
            # What is computed once is computed here, not found in the user's store.
            with tempfile.TemporaryDirectory() as folder:
                datasets.config.HF_DATASETS_CACHE = Path(folder)
                bench = Bench(size, options)
                if options.peak:
                    print(bench.peak(options.peak, folder))
                    return
                millions = sum(p.numel() for p in bench.host.parameters()) / 1e6
                row = {"size": size, "host_millions": round(millions, 1), "threads": threads}
                if "stage1" in options.parts:
                    row["stage1"] = bench.alignment(folder)
                if "stage2" in options.parts:
                    row["stage2"] = bench.distillation(folder)
                if "operations" in options.parts:
                    row["operations"] = bench.operations(folder)
            rows.append(row)
        if "memory" in options.parts:
            rows[-1]["memory_mib"] = {path: peak_in_own_process(path, size, options) for path in PATHS}
    print("\n".join(table(rows)))
    settings = {key: value for key, value in vars(options).items() if key not in ("output", "peak")}
    result = {"environment": environment(torch.device(options.device)), "settings": settings, "rows": rows}
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"train_speed-{options.device}-{'-'.join(options.sizes)}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"Written to {path}")


if __name__ == "__main__":
    main()
