"""HTTP: requests in, replies out, as one piece or as server-sent events."""

from __future__ import annotations

import json
import select
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

from agents_real.model_server.chat import CHAT
from agents_real.model_server.messages import MESSAGES
from agents_real.model_server.protocols import Json, Protocol, ToolCall, tool_call
from agents_real.model_server.responses import RESPONSES
from agents_real.model_server.scripts import REFUSALS, SCRIPTS, Cut, Ending, Script

__all__ = ["ModelServer"]

_PROTOCOLS = {"/v1/responses": RESPONSES, "/v1/chat/completions": CHAT, "/v1/messages": MESSAGES}
_LONGEST_STALL = 600  # seconds


class ModelServer:
    """The server, in threads of this process, for as long as the `with` block.

    Attributes:
        requests: The models that were asked for, in order.

    Example:
        with ModelServer() as server:
            print(server.url)
    """

    def __init__(self) -> None:
        self.requests: list[str] = []
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.requests = self.requests
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """Where it listens, without a path."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> ModelServer:
        self._thread.start()
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a stalled reply outlives its client by a moment
    requests: list[str]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is no error here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing: standard error is the test's."""

    def do_HEAD(self) -> None:
        self._reply(200, {})

    def do_GET(self) -> None:
        models = [{"id": f"lab-{name}", "object": "model"} for name in (*SCRIPTS, *REFUSALS)]
        self._reply(200, {"object": "list", "data": models})

    def do_POST(self) -> None:
        request: Json = json.loads(self.rfile.read(int(self.headers["content-length"])))
        protocol = _PROTOCOLS.get(self.path.partition("?")[0])
        if protocol is None:
            return self._reply(200 if "count_tokens" in self.path else 404, {"input_tokens": 0})
        self.server.requests.append(str(request.get("model")))
        behaviour = str(request.get("model")).rpartition("lab-")[2]
        if behaviour in REFUSALS:
            return self._reply(*protocol.refuse(REFUSALS[behaviour]))
        return self._perform(protocol, request, SCRIPTS.get(behaviour, SCRIPTS["ok"]))

    def _perform(self, protocol: Protocol, request: Json, script: Script) -> None:
        call = None
        if script.command is not None and not protocol.has_result(request):
            call = tool_call(request, script.command)
        if not request.get("stream"):
            return self._reply_whole(protocol, request, script, call)
        self._begin_stream()
        try:
            self._stream(protocol, request, script, call)
        except Cut:
            self._break_off(protocol, script.ending)
        return None

    def _reply_whole(self, protocol: Protocol, request: Json, script: Script, call: ToolCall | None) -> None:
        if script.ending in (Ending.STALL, Ending.DROP):
            return self._break_off(protocol, script.ending)
        return self._reply(200, protocol.whole(request, script, call))

    def _stream(self, protocol: Protocol, request: Json, script: Script, call: ToolCall | None) -> None:
        for event in protocol.stream(request, script, call):
            self._send(event, named=protocol.names_events)
        self._end_stream()

    def _break_off(self, protocol: Protocol, ending: Ending) -> None:
        if ending is Ending.ERROR:
            self._send(protocol.failure(), named=protocol.names_events)
            return self._end_stream()
        if ending is Ending.STALL:
            self._wait_for_client_to_go()
        self.close_connection = True
        return None

    def _reply(self, status: int, body: Json, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def _send(self, event: Json | str, *, named: bool) -> None:
        name = f"event: {event['type']}\n" if named and isinstance(event, dict) else ""
        data = event if isinstance(event, str) else json.dumps(event)
        self._chunk(f"{name}data: {data}\n\n".encode())

    def _end_stream(self) -> None:
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _wait_for_client_to_go(self) -> None:
        end = time.monotonic() + _LONGEST_STALL
        while time.monotonic() < end:
            readable, _, _ = select.select([self.connection], [], [], 0.2)
            if readable and not self.connection.recv(1024):
                return
