"""`semcot serve`: an OpenAI-compatible endpoint for a checkpoint."""

from collections.abc import Sequence

from transformers.utils import logging

from ..serve.config import ServeConfig
from ..serve.launch import check_address, check_extra, serve
from .arguments import check_place, load_model, parse


def run(argv: Sequence[str]) -> None:
    """Load the model and answer until the process is stopped."""
    (config,) = parse("semcot serve", (ServeConfig,), argv)
    check_extra("serve", "fastapi", "uvicorn", "prometheus_client")
    check_place(config.model)
    check_address(config.host, config.port)
    logging.disable_progress_bar()
    serve(config, load_model)
