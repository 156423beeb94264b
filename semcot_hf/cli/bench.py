"""`semcot bench`: the benchmarks of methods and of speed."""

import shlex
import sys

from .arguments import parse

BENCHES = {
    "speed": "latency, throughput and memory of each method, relative to a lower bound",
    "methods": "accuracy and cost of SemCoT and its peers, trained and evaluated the same way",
    "alignment": "settings of stage 1, one at a time, judged by retrieval; and what the alignment loss adds",
}


def run(argv: list[str]) -> int:
    """Run `semcot bench NAME [flags]` and return the exit status."""
    name, *rest = argv or ["--help"]
    usage = ["usage: semcot bench NAME [--config FILE.yaml] [flags]", ""]
    usage += [f"  {bench:<9} {text}" for bench, text in BENCHES.items()]
    usage += ["", "semcot bench NAME --help explains its flags."]
    if name in ("-h", "--help"):
        print("\n".join(usage))
        return 0
    if name not in BENCHES:
        print("\n".join([f"semcot bench: unknown benchmark {name!r}\n", *usage]), file=sys.stderr)
        return 2
    command = shlex.join(["semcot", "bench", *argv])
    {"methods": _bench_methods, "speed": _bench_speed, "alignment": _bench_alignment}[name](rest, command)
    return 0


def _bench_methods(argv: list[str], command: str) -> None:
    from ..bench.report import overview
    from ..bench.run import BenchSettings, run_bench

    (settings,) = parse("semcot bench methods", (BenchSettings,), argv)
    print("\n".join(overview(run_bench(settings, command))))
    print(f"The report is {settings.output_dir}/report.md.")


def _bench_speed(argv: list[str], command: str) -> None:
    from ..bench.speed.report import print_report
    from ..bench.speed.run import PLOT, REPORT, TABLES, measure_speed
    from ..bench.speed.settings import SpeedSettings

    (settings,) = parse("semcot bench speed", (SpeedSettings,), argv)
    print_report(measure_speed(settings, command, lambda line: print(line, flush=True)))
    print(f"{REPORT}, {TABLES} and {PLOT} are in {settings.output_dir}.")


def _bench_alignment(argv: list[str], command: str) -> None:
    from ..alignment.config import SemCoTAlignmentConfig
    from ..bench.alignment.report import TABLES, sweep_table
    from ..bench.alignment.settings import DEFAULTS, AlignmentBenchSettings
    from ..bench.alignment.sweep import sweep_alignment
    from .arguments import DataArguments, ModelArguments, PeftArguments, load_splits

    parts = (AlignmentBenchSettings, DataArguments, ModelArguments, PeftArguments, SemCoTAlignmentConfig)
    settings, data, models, peft, args = parse("semcot bench alignment", parts, argv, DEFAULTS)
    splits = load_splits(data, "train")
    report = sweep_alignment(
        settings,
        splits,
        models.host,
        models.generator,
        args,
        lambda: peft.peft_config,
        command,
        lambda line: print(line, flush=True),
    )
    print("\n".join(sweep_table(report)))
    print(f"The report is {args.output_dir}/{TABLES}, the best encoder {report['encoder']}.")
