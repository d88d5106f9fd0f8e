"""Soak: mail from ten connections into Orthanc while the gateway is killed again and again.

    python tests/fault/kill.py [--mails 200] [--instances 1000] [--kills 10] [--pause 2] [--seed N] [--hurry]

Every instance whose mail was acknowledged with 250 must be in Orthanc afterwards with identical data set bytes, the
conservation proof must hold, and no more sends may be in doubt than one window for each kill (R1, R12, R26, R34).
Traffic stays on loopback; it stops by itself, with exit code 1 when anything is amiss.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import smtplib
import sqlite3
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from daemon import Daemon
from messages import compose
from orthanc import Orthanc
from samples import Fresh, Samples
from soak import conclude

WINDOW = 16
"""Instances that may be on the wire at once (design: promise 2)."""


@dataclass(slots=True)
class Soak:
    """What happened so far.

    Attributes:
        daemon: The gateway.
        orthanc: The PACS.
        mails: Each with its instances.
        acknowledged: The numbers of those that were answered with 250.
        pause: Seconds between two mails of one sender, on average: the kills shall find the gateway at work.
    """

    daemon: Daemon
    orthanc: Orthanc
    mails: list[tuple[bytes, list[Fresh]]]
    acknowledged: set[int] = field(default_factory=set)
    pause: float = 2.0
    dice: random.Random = field(default_factory=random.Random)
    retries: int = 0
    kills: int = 0
    done: threading.Event = field(default_factory=threading.Event)

    def send(self, number: int) -> None:
        """Mail one message as a real sender does: again and again, until a 250 comes."""
        message, _ = self.mails[number]
        time.sleep(self.dice.uniform(0, 2 * self.pause))
        while number not in self.acknowledged:
            try:
                with smtplib.SMTP("127.0.0.1", self.daemon.port, timeout=30) as wire:
                    wire.sendmail("dicom@clinic-a.test", ["pacs@gateway.test"], message)
                    self.acknowledged.add(number)
            except (OSError, smtplib.SMTPException):
                self.retries += 1
                time.sleep(0.2)

    def kill(self, times: int, dice: random.Random) -> None:
        """Kill the gateway, at random moments and while images are on the wire, and start it again."""
        for turn in range(times):
            if turn % 2:
                self.await_wire(20)
            else:
                time.sleep(dice.uniform(0.3, 3 * self.pause))
            self.daemon.kill()
            self.kills += 1
            self.daemon.start()

    def await_wire(self, seconds: float) -> None:
        """Wait until the ledger says that images are on the wire: the worst moment there is."""
        deadline = time.monotonic() + seconds
        with contextlib.closing(self.ledger()) as ledger:
            while time.monotonic() < deadline:
                if ledger.execute("SELECT 1 FROM delivery WHERE sending LIMIT 1").fetchone():
                    return
                time.sleep(0.0005)

    def ledger(self) -> sqlite3.Connection:
        """Look into the ledger beside its owner."""
        return sqlite3.connect(self.daemon.data / "ledger.sqlite", timeout=10)

    def settle(self, seconds: float, *, hurry: bool) -> bool:
        """Wait until nothing waits any more; in a hurry, an operator's word replaces the back-off."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            proof = self.daemon.view("reconcile")
            if proof["waiting"] == 0 and proof["in"] >= len(self.mails):
                return True
            if hurry:
                for item in self.daemon.view("list", outcome="waiting")["items"]:
                    self.daemon.say("queue", "retry", item["id"])
            time.sleep(1)
        return False

    def verdicts(self) -> list[str]:
        """Everything that is amiss."""
        wrong = []
        stored = self.orthanc.instances()
        expected = [one for number in self.acknowledged for one in self.mails[number][1]]
        for one in expected:
            if one.sop_instance not in stored:
                wrong.append(f"{one.sop_instance} was acknowledged and is not in the PACS")
            elif self.orthanc.data_set(one.sop_instance) != one.data_set:
                wrong.append(f"{one.sop_instance} is in the PACS with other bytes")
        proof = self.daemon.say("reconcile")
        if proof.returncode != 0:
            wrong.append(f"reconcile ended with {proof.returncode}: {proof.stdout}{proof.stderr}")
        unknown = self.unknown()
        if unknown > WINDOW * self.kills:
            wrong.append(f"{unknown} sends in doubt are more than one window for each of {self.kills} kills")
        return wrong

    def unknown(self) -> int:
        """How many sends had no valid answer, over all instances."""
        with contextlib.closing(self.ledger()) as ledger:
            (count,) = ledger.execute("SELECT sum(sends_unknown) FROM delivery").fetchone()
        return int(count or 0)


def main() -> int:
    """Run the soak and say what happened."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mails", type=int, default=200)
    parser.add_argument("--instances", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--connections", type=int, default=10)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--pause", type=float, default=2.0, help="seconds between two mails of one sender")
    parser.add_argument("--hurry", action="store_true", help="retry by an operator's word what is in doubt")
    options = parser.parse_args()
    samples = Samples()
    fresh = list(samples.many(options.instances))
    mails = [
        (compose(one.file for one in fresh[at :: options.mails]), fresh[at :: options.mails])
        for at in range(options.mails)
    ]
    with Orthanc() as orthanc, Daemon({"pacs": (orthanc.title, orthanc.port)}) as daemon:
        soak = Soak(daemon, orthanc, mails, pause=options.pause)
        began = time.monotonic()
        with ThreadPoolExecutor(options.connections) as senders:
            killer = threading.Thread(target=soak.kill, args=(options.kills, random.Random(options.seed)))
            killer.start()
            list(senders.map(soak.send, range(len(mails))))
            killer.join()
        settled = soak.settle(300, hurry=options.hurry)
        wrong = soak.verdicts() + ([] if settled else ["not everything was settled within 300 s"])
        print(
            f"seed {options.seed}: {len(soak.acknowledged)} mails acknowledged ({soak.retries} tries in vain), "
            f"{options.instances} instances, {soak.kills} kills, {soak.unknown()} sends in doubt, "
            f"{time.monotonic() - began:.0f} s; {daemon.say('reconcile').stdout.strip()}"
        )
    return conclude(wrong[:20])


if __name__ == "__main__":
    sys.exit(main())
