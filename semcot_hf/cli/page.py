"""`semcot page`: a checkpoint's answers side by side in the browser."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from transformers.utils import logging

from ..options import check_range, option
from ..serve.config import is_local
from ..serve.launch import check_address, check_extra
from ..serve.space import push_space
from . import demo
from .arguments import load_model, parse

_DEMO = "runs/demo/model"


@dataclass(kw_only=True)
class PageArguments:
    """The checkpoint, and where its page is shown."""

    model: str = option(
        _DEMO,
        "Folder or id of a SemCoT checkpoint. By default that of `semcot demo`, which is run first where it was not: "
        "some two minutes.",
    )
    host: str = option("127.0.0.1", "Address to listen on; others than this machine's own need password.")
    port: int = option(7860, "Port to listen on.")
    password: str | None = option(
        None, "Password of the user 'semcot'; by default the variable SEMCOT_PAGE_PASSWORD, or none."
    )
    push: str | None = option(None, "Hub id of a Space that shows the page; model is then a Hub id, too.")
    dtype: str = option("auto", "Data type of the weights.")
    trust_remote_code: bool = option(False, "Run code that comes with the model.")

    def __post_init__(self) -> None:
        check_range(self, "[0, 65535]", "port")
        self.password = self.password or os.environ.get("SEMCOT_PAGE_PASSWORD") or None
        if not self.password and not is_local(self.host):
            raise ValueError(
                f"host={self.host!r} can be reached from other machines: pass --password, or keep 127.0.0.1."
            )


def run(argv: Sequence[str]) -> None:
    """Show the page until the process is stopped, or publish it."""
    (arguments,) = parse("semcot page", (PageArguments,), argv)
    if arguments.push:
        print(f"The page is at {push_space(arguments.push, arguments.model)}.")
        return
    check_extra("page", "gradio")
    check_address(arguments.host, arguments.port)
    if arguments.model == _DEMO and not os.path.isdir(_DEMO):
        print("No --model is given: the demo's embedded models are trained first.", flush=True)
        demo.run([])
    from ..demo import QUESTION as DEMO_QUESTION
    from ..serve.comparison import Comparison
    from ..serve.page import QUESTION, show

    logging.disable_progress_bar()
    model, tokenizer = load_model(arguments)
    comparison = Comparison(model, tokenizer)
    show(
        comparison,
        arguments.model,
        DEMO_QUESTION if arguments.model == _DEMO else QUESTION,
        host=arguments.host,
        port=arguments.port,
        password=arguments.password,
    )
