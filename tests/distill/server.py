"""An HTTP server that speaks the OpenAI protocol, and fails in the ways asked of it."""

import json
import re
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from starec_ray.distill.teachers import CUT_OFF

FAULTS = (
    "HTTP 408",
    "HTTP 429",
    "HTTP 500",
    "timeout",
    "connection lost",
    "empty answer",
    "no completion",
)
# Other things that are no completion, by the body that is sent.
BROKEN = {
    "a proxy's page": b"<html>not here</html>",
    "no text at all": b"\xff\xfe\x00\xd8",
    "no object": b'"done"',
    "no choices": b'{"object": "chat.completion", "choices": []}',
    "a choice of nothing": b'{"object": "chat.completion", "choices": [{}]}',
    "choices that are no list": b'{"object": "chat.completion", "choices": {"a": 1}}',
    "a number of choices": b'{"object": "chat.completion", "choices": 3}',
    "a deep nest": b"[" * 100_000,
    "no message": b'{"object": "chat.completion", "choices": [{"index": 0, "message": null}]}',
}
SLOW_S = 1.5


class TeacherServer(ThreadingHTTPServer):
    """Answers chat completions by rule, the first requests with `faults`, one each.

    It thinks, ranks in the order shown, and moves to the front what a correction names. It likes
    whatever the first line of the history says.
    """

    daemon_threads = True

    def __init__(self, faults: Iterable[str], *, reasoning: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.faults = list(faults)
        self.reasoning = reasoning  # "inline", "parts" or the name of a field
        self.seen: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.at_once = self.most_at_once = 0
        self.guard = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


@contextmanager
def teacher_server(
    faults: Iterable[str] = (), *, reasoning: str = "inline"
) -> Iterator[TeacherServer]:
    server = TeacherServer(faults, reasoning=reasoning)
    # Looks often whether it is to end: every test waits for that.
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def answer_to(messages: list[dict[str, str]]) -> tuple[str, str]:
    """(reasoning, text) by rule."""
    prompt = messages[1]["content"]
    last = messages[-1]["content"]
    if "Candidates:" not in prompt:
        # A word of the title, which may say nothing, or what the summary before began with.
        place = "^Summary: Likes" if "You predicted:" in prompt else r"^\+"
        liked = re.search(rf"{place} ([\w-]+)", prompt, re.MULTILINE)
        return "The latest was liked a lot.", f"Likes {liked[1] if liked else 'nothing'}."
    listed = prompt.split("Candidates:\n")[1].split("\nSummary: ")[0]
    names = [line.split(" (")[0] for line in listed.splitlines()]
    names = [re.sub(r"( \d)$", "", name) for name in names]
    if chosen := re.search(r"The user chose (.+?), which you placed", last):
        names.sort(key=lambda name: name != chosen[1])
    lines = [f"{rank}. {name}" for rank, name in enumerate(names, start=1)]
    return "These stand as they were shown.", "\n".join(lines)


class _Handler(BaseHTTPRequestHandler):
    server: TeacherServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.guard:
            fault = self.server.faults.pop(0) if self.server.faults else ""
            self.server.seen.append(request)
            self.server.keys.append(self.headers["Authorization"])
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        try:
            self._answer(request, fault)
        finally:
            with self.server.guard:
                self.server.at_once -= 1

    def _answer(self, request: dict[str, Any], fault: str) -> None:
        if fault.startswith("HTTP "):
            self._send(int(fault.split()[1]), b'{"error": {"message": "not now"}}')
            return
        if fault == "no completion" or fault in BROKEN:
            self._send(200, BROKEN.get(fault, BROKEN["a proxy's page"]))
            return
        if fault == "timeout":
            time.sleep(SLOW_S)
        reasoning, text = answer_to(request["messages"])
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if fault == "empty answer":
            message["content"] = ""
        elif fault == CUT_OFF:
            message["content"] = f"<think>{reasoning}"
        elif self.server.reasoning == "inline":
            message["content"] = f"<think>{reasoning}</think>\n{text}"
        elif self.server.reasoning == "parts":
            thoughts = [{"type": "text", "text": reasoning}]
            message["content"] = [
                {"type": "thinking", "thinking": thoughts},
                {"type": "text", "text": text},
            ]
        else:
            message[self.server.reasoning] = reasoning
        finish = "length" if fault == CUT_OFF else "stop"
        body = json.dumps(
            {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": request["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": finish}],
                "usage": {"prompt_tokens": 50, "completion_tokens": 10, "total_tokens": 60},
            }
        ).encode()
        self._send(200, body, cut=fault == "connection lost")

    def _send(self, status: int, body: bytes, *, cut: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == 429:
            self.send_header("Retry-After", "0.05")
        self.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):  # the client has given up waiting
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True

    def log_message(self, *args: Any) -> None:
        """Nothing on the test's output."""
