"""What tests of the embedded engine share: jobs, and what `generate` alone answers."""

import contextlib
import queue
import random

import torch

from semcot_hf.serve.engine import TransformersEngine
from semcot_hf.serve.jobs import Job, RequestError, Sampling


class Asked:
    """A job and what came of it."""

    def __init__(self, prompt, **options):
        self.events = queue.Queue()
        options.setdefault("sampling", Sampling(temperature=0.0))
        self.job = Job(prompt, self.events.put, **options)
        self.texts, self.reasons, self.pieces = [""] * self.job.choices, [None] * self.job.choices, []

    def next(self):
        event = self.events.get(timeout=60)
        if isinstance(event, RequestError):
            raise event
        self.pieces.append(event)
        self.texts[event.index] += event.text
        self.reasons[event.index] = event.finish_reason or self.reasons[event.index]

    def wait(self):
        while None in self.reasons:
            self.next()
        return self.texts


@contextlib.contextmanager
def engines(tokenizer):
    """Yield a function (model, **options) -> an engine, which is closed at the end."""
    made = []

    def make(model, **options):
        made.append(TransformersEngine(model, tokenizer, **options))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def prompts_of(number, seed=0, shortest=3, longest=40):
    draw = random.Random(seed)
    return [[draw.randrange(5, 320) for _ in range(draw.randint(shortest, longest))] for _ in range(number)]


def alone(model, tokenizer, prompt, new, count=None):
    ids = torch.tensor([prompt])
    options = {} if count is None else {"num_implicit_tokens": count}
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, **options)
    ends = [model.generation_config.eos_token_id]
    return tokenizer.decode(
        [token for token in output[0, len(prompt) :] if token not in ends], skip_special_tokens=True
    )
