"""`semcot bench`: picks the benchmark."""

import sys
from importlib import import_module

BENCHES = {
    "speed": "latency, throughput and memory of each method, against the least that the hardware needs",
    "methods": "accuracy of SemCoT and of the methods of others, trained and judged alike",
}


def run(argv):
    """Run `semcot bench NAME [flags]`; returns the exit status."""
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        print(_usage())
        return 0
    if name not in BENCHES:
        print(f"semcot bench: unknown benchmark {name!r}\n\n{_usage()}", file=sys.stderr)
        return 2
    return import_module(f".bench_{name}", __package__).run(rest)


def _usage():
    lines = [f"  {name:<8} {text}" for name, text in BENCHES.items()]
    usage = "usage: semcot bench NAME [--config FILE.yaml] [flags]"
    return "\n".join([usage, "", *lines, "", "semcot bench NAME --help explains its flags."])
