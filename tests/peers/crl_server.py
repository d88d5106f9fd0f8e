"""A distribution point: serves CRLs by HTTP, good ones and whatever an attacker would serve in their place."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


@dataclass
class Page:
    """What is answered at a path.

    Attributes:
        content: The body.
        status: Of the answer.
        headers: Further ones.
        drip: Seconds between two bytes of the body; zero: all at once.
        announced: Content-Length; None: the true one.
    """

    content: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    drip: float = 0.0
    announced: int | None = None


class CrlServer:
    """Serves until the end of its ``with``; knows ETags.

    Attributes:
        pages: By path.
        asked: Path and headers of each question.
    """

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        outer, ended = self, threading.Event()
        self._ended = ended

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                page = outer.pages.get(self.path, Page(status=404))
                tag = page.headers.get("ETag")
                if tag is not None and self.headers.get("If-None-Match") == tag:
                    page = Page(status=304)
                self.send_response(page.status)
                for name, value in page.headers.items():
                    self.send_header(name, value)
                length = len(page.content) if page.announced is None else page.announced
                self.send_header("Content-Length", str(length))
                self.end_headers()
                if not page.drip:
                    self.wfile.write(page.content)
                    return
                for at in range(len(page.content)):
                    if ended.is_set():
                        return
                    self.wfile.write(page.content[at : at + 1])
                    time.sleep(page.drip)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                """Say nothing: whoever asks may hang up."""

        self._server = Server(("127.0.0.1", 0), Handler)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        """The address of a page."""
        return f"http://{host}:{self._server.server_port}{path}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()
