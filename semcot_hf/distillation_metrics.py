"""The parts of stage 2's loss, kept between two logs of training and over an evaluation."""

from collections import defaultdict

import torch


class LossParts:
    """Means of named values over steps and processes.

    Args:
        accelerator: of the trainer.
    """

    def __init__(self, accelerator):
        self._accelerator = accelerator
        self._kept = {"train": defaultdict(list), "eval": defaultdict(list)}

    def add(self, name, value, eval_batch_size=None):
        """Keep a value (scalar); in evaluation once for each row of each process, as Trainer keeps the loss.

        Args:
            eval_batch_size: rows of a batch, in evaluation; `None` in training.
        """
        if eval_batch_size is None:
            self._kept["train"][name].append(value)
        else:
            self._kept["eval"][name].append(self._accelerator.gather_for_metrics(value.repeat(eval_batch_size)))

    def means(self, mode):
        """Mean of each part of "train" or "eval" since the last call, over all processes."""
        means = {}
        for name, values in self._kept[mode].items():
            mean = torch.cat(values).mean() if mode == "eval" else torch.stack(values).mean()
            means[name] = round(self._accelerator.gather(mean).mean().item(), 6)
        self.clear(mode)
        return means

    def clear(self, *modes):
        """Forget what was kept."""
        for mode in modes:
            self._kept[mode].clear()
