"""A chat-completions server on 127.0.0.1 that answers truly, or fails, stalls and rate-limits as it is told."""

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ChatServer:
    """Answers the requests for `rows` (in the schema, with reasoning) like a model that knows them.

    Attributes:
        behave: function (stage, query, number of this request for both, from 1) -> what to do: "ok", "wrong", "long",
            "half" (ends on half a surrogate pair), "empty", "cut", "garbage" (200 without a completion), "drop" (close
            the connection), "hold" (no answer until `released` is set, then close), or (status, headers).
        asked: requests that came, by (stage, query).
        answered: completions that were sent, by (stage, query).
        arrivals: (time, stage, query) of each request.
        bodies: their contents.
    """

    def __init__(self, rows):
        self.rows = {row["query"]: row for row in rows}
        self.behave = lambda stage, query, number: "ok"
        self.asked, self.answered = Counter(), Counter()
        self.arrivals, self.bodies, self.keys = [], [], set()
        self.released = threading.Event()
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"chat": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self):
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    chat: ChatServer

    def do_POST(self):
        chat = self.chat
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        stage = "reasoning" if prompt.startswith("Solve") else "condensed_reasoning"
        row = next(row for query, row in chat.rows.items() if query in prompt)
        about = stage, row["query"]
        with chat.lock:
            chat.asked[about] += 1
            chat.arrivals.append((time.monotonic(), *about))
            chat.bodies.append(body)
            chat.keys.add(self.headers["Authorization"])
            number = chat.asked[about]
        action = chat.behave(*about, number)
        if action == "hold":
            chat.released.wait()
        if action in ("hold", "drop"):
            self.close_connection = True
            return
        if isinstance(action, tuple):
            status, headers = action
            return self._send(status, {"error": "told to"}, headers)
        if action == "garbage":
            return self._send(200, {"detail": "try later"})
        text = {
            ("reasoning", "ok"): f"{row['reasoning']} The answer is {row['answer']}.",
            ("reasoning", "wrong"): f"{row['reasoning']} The answer is {int(row['answer']) + 1}.",
            ("reasoning", "half"): f"{row['reasoning']} The answer is {row['answer']}. \ud83d",
            ("condensed_reasoning", "ok"): row["condensed_reasoning"],
            ("condensed_reasoning", "long"): "so " * 30 + row["answer"],
        }.get((stage, action), "" if action == "empty" else row["reasoning"])
        with chat.lock:
            chat.answered[about] += 1
        reply = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "length" if action == "cut" else "stop",
                    "message": {"role": "assistant", "content": text},
                }
            ],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }
        return self._send(200, reply)

    def _send(self, status, content, headers=None):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass
