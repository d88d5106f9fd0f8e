"""What /metrics says: counts of the ledger, the doors and the destinations, as Prometheus reads them.

Numbers of the ledger are taken every few seconds and served from memory: a scrape never waits for the database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway import __version__, logs
from gateway.core.mailbox import State
from gateway.edges import storescp
from gateway.edges.smtp import Counters
from gateway.freshness import Freshness
from gateway.ledger.inventory import Census, Delivered, Partners
from gateway.stages.poll import Poll
from gateway.stages.throughput import Throughput

PREFIX: Final = "dicom_mail_"

Values = Iterable[tuple[tuple[str, ...], float]]
"""A sample for each combination of label values."""


BUCKETS: Final = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 4 * 3600, 24 * 3600)
"""Seconds: from a mail that is through at once to one that waited for a PACS over night."""


class Latencies:
    """How long what was delivered took, as histograms since the start."""

    def __init__(self) -> None:
        way_in = "Seconds from the last byte of a mail until all of it was delivered."
        way_out = "Seconds from the last C-STORE of a collection until the relay had all of its mails."
        self._ways = {
            "in": Histogram(f"{PREFIX}mail_to_pacs_seconds", way_in, ["urgent"], registry=None, buckets=BUCKETS),
            "out": Histogram(f"{PREFIX}cstore_to_mail_seconds", way_out, ["urgent"], registry=None, buckets=BUCKETS),
        }

    def add(self, some: Iterable[Delivered]) -> None:
        """Count what was delivered."""
        for one in some:
            self._ways[one.direction].labels("yes" if one.urgent else "no").observe(one.seconds)

    def collect(self) -> Iterable[Metric]:
        """Yield the histograms."""
        for way in self._ways.values():
            yield from way.collect()


@dataclass(slots=True)
class Readings:
    """The latest numbers.

    Attributes:
        census: From the ledger; None before the first look.
        free_bytes: Of the disk under the data folder.
        heartbeat: Seconds since the epoch of the last look: an alarm watches that it moves.
        doors: By name, whether each is open.
        polls: Of the mailboxes.
        certificates: By what each is for, when it runs out, in seconds since the epoch.
        freshness: Of the CRLs; None before the start.
        capacity: Bytes of the whole disk.
        ledger_bytes: Of the ledger's files.
        partners: Of the ledger, looked at less often.
        latencies: Of what was delivered since the start.
        stores: What was sent to each destination since the start.
        submissions: What was submitted for each partner since the start.
        unaccounted: What the last conservation proof could not account for; None before the first.
        proved: Seconds since the epoch of that proof.
    """

    census: Census | None = None
    free_bytes: int = 0
    heartbeat: float = 0.0
    doors: dict[str, bool] = field(default_factory=dict)
    polls: list[Poll] = field(default_factory=list)
    certificates: Mapping[str, float] = field(default_factory=dict)
    freshness: Freshness | None = None
    capacity: int = 0
    ledger_bytes: int = 0
    partners: Partners = field(default_factory=Partners)
    latencies: Latencies = field(default_factory=Latencies)
    stores: Throughput = field(default_factory=Throughput)
    submissions: Throughput = field(default_factory=Throughput)
    unaccounted: int | None = None
    proved: float = 0.0


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
        yield _gauge("disk_bytes", "Size of the disk under the data folder.", [], [((), readings.capacity)])
        yield _gauge("ledger_bytes", "Size of the ledger's files.", [], [((), readings.ledger_bytes)])
        yield _gauge("door_open", "Whether a door is open.", ["door"], _named(readings.doors))
        ends = "When a certificate runs out, since the epoch, by what it is for."
        yield _gauge("certificate_expires_seconds", ends, ["certificate"], _named(readings.certificates))
        if readings.census is not None:
            yield from _of_the_ledger(readings.census)
        yield from _of_the_partners(readings.partners)
        yield from readings.latencies.collect()
        yield from _of_the_sends(readings.stores, readings.submissions)
        yield from _of_the_proof(readings.unaccounted, readings.proved)
        yield from _of_the_mailboxes(readings.polls)
        yield from _of_the_crls(readings.freshness)
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

    yield _gauge("relay_up", "Whether the mail relay takes mail.", [], [((), census.relay.get("up", 1.0))])
    yield _gauge("relay_paused", "Whether a person paused the relay.", [], [((), census.relay.get("paused", 0.0))])
    yield _gauge("stage_items", "Items that wait, by stage.", ["stage"], _named(census.stages))
    yield _gauge("stage_oldest_seconds", "Age of the oldest item that waits, by stage.", ["stage"], _named(census.ages))
    yield _gauge("stage_bytes", "Bytes of the items that wait, by stage.", ["stage"], _named(census.sizes))


def _of_the_partners(found: Partners) -> Iterable[Metric]:
    labels = ["partner", "direction"]
    text = "Items of each partner by direction and outcome."
    yield _gauge("partner_items", text, [*labels, "outcome"], found.items.items())
    yield _gauge(
        "partner_last_seconds", "When a partner's last item came, since the epoch.", labels, found.last.items()
    )


def _of_the_sends(stores: Throughput, mails: Throughput) -> Iterable[Metric]:
    text = "C-STORE requests by destination and what became of them."
    yield _counter("sends", text, ["destination", "outcome"], stores.sends.items())
    text = "Bytes of the instances that were delivered, by destination."
    yield _counter("sent_bytes", text, ["destination"], _named(stores.bytes))
    text = "Mails submitted by partner and what became of them."
    yield _counter("submissions", text, ["partner", "outcome"], mails.sends.items())
    yield _counter(
        "submitted_bytes", "Bytes of the mails that the relay took, by partner.", ["partner"], _named(mails.bytes)
    )


def _of_the_proof(unaccounted: int | None, proved: float) -> Iterable[Metric]:
    text = "Items and instances that the last conservation proof could not account for."
    if unaccounted is not None:
        yield _gauge("unaccounted", text, [], [((), unaccounted)])
    # Also before the first: of a proof that never comes, a metric that is absent would alarm nobody.
    text = "When the last conservation proof was made, since the epoch; 0: not since the start."
    yield _gauge("proved_seconds", text, [], [((), proved)])


def _of_the_mailboxes(polls: Sequence[Poll]) -> Iterable[Metric]:
    def each(value: Callable[[Poll], float]) -> list[tuple[tuple[str, ...], float]]:
        return [((one.rules.door, one.state), value(one)) for one in polls]

    def count(name: str, what: str, value: Callable[[Poll], float]) -> Metric:
        return _counter(name, what, ["mailbox"], [((one.rules.door,), value(one)) for one in polls])

    labels = ["mailbox", "state"]
    # One that was never seen is not up: it may be mute, and nobody knows before the deadline.
    well = each(lambda one: one.state is State.OK and one.looked_at > 0)
    yield _gauge("mailbox_up", "Whether a mailbox was looked at and is well.", labels, well)
    since = "Since when it is well, or is not, since the epoch."
    yield _gauge("mailbox_state_since_seconds", since, labels, each(lambda one: one.since))
    looked = "When a mailbox was last seen to be well, since the epoch; 0: never."
    yield _gauge("mailbox_looked_at_seconds", looked, labels[:1], [((o.rules.door,), o.looked_at) for o in polls])
    yield count("mailbox_taken", "Mails of a mailbox that became items.", lambda one: one.counters.taken)
    yield count("mailbox_repeated", "Mails whose content was known.", lambda one: one.counters.repeated)
    yield count("mailbox_too_big", "Mails over a limit, moved to failed.", lambda one: one.counters.too_big)
    yield count("mailbox_fetched_bytes", "Bytes of mails that were fetched.", lambda one: one.counters.bytes)


def _of_the_crls(freshness: Freshness | None) -> Iterable[Metric]:
    covers, asked = (freshness.coverage, freshness.asked) if freshness is not None else ((), ())
    good = [((one.issuer, str(one.state)), float(one.state.counts)) for one in covers]
    yield _gauge("crl_counts", "Whether a CRL of an issuer tells anything now.", ["issuer", "state"], good)
    ends = [((one.issuer,), one.until.timestamp()) for one in covers if one.until is not None]
    yield _gauge("crl_next_update_seconds", "When the CRL of an issuer ends, since the epoch.", ["issuer"], ends)
    faults = [
        ((one.source.host, one.source.name[:8], str(one.fault or "ok")), float(one.fault is None)) for one in asked
    ]
    yield _gauge("crl_fetched", "Whether the last question for a CRL went well.", ["host", "crl", "state"], faults)


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
