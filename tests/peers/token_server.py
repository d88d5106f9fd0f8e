"""A token endpoint in the shapes of the large providers: client credentials, refresh tokens that are used up."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs


class TokenServer:
    """Serves until the end of its ``with``.

    Args:
        refresh: The refresh token that is valid at first; each use makes it void and gives the next one.
        lasts: Seconds of an access token.
        secret: The client secret.
    """

    def __init__(self, refresh: str = "refresh-0", lasts: int = 3600, secret: str = "s&cret") -> None:
        self.refresh, self.lasts, self.secret = refresh, lasts, secret
        self.asked: list[dict[str, str]] = []
        self.answer: tuple[int, str] | None = None
        """Given in place of everything else."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                status, text = outer.respond({key: value[0] for key, value in parse_qs(body).items()})
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/token"

    def respond(self, asked: dict[str, str]) -> tuple[int, str]:
        """Answer one request (RFC 6749 §4.4, §5, §6)."""
        self.asked.append(asked)
        if self.answer is not None:
            return self.answer
        if asked.get("client_secret") != self.secret or asked.get("client_id") != "client":
            return 401, '{"error": "invalid_client"}'
        answer: dict[str, Any] = {"access_token": f"access-{len(self.asked)}", "token_type": "Bearer"}
        answer["expires_in"] = self.lasts
        if asked["grant_type"] == "refresh_token":
            if asked["refresh_token"] != self.refresh:
                return 400, '{"error": "invalid_grant"}'
            self.refresh = answer["refresh_token"] = f"refresh-{len(self.asked)}"
        return 200, json.dumps(answer)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
