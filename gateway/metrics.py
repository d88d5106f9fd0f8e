"""What /metrics says: counts of the ledger, the doors and the destinations, as Prometheus reads them.

Numbers of the ledger are taken every few seconds and served from memory: a scrape never waits for the database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway import __version__, logs
from gateway.core.mailbox import State
from gateway.edges import storescp
from gateway.edges.smtp import Counters
from gateway.ledger.inventory import Census
from gateway.stages.poll import Poll

PREFIX: Final = "dicom_mail_"

Values = Iterable[tuple[tuple[str, ...], float]]
"""A sample for each combination of label values."""


@dataclass(slots=True)
class Readings:
    """The latest numbers.

    Attributes:
        census: From the ledger; None before the first look.
        free_bytes: Of the disk under the data folder.
        heartbeat: Seconds since the epoch of the last look: an alarm watches that it moves.
        doors: By name, whether each is open.
        polls: Of the mailboxes.
    """

    census: Census | None = None
    free_bytes: int = 0
    heartbeat: float = 0.0
    doors: dict[str, bool] = field(default_factory=dict)
    polls: list[Poll] = field(default_factory=list)


class LedgerCollector(Collector):
    """Turns the latest numbers into metrics.

    Args:
        readings: Looked at when scraped.
        counters: Of the SMTP door; None when it is shut.
        dicom: Of the DICOM door; None when it is shut.
    """

    def __init__(
        self, readings: Readings, counters: Callable[[], Counters | None], dicom: Callable[[], storescp.Counters | None]
    ) -> None:
        self._readings = readings
        self._counters = counters
        self._dicom = dicom

    def collect(self) -> Iterable[Metric]:
        """Yield every metric."""
        readings = self._readings
        yield _gauge("build_info", "The running release.", ["version"], [((__version__,), 1)])
        yield _gauge(
            "heartbeat_seconds", "When the gateway last looked around, since the epoch.", [], [((), readings.heartbeat)]
        )
        yield _gauge("disk_free_bytes", "Free space under the data folder.", [], [((), readings.free_bytes)])
        yield _gauge("door_open", "Whether a door is open.", ["door"], _named(readings.doors))
        if readings.census is not None:
            yield from _of_the_ledger(readings.census)
        yield from _of_the_mailboxes(readings.polls)
        counters = self._counters()
        if counters is not None:
            yield from _of_the_door(counters)
        dicom = self._dicom()
        if dicom is not None:
            yield from _of_the_dicom_door(dicom)


def _of_the_ledger(census: Census) -> Iterable[Metric]:
    yield _gauge("items", "Messages and collections by outcome.", ["outcome"], _named(census.messages))
    yield _gauge(
        "instances",
        "Instances by destination and outcome.",
        ["destination", "outcome"],
        census.instances.items(),
    )
    yield _gauge(
        "instances_in_doubt", "Sends without a valid answer, by destination.", ["destination"], _named(census.doubtful)
    )
    yield _gauge(
        "instances_unconfirmed",
        "Instances with a success status whose proof is waited for, by destination.",
        ["destination"],
        _named(census.unconfirmed),
    )
    yield _gauge(
        "destination_answered_seconds",
        "When a destination last answered, since the epoch.",
        ["destination"],
        _named(census.answered),
    )
    yield _gauge(
        "oldest_waiting_seconds",
        "Age of the oldest that waits, by destination.",
        ["destination"],
        _named(census.oldest),
    )
    yield _gauge("destination_up", "Whether a destination takes images.", ["destination"], _named(census.up))
    yield _gauge("destination_paused", "Whether a person paused it.", ["destination"], _named(census.paused))
    yield _gauge("notices_open", "Things that a person should look at.", ["kind"], _named(census.notices))
    yield _gauge("tickets", "Rows that wait to be looked at.", ["stage"], _named(census.tickets))


def _of_the_mailboxes(polls: Sequence[Poll]) -> Iterable[Metric]:
    def each(value: Callable[[Poll], float]) -> list[tuple[tuple[str, ...], float]]:
        return [((one.rules.door, one.state), value(one)) for one in polls]

    def count(name: str, what: str, value: Callable[[Poll], float]) -> Metric:
        return _counter(name, what, ["mailbox"], [((one.rules.door,), value(one)) for one in polls])

    labels = ["mailbox", "state"]
    yield _gauge("mailbox_up", "Whether a mailbox is well.", labels, each(lambda one: one.state is State.OK))
    since = "Since when it is well, or is not, since the epoch."
    yield _gauge("mailbox_state_since_seconds", since, labels, each(lambda one: one.since))
    looked = "When a mailbox was last seen to be well, since the epoch; 0: never."
    yield _gauge("mailbox_looked_at_seconds", looked, labels[:1], [((o.rules.door,), o.looked_at) for o in polls])
    yield count("mailbox_taken", "Mails of a mailbox that became items.", lambda one: one.counters.taken)
    yield count("mailbox_repeated", "Mails whose content was known.", lambda one: one.counters.repeated)
    yield count("mailbox_too_big", "Mails over a limit, moved to failed.", lambda one: one.counters.too_big)
    yield count("mailbox_fetched_bytes", "Bytes of mails that were fetched.", lambda one: one.counters.bytes)


def _of_the_door(counters: Counters) -> Iterable[Metric]:
    yield _counter("smtp_sessions", "Connections let in.", [], [((), counters.sessions)])
    yield _counter("smtp_turned_away", "Connections not let in.", [], [((), counters.turned_away)])
    yield _counter("smtp_accepted", "Messages answered with 250.", [], [((), counters.accepted)])
    yield _counter("smtp_accepted_bytes", "Bytes of the messages answered with 250.", [], [((), counters.bytes)])
    replies = _named({"4yz": counters.temporary, "5yz": counters.permanent})
    yield _counter("smtp_refusals", "Replies that refused something.", ["class"], replies)


def _of_the_dicom_door(counters: storescp.Counters) -> Iterable[Metric]:
    yield _counter("storescp_associations", "Associations accepted.", [], [((), counters.associations)])
    yield _counter("storescp_rejected", "Associations rejected.", [], [((), counters.rejected)])
    yield _counter("storescp_turned_away", "Connections closed before a word.", [], [((), counters.turned_away)])
    yield _counter("storescp_aborted", "Associations that did not end with a release.", [], [((), counters.aborted)])
    yield _counter("storescp_stored", "Instances answered with success.", [], [((), counters.stored)])
    yield _counter("storescp_stored_bytes", "Bytes of the instances answered with success.", [], [((), counters.bytes)])
    yield _counter("storescp_failures", "Instances answered with a failure.", [], [((), counters.failures)])
    yield _counter("storescp_reports", "Storage commitment reports taken.", [], [((), counters.reports)])


def _named(values: Mapping[str, float]) -> Values:
    return [((name,), value) for name, value in values.items()]


def _gauge(name: str, text: str, labels: list[str], values: Values) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, text, labels=labels)
    for key, value in values:
        family.add_metric(list(key), value)
    return family


def _counter(name: str, text: str, labels: list[str], values: Values) -> Metric:
    family = CounterMetricFamily(PREFIX + name, text, labels=labels)
    for key, value in values:
        family.add_metric(list(key), value)
    return family


def registry(
    readings: Readings,
    counters: Callable[[], Counters | None],
    dicom: Callable[[], storescp.Counters | None] = lambda: None,
) -> CollectorRegistry:
    """Make the registry of one gateway; two in one process do not mix."""
    made = CollectorRegistry(auto_describe=True)
    made.register(LedgerCollector(readings, counters, dicom))
    made.register(logs.WITHHELD)
    return made
