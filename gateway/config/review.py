"""What a careful colleague says about a configuration that is valid: what stands open, and what is not built yet.

Nothing here changes anything; ``check`` prints it, and ``run`` refuses to start on what blocks.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Final, Literal

from gateway.config.sections import NAMED, Configuration, Mailbox, PopMailbox, Route, Section
from gateway.config.values import is_loopback, is_there


@dataclass(frozen=True, slots=True)
class Advice:
    """One thing that a person should know.

    Attributes:
        level: ``problem``: it will not work, or not safely. ``warning``: it works, but look at it.
        what: What is the case, in one sentence without a full stop.
        do: What to do about it.
        key: The key it is about, as in the file.
        blocks: ``run`` does not start with it.
    """

    level: Literal["problem", "warning"]
    what: str
    do: str
    key: str
    blocks: bool = False


def advice(configuration: Configuration) -> tuple[Advice, ...]:
    """Everything there is to say about a valid configuration, what is not built yet included.

    Looks at the data folder and at the modes of secret files, and nowhere else.
    """
    return (
        *unbuilt(configuration),
        *_idle(configuration),
        *_unmailable(configuration),
        *_open_doors(configuration),
        *_stays(configuration),
        *_clear_hops_in(configuration),
        *_clear_hops_out(configuration),
        *_patients(configuration),
        *_files(configuration),
    )


_RELOADED: Final = frozenset(
    {
        *("route", "partner", "ae", "smime.identities"),
        *("storescp.title", "storescp.callers", "storescp.addresses", "storescp.tls"),
        *("storescp.associations", "storescp.max_pdu", "storescp.unknown_classes"),
    }
)
_RELOADED_KEYS: Final = frozenset({"certificate", "key_file", "users_file"})
"""Taken over where a door has one already: it begins with none, and does without none, before a restart."""

_BEGUN: Final = frozenset({"smtp.certificate", "smtp.key_file"})
"""What a door begins with all the same: STARTTLS is offered to the next peer."""


def restart_needed(old: Configuration, new: Configuration) -> tuple[str, ...]:
    """Name what differs between two configurations and is not taken over at SIGHUP.

    Taken over are routes, partners, AEs, all of the DICOM door but where it listens, certificates and users.
    """
    return tuple(key for kind in Configuration.model_fields for key in _left(kind, old, new))


def in_force(old: Configuration, new: Configuration) -> Configuration:
    """What holds after SIGHUP: the new configuration, but what needs a restart as it was.

    Otherwise one part of the gateway would go by the data folder, the relay or the limits of the one file, and another
    part by those of the other.
    """
    stays: dict[str, Any] = {}
    for kind in Configuration.model_fields:
        before, after, needed = getattr(old, kind), getattr(new, kind), _left(kind, old, new)
        if kind in needed:
            stays[kind] = before
        elif needed:
            fields = (key.rpartition(".")[2] for key in needed)
            stays[kind] = after.model_copy(update={field: getattr(before, field) for field in fields})
    return new.model_copy(update=stays)


def _left(kind: str, old: Configuration, new: Configuration) -> list[str]:
    """The keys of a section that a reload leaves as they are; the section alone when it has none in common."""
    if kind in _RELOADED:
        return []
    before, after = getattr(old, kind), getattr(new, kind)
    if before == after:
        return []
    if not (isinstance(before, Section) and isinstance(after, Section)):
        return [kind]
    fields = type(before).model_fields
    return [f"{kind}.{field}" for field in fields if _waits(kind, field, getattr(before, field), getattr(after, field))]


def _waits(kind: str, field: str, before: object, after: object) -> bool:
    """Whether a key has changed, and a reload leaves it."""
    key = f"{kind}.{field}"
    if before == after or key in _RELOADED:
        return False
    return field not in _RELOADED_KEYS or after is None or (before is None and key not in _BEGUN)


# ---------------------------------------------------------------------------------------------------------------
# Not built yet


@dataclass(frozen=True, slots=True)
class _Unbuilt:
    """A key or section that is valid but does nothing yet. Whoever builds it deletes its row.

    Attributes:
        key: As in the file; NAME stands for any name.
        what: What does not happen yet.
        built: Values that work already.
        blocks: Whether ``run`` refuses it when a route depends on it.
    """

    key: str
    what: str
    built: tuple[object, ...] = ()
    blocks: bool = True


_UNBUILT: Final = (
    _Unbuilt("gateway.database", "several nodes on PostgreSQL are not built yet"),
    _Unbuilt("gateway.blobs", "several nodes with shared bytes are not built yet"),
    _Unbuilt("partner.NAME.receipt", "receipts are not asked for yet"),
)


def unbuilt(configuration: Configuration) -> tuple[Advice, ...]:
    """What the file asks for and this release does not do; it blocks where a route depends on it."""
    rows = {row.key: row for row in _UNBUILT}
    found = []
    for pattern, key, owner, value in _settings(configuration):
        row = rows.get(pattern)
        if row is None or value in row.built:
            continue
        blocks = row.blocks and _needed(configuration, pattern, owner)
        do = (
            "take it out; a route depends on it and run does not start"
            if blocks
            else "it has no effect in this release"
        )
        found.append(Advice("problem" if blocks else "warning", row.what, do, key, blocks))
    return tuple(found)


def _settings(configuration: Configuration) -> Iterator[tuple[str, str, str, Any]]:
    """Everything the file sets itself: its pattern, its key, the name of its section, its value."""
    for kind in _set_fields(configuration):
        section = getattr(configuration, kind)
        if section is None:
            continue  # the file has it since the start: it waits for a restart
        if kind in NAMED:
            for name, named in section.items():
                yield f"{kind}.NAME", f"{kind}.{name}", name, named
                yield from _keys_set(named, f"{kind}.NAME", f"{kind}.{name}", name)
        elif kind == "route":
            for route in section:
                yield from _keys_set(route, kind, f'route "{route.name}"', route.name)
        else:
            yield kind, kind, "", section
            yield from _keys_set(section, kind, kind, "")


def _keys_set(section: Section, pattern: str, key: str, name: str) -> Iterator[tuple[str, str, str, Any]]:
    for field in _set_fields(section):
        yield f"{pattern}.{field}", f"{key}.{field}", name, getattr(section, field)


def _set_fields(section: Section) -> Iterator[str]:
    return (field for field in type(section).model_fields if field in section.model_fields_set)


def _needed(configuration: Configuration, pattern: str, owner: str) -> bool:
    """Whether some route depends on a setting of this pattern in the section of this name."""
    routes = configuration.route
    match pattern.partition(".")[0]:
        case "route" | "gateway":
            return bool(routes)
        case "ae":
            return any(owner in route.store for route in routes)
        case "imap" | "pop3":
            return any(owner == route.mailbox for route in routes)
        case "partner":
            return any(owner in route.mail for route in routes)
        case "relay":
            return any(route.mail for route in routes)
        case _:
            return False


# ---------------------------------------------------------------------------------------------------------------
# What stands open


def _unmailable(configuration: Configuration) -> Iterator[Advice]:
    """Partners of mail routes that nothing can be mailed to: clear text leaves only where the partner says so (R21)."""
    for name in dict.fromkeys(name for route in configuration.route for name in route.mail):
        partner = configuration.partner[name]
        if partner.send != "plain" and not (configuration.smime and configuration.smime.identities):
            what = f'send = "{partner.send}" (the default is signed+encrypted), and there is no certificate of ours'
            do = 'name one in [smime] identities, or set send = "plain" where clear text may leave'
            yield Advice("problem", what, do, f"partner.{name}.send", blocks=True)
        if "*" in partner.address:
            what = "its address is a pattern: nobody can be mailed at it"
            yield Advice("problem", what, "name one address", f"partner.{name}.address", blocks=True)


def _idle(configuration: Configuration) -> Iterator[Advice]:
    """Doors without routes, routes without doors."""
    into = [route for route in configuration.route if route.store]
    if into and not (configuration.smtp or configuration.imap or configuration.pop3):
        yield Advice("problem", "no mail can come in", "add [smtp], [imap.NAME] or [pop3.NAME]", "route")
    if not into and (configuration.smtp or configuration.imap or configuration.pop3):
        yield Advice("warning", "no route stores mail in a PACS, so all mail is refused", "add a [[route]]", "route")
    for name, entity in configuration.ae.items():
        if entity.confirm == "commitment" and configuration.storescp is None:
            what, do = "no report of storage commitment can come in", 'add [storescp], or set confirm = "find"'
            yield Advice("problem", what, do, f"ae.{name}.confirm", _needed(configuration, "ae", name))
    if not (configuration.smtp or configuration.imap or configuration.pop3 or configuration.storescp):
        yield Advice("warning", "every door is shut", "add a section such as [smtp]", "gateway")


def _open_doors(configuration: Configuration) -> Iterator[Advice]:
    """Who may come in that perhaps should not."""
    smtp, scp = configuration.smtp, configuration.storescp
    for name, partner in configuration.partner.items():
        key = f"partner.{name}"
        if partner.accept == "any" and not (partner.peers or partner.smtp_user):
            what = 'accept = "any" and bound to no peer: anybody can write in this name'
            yield Advice("warning", what, "bind it with peers or smtp_user, or ask for a signature", f"{key}.accept")
        if partner.accept != "any" and configuration.smime is None:
            what = f'accept = "{partner.accept}", and nobody is trusted: all its mail is held'
            yield Advice("warning", what, "add [smime] with its folder trust", f"{key}.accept")
        if (partner.peers or partner.smtp_user) and (configuration.imap or configuration.pop3):
            what = "its mail is held when it comes by a mailbox, which proves neither peers nor smtp_user"
            yield Advice("warning", what, "where it comes so, ask for a signature in place of them", key)
        if partner.smtp_user and not (smtp and smtp.users_file):
            yield Advice("problem", "nobody can log in", "set smtp.users_file", f"{key}.smtp_user")
    if smtp and smtp.users_file and not is_there(smtp.users_file):
        yield Advice("problem", f"no file {smtp.users_file}", "dicom-mail user add NAME", "smtp.users_file")
    if scp is None or scp.listen.loopback or not any(route.mail for route in configuration.route):
        return
    if not (scp.callers or scp.addresses):
        what = f"anybody who reaches {scp.listen} could have images mailed out"
        yield Advice("problem", what, "name callers and addresses", "storescp.addresses", blocks=True)
    elif not scp.addresses:
        yield Advice("warning", "AE titles prove nothing", "name addresses too", "storescp.addresses")


def _stays(configuration: Configuration) -> Iterator[Advice]:
    """Mailboxes that cannot do what is asked for."""
    for name, mailbox in configuration.pop3.items():
        if mailbox.other == "move":
            what = "POP3 has no folder to move mail to: what is not DICOM stays where it is"
            yield Advice("warning", what, 'set other = "leave", or use IMAP', f"pop3.{name}.other")


def _clear_hops_in(configuration: Configuration) -> Iterator[Advice]:
    """Every hop towards us, beyond loopback, that is unencrypted or may be."""
    smtp, scp, console = configuration.smtp, configuration.storescp, configuration.console
    if smtp and not smtp.listen.loopback and not smtp.certificate:
        yield _clear(f"mail comes to {smtp.listen} in the clear", "set certificate and key_file", "smtp.certificate")
    if smtp and not smtp.listen.loopback and smtp.certificate and not smtp.require_tls:
        yield _clear(f"mail may come to {smtp.listen} in the clear", "set require_tls = true", "smtp.require_tls")
    for key, mailbox in _mailboxes(configuration):
        if mailbox.tls == "none" and not is_loopback(mailbox.host):
            yield _clear(
                f"password and mail cross from {mailbox.host} in the clear", 'set tls = "implicit"', f"{key}.tls"
            )
    if scp and scp.tls is None and not scp.listen.loopback:
        yield _clear(f"images come to {scp.listen} in the clear", "set tls", "storescp.tls")
    if console and not console.listen.loopback and console.certificate is None:
        yield _clear(f"only a proxy may reach {console.listen}", "see to it with a firewall", "console.behind_proxy")


def _clear_hops_out(configuration: Configuration) -> Iterator[Advice]:
    """Every hop away from us, beyond loopback, that is unencrypted."""
    for name, entity in configuration.ae.items():
        if entity.tls is None and not is_loopback(entity.host):
            what = f"images go to {entity.host} in the clear"
            yield _clear(what, "keep it on a network of its own, or use DICOM over TLS", f"ae.{name}.tls")
    relay = configuration.relay
    if relay and relay.tls == "none" and not is_loopback(relay.host):
        yield _clear(f"mail goes to {relay.host} in the clear", 'set tls = "starttls"', "relay.tls")
    for name, partner in configuration.partner.items():
        if partner.send == "plain":
            yield _clear("images are mailed in the clear", 'set send = "signed+encrypted"', f"partner.{name}.send")


def _mailboxes(configuration: Configuration) -> Iterator[tuple[str, Mailbox | PopMailbox]]:
    yield from ((f"imap.{name}", mailbox) for name, mailbox in configuration.imap.items())
    yield from ((f"pop3.{name}", mailbox) for name, mailbox in configuration.pop3.items())


def _clear(what: str, do: str, key: str) -> Advice:
    return Advice("warning", what, do, key)


def _patients(configuration: Configuration) -> Iterator[Advice]:
    """Inbound routes by which a foreign Patient ID may meet one of ours, or whose rules contradict each other."""
    inbound = [route for route in configuration.route if route.store]
    for route in inbound:
        if route.issuer is None and route.patient_id == "keep":
            what = "a foreign Patient ID arrives unmarked and may mean someone else here"
            yield Advice("warning", what, "set issuer or patient_id", f'route "{route.name}".issuer')
    for one, other in combinations(inbound, 2):
        rules = [(route.issuer, route.patient_id, route.accession) for route in (one, other)]
        if rules[0] != rules[1] and _may_share_a_mail(one, other):
            what = f'a mail that takes route "{one.name}" too is held: their rules for patients differ'
            do = "give both the same issuer, patient_id and accession"
            yield Advice("warning", what, do, f'route "{other.name}".issuer')


def _may_share_a_mail(one: Route, other: Route) -> bool:
    """Whether one mail may take both routes: from one sender, to two recipients. One from a mailbox has only one."""
    if one.mailbox or other.mailbox or one.to == other.to:
        return False
    # A partner's name, an address or anybody: two names are two partners, else it may be the same sender.
    names = {sender for sender in (one.from_, other.from_) if sender and sender != "*" and "@" not in sender}
    return len(names) < 2


# ---------------------------------------------------------------------------------------------------------------
# Files


def _files(configuration: Configuration) -> Iterator[Advice]:
    for key, path in _secret_files(configuration):
        if key.endswith("key_file"):
            yield from _private_key(key, path, configuration.gateway.data)
        elif is_there(path) and path.stat().st_mode & (stat.S_IRWXO | stat.S_IWGRP):
            yield Advice("warning", f"others may read or write {path}", f"chmod o=,g-w {path}", key)
    data = configuration.gateway.data
    if is_there(data) and data.is_dir() and data.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        yield Advice("problem", f"others may look into {data}", f"chmod 0700 {data}", "gateway.data")
    if not _encrypted(data):
        what = f"{data} does not seem to lie on an encrypted volume"
        yield Advice("warning", what, "put it on one: it holds images and mail", "gateway.data")


def _private_key(key: str, path: Path, data: Path) -> Iterator[Advice]:
    """A private key is its owner's alone; systemd sees to those that it hands over."""
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    if credentials and path.resolve().is_relative_to(Path(credentials).resolve()):
        return
    try:
        state = path.stat()
    except OSError:
        return
    allowed = stat.S_IRWXU
    if state.st_uid == 0 and is_there(data) and data.stat().st_uid != 0:
        allowed |= stat.S_IRGRP  # root's, and handed to the gateway by its group: so the gateway cannot change it
    if stat.S_IMODE(state.st_mode) & ~allowed:
        yield Advice("problem", f"others may read the private key {path}", f"chmod go= {path}", key, blocks=True)


def _secret_files(configuration: Configuration) -> Iterator[tuple[str, Path]]:
    for _, key, _, value in _settings(configuration):
        if key.endswith("_file") and isinstance(value, Path):
            yield key, value
        elif isinstance(value, Section):
            yield from (
                (f"{key}.{name}", inner) for name, inner in value if name.endswith("_file") and isinstance(inner, Path)
            )
    if configuration.smime:
        for index, identity in enumerate(configuration.smime.identities, 1):
            yield f"smime.identities[{index}].key_file", identity.key_file


def _encrypted(folder: Path, devices: Path = Path("/sys/dev/block")) -> bool:
    """Whether the volume under a folder is one of dm-crypt, or built upon one, as far as the kernel tells."""
    while not is_there(folder):
        folder = folder.parent
    device = folder.stat().st_dev
    waiting = [devices / f"{os.major(device)}:{os.minor(device)}"]
    while waiting:
        block = waiting.pop()
        uuid = block / "dm" / "uuid"
        if uuid.exists() and uuid.read_text("ascii", "replace").startswith("CRYPT-"):
            return True
        slaves = block / "slaves"
        waiting += slaves.iterdir() if slaves.is_dir() else ()
    return False
