"""What is served: life, readiness and metrics to everybody, and pages where there are any."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from gateway.edges.console.headers import Headers
from gateway.edges.console.pages import Pages


def application(registry: CollectorRegistry, ready: Callable[[], Sequence[str]], pages: Pages | None = None) -> ASGIApp:
    """Put together what one address serves.

    Args:
        registry: What /metrics shows.
        ready: Asked by /health/ready: the listening doors that are shut and should not be. It must not block.
        pages: The web console; None for none.
    """

    async def live(_: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def is_ready(_: Request) -> Response:
        shut = ready()
        if shut:
            return PlainTextResponse("".join(f"shut: {door}\n" for door in shut), status_code=503)
        return PlainTextResponse("ready\n")

    def metrics(_: Request) -> Response:
        # Not a coroutine, so Starlette runs it in a thread: a collector may ask the ledger.
        return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    routes = [Route("/health/live", live), Route("/health/ready", is_ready), Route("/metrics", metrics)]
    if pages is None:
        return Headers(Starlette(routes=routes))
    return Headers(Starlette(routes=[*routes, *pages.routes()], exception_handlers=pages.complaints()))
