"""Partners' certificates: what they are worth, what is taken in and what not, and what people are told unasked."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import partners as peers
import pki
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from partners import DAY, OURS, THEIRS, Files, chain, encrypt, mail, person, sign
from rich.console import Console, RenderableType
from rows import configuration
from sqlalchemy import Connection, create_engine, select

from gateway import control, keys, partners, story
from gateway.config import Configuration
from gateway.core.cms import trust
from gateway.core.cms.candidate import fingerprint
from gateway.core.cms.failure import Failure, ProtectionError
from gateway.core.expiry import Lasting
from gateway.errors import GatewayError, UsageError
from gateway.ledger import notices
from gateway.ledger.tables import event
from gateway.partners import Survey

BASE = """
[gateway]
name = "gw.test"
postmaster = "it@gw.test"
data = "data"

[relay]
host = "127.0.0.1"
port = 25
tls = "none"
sender = "{ours}"

[ae.pacs]
title = "PACS"
host = "127.0.0.1"
port = 104

[partner.clinic-a]
address = "{theirs}"
{more}

[[route]]
name = "in"
from = "clinic-a"
store = ["pacs"]
"""

Make = Callable[..., Configuration]
ENTITY = b"Content-Type: text/plain\r\n\r\nImages follow.\r\n"


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """The files of a gateway."""
    return Files(tmp_path / "files")


@pytest.fixture
def make(tmp_path: Path, files: Files) -> Make:
    """A configuration with an identity of ours; ``more`` goes into the partner's section."""

    def build(more: str = "", *, own: str | None = None, extra: str = "", smime: bool = True) -> Configuration:
        own = files.identity(person(OURS, "rsa-2048/own"), "own") if own is None else own
        text = BASE.format(ours=OURS, theirs=THEIRS, more=more) + (files.smime(own) if smime else "") + extra
        made = configuration(tmp_path, text)
        made.gateway.data.mkdir(mode=0o700, exist_ok=True)
        return made

    return build


def now() -> datetime:
    """The real time: certificates of these tests are made around it."""
    return datetime.now(UTC)


def adopt(made: Configuration, path: Path) -> partners.Document:
    """Import what lies in a file, as a person who approves it."""
    found = partners.offer(made, "clinic-a", str(path), now())
    return partners.call(made, "partner-import", partner="clinic-a", pem=found.pem, source=str(path))


def stories(made: Configuration) -> list[tuple[str, str, str]]:
    """What happened, who did it, and the words."""
    engine = create_engine(control.ledger_url(made))
    with engine.connect() as connection:
        rows = connection.execute(select(event.c.kind, event.c.who, event.c.text).order_by(event.c.id)).all()
    engine.dispose()
    return [(row.kind, row.who, row.text) for row in rows]


def test_an_imported_certificate_is_used_and_on_record(make: Make, files: Files) -> None:
    """When no gateway runs, the caller does it."""
    made, clinic = make(), person(THEIRS, "rsa-2048/clinic")
    assert partners.listing(made, now())["partners"][0]["state"] == "none"
    document = adopt(made, files.certificate(clinic, "clinic.pem"))
    assert (document["state"], document["source"]) == ("good", "imported")
    assert document["certificate"]["fingerprint"] == fingerprint(clinic.certificate)
    assert document["path"] == ["CN=Root", "CN=Issuing", f"CN={THEIRS}"]
    [(kind, who, said)] = stories(made)
    assert (kind, bool(who), "clinic.pem" in said) == ("partner-imported", True, False)  # nor a patient's name in it
    assert [path.name for path in (made.gateway.data / "partners").iterdir()] == ["clinic-a.pem"]


@pytest.mark.parametrize("form", ["DER", "PKCS #7", "with words around it"])
def test_a_certificate_is_read_in_every_usual_form(make: Make, files: Files, form: str) -> None:
    """Binary, and as OpenSSL prints it."""
    clinic = person(THEIRS, "rsa-2048/clinic")
    if form == "DER":
        path = files.write("clinic.cer", clinic.certificate.public_bytes(Encoding.DER))
    elif form == "PKCS #7":
        source = files.certificate(clinic, "both.pem")
        path = files.write("clinic.p7b", peers.openssl("crl2pkcs7", "-nocrl", "-certfile", source))
    else:
        path = files.write("clinic.txt", b"Bag Attributes\n  friendlyName: clinic\n" + chain(clinic))
    found = partners.offer(make(), "clinic-a", str(path), now())
    assert found.document["certificate"]["fingerprint"] == fingerprint(clinic.certificate)


