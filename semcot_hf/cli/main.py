"""The `semcot` command: dispatch to the subcommands, and expected failures as one line on stderr."""

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "demo": "run the whole pipeline on the embedded models: align, distill, evaluate, reload",
    "align": "stage 1: train the alignment encoder on (reasoning, condensed reasoning) pairs",
    "distill": "stage 2: train the generator and its projection; the host stays frozen",
    "evaluate": "report accuracy with intervals, latency and controls of a checkpoint or any causal LM",
    "calibrate": "fit when implicit answers are kept and when the host reasons in words, on validation questions",
    "answer-prompt": "choose the text before an answer on validation questions",
    "few-shot": "choose the number of worked examples for the host on validation questions",
    "candidates": "choose the number of candidate thoughts on validation questions",
    "generate": "answer the questions of a JSONL file with any model; resumable",
    "serve": "answer over HTTP, with OpenAI's API: /v1/chat/completions and /v1/completions",
    "page": "show a checkpoint's answers with and without implicit tokens in the browser",
    "condense": "add the reasoning and condensed reasoning that a dataset lacks; resumable",
    "convert": "convert a checkpoint published by SemCoT's authors",
    "data": "check a dataset for errors and overlapping splits; write a cleaned copy",
    "bench": "benchmark speed, or the accuracy of SemCoT and other methods",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `semcot COMMAND [flags]` and return the exit status."""
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
        print("\nsemcot: interrupted; no incomplete result was written.", file=sys.stderr)
        return 130
    except Exception as error:
        # safetensors and torch report a full disk with their own exceptions.
        if "No space left on device" in str(error) or getattr(error, "errno", None) == errno.ENOSPC:
            # Of a copy, the first name is that of its source.
            where = getattr(error, "filename2", None) or getattr(error, "filename", None) or error
            print(f"semcot: the disk is full ({where}); free space and rerun.", file=sys.stderr)
            return 1
        if not isinstance(error, (OSError, ValueError)):
            raise
        print(f"semcot: {error}", file=sys.stderr)
        return 1


def _usage() -> str:
    """Return the list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    usage = "usage: semcot COMMAND [--config FILE.yaml] [flags]"
    return "\n".join([usage, "", *lines, "", "Run semcot COMMAND --help for its flags."])


if __name__ == "__main__":
    sys.exit(main())
