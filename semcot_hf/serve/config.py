"""`ServeConfig`: the flags of `semcot serve`."""

import ipaddress
import os
from dataclasses import dataclass, field

from ..inference.escalating import escalation_argument
from ..options import check_range, option

ENGINES = ("transformers", "vllm")


@dataclass(kw_only=True)
class ServeConfig:
    """The model, the address, and the limits of a server."""

    model: str = field(metadata={"help": "Folder or id of a SemCoT checkpoint or any causal LM."})
    engine: str = option("transformers", "'transformers' (in this process) or 'vllm' (behind this one).")
    engine_url: list[str] | None = option(
        None, "Addresses of `vllm serve HOST --enable-prompt-embeds`; each request goes to the least busy one."
    )
    engine_options: str = option(
        "", "Further options of the `vllm serve` that is started without engine_url, such as '--max-model-len 4096'."
    )
    engine_api_key: str | None = option(
        None, "Key of the engines at engine_url; by default the variable SEMCOT_ENGINE_API_KEY."
    )
    host: str = option("127.0.0.1", "Address to listen on; others than this machine's own need api_key.")
    port: int = option(8080, "Port to listen on.")
    api_key: str | None = option(
        None, "Key that clients send as `Authorization: Bearer KEY`; by default the variable SEMCOT_API_KEY."
    )
    served_model_name: str | None = option(None, "Name of the model for clients; by default the value of model.")
    escalate: str | None = option(
        None,
        "Answer by explicit reasoning where the confidence in the implicit answer is below this threshold; without a "
        "value, by the checkpoint's own rule, which semcot calibrate writes. A request's `escalation` goes before it.",
        alone="own",
    )
    tokens_per_batch: int = option(
        16384, "Most tokens decoded together: answers x (longest prompt + implicit tokens + answer limit)."
    )
    max_queue: int = option(256, "Most requests that wait; further ones get status 429.")
    max_prompt_tokens: int = option(8192, "Longest prompt, in tokens.")
    max_answer_tokens: int = option(
        2048,
        "Longest answer, in tokens; also what chats get that ask for no limit, unless the checkpoint's generation "
        "config has max_new_tokens.",
    )
    max_choices: int = option(16, "Most answers of one request: n, times the number of its prompts.")
    max_body_bytes: int = option(1_000_000, "Largest request body, in bytes.")
    request_timeout: float = option(300.0, "Seconds that a request may take, waiting included.")
    log_prompts: bool = option(False, "Write prompts and answers to the log.")
    dtype: str = option("auto", "Data type of the weights.")
    trust_remote_code: bool = option(False, "Run code that comes with the model.")

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ValueError(f"engine={self.engine!r}: must be one of {ENGINES}.")
        if self.engine_url and self.engine != "vllm":
            raise ValueError(f"engine_url={self.engine_url} needs --engine vllm.")
        if self.engine_options and (self.engine != "vllm" or self.engine_url):
            raise ValueError(
                f"engine_options={self.engine_options!r} are those of an engine that is started here: pass them with "
                "--engine vllm and without --engine_url."
            )
        for url in self.engine_url or ():
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"engine_url={url!r}: must start with http:// or https://.")
        escalation_argument(self.escalate)
        limits = ("tokens_per_batch", "max_queue", "max_prompt_tokens", "max_answer_tokens", "max_choices")
        check_range(self, "[1, inf)", *limits, "max_body_bytes")
        check_range(self, "(0, inf)", "request_timeout")
        check_range(self, "[0, 65535]", "port")
        self.api_key = self.api_key or os.environ.get("SEMCOT_API_KEY") or None
        self.engine_api_key = self.engine_api_key or os.environ.get("SEMCOT_ENGINE_API_KEY") or None
        if not self.api_key and not is_local(self.host):
            raise ValueError(
                f"host={self.host!r} can be reached from other machines: pass --api_key, or keep 127.0.0.1 and put a "
                "proxy in front."
            )

    @property
    def model_name(self) -> str:
        """The name of the model for clients."""
        return self.served_model_name or self.model


def is_local(host: str) -> bool:
    """Return whether only this machine can reach an address.

    >>> is_local("127.0.0.1"), is_local("localhost"), is_local("0.0.0.0")
    (True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