@pytest.mark.parametrize("sealed", [False, True], ids=["signed", "signed and encrypted"])
def test_a_certificate_is_taken_from_a_signed_mail(make: Make, files: Files, sealed: bool) -> None:
    """The one whose signature holds, whoever issued it; a person decides."""
    clinic, own = person(THEIRS, "rsa-2048/clinic"), person(OURS, "rsa-2048/own")
    made = make(own=files.identity(own, "own"))
    entity = sign(ENTITY, clinic, files.folder)
    entity = encrypt(entity, own.certificate, files.folder) if sealed else entity
    found = partners.offer(made, "clinic-a", str(files.write("mail.eml", mail(entity))), now())
    assert found.document["certificate"]["fingerprint"] == fingerprint(clinic.certificate)
    assert found.document["authorities"] == ["CN=Issuing"]
    assert found.document["notes"] == []


def test_a_mail_that_somebody_changed_or_nobody_signed_gives_none(make: Make, files: Files) -> None:
    """The signature must hold, even when its signer is not trusted yet."""
    signed = mail(sign(ENTITY, person(THEIRS, "rsa-2048/clinic"), files.folder))
    cases = {
        "does not hold": signed.replace(b"Images", b"Damage"),
        "is not signed": mail(ENTITY),
        "cannot be opened": mail(b"Content-Type: application/pkcs7-mime\r\n\r\nrubbish"),
    }
    for words, content in cases.items():
        with pytest.raises(GatewayError, match=words):
            partners.offer(make(), "clinic-a", str(files.write("mail.eml", content)), now())


def test_what_a_person_should_know_before_approving_is_said(make: Make, files: Files) -> None:
    """Nobody trusts its issuer, it is for another address, another one is configured, it is known."""
    clinic = person(THEIRS, "rsa-2048/clinic")
    path = files.certificate(clinic, "clinic.pem")
    made = make(f'certificate = "{path}"')
    assert "used instead" in " ".join(partners.offer(made, "clinic-a", str(path), now()).document["notes"])
    assert "in use already" in " ".join(partners.offer(made, "clinic-a", str(path), now()).document["notes"])
    (files.folder / "trust" / "root.pem").unlink()
    assert "would be held" in " ".join(partners.offer(make(), "clinic-a", str(path), now()).document["notes"])
    other = files.certificate(person("else@clinic-a.test", "rsa-2048/clinic"), "other.pem")
    pinned = make(f'pin = true\ncertificate = "{path}"')
    assert "another address" in " ".join(partners.offer(pinned, "clinic-a", str(other), now()).document["notes"])
    signs = person(THEIRS, "rsa-2048/signs", usages=pki.SIGN)
    (files.folder / "more.pem").write_bytes(path.read_bytes())
    notes = partners._notes(
        made, "clinic-a", partners.Candidate(clinic.certificate), signs.certificate, signs.certificate
    )
    assert "came along" in " ".join(notes)


def test_files_that_hold_no_certificate_are_named(make: Make, files: Files) -> None:
    """Missing, too long, or something else."""
    made = make()
    with pytest.raises(UsageError, match="no file"):
        partners.offer(made, "clinic-a", "nowhere.pem", now())
    with pytest.raises(UsageError, match="no partner"):
        partners.offer(made, "clinic-z", "nowhere.pem", now())
    with pytest.raises(GatewayError, match="too long"):
        partners.offer(made, "clinic-a", str(files.write("big.pem", bytes(partners.LONGEST + 1))), now())
    with pytest.raises(GatewayError, match="holds no certificate"):
        partners.offer(made, "clinic-a", str(files.write("junk.pem", b"junk")), now())
    with pytest.raises(GatewayError, match="no item"):
        partners.offer(made, "clinic-a", "in-nothing", now())
    with pytest.raises(GatewayError, match="no verb"):
        partners.prepare(made, "partner-import", {"partner": "clinic-a"}, now())


