"""Progress of a job of several stages: which one is running, and how long it has left."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback


class Stages:
    """A bar for each stage on a terminal; elsewhere a line when a stage starts and when it ends.

    Args:
        names: the stages in their order.
        stream: where to write, standard error by default.
    """

    def __init__(self, names, stream=None):
        self.names = list(names)
        self._console = Console(file=stream or sys.stderr)
        self._live = self._console.is_terminal
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self._console,
            disable=not self._live,
        )
        self._index = -1
        self._task = None
        self._began = 0.0

    def __enter__(self):
        self._bars.start()
        return self

    def __exit__(self, *_):
        self._bars.stop()

    def start(self, name):
        """Begin stage `name`, the next one."""
        self._index = self.names.index(name)
        self._began = time.monotonic()
        title = f"{self._index + 1}/{len(self.names)} {name}"
        if self._live:
            self._task = self._bars.add_task(title, total=1.0)
        else:
            self._console.print(f"{title} ...")

    def update(self, share):
        """Say that `share` (0 to 1) of the running stage is done."""
        if self._live:
            self._bars.update(self._task, completed=share)

    def finish(self):
        """End the running stage."""
        if self._live:
            self._bars.update(self._task, completed=1.0)
        else:
            name = self.names[self._index]
            self._console.print(
                f"{self._index + 1}/{len(self.names)} {name} done in {time.monotonic() - self._began:.0f} s"
            )


class StageCallback(TrainerCallback):
    """Hands a trainer's progress to the running stage."""

    def __init__(self, stages):
        self._stages = stages

    def on_step_end(self, args, state, control, **kwargs):
        self._stages.update(state.global_step / state.max_steps)
