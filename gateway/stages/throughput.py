"""How much went out since the start, for the metrics: rates are made of it by who reads it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Throughput:
    """What was put on the wire to each destination.

    Attributes:
        sends: By destination and what became of it: an outcome, or ``unknown``.
        bytes: Of what was delivered, by destination.
    """

    sends: dict[tuple[str, ...], float] = field(default_factory=dict)
    bytes: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, outcome: str, size: int) -> None:
        """Count one send.

        Args:
            name: The destination.
            outcome: What became of it.
            size: Its bytes; counted when it was delivered.
        """
        self.sends[name, outcome] = self.sends.get((name, outcome), 0.0) + 1
        if outcome == "delivered":
            self.bytes[name] = self.bytes.get(name, 0.0) + size
