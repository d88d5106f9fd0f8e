"""The HTTP door: health for probes, metrics for Prometheus, and the web console for people.

``door`` listens and ``app`` says what is served. Of the console, ``gate`` lets people in (``sessions``, ``accounts``,
``forms``), ``pages`` asks what a page shows and ``press`` makes it from its template; ``live`` tells a page that it is
out of date. What the ledger holds is read beside the gateway, on threads of the console's own, and changed by the same
verbs as on the command line.
"""

from __future__ import annotations

from gateway.edges.console.door import CONNECTIONS, HttpDoor
from gateway.edges.console.pages import Pages
from gateway.edges.console.running import Running

__all__ = ["CONNECTIONS", "HttpDoor", "Pages", "Running"]
