"""A gateway around the console that is data, and the people who may log in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from gateway.config import Configuration
from gateway.errors import GatewayError
from gateway.ledger.inventory import Partners

NOW = datetime.now(UTC)


@dataclass
class Around:
    """A gateway around the console whose answers are data."""

    configuration: Configuration
    doors: dict[str, bool] = field(default_factory=lambda: {"smtp": True})
    partners: Partners = field(default_factory=Partners)
    room: tuple[int, int] = (50 << 30, 100 << 30)
    proof: tuple[int | None, float] = (0, NOW.timestamp())
    search_key: bytes = b"k" * 32
    certificates: dict[str, float] = field(default_factory=dict)
    done: list[tuple[str, Mapping[str, Any], str]] = field(default_factory=list)
    recorded: list[tuple[str, str]] = field(default_factory=list)
    no: GatewayError | None = None
    proofs: int = 0

    def partner_list(self) -> list[dict[str, Any]]:
        return []

    def prove(self) -> dict[str, Any]:
        self.proofs += 1
        counts = dict.fromkeys(
            ("in", "delivered", "waiting", "refused", "held", "failed", "unaccounted", "doubtful"), 7
        )
        return {**counts, "instances": counts, "astray": ["in-lost"]}

    async def perform(self, verb: str, arguments: Mapping[str, Any], who: str) -> dict[str, Any]:
        if self.no is not None:
            raise self.no
        self.done.append((verb, arguments, who))
        return {}

    async def record(self, kind: str, _text: str, who: str) -> None:
        self.recorded.append((kind, who))


class People:
    """Who may log in: name, password, role."""

    def __init__(self) -> None:
        self.known = {"otto": ("right", "operator"), "vera": ("right", "user")}

    def verify(self, name: str, password: str) -> str | None:
        known, role = self.known.get(name, (None, None))
        return role if known == password else None

    def mark(self, name: str) -> str | None:
        return "/".join(self.known[name]) if name in self.known else None
