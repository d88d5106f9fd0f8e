"""The HTTP door: health for probes, metrics for Prometheus, and the web console for people.

``door`` listens; ``app`` says what is served; ``pages`` are the console's, for who has a session (``sessions``,
``accounts``) and, to change something, a form that was made for him (``forms``). ``live`` tells a page that it is out of
date. What the ledger holds is read beside the gateway, on threads of the console's own, and changed by the same verbs
as on the command line.
"""

from __future__ import annotations

from gateway.edges.console.door import CONNECTIONS, HttpDoor
from gateway.edges.console.pages import Pages
from gateway.edges.console.running import Running

__all__ = ["CONNECTIONS", "HttpDoor", "Pages", "Running"]
