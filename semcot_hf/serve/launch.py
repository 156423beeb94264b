"""`serve`: load a model, build the engine that was asked for, and answer over HTTP until the process is stopped."""

import logging
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import httpx2
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..inference.settings import makes_implicit_tokens
from .config import ServeConfig
from .engine import TransformersEngine
from .front import Front, load_front
from .thoughts import can_be_read
from .vllm import VllmEngine

if TYPE_CHECKING:
    from fastapi import FastAPI

logger = logging.getLogger(__name__)

# vLLM loads and compiles a large host for minutes.
_START_SECONDS = 1800.0


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


def check_address(host: str, port: int) -> None:
    """Raise ValueError if nothing can listen at an address; the models, which take minutes, are loaded behind it."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as found:
            # As servers do: a port that was left a moment ago is free.
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
    except OSError as error:
        raise ValueError(
            f"host={host!r}, port={port}: nothing can listen there ({error.strerror or error}): pass another --port, "
            "or another --host."
        ) from error


def app_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: ServeConfig, urls: list[str] | None = None
) -> "FastAPI":
    """Return the application that answers by a model in this process, or by engines at `urls`.

    Args:
        model: the model; with `urls`, of its host only the word embeddings are used (see `load_front`).
        tokenizer: its tokenizer.
        config: the server's limits.
        urls: addresses of vLLM servers, which are checked first.

    Raises:
        ValueError: for a tokenizer or an engine that does not fit the model.
    """
    from .app import make_app
    from .metrics import Metrics
    from .service import Service

    metrics = Metrics()
    kinds: dict[str, Any] = {"makes_tokens": makes_implicit_tokens(model), "can_be_read": can_be_read(model)}
    kinds["generation_config"] = model.generation_config
    limits: dict[str, Any] = {"tokens_per_batch": config.tokens_per_batch, "max_queue": config.max_queue}
    if urls is None:
        service = Service(model.config, tokenizer, config, signal_problem=signal_problem_of(model), **kinds)
        return make_app(service, TransformersEngine(model, tokenizer, observer=metrics, **limits), metrics)
    engine = VllmEngine(Front(model, tokenizer), urls, api_key=config.engine_api_key, observer=metrics, **limits)
    try:
        engine.check()
        kinds |= {"positions": engine.positions, "signal_problem": signal_problem_of(model, engine.signal_problem)}
        service = Service(model.config, tokenizer, config, **kinds)
    except BaseException:
        engine.close()
        raise
    return make_app(service, engine, metrics)


def signal_problem_of(
    model: PreTrainedModel, of_engine: Callable[[str], str | None] = lambda name: None
) -> Callable[[str, int], str | None] | None:
    """Return the function that says why the server does not know a signal; `None` for models without escalation.

    Args:
        model: the model.
        of_engine: says why the engine does not give a signal, or `None`.
    """
    own: Callable[[str, int], str | None] | None = getattr(model, "signal_problem", None)

    def found(name: str, count: int) -> str | None:
        if name == "agreement":
            return "it takes a second answer, which the server does not make"
        return (None if own is None else own(name, count)) or of_engine(name)

    return None if own is None else found


@contextmanager
def started_engine(host: str | None, layers_elsewhere: bool, options: str = "") -> Iterator[str]:
    """Run `vllm serve` for a host until the end of the block; yield its address.

    Args:
        host: folder or id of the host.
        layers_elsewhere: whether the host's weights are there, and not in the SemCoT checkpoint.
        options: further options of the command, as a shell takes them.

    Raises:
        ValueError: when vLLM is not installed, or the host has no folder of its own.
        OSError: when vLLM ends before it answers.
    """
    if shutil.which("vllm") is None:
        raise ValueError(
            "engine='vllm': there is no command `vllm` to start: install vLLM, or start it elsewhere and pass "
            "--engine_url."
        )
    if not host or not layers_elsewhere:
        raise ValueError(
            "engine='vllm': the checkpoint carries its host, which vLLM cannot open: save it by "
            "model.host.save_pretrained(HOST) with its tokenizer, run `vllm serve HOST --enable-prompt-embeds`, and "
            "pass --engine_url."
        )
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = ["vllm", "serve", host, "--enable-prompt-embeds", "--host", "127.0.0.1", "--port", str(port)]
    command += shlex.split(options)
    process = subprocess.Popen(command)
    try:
        start = time.monotonic()
        while not _answers(url):
            if process.poll() is not None or time.monotonic() - start > _START_SECONDS:
                raise OSError(
                    f"{' '.join(command)} did not start (exit status {process.poll()}); its output is above."
                )
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health", trust_env=False).status_code == 200
    except httpx2.HTTPError:
        return False


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM leave the block by SystemExit.

    By default it ends the process at once, also when uvicorn raises it anew behind its own handling, and an engine
    that was started here would go on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def serve(config: ServeConfig, load: Any) -> None:
    """Answer over HTTP until the process gets SIGINT or SIGTERM; open requests are then finished.

    Args:
        config: the model, the address and the limits.
        load: returns model and tokenizer of the embedded engine.
    """
    import uvicorn

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger(__package__).setLevel(logging.INFO)
    engine: Any = nullcontext()
    if config.engine == "vllm":
        model: Any = load_front(config.model, config.dtype)
        tokenizer = AutoTokenizer.from_pretrained(config.model)
        if not config.engine_url:
            engine = started_engine(
                model.config.host_name_or_path, not model.config.includes_host, config.engine_options
            )
    else:
        model, tokenizer = load(config)
    with _ended_by_sigterm(), engine as url:
        urls = None if config.engine == "transformers" else config.engine_url or [url]
        uvicorn.run(
            app_of(model, tokenizer, config, urls),
            host=config.host,
            port=config.port,
            access_log=False,
            log_level="info",
            server_header=False,
            timeout_graceful_shutdown=int(config.request_timeout) + 1,
        )
