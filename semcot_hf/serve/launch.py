"""`serve`: load a model, build the engine that was asked for, and answer over HTTP until the process is stopped."""

import logging
from importlib.util import find_spec

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..inference.settings import makes_implicit_tokens
from .config import ServeConfig
from .engine import TransformersEngine
from .thoughts import says_words


def check_extra(name: str, *modules: str) -> None:
    """Raise ValueError if a module of one of the package's extras is not installed.

    >>> check_extra("serve", "no_such_module")
    Traceback (most recent call last):
    ...
    ValueError: no_such_module is not installed: pip install "semcot-hf[serve]".
    """
    for module in modules:
        if find_spec(module) is None:
            raise ValueError(f'{module} is not installed: pip install "semcot-hf[{name}]".')


def app_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: ServeConfig):  # type: ignore[no-untyped-def]  # FastAPI is an extra
    """Return the application that answers by a model in this process."""
    from .app import make_app
    from .metrics import Metrics
    from .service import Service

    metrics = Metrics()
    service = Service(
        model.config, tokenizer, config, makes_tokens=makes_implicit_tokens(model), says_words=says_words(model)
    )
    engine = TransformersEngine(
        model,
        tokenizer,
        tokens_per_batch=config.tokens_per_batch,
        max_queue=config.max_queue,
        observer=metrics,
    )
    return make_app(service, engine, metrics)


def serve(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: ServeConfig) -> None:
    """Answer over HTTP until the process gets SIGINT or SIGTERM; open requests are then finished."""
    import uvicorn

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger(__package__).setLevel(logging.INFO)
    app = app_of(model, tokenizer, config)
    uvicorn.run(
        app,
        host=config.host,
        port=config.port,
        access_log=False,
        log_level="info",
        server_header=False,
        timeout_graceful_shutdown=int(config.request_timeout) + 1,
    )
