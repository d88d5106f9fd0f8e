"""Soak: four modalities send studies while the gateway is killed again and again; the mails go to a scripted relay.

    python tests/fault/modalities.py [--studies 40] [--instances 25] [--kills 12] [--pause 0.1] [--seed N]

Every instance that was answered with 0x0000 must be in the mails afterwards with identical data set bytes, nothing else
may be in them, a mail that comes twice must be the same mail, the conservation proof must hold at each kill and at the
end, and no bytes may be left in a segment that no row speaks of (R20, R26, R34). Traffic stays on loopback; it stops by
itself, with exit code 1 when anything is amiss.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import email
import hashlib
import random
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from daemon import Daemon
from peer import free_port
from scripted_relay import ScriptedRelay
from scripted_scu import CT, RELEASE_RQ, Context, Scu, data, pdv, store
from soak import conclude
from test_outbound_kill import SECTIONS, carried, relay

from gateway.core import part10
from gateway.ledger.janitor import Janitor
from gateway.ledger.ledger import Ledger, connect
from gateway.ledger.spool import Spool
from tests import samples

SIZES = (2_000, 30_000, 60_000, 200_000)


@dataclass(slots=True)
class Soak:
    """What happened so far.

    Attributes:
        daemon: The gateway.
        port: Of its DICOM door.
        dice: Chance.
        pause: Seconds between two instances of one modality, on average: the kills shall find it at work.
        sent: Digest of each data set that was ever sent, by SOP Instance UID.
        acknowledged: UIDs of those that were answered with 0x0000.
        retries: Instances that had to be sent again.
        kills: How often it was killed.
    """

    daemon: Daemon
    port: int
    dice: random.Random
    pause: float
    sent: dict[str, str] = field(default_factory=dict)
    acknowledged: set[str] = field(default_factory=set)
    retries: int = 0
    kills: int = 0

    def instances(self, study: int, count: int) -> Iterator[tuple[str, bytes]]:
        """Make the instances of a study, of all sizes."""
        for number in range(count):
            uid = f"1.2.3.{study}.{number}"
            values = {0x00080016: CT, 0x00080018: uid, 0x0020000D: f"1.2.9.{study}", 0x0020000E: f"1.2.9.{study}.1"}
            content = b"".join(samples.element(tag, "UI", value) for tag, value in sorted(values.items()))
            content += samples.element(0x7FE00010, "OW", self.dice.randbytes(self.dice.choice(SIZES)))
            self.sent[uid] = hashlib.sha256(content).hexdigest()
            yield uid, content

    def send(self, study: int, count: int) -> None:
        """Send a study as a modality does: again and again, until each instance was taken."""
        left = dict(self.instances(study, count))
        while left:
            with contextlib.suppress(OSError, AssertionError), Scu(self.port) as scu:
                scu.associate(Context(3, CT), called="OUT")
                for uid, content in list(left.items()):
                    time.sleep(self.dice.uniform(0, 2 * self.pause))
                    scu.say(data(pdv(3, 3, store(uid))))
                    pieces = [content[at : at + 16_000] for at in range(0, len(content), 16_000)]
                    scu.say(*(data(pdv(3, 2 if one is pieces[-1] else 0, one)) for one in pieces))
                    if scu.answer().status == 0:
                        self.acknowledged.add(uid)
                        del left[uid]
                scu.say(RELEASE_RQ)
                scu.hear()
            if left:
                self.retries += 1
                time.sleep(0.1)

    def kill(self, times: int, until: threading.Event) -> None:
        """Kill the gateway at random moments, and start it again."""
        for _ in range(times):
            if until.wait(self.dice.uniform(0.1, 1.5)):
                return
            self.daemon.kill()
            self.kills += 1
            self.daemon.proven()
            self.daemon.start()

    def settle(self, seconds: float) -> bool:
        """Wait until nothing waits any more; an operator's word replaces the back-off."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            waiting = self.daemon.view("list", outcome="waiting")["items"]
            if not waiting:
                return True
            submitting = [item["id"] for item in waiting if item["stage"] == "submit"]
            for key in submitting[:5]:  # each word takes a second, and the others go meanwhile
                self.daemon.say("queue", "retry", key)
            time.sleep(1)
        return False

    def verdicts(self, scripted: ScriptedRelay) -> list[str]:
        """Everything that is amiss."""
        wrong = []
        found: dict[str, set[str]] = {}
        by_id: dict[str, set[bytes]] = {}
        for content in scripted.mails:
            by_id.setdefault(str(email.message_from_bytes(content)["Message-ID"]), set()).add(content)
            for file in carried(content):
                meta = part10.read_meta(file)
                digest = hashlib.sha256(file[meta.data_set :]).hexdigest()
                found.setdefault(meta.sop_instance, set()).add(digest)
        wrong += [f"{uid} was acknowledged and is in no mail" for uid in self.acknowledged - found.keys()]
        wrong += [f"{uid} was mailed with other bytes" for uid, some in found.items() if some != {self.sent.get(uid)}]
        wrong += [f"{key} was mailed with two contents" for key, contents in by_id.items() if len(contents) > 1]
        repeated = len(scripted.mails) - len(by_id)
        if repeated > self.kills:
            wrong.append(f"{repeated} mails came twice, of {self.kills} kills")
        proof = self.daemon.say("reconcile")
        if proof.returncode != 0:
            wrong.append(f"reconcile ended with {proof.returncode}: {proof.stdout}{proof.stderr}")
        wrong += [f"{item['id']} is {item['outcome']}" for item in self.daemon.view("list")["items"] if item["code"]]
        return wrong + self.leftovers()

    def leftovers(self) -> list[str]:
        """Segments that are longer than their rows say, when nobody sends any more and the sweep has been there."""
        self.daemon.stop()
        engine, spool = connect(f"sqlite:///{self.daemon.data / 'ledger.sqlite'}"), Spool(self.daemon.data / "spool")
        ledger = Ledger(engine)
        keeper, later = Janitor(ledger, spool), datetime.now(UTC) + timedelta(days=2)
        for _ in range(2):
            asyncio.run(keeper.sweep(later))
        spool.close()
        ledger.close()
        with contextlib.closing(sqlite3.connect(self.daemon.data / "ledger.sqlite", timeout=10)) as rows:
            ends = dict(rows.execute("SELECT blob, max(start + size) FROM instance GROUP BY blob"))
        return [
            f"{path.name} has {path.stat().st_size} bytes, and its rows speak of {ends.get(key, 0)}"
            for path in spool.root.glob("*/*.seg")
            if path.stat().st_size != ends.get(key := str(path.relative_to(spool.root)), 0)
        ]


def main() -> int:
    """Run the soak and say what happened."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=40)
    parser.add_argument("--instances", type=int, default=25)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--pause", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    options = parser.parse_args()
    port, began = free_port(), time.monotonic()
    with relay() as scripted, Daemon({}, SECTIONS.format(dicom=port, relay=scripted.port)) as daemon:
        soak, over = Soak(daemon, port, random.Random(options.seed), options.pause), threading.Event()
        with ThreadPoolExecutor(4) as modalities:
            killer = threading.Thread(target=soak.kill, args=(options.kills, over))
            killer.start()
            list(modalities.map(soak.send, range(options.studies), [options.instances] * options.studies))
            over.set()
            killer.join()
        settled = soak.settle(120)
        wrong = soak.verdicts(scripted) + ([] if settled else ["not everything was settled within 120 s"])
        print(
            f"seed {options.seed}: {len(soak.acknowledged)} of {len(soak.sent)} instances acknowledged, "
            f"{soak.retries} associations cut, {soak.kills} kills, {len(scripted.mails)} mails, "
            f"{time.monotonic() - began:.0f} s; {daemon.say('reconcile').stdout.strip()}"
        )
    return conclude(wrong[:20])


if __name__ == "__main__":
    sys.exit(main())
