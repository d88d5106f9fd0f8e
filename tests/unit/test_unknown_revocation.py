"""What RECEIVE and COMPOSE do while nobody knows whether a certificate is revoked."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pki
import pytest
from outbound import CONFIGURATION, Outbound
from rows import ENVELOPE, configuration, instance, outcome
from sqlalchemy import update

from gateway.core.cms.failure import Failure
from gateway.core.cms.revocation import Source
from gateway.core.cms.signed import Identity
from gateway.core.cms.trust import Trust
from gateway.core.cms.verdict import Verdict
from gateway.core.reader import Rules
from gateway.core.unsealing import UNREAD, Guard, Keyring, Unsealed
from gateway.ledger import verbs
from gateway.ledger.ledger import Ledger, connect
from gateway.ledger.spool import Spool
from gateway.ledger.tables import collection
from gateway.model import Digest, Reading, Span
from gateway.stages import compose, receive
from gateway.stages.receive import Receive

HEAD = b"From: dicom@clinic-b.example\r\nMessage-ID: <1@clinic-b.example>\r\n"
GAP = (Source("http://crl.test/", b"issuer"),)
DAY = timedelta(days=1)

SOFT = Unsealed(Reading("dicom", (instance(1),)), Verdict(signed=True, verified=True, revocation="unknown", gaps=GAP))
HARD = Unsealed(UNREAD, Verdict(signed=True, code=Failure.REVOCATION_UNKNOWN, gaps=GAP), Failure.REVOCATION_UNKNOWN)
GOOD = Unsealed(Reading("dicom", (instance(1),)), Verdict(signed=True, verified=True, revocation="good"))
REVOKED = Unsealed(UNREAD, Verdict(signed=True, code=Failure.REVOKED), Failure.REVOKED)


class Stage:
    """RECEIVE that is told what each opening of a mail shows, and whether a CRL comes."""

    def __init__(self, folder: Path) -> None:
        self.ledger = Ledger(connect(f"sqlite:///{folder / 'ledger.sqlite'}"))
        self.spool = Spool(folder / "spool")
        self.now = datetime.now(UTC)
        self.shown: list[Unsealed] = []
        self.comes = False
        self.asked: list[Sequence[Source]] = []
        self.receive = Receive(
            configuration(folder),
            self.ledger,
            self.spool,
            self.read,
            lambda: self.now,
            unseal=self.unseal,
            fetch=self.fetch,
        )

    async def read(self, _message: Span, _rules: Rules, _out: Path) -> Reading:
        raise AssertionError("it is protected")

    async def unseal(self, _message: Span, _rules: Rules, guard: Guard, out: Path) -> Unsealed:
        found = self.shown.pop(0)
        assert guard.folder.is_dir()
        if found.held is None:
            out.write_bytes(b"d" * 1000)
        return found

    async def fetch(self, sources: Sequence[Source]) -> None:
        self.asked.append(sources)
        if self.comes:
            self.receive.keyring = Keyring()

    async def accept(self) -> str:
        draft = self.receive.draft()
        draft.write(HEAD + b"\r\nbody")
        return await self.receive.accept(ENVELOPE, draft, Digest(draft.size, "a" * 64, "b" * 64, HEAD))

    async def look(self, *shown: Unsealed, key: str) -> datetime | None:
        self.shown = list(shown)
        again = await self.receive.look(key)
        assert self.shown == []
        return again

    async def state(self, key: str) -> tuple[str, str | None]:
        return await self.ledger.read(lambda c: outcome(c, key))

    def files(self) -> list[str]:
        return sorted(path.suffix for path in self.spool.root.rglob("*") if path.is_file())


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """The stage, closed in the end."""
    made = Stage(tmp_path)
    yield made
    made.ledger.close()
    made.spool.close()


async def test_asking_that_fails_leaves_nothing_of_what_was_read(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of CRLs that cannot be read: the mail is tried again, and no instances are left in the drafts."""

    async def fail(_: Sequence[Source]) -> None:
        raise OSError(errno.EIO, "")

    key = await stage.accept()
    with monkeypatch.context() as patch:
        patch.setattr(stage.receive, "_fetch", fail)
        assert await stage.look(SOFT, key=key) is not None
    assert stage.files() == [".eml"]


@pytest.mark.parametrize("first", [SOFT, HARD])
@pytest.mark.parametrize(
    ("second", "expected", "files"),
    [(GOOD, ("waiting", None), [".dcm", ".eml"]), (REVOKED, ("held", "revoked"), [".eml"])],
)
async def test_a_crl_that_comes_is_asked_before_anything_is_decided(
    stage: Stage, first: Unsealed, second: Unsealed, expected: tuple[str, str | None], files: list[str]
) -> None:
    """Judged anew with it, under ``soft`` too: a first mail of a revoked signer goes nowhere, and no bytes are left."""
    stage.comes = True
    key = await stage.accept()
    assert await stage.look(first, second, key=key) is None
    assert stage.asked == [GAP]
    assert await stage.state(key) == expected
    assert stage.files() == files


