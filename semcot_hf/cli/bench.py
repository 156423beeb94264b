"""`semcot bench`: the benchmarks of methods and of speed."""

import shlex
import sys

from .arguments import parse

BENCHES = {
    "speed": "latency, throughput and memory of each method, relative to a lower bound",
    "methods": "accuracy and cost of SemCoT and its peers, trained and evaluated the same way",
}


def run(argv: list[str]) -> int:
    """Run `semcot bench NAME [flags]` and return the exit status."""
    name, *rest = argv or ["--help"]
    usage = ["usage: semcot bench NAME [--config FILE.yaml] [flags]", ""]
    usage += [f"  {bench:<8} {text}" for bench, text in BENCHES.items()]
    usage += ["", "semcot bench NAME --help explains its flags."]
    if name in ("-h", "--help"):
        print("\n".join(usage))
        return 0
    if name not in BENCHES:
        print("\n".join([f"semcot bench: unknown benchmark {name!r}\n", *usage]), file=sys.stderr)
        return 2
    command = shlex.join(["semcot", "bench", *argv])
    if name == "methods":
        _bench_methods(rest, command)
    else:
        _bench_speed(rest, command)
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
