"""The requests of OpenAI's API: their fields, what they may hold, and the sampling that they ask for."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from .jobs import Sampling

Positive = Annotated[int, Field(ge=1)]


def _absent(value: Any) -> None:
    """Accept a field that is not supported as long as it asks for nothing."""
    asks_nothing = value is None or value is False or value == 0 or value in ({}, [], "", "none", {"type": "text"})
    if not asks_nothing:
        raise ValueError("is not supported here: leave it out")
    return None


Unsupported = Annotated[None, BeforeValidator(_absent)]


def _characters(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError("holds half a surrogate pair, which is not a character: correct the text") from error
    return value


Text = Annotated[str, BeforeValidator(_characters)]


class Fields(BaseModel):
    """A part of a request; unknown fields are errors, so that a misspelt one is not overlooked."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


class StreamOptions(Fields):
    """What a streamed answer holds beside its text."""

    include_usage: bool = False
    include_obfuscation: Any = None


class TextPart(Fields):
    """A part of a message; only texts are accepted."""

    type: Literal["text"]
    text: Text


class Message(Fields):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    name: str | None = None
    refusal: Unsupported = None
    tool_calls: Unsupported = None
    function_call: Unsupported = None
    audio: Unsupported = None
    reasoning_content: Unsupported = None

    def plain(self) -> dict[str, str]:
        """Return the message as chat templates take it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": content}


class SamplingFields(Fields):
    """How tokens are chosen."""

    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)


class Configured(SamplingFields):
    """What is read of a GenerationConfig."""

    model_config = ConfigDict(extra="ignore")

    max_new_tokens: Positive | None = None
    do_sample: bool | None = None


class AnswerRequest(SamplingFields):
    """What both kinds of requests have."""

    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Positive | None = 1
    stop: Text | list[Text] | None = None
    max_tokens: Positive | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    implicit_tokens: Annotated[int, Field(ge=0, le=4096)] | Literal["text"] | None = None
    escalation: bool | Annotated[float, Field(ge=0, le=1)] | None = None
    # What `transformers chat` sends; see `sampling`.
    generation_config: str | None = None
    # These say nothing that changes an answer.
    user: Any = None
    store: Any = None
    metadata: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    parallel_tool_calls: Any = None
    request_id: Any = None
    presence_penalty: Unsupported = None
    frequency_penalty: Unsupported = None
    logit_bias: Unsupported = None
    prompt_embeds: Unsupported = None

    @field_validator("stop")
    @classmethod
    def _stops(cls, value: str | list[str] | None) -> str | list[str] | None:
        texts = value if isinstance(value, list) else [] if value is None else [value]
        if len(texts) > 16 or any(not 1 <= len(text) <= 256 for text in texts):
            raise ValueError("must be at most 16 texts of 1 to 256 characters")
        return value

    @field_validator("generation_config")
    @classmethod
    def _config(cls, value: str | None) -> str | None:
        try:
            _configured(value)
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(map(str, problem["loc"]))
            said = f"{field}: {problem['msg']}" if field else "must be the JSON text of a GenerationConfig"
            raise ValueError(said) from error
        return value

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        return tuple([self.stop] if isinstance(self.stop, str) else self.stop or ())

    @property
    def choices(self) -> int:
        """The number of answers to each prompt."""
        return self.n or 1

    def asked_tokens(self) -> int | None:
        """Return the limit of new tokens that the request sets, or `None`."""
        return self.max_tokens if self.max_tokens is not None else _configured(self.generation_config).max_new_tokens

    def sampling(self) -> Sampling:
        """Return how tokens are chosen; fields of the request take precedence over its `generation_config`."""
        config = _configured(self.generation_config)
        given = {
            name: getattr(config, name) if getattr(self, name) is None else getattr(self, name)
            for name in SamplingFields.model_fields
        }
        if self.temperature is None and config.do_sample is False:
            given["temperature"] = 0.0
        top_k = given.pop("top_k")
        return Sampling(top_k=None if top_k is None else max(0, top_k), seed=self.seed, **given)


def _configured(text: str | None) -> Configured:
    return Configured.model_validate_json("{}" if text is None else text)


class LoadRequest(Fields):
    """The body of /load_model, by which `transformers chat` has a model loaded."""

    model: str | None = None


class ChatRequest(AnswerRequest):
    """The body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: Unsupported = None
    tool_choice: Unsupported = None
    functions: Unsupported = None
    function_call: Unsupported = None
    response_format: Unsupported = None
    reasoning_effort: Unsupported = None
    modalities: Any = None

    def asked_tokens(self) -> int | None:
        return super().asked_tokens() if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionRequest(AnswerRequest):
    """The body of /v1/completions."""

    prompt: Text | list[Text] | list[int] | list[list[int]]
    logprobs: int | None = Field(None, ge=0, le=20)
    best_of: Literal[1] | None = None
    echo: Unsupported = None
    suffix: Unsupported = None

    def prompts(self) -> list[str | list[int]]:
        """Return the prompts, texts or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if all(isinstance(part, int) for part in self.prompt):
            return [list(self.prompt)] if self.prompt else []  # type: ignore[arg-type]  # all of them are numbers
        return list(self.prompt)  # type: ignore[arg-type]  # none of them is
