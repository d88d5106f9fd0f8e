"""What the console knows of the gateway that runs: what the ledger does not tell, and the hand that acts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from gateway.config import Configuration
from gateway.ledger.inventory import Partners

Document = dict[str, Any]


class Running(Protocol):
    """The gateway around the console. Properties are of this moment, and do not block."""

    @property
    def configuration(self) -> Configuration:
        """In force now."""

    @property
    def doors(self) -> Mapping[str, bool]:
        """Whether each listening door is open, by its section."""

    @property
    def partners(self) -> Partners:
        """The latest counts of the partners."""

    @property
    def room(self) -> tuple[int, int]:
        """Free and all bytes of the disk under the data folder."""

    @property
    def proof(self) -> tuple[int | None, float]:
        """How many items the last conservation proof could not account for, and when, in seconds since the epoch."""

    @property
    def search_key(self) -> bytes:
        """Under which a patient's numbers are hashed."""

    @property
    def certificates(self) -> Mapping[str, float]:
        """When each certificate in use runs out, in seconds since the epoch, by what it is for."""

    def partner_list(self) -> list[Document]:
        """List the partners with what their certificates are worth. Blocks."""

    def prove(self) -> Document:
        """Make the conservation proof. Blocks, for as long as it takes to look at everything."""

    async def perform(self, verb: str, arguments: Mapping[str, Any], who: str) -> Document:
        """Do an operator's verb.

        Raises:
            GatewayError: It has no meaning now.
        """

    async def record(self, kind: str, text: str, who: str) -> None:
        """Write down what a person did at the console."""


class Accounts(Protocol):
    """Who may log in."""

    def verify(self, name: str, password: str) -> str | None:
        """Say what role a name with this password has; None when the two do not belong together. Blocks."""

    def mark(self, name: str) -> str | None:
        """A digest of a user's password and role: another one, and what he began is over. None: nobody is called so."""
