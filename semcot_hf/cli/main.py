"""The `semcot` command: picks the sub-command and turns expected failures into one clear line."""

import errno
import os
import sys
from importlib import import_module

COMMANDS = {
    "demo": "go the whole way on the embedded models: align, distill, evaluate, save, reload",
    "align": "stage 1: train the alignment encoder on (reasoning, condensed reasoning) pairs",
    "distill": "stage 2: train the generator and its projection with the host frozen",
    "evaluate": "accuracy with intervals, latency and the controls, of a checkpoint or any causal LM",
    "generate": "answer the questions of a JSONL file with any model; fast, resumable",
    "condense": "make the reasoning and condensed reasoning that a dataset lacks; resumable",
    "convert": "turn a checkpoint published by SemCoT's authors into one of this package",
    "data": "check a dataset for faults and overlapping splits; write a cleaned copy",
    "bench": "measure: speed against the limit, or the methods against each other",
}


def main(argv=None):
    """Run `semcot COMMAND [flags]`; returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0
    command, *rest = argv
    if command not in COMMANDS:
        print(f"semcot: unknown command {command!r}\n\n{_usage()}", file=sys.stderr)
        return 2
    # Set before the libraries that read them at import.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        return import_module(f".{command.replace('-', '_')}", __package__).run(rest) or 0
    except KeyboardInterrupt:
        print("\nsemcot: interrupted; nothing unfinished was left in place of a result.", file=sys.stderr)
        return 130
    except Exception as error:
        # safetensors and torch report a full disk by errors of their own.
        if "No space left on device" in str(error) or getattr(error, "errno", None) == errno.ENOSPC:
            where = getattr(error, "filename", None) or error
            print(f"semcot: the disk is full ({where}); free space and rerun.", file=sys.stderr)
            return 1
        if not isinstance(error, (OSError, ValueError)):
            raise
        print(f"semcot: {error}", file=sys.stderr)
        return 1


def _usage():
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    usage = "usage: semcot COMMAND [--config FILE.yaml] [flags]"
    return "\n".join([usage, "", *lines, "", "semcot COMMAND --help explains its flags."])


if __name__ == "__main__":
    sys.exit(main())
