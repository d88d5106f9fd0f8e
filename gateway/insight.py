"""What the web console sees of the running gateway beyond the ledger, and the hand with which it acts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from gateway import control, partners
from gateway.config import Configuration
from gateway.ledger import events, inventory
from gateway.ledger.ledger import Ledger
from gateway.metrics import Readings

Document = dict[str, Any]


class Insight:
    """The gateway as the console needs it.

    Args:
        configuration: Gives what is in force now: a reload changes it.
        readings: The latest numbers.
        ledger: To write down what people do.
        search_key: Under which a patient's numbers are hashed.
        perform: Does an operator's verb, as for the command line.
    """

    def __init__(
        self,
        configuration: Callable[[], Configuration],
        readings: Readings,
        ledger: Ledger,
        search_key: bytes,
        perform: Callable[[str, Mapping[str, Any], str], Awaitable[Document]],
    ) -> None:
        self.search_key = search_key
        self._configuration = configuration
        self._readings = readings
        self._ledger = ledger
        self._perform = perform

    @property
    def configuration(self) -> Configuration:
        """In force now."""
        return self._configuration()

    @property
    def doors(self) -> Mapping[str, bool]:
        """Whether each listening door is open, by its section."""
        return self._readings.doors

    @property
    def partners(self) -> inventory.Partners:
        """The latest counts of the partners."""
        return self._readings.partners

    @property
    def room(self) -> tuple[int, int]:
        """Free and all bytes of the disk under the data folder."""
        return self._readings.free_bytes, self._readings.capacity

    @property
    def proof(self) -> tuple[int | None, float]:
        """What the last conservation proof could not account for, and when it was made, in seconds since the epoch."""
        return self._readings.unaccounted, self._readings.proved

    @property
    def certificates(self) -> Mapping[str, float]:
        """When each certificate in use runs out, in seconds since the epoch, by what it is for."""
        return self._readings.certificates

    def partner_list(self) -> list[Document]:
        """List the partners with what their certificates are worth. Blocks."""
        found: list[Document] = partners.listing(self.configuration, datetime.now(UTC))["partners"]
        return found

    def prove(self) -> Document:
        """Make the conservation proof. Blocks."""
        return control.call(self.configuration, "reconcile")

    async def perform(self, verb: str, arguments: Mapping[str, Any], who: str) -> Document:
        """Do an operator's verb. Raises GatewayError when it has no meaning now."""
        return await self._perform(verb, arguments, who)

    async def record(self, kind: str, text: str, who: str) -> None:
        """Write down what a person did at the console."""
        now = datetime.now(UTC)
        await self._ledger.write(lambda c: events.tell(c, now, kind, text, who=who))
