"""Mail as real programs send it, swaks and Postfix, through the gateway into a PACS."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from daemon import Daemon
from messages import compose
from orthanc import Orthanc
from peer import Start, wait_until
from postfix import Postfix
from samples import Samples
from swaks import swaks

pytestmark = pytest.mark.peer

SENDER = ("--from", "dicom@clinic-a.test")


@pytest.fixture(scope="module")
def gateway(orthanc: Orthanc) -> Iterator[Daemon]:
    """A gateway in front of Orthanc."""
    with Daemon({"pacs": (orthanc.title, orthanc.port)}) as daemon:
        yield daemon


def test_swaks_hands_images_over(gateway: Daemon, orthanc: Orthanc, samples: Samples) -> None:
    """An administrator's test mail with real images in it: 250 with the queue id, and the images arrive."""
    fresh = list(samples.many(3))
    done = swaks(gateway.port, *SENDER, "--to", "pacs@gateway.test", message=compose(one.file for one in fresh))
    assert done.returncode == 0, done.stdout
    [key] = [line.split()[-1] for line in done.stdout.splitlines() if "queued as in-" in line]
    gateway.await_item(key, "delivered")
    for one in fresh:
        assert orthanc.data_set(one.sop_instance) == one.data_set


@pytest.mark.parametrize(
    ("options", "reply"),
    [
        ((*SENDER, "--to", "nobody@gateway.test"), "550 5.1.1"),
        (("--from", "who@elsewhere.test", "--to", "pacs@gateway.test"), "550 5.7.1"),
    ],
    ids=["no such address", "no such partner"],
)
def test_swaks_is_told_why_not(gateway: Daemon, options: tuple[str, ...], reply: str) -> None:
    """A refusal names its reason, in the words of RFC 3463."""
    done = swaks(gateway.port, *options)
    assert done.returncode != 0
    assert reply in done.stdout


@pytest.mark.root
def test_postfix_relays_images(gateway: Daemon, orthanc: Orthanc, samples: Samples, start: Start) -> None:
    """The hospital's own server in between: its queue ends empty, and the data sets are identical."""
    postfix = start(Postfix({"gateway.test": gateway.port}))
    fresh = list(samples.many(5))
    for one in fresh:
        postfix.sendmail("dicom@clinic-a.test", "pacs@gateway.test", compose([one.file]))
    wait_until(lambda: all(one.sop_instance in orthanc.instances() for one in fresh), "all instances arrive")
    wait_until(lambda: postfix.queue() == 0, "Postfix has handed everything over")
    for one in fresh:
        assert orthanc.data_set(one.sop_instance) == one.data_set
    taken = [one for one in gateway.items() if one["outcome"] == "delivered"]
    assert len(taken) >= len(fresh)
    gateway.proven()


@pytest.mark.root
def test_postfix_keeps_the_mail_while_the_gateway_is_away(
    gateway: Daemon, orthanc: Orthanc, samples: Samples, start: Start
) -> None:
    """Nothing is lost while we are restarted: the sender's queue holds it, and hands it over by itself."""
    postfix = start(Postfix({"gateway.test": gateway.port}))
    one = samples.fresh()
    gateway.stop()
    postfix.sendmail("dicom@clinic-a.test", "pacs@gateway.test", compose([one.file]))
    wait_until(lambda: "Connection refused" in postfix.maillog(), "Postfix tried in vain")
    assert postfix.queue() == 1
    gateway.start()
    wait_until(lambda: one.sop_instance in orthanc.instances(), "the instance arrives")
    assert orthanc.data_set(one.sop_instance) == one.data_set
    wait_until(lambda: postfix.queue() == 0, "Postfix has handed it over")
