"""What engines report of their work, and `Metrics`: what Prometheus reads of a server."""

from typing import Any

PHASES = ("queue", "implicit", "prefill", "decode")
_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Observer:
    """What an engine reports of its work; this one keeps nothing, see `Metrics`."""

    def seconds(self, phase: str, seconds: float) -> None:
        """Count the seconds of one phase: "queue", "implicit", "prefill" or "decode"."""

    def tokens(self, kind: str, number: int) -> None:
        """Count tokens: "prompt", "implicit" or "completion"."""

    def load(self, waiting: int, running: int) -> None:
        """Report the number of waiting requests and of answers being decoded."""


class Metrics(Observer):
    """Counters of one server, in a registry of their own.

    Raises:
        ImportError: without the extra `semcot-hf[serve]`.
    """

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        # Imported here, so that the package does not need it.
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._registry = CollectorRegistry()
        common: dict[str, Any] = {"registry": self._registry}
        self._requests = Counter(
            "semcot_requests", "Finished requests by path and status.", ["path", "status"], **common
        )
        self._request_seconds = Histogram(
            "semcot_request_seconds", "Seconds from arrival to the last byte.", ["path"], buckets=_SECONDS, **common
        )
        self._phases = Histogram(
            "semcot_phase_seconds",
            "Seconds of waiting (one request), of implicit tokens and prefill (one batch), of decoding (one step).",
            ["phase"],
            buckets=_SECONDS,
            **common,
        )
        self._tokens = Counter("semcot_tokens", "Tokens by kind: prompt, implicit, completion.", ["kind"], **common)
        self._waiting = Gauge("semcot_waiting_requests", "Requests in the queue.", **common)
        self._running = Gauge("semcot_running_answers", "Answers being decoded.", **common)
        for phase in PHASES:
            self._phases.labels(phase)

    def seconds(self, phase: str, seconds: float) -> None:
        """Count the seconds of one phase."""
        self._phases.labels(phase).observe(seconds)

    def tokens(self, kind: str, number: int) -> None:
        """Count tokens of a kind."""
        self._tokens.labels(kind).inc(number)

    def load(self, waiting: int, running: int) -> None:
        """Set the present load."""
        self._waiting.set(waiting)
        self._running.set(running)

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count a finished request."""
        self._requests.labels(path, str(status)).inc()
        self._request_seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """Return the page that Prometheus reads."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry)