def test_an_import_ends_what_a_person_let_count(make: Make, files: Files) -> None:
    """The new certificate is here: the old one is over."""
    made = make()
    past = person(THEIRS, "rsa-2048/clinic", days=-1)
    (made.gateway.data / "partners").mkdir()
    keys.imported(made, "clinic-a").write_bytes(chain(past))
    until = now() + 2 * DAY
    document = partners.call(made, "partner-trust", partner="clinic-a", until=until.isoformat())
    assert (document["state"], document["trusted_until"] is not None) == ("overdue", True)
    assert partners.description(made, "clinic-a", until + DAY)["state"] == "certificate-expired"
    adopt(made, files.certificate(person(THEIRS, "rsa-2048/new"), "new.pem"))
    assert not keys.trusted(made, "clinic-a").exists()
    assert partners.description(made, "clinic-a", now())["state"] == "good"


def test_only_a_certificate_that_runs_out_soon_can_be_let_count(make: Make, files: Files) -> None:
    """Not for long, not one that is good, not what has other faults."""
    made = make()
    soon = (now() + DAY).isoformat()

    def let(until: str | None) -> partners.Change:
        return partners.prepare(made, "partner-trust", {"partner": "clinic-a", "until": until}, now())

    with pytest.raises(GatewayError, match="there is no certificate"):
        let(soon)
    adopt(made, files.certificate(person(THEIRS, "rsa-2048/clinic"), "good.pem"))
    with pytest.raises(GatewayError, match="nothing has to be done"):
        let(soon)
    for until in (now() - DAY, now() + 15 * DAY):
        with pytest.raises(UsageError, match="within the next 14 days"):
            let(until.isoformat())
    stranger = pki.issue(pki.Wish(address=THEIRS, until=now() - DAY, since=now() - 9 * DAY))
    keys.imported(made, "clinic-a").write_bytes(stranger.certificate.public_bytes(Encoding.PEM))
    with pytest.raises(GatewayError, match="untrusted-issuer"):
        let(soon)
    assert let(None).content is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [("now", None), ("2026-11-30T08:00:00Z", datetime(2026, 11, 30, 8, tzinfo=UTC))],
)
def test_a_time_is_read_as_people_write_it(text: str, expected: datetime | None) -> None:
    """A day counts to its end, in local time."""
    assert partners.moment(text, now()) == expected
    day = partners.moment("2026-11-30", now())
    assert day is not None
    assert f"{day.astimezone():%Y-%m-%d %H:%M}" == "2026-11-30 23:59"
    with pytest.raises(UsageError):
        partners.moment("tomorrow", now())


# Trials


def test_a_trial_says_what_would_happen_in_both_directions(make: Make, files: Files) -> None:
    """In the words of the setting, and with the code of what is wrong."""
    path = files.certificate(person(THEIRS, "rsa-2048/clinic"), "clinic.pem")
    known = f'certificate = "{path}"\n'

    def codes(more: str, **how: str) -> tuple[bool, str | None, str | None]:
        found = partners.trial(make(more, **how), "clinic-a", now())
        return found["ok"], found["out"]["code"], found["in"]["code"]

    assert codes(known) == (True, None, None)
    assert codes(known + 'send = "signed"') == (True, None, None)
    assert codes(known + 'cipher = "cbc"\naccept = "signed+encrypted"') == (True, None, None)
    assert codes('send = "plain"\naccept = "any"') == (True, None, None)
    assert codes("") == (False, "no-certificate", None)
    assert codes('accept = "encrypted"\nsend = "plain"') == (True, None, None)
    past = person(OURS, "rsa-2048/past", days=-1)
    assert codes(known + 'accept = "encrypted"', own=files.identity(past, "past"))[1:] == ("no-identity", "no-identity")
    signs = files.certificate(person(THEIRS, "rsa-2048/clinic", usages=("key_encipherment",)), "reads.pem")
    assert codes(f'certificate = "{signs}"') == (True, None, None)
    assert codes(f'pin = true\ncertificate = "{signs}"') == (False, None, "key-usage")
    (files.folder / "trust" / "root.pem").unlink()
    assert codes(known) == (False, "untrusted-issuer", "untrusted-issuer")
    assert codes(known + "pin = true") == (True, None, None)
    assert codes('send = "plain"') == (False, None, "untrusted-issuer")