async def test_without_a_crl_mail_goes_on_under_soft(stage: Stage) -> None:
    """Opened once: nothing new is known."""
    key = await stage.accept()
    assert await stage.look(SOFT, key=key) is None
    assert stage.asked == [GAP]
    assert stage.files() == [".dcm", ".eml"]


async def test_without_a_crl_mail_waits_a_day_under_hard_and_is_held_then(stage: Stage) -> None:
    """Deferred again and again, and it never waits for ever (R17)."""
    key = await stage.accept()
    began = stage.now
    for hours in (0, 1, 23):
        stage.now = began + timedelta(hours=hours)
        assert await stage.look(HARD, key=key) == stage.now + receive.ASK_AGAIN
        assert await stage.state(key) == ("waiting", None)
    stage.now = began + DAY + timedelta(minutes=1)
    assert await stage.look(HARD, key=key) is None
    assert await stage.state(key) == ("held", "revocation-unknown")
    assert stage.files() == [".eml"]


# The way out


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Outbound]:
    """Composes; closed in the end."""
    made = Outbound(tmp_path)
    yield made
    made.close()


def keyring(mode: str, known: str) -> Keyring:
    """Our certificate and a partner's, of which CRLs tell ``nothing``, that they are ``good``, or that ours is not."""
    now = datetime.now(UTC)
    us, them = (
        pki.leaf(kind=f"P-256/{name}", since=now - DAY, until=now + DAY, address=f"dicom@{name}.example")
        for name in ("gw", "sealed")
    )
    ended = [us.certificate] if known == "revoked" else []
    lists = (
        pki.revocations(pki.root(), since=now - DAY, until=now + DAY),
        pki.revocations(pki.issuing(), *ended, since=now - DAY, until=now + DAY),
    )
    chain = (pki.issuing().certificate,)
    trusted = Trust((pki.root().certificate,), (), () if known == "nothing" else lists, mode)
    ours = Identity(us.key, us.certificate, chain)
    return Keyring(identities=(ours,), trust=trusted, partners={"sealed": (them.certificate, *chain)})


async def test_mail_to_a_partner_waits_a_day_for_a_crl_under_hard(out: Outbound) -> None:
    """Then it is held; when one comes it is sealed and goes (R21)."""
    out.compose.keyring = keyring("hard", "nothing")
    await out.send(1, called="SEALED")
    await out.work()
    [item] = await out.items()
    assert (item["outcome"], item["stage"], out.postman.mails) == ("waiting", "compose", [])
    again = await out.compose.look(item["id"])
    assert again is not None
    assert timedelta() < again - datetime.now(UTC) <= compose.LOOK_AGAIN
    yesterday = update(collection).values(last_at=datetime.now(UTC) - DAY - timedelta(minutes=1))
    await out.ledger.write(lambda c: c.execute(yesterday))
    assert await out.compose.look(item["id"]) is None
    assert [(one["outcome"], one["code"]) for one in await out.items()] == [("held", "revocation-unknown")]
    await out.ledger.write(lambda c: verbs.release(c, item["id"], datetime.now(UTC), "anna"))
    out.compose.keyring = keyring("hard", "good")
    await out.work()
    assert len(out.postman.mails) == 1


@pytest.mark.parametrize("mode", ["soft", "hard"])
async def test_nothing_is_signed_with_a_certificate_of_ours_that_is_revoked(out: Outbound, mode: str) -> None:
    """Its reader would refuse it: held, and a person told."""
    out.compose.keyring = keyring(mode, "revoked")
    await out.send(1, called="SEALED")
    await out.work()
    [item] = await out.items()
    assert (item["outcome"], item["code"]) == ("held", "revoked")
    assert out.postman.mails == []


@pytest.mark.parametrize("size", [100, 40_000], ids=["whole", "pieces"])
@pytest.mark.parametrize("asked", ["signed", "signed+encrypted"])
async def test_what_is_protected_as_asked_leaves_as_it_was_written(
    out: Outbound, tmp_path: Path, asked: str, size: int
) -> None:
    """SUBMIT sees that nothing has to be composed anew, in the pieces of a mail too (R21)."""
    send = f'send = "{asked}"\nmax_message = "30 KB"\npartial = true'
    text = CONFIGURATION.replace("MAX", "35 MB").replace('"dicom@sealed.example"', f'"dicom@sealed.example"\n{send}')
    out.use(configuration(tmp_path, text))
    out.compose.keyring = keyring("hard", "good")
    await out.send(1, called="SEALED", size=size)
    await out.work()
    [item] = await out.items()
    assert item["outcome"] == "delivered"
    assert {one["code"] for one in item["mails"]} == {None}
    assert (len(out.postman.mails) > 1) == (size > 30_000)