def test_nobody_can_be_mailed_at_a_pattern(make: Make) -> None:
    """And a pin that is not there admits nobody."""
    made = make()
    partner = made.partner["clinic-a"].model_copy(update={"address": "*@clinic-a.test", "pin": True})
    made = made.model_copy(update={"partner": {"clinic-a": partner}})
    found = partners.trial(made, "clinic-a", now())
    assert (found["out"]["code"], found["in"]["code"]) == ("no-address", "no-certificate")


def test_a_trial_that_cannot_be_sealed_is_no_crash(make: Make, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong has a code."""
    path = files.certificate(person(THEIRS, "rsa-2048/clinic"), "clinic.pem")
    made = make(f'certificate = "{path}"')

    def code() -> str | None:
        found: str | None = partners.trial(made, "clinic-a", now())["out"]["code"]
        return found

    def fails(error: Exception) -> Callable[..., int]:
        def seal(*_: object) -> int:
            raise error

        return seal

    monkeypatch.setattr(partners.sealed, "seal", fails(OSError(28, "No space left on device")))
    assert code() == "no-room"
    monkeypatch.setattr(partners.sealed, "seal", fails(ProtectionError(Failure.UNSUPPORTED_ALGORITHM, "its key")))
    assert code() == "unsupported-algorithm"


def test_a_trial_that_comes_out_otherwise_is_found(make: Make, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy for us is opened and compared."""
    path = files.certificate(person(THEIRS, "rsa-2048/clinic"), "clinic.pem")
    made, open_message = make(f'certificate = "{path}"'), partners.open_message

    def shorter(*arguments: object, **how: object) -> object:
        found = open_message(*arguments, **how)  # type: ignore[arg-type]
        return replace(found, content=replace(found.content, end=found.content.end - 1))

    monkeypatch.setattr(partners, "open_message", shorter)
    assert partners.trial(made, "clinic-a", now())["out"]["code"] == "decrypt-failed"


# What people are told


def test_the_survey_names_all_that_runs_out(make: Make, files: Files) -> None:
    """Ours, the partner's, the authority between, the anchor, and the doors'; not what was replaced."""
    path = files.certificate(person(THEIRS, "rsa-2048/clinic"), "clinic.pem")
    old = files.identity(person(OURS, "rsa-2048/old", days=-3, since=90), "old")
    new = files.identity(person(OURS, "rsa-2048/new"), "new")
    certificate, secret = person("door", "rsa-2048/door", days=5).write(files.folder, "door")
    door = f'[smtp]\nlisten = "127.0.0.1:0"\ncertificate = "{certificate}"\nkey_file = "{secret}"\n'
    made = make(f'certificate = "{path}"', own=f"{old}, {new}", extra=door)
    found = partners.survey(made, keys.load(made), now(), sealing=True)
    assert [one.subject for one in found.lasting] == [
        *("smime.identities", "partner.clinic-a", "issuer Issuing", "smime.trust Root", "smtp.certificate")
    ]
    assert found.unsealable == {}
    only = make(f'certificate = "{path}"', own=old)
    assert partners.survey(only, keys.load(only), now(), sealing=False).lasting[0].ends < now()


def test_a_partner_that_is_only_verified_is_not_tried(make: Make, files: Files) -> None:
    """Its certificate cannot be encrypted to, and nothing is mailed to it: no notice, unless a route mails to it."""
    signs = files.certificate(person(THEIRS, "rsa-2048/clinic", usages=pki.SIGN), "signs.pem")
    door = '[storescp]\ntitle = "GW"\nlisten = "127.0.0.1:0"\n'
    route = '[[route]]\nname = "out"\ncalled = "OUT"\nmail = ["clinic-a"]\n'
    silent, mailed = make(f'certificate = "{signs}"'), make(f'certificate = "{signs}"', extra=door + route)
    assert partners.survey(silent, keys.load(silent), now(), sealing=True).unsealable == {}
    told = partners.survey(mailed, keys.load(mailed), now(), sealing=True).unsealable
    assert told is not None
    assert list(told) == ["partner.clinic-a"]


def test_notices_open_and_close_with_their_cause(connection: Connection) -> None:
    """One for each certificate, file and partner (R33); what was not tried stays as it was."""
    at = now()
    bad = Survey((Lasting("partner.a", at + 5 * DAY),), {"smime.trust": ("junk", "do")}, {"partner.a": ("no", "do")})
    partners.note(connection, bad, at)
    partners.note(connection, replace(bad, unsealable=None), at)
    opened = {(one.kind, one.about) for one in notices.open_notices(connection)}
    assert opened == {
        (partners.EXPIRES, "partner.a"),
        (partners.UNUSABLE, "smime.trust"),
        (partners.UNSEALABLE, "partner.a"),
    }
    partners.note(connection, Survey((), {}, {}), at)
    assert notices.open_notices(connection) == []


def test_many_files_that_cannot_be_used_make_one_notice(make: Make, files: Files) -> None:
    """Of a length that can be read."""
    for number in range(40):
        files.write(f"trust/junk-{number}.pem", b"junk")
    made = make()
    unusable = partners.survey(made, keys.load(made), now(), sealing=False).unusable
    assert unusable is not None
    assert list(unusable) == ["smime.trust"]
    assert "junk-0" in unusable["smime.trust"][0]
    assert len(unusable["smime.trust"][0]) < 1500


def test_every_kind_of_notice_is_described() -> None:
    """For whoever is told."""
    page = (Path(__file__).parents[2] / "docs" / "errors.md").read_text("utf-8").partition("## Notices")[2]
    for kind in (partners.EXPIRES, partners.UNUSABLE, partners.UNSEALABLE):
        assert f"\n### {kind}\n" in page


# Garbage


@pytest.mark.parametrize("seed", range(20))
def test_no_mutation_of_a_certificate_spoils_the_others(make: Make, files: Files, seed: int) -> None:
    """In trust/, crls/ and as the partner's own: everything can still be read, and the good path is found."""
    dice = random.Random(seed)
    clinic, other = person(THEIRS, "rsa-2048/clinic"), person("b@b.test", "rsa-2048/b")
    crl = pki.revocations(pki.root(), since=now() - DAY, until=now() + DAY)
    sources = (pki.root().certificate, pki.issuing().certificate, clinic.certificate, crl)
    for number, source in enumerate(sources):
        block = bytearray(source.public_bytes(Encoding.DER))
        for _ in range(dice.choice((1, 1, 2, 5))):
            block[dice.randrange(len(block))] = dice.randrange(256)
        for folder in ("trust", "crls"):
            files.write(f"{folder}/bad-{number}.der", bytes(block))
        files.write("clinic.der", bytes(block))
        good = files.certificate(other, "b.pem")
        more = f'certificate = "{files.folder / "clinic.der"}"\n'
        made = make(more, extra=f'[partner.b]\naddress = "b@b.test"\ncertificate = "{good}"\n')
        found = keys.load(made)
        shown = {one["name"]: one["state"] for one in partners.listing(made, now())["partners"]}
        assert shown["b"] == "good"
        partners.survey(made, found, now() + timedelta(days=dice.randrange(400)), sealing=True)
        bag = [pki.issuing().certificate]
        assert trust.check(other.certificate, bag, found.keyring.trust, now(), "sign").path[-1] == other.certificate


def test_every_bad_file_is_named_by_its_key_and_left_aside(make: Make, files: Files) -> None:
    """Ours, an anchor, a CRL, what a person let count; each says why, and the rest is used."""
    secret = files.write("bad.key", b"junk")
    bad = f'{{ certificate = "{files.certificate(person(OURS, "rsa-2048/own"), "bad.pem")}", key_file = "{secret}" }}'
    files.write("trust/junk.pem", b"junk")
    files.write("crls/junk.crl", b"junk")
    made = make(own=bad)
    folder = made.gateway.data / "partners"
    folder.mkdir()
    for content in (b"[]", b"{}", b'{"until": "soon", "key": ""}', b'{"until": 1, "key": ""}'):
        keys.trusted(made, "clinic-a").write_bytes(content)
        found = keys.load(made)
        named = [one.key for one in found.problems]
        assert named == ["partner.clinic-a.certificate", "smime.identities[1]", "smime.trust", "smime.crls"]
        assert len(found.keyring.trust.anchors) == 1
        assert found.keyring.trust.overdue == ()
    said = {one.key: one.level for one in keys.review(made, now())}
    assert said["smime.identities[1]"] == said["smime.crls"] == "problem"


def test_check_lists_what_runs_out(make: Make, files: Files) -> None:
    """By the same calendar as the notices."""
    path = files.certificate(person(THEIRS, "rsa-2048/clinic", days=20), "clinic.pem")
    made = make(f'certificate = "{path}"', own=files.identity(person(OURS, "rsa-2048/own", days=-1), "past"))
    said = {one.key: (one.level, one.what) for one in keys.review(made, now())}
    assert said["partner.clinic-a"][0] == "warning"
    assert "in 30 days or less" in said["partner.clinic-a"][1]
    assert said["smime.identities"][0] == "problem"


def test_a_change_in_the_folders_is_noticed(make: Make, files: Files) -> None:
    """What was imported, what a person let count, an anchor: read anew without a restart."""
    made = make()
    stamps = [keys.stamp(made)]
    adopt(made, files.certificate(person(THEIRS, "rsa-2048/clinic", days=2), "clinic.pem"))
    stamps.append(keys.stamp(made))
    partners.call(made, "partner-trust", partner="clinic-a", until=(now() + 4 * DAY).isoformat())
    stamps.append(keys.stamp(made))
    files.write("trust/more.pem", chain(pki.root()))
    stamps.append(keys.stamp(made))
    assert len(set(stamps)) == 4


def test_a_change_that_cannot_be_written_changes_nothing(make: Make, files: Files) -> None:
    """Neither a file nor an event; and it says why."""
    made = make()
    (made.gateway.data / "partners").write_bytes(b"in the way")
    with pytest.raises(GatewayError, match="cannot be written"):
        adopt(made, files.certificate(person(THEIRS, "rsa-2048/clinic"), "clinic.pem"))
    assert stories(made) == []


def test_without_smime_a_pinned_certificate_may_be_let_count(make: Make, files: Files) -> None:
    """It needs no anchor."""
    past = files.certificate(person(THEIRS, "rsa-2048/clinic", days=-1), "clinic.pem")
    made = make(f'pin = true\nsend = "plain"\ncertificate = "{past}"', smime=False)
    document = partners.call(made, "partner-trust", partner="clinic-a", until=(now() + DAY).isoformat())
    assert document["state"] == "overdue"
    assert keys.load(made).keyring.store.overdue == keys.load(made).keyring.trust.overdue != ()


def test_documents_are_shown_in_words(make: Make, files: Files) -> None:
    """For a terminal: no line is empty of meaning, nothing of the certificate can play with it."""
    made = make()
    path = files.certificate(person(THEIRS, "rsa-2048/clinic", days=5), "clinic.pem")
    offered = partners.offer(made, "clinic-a", str(path), now())
    assert "with it came: CN=Issuing" in text(story.offer(offered.document))
    assert "clinic-a" in text(story.partners(partners.listing(made, now())))
    document = partners.call(made, "partner-import", partner="clinic-a", pem=offered.pem, source="clinic\N{ESCAPE}.pem")
    assert "CN=Root <- CN=Issuing" in text(story.partner(document))
    document = partners.call(made, "partner-trust", partner="clinic-a", until=(now() + 8 * DAY).isoformat())
    assert "let count until" in text(story.partner(document))
    assert "a trial was sealed" in text(story.trial(partners.trial(made, "clinic-a", now())))
    assert "it replaces" in text(story.offer(partners.offer(made, "clinic-a", str(path), now()).document))


def text(part: RenderableType) -> str:
    """What a terminal shows."""
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(part)
    return console.export_text()


def test_the_running_gateway_is_asked_when_there_is_one(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It uses the certificate at once, and knows who asked."""
    asked: list[tuple[object, ...]] = []

    def ask(_: Configuration, verb: str, arguments: object) -> partners.Document:
        asked.append((verb, arguments))
        return {"state": "good"}

    monkeypatch.setattr(control, "ask_daemon", ask)
    assert partners.call(make(), "partner-trust", partner="clinic-a", until=None) == {"state": "good"}
    assert asked == [("partner-trust", {"partner": "clinic-a", "until": None})]
