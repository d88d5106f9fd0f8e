"""The gateway's JSON documents as something to read: tables and stories for a terminal, in local time.

Pure functions: a document of the outer contract in, a rich renderable out. What comes from a mail is shown without
control characters, so that no message can play with the terminal of who looks at it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gateway.core.wording import plain, span
from gateway.model import Outcome

Document = Mapping[str, Any]

_STYLES: Final[Mapping[str, str]] = {
    Outcome.DELIVERED: "green",
    Outcome.WAITING: "yellow",
    Outcome.REFUSED: "dim",
    Outcome.HELD: "bold magenta",
    Outcome.FAILED: "bold red",
    "ok": "green",
    "warning": "yellow",
    "problem": "bold red",
    "no answer": "bold yellow",
}

_NEXT: Final[Mapping[str, str]] = {
    Outcome.HELD: "A person decides: dicom-mail queue release {id}, or drop {id}.",
    Outcome.FAILED: "It was given up: dicom-mail queue retry {id}, or drop {id}.",
    Outcome.WAITING: "It is tried again by itself; dicom-mail queue retry {id} tries it now.",
}


def local(moment: str) -> str:
    """Write a moment of a document in local time."""
    return f"{datetime.fromisoformat(moment).astimezone():%Y-%m-%d %H:%M:%S}"


def queue(document: Document) -> RenderableType:
    """The items as a table, then what a person must know: open notices, destinations and mailboxes in trouble."""
    items = document["items"]
    head = Text(f"{_count(len(items), 'item')}{', the newest only' if document.get('cut') else ''}", style="bold")
    parts: list[RenderableType] = [head]
    if items:
        parts.append(_items(items))
    parts += (_notice(notice) for notice in document.get("notices", ()))
    parts += (destination(one) for one in document.get("destinations", ()) if one["paused"] or one["trouble"])
    parts += (_mailbox(one) for one in document.get("mailboxes", ()) if one["state"] != "ok")
    return Group(*parts)


def _items(items: Iterable[Document]) -> Table:
    table = _table("id", "", "outcome", "stage", "partner", "delivered", "attempts", "next", "age", "code")
    for one in items:
        table.add_row(
            Text(plain(one["id"]), style="bold"),
            Text(plain(one["direction"])),
            _outcome(one["outcome"]),
            Text(plain(one["stage"])),
            Text(plain(one["partner"])),
            Text(f"{one['delivered']}/{one['instances']}"),
            Text(plain(one["attempts"])),
            Text(local(one["next_attempt"])[11:] if one["next_attempt"] else ""),
            Text(span(one["age_seconds"])),
            Text(plain(one["code"])),
        )
    return table


def _notice(notice: Document) -> Text:
    text = Text.assemble(("notice  ", "bold yellow"), plain(notice["text"]), f", since {local(notice['since'])}")
    return text.append(f": {plain(notice['do'])}") if notice["do"] else text


def destination(document: Document) -> Text:
    """One line: how a destination is."""
    text = Text.assemble((plain(document["name"]), "bold"), ": ", "paused" if document["paused"] else "not paused")
    if document.get("trouble"):
        text.append(f", in trouble: {plain(document['trouble'])}")
    if document.get("down_since"):
        text.append(f", since {local(document['down_since'])}")
    return text


def _mailbox(document: Document) -> Text:
    """One line: what is the matter with a mailbox, since when, and what a person can do."""
    text = Text.assemble((plain(document["name"]), "bold"), f": {plain(document['state'])}")
    text.append(f", since {local(document['since'])}")
    return text.append(f": {plain(document['text'])}; {plain(document['do'])}")


def item(document: Document) -> RenderableType:
    """The story of one item: what it is, what happened when, where each instance is, and what can be done."""
    parts: list[RenderableType] = [_headline(document), Text(_condition(document))]
    if document["message_id"]:
        parts.append(Text(f"Message-ID {plain(document['message_id'])}", style="dim"))
    parts += [Text(), _timeline(document["events"])]
    if document.get("mails"):
        parts += [Text(), _mails(document["mails"])]
    if document["instances_detail"]:
        parts += [Text(), _instances(document["instances_detail"])]
    parts += _findings(document.get("findings", ()))
    parts += [Text(), Text(_timing(document["timing"]), style="dim")]
    if advice := _NEXT.get(document["outcome"]):
        parts.append(Text(advice.format(id=plain(document["id"]))))
    return Group(*parts)


def _headline(document: Document) -> Text:
    way = "mail from" if document["direction"] == "in" else "images for"
    text = Text.assemble((plain(document["id"]), "bold"), f"  {way} {plain(document['partner']) or 'nobody we know'}: ")
    text.append_text(_outcome(document["outcome"]))
    return text.append(f" ({plain(document['code'])})") if document["code"] else text


def _condition(document: Document) -> str:
    parts = [f"{document['delivered']} of {_count(document['instances'], 'instance')} delivered"]
    parts.append(_count(document["attempts"], "attempt"))
    parts.append(f"in stage {plain(document['stage'])}, {span(document['age_seconds'])} old")
    if document["next_attempt"]:
        parts.append(f"next attempt {local(document['next_attempt'])}")
    if document.get("duplicate_of"):
        parts.append(f"repeats {plain(document['duplicate_of'])}")
    if document.get("part_of"):
        parts.append(f"a fragment of the message that {plain(document['part_of'])} stands for")
    return ", ".join(parts)


def _timeline(events: Iterable[Document], word: str = "") -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="cyan", min_width=19)
    table.add_column(overflow="fold")
    for one in events:
        table.add_row(Text(local(one["at"]) if one["at"] else word), Text(plain(one["text"])))
    return table


def _instances(details: Iterable[Document]) -> Table:
    table = _table("SOP Instance UID", "destination", "outcome", "sends", "unknown", "status", "mail", "code")
    for one in details:
        table.add_row(
            Text(plain(one["sop_instance"])),
            Text(plain(one["destination"])),
            _outcome(one["outcome"]),
            Text(plain(one["sends"])),
            Text(plain(one["sends_unknown"] or "")),
            Text(plain(one["status"])),
            Text(plain(one["mail"])),
            Text(plain(one.get("code"))),
        )
    return table


def _timing(timing: Document) -> str:
    names = ("receive", "read", "store")
    known = [f"{name} {span(timing[f'{name}_seconds'])}" for name in names if timing[f"{name}_seconds"] is not None]
    return "took: " + (", ".join(known) or "nothing yet")


def sent(document: Document) -> RenderableType:
    """What was taken of files that a person sends, and what was not."""
    count = _count(document["taken"], "file")
    when = "it is collected and mailed now" if document["running"] else "it is mailed when the gateway runs"
    lines: list[RenderableType] = [
        Text(f"{plain(one['file'])}: not taken, {plain(one['reason'])}", style=_STYLES["problem"])
        for one in document["files"]
        if not one["taken"]
    ]
    lines.append(Text(f"{count} taken for {plain(document['partner'])}; {when}: dicom-mail queue list"))
    return Group(*lines)


def explanation(document: Document) -> RenderableType:
    """The stories of what was looked for, the newest first, each with what comes next and what can be done."""
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(document["outcomes"].items()))
    head = Text(f"{_count(document['found'], 'item')}: {counts}", style="bold")
    if document["cut"]:
        head.append(f"; the newest {len(document['items'])} are told, --since tells fewer")
    parts: list[RenderableType] = [head]
    for one in document["items"]:
        parts += [Text(), Text(plain(one["headline"]), style=_STYLES.get(one["outcome"], ""))]
        parts.append(_timeline({"at": said["at"], "text": said["text"]} for said in one["story"]))
        parts.append(_timeline([one["next"]], "next"))
        if one["do"]:
            parts.append(Text("What you can do:", style="bold"))
            parts += [Text(f"  {plain(advice)}") for advice in one["do"]]
    return Group(*parts)


def backup(document: Document) -> RenderableType:
    """What a backup holds, and what it does not."""
    size = f"{document['size'] / 10**6:.1f} MB"
    lines = [Text(f"{_count(document['items'], 'item')} in {_count(document['files'], 'file')}, {size}, verified")]
    lines.append(Text(f"It lies in {plain(document['folder'])} and holds images of patients.", style="bold"))
    if not document["keys"]:
        lines.append(Text("The keys are not in it: with --with-keys they are."))
    if document["unaccounted"]:
        text = f"{document['unaccounted']} items are unaccounted for in it: dicom-mail reconcile"
        lines.append(Text(text, style=_STYLES["problem"]))
    return Group(*lines)


def event(document: Document) -> RenderableType:
    """One line of the list of what went in and out."""
    way = {"in": "from", "out": "for"}.get(document["direction"], "")
    whose = f"{way} {plain(document['partner'])}" if way and document["partner"] else ""
    who = f"by {plain(document['who'])}" if document["who"] else ""
    words = (plain(document["id"]), whose, who)
    about = " ".join(word for word in words if word)
    return Text.assemble((local(document["at"]), "cyan"), f"  {about + ': ' if about else ''}{plain(document['text'])}")


def _mails(mails: Iterable[Document]) -> Table:
    table = _table("mail", "Message-ID", "bytes", "outcome", "sends", "unknown", "reply", "code")
    for one in mails:
        reply = " ".join(plain(word) for word in (one["status"], one["comment"]) if word)
        table.add_row(
            Text(f"{one['part']} of {one['parts']}"),
            Text(plain(one["message_id"])),
            Text(plain(one["size"])),
            _outcome(one["outcome"]),
            Text(plain(one["sends"])),
            Text(plain(one["sends_unknown"] or "")),
            Text(reply),
            Text(plain(one["code"])),
        )
    return table


def proof(document: Document) -> RenderableType:
    """The conservation proof: one sentence that says whether it holds, then the numbers in both units."""
    if document["unaccounted"]:
        verdict = f"The proof does not hold: {document['unaccounted']} of {document['in']} are unaccounted for."
        head = Text(verdict, style=_STYLES["problem"])
    else:
        head = Text(f"All that was taken in is accounted for: {document['in']}.", style=_STYLES["ok"])
    outcomes = [str(outcome) for outcome in Outcome]
    table = _table("unit", "in", "", *outcomes, "unaccounted", "doubtful")
    for unit, counts in (("messages, collections", document), ("instances, destinations", document["instances"])):
        row = [
            counts["in"],
            "=",
            *(counts[outcome] for outcome in outcomes),
            counts.get("unaccounted", ""),
            counts.get("doubtful", ""),
        ]
        table.add_row(Text(unit), *(Text(plain(value)) for value in row))
    astray = (
        Text(f"unaccounted: {plain(one)}; dicom-mail queue show {plain(one)}") for one in document.get("astray", ())
    )
    return Group(head, table, *astray)


def partners(document: Document) -> RenderableType:
    """The partners as a table."""
    table = _table("partner", "address", "certificate", "until", "days", "from", "state")
    for one in document["partners"]:
        found = one["certificate"] or {}
        table.add_row(
            Text(plain(one["name"]), style="bold"),
            Text(plain(one["address"])),
            Text(found.get("fingerprint", "")[:16]),
            Text(found.get("not_after", "")[:10]),
            Text(plain(found.get("days"))),
            Text(plain(one["source"])),
            _worth(one),
        )
    return table


def partner(document: Document) -> RenderableType:
    """One partner and its certificate."""
    head = Text.assemble((plain(document["name"]), "bold"), f", {plain(document['address'])}: ", _worth(document))
    head.append(f", {plain(document['text'])}")
    parts: list[RenderableType] = [head]
    parts.append(Text(f"mail from it must be: {document['accept']}; mail to it goes: {document['send']}"))
    if document["certificate"]:
        parts += [Text(), _certificate(document["certificate"])]
        parts.append(Text(f"in {plain(document['file'])}", style="dim"))
    if document["path"]:
        parts.append(Text(f"trusted by: {plain(' <- '.join(document['path']))}"))
    if document["revocation"]:
        parts.append(Text(f"revocation: {document['revocation']}"))
    if document["trusted_until"]:
        parts.append(Text(f"let count until {local(document['trusted_until'])}", style=_STYLES["warning"]))
    return Group(*parts)


def offer(document: Document) -> RenderableType:
    """A certificate that a person is asked to approve."""
    head = Text.assemble("For ", (plain(document["partner"]), "bold"), f", from {plain(document['source'])}:")
    parts: list[RenderableType] = [head, _certificate(document["certificate"])]
    if document["authorities"]:
        parts.append(Text(f"with it came: {plain('; '.join(document['authorities']))}"))
    if document["replaces"]:
        parts.append(Text(f"it replaces: {document['replaces']}"))
    parts += [Text.assemble(("note  ", _STYLES["warning"]), plain(one)) for one in document["notes"]]
    return Group(*parts)


def trial(document: Document) -> RenderableType:
    """What would happen to mail to a partner and from it."""
    marks = {(True, True): "ok", (False, True): "problem", (True, False): "ok", (False, False): "warning"}
    ways = (document["out"], document["in"])
    return Group(*(verdict(marks[one["ok"], one["used"]], document["partner"], one["text"]) for one in ways))


def _worth(document: Document) -> Text:
    style = {"good": "ok", "overdue": "warning", "none": "warning"}.get(document["state"], "problem")
    return Text(plain(document["state"]), style=_STYLES[style])


def _certificate(document: Document) -> RenderableType:
    table = _table("", "")
    usages = "not said" if document["usages"] is None else ", ".join(document["usages"])
    rows = {
        "subject": document["subject"],
        "issuer": document["issuer"],
        "addresses": ", ".join(document["addresses"]) or "none",
        "valid": f"{document['not_before'][:10]} to {document['not_after'][:10]}, {document['days']} days more",
        "key": f"{document['key']}, for {usages}",
        "SHA-256": ":".join(document["fingerprint"][at : at + 4] for at in range(0, 64, 4)),
    }
    for name, value in rows.items():
        table.add_row(Text(name), Text(plain(value)))
    table.show_header = False
    return table


def reading(document: Document) -> RenderableType:
    """What the gateway would make of one message."""
    outcome = document["outcome"]
    parts: list[RenderableType] = [Text.assemble("This would be ", _outcome(outcome), f": {_decision(document)}.")]
    if why := document.get("reason") or document.get("code"):
        parts.append(Text(f"Why: {plain(why)}"))
    parts.append(Text(_content(document)))
    if document["instances"]:
        parts += [Text(), _read_instances(document["instances"])]
    directory = document["dicomdir"]
    if directory and not directory["complete"]:
        parts.append(Text(f"The DICOMDIR names files that did not come: {plain(', '.join(directory['missing']))}"))
    for part in document["other_parts"]:
        parts.append(
            Text(f"part {plain(part['part'])}: {plain(part['type'])}, {part['size']} bytes, kept with the original")
        )
    return Group(*parts, *_findings(document["findings"]))


def _decision(document: Document) -> str:
    partner = f"from {plain(document['partner'])}" if document["partner"] else "from nobody we know"
    if not document["route"]:
        return f"{partner}, no route takes it"
    return (
        f"{partner}, by route {plain(document['route'])} to {plain(', '.join(document['destinations'])) or 'nowhere'}"
    )


def _content(document: Document) -> str:
    kinds = {"dicom": "DICOM", "partial": "a fragment", "report": "a report", "other": "no DICOM"}
    count = len(document["instances"])
    studies = len({one["study"] for one in document["instances"]})
    parts = [f"It is {kinds.get(document['kind'], plain(document['kind']))}"]
    if count:
        parts.append(f"{_count(count, 'instance')} of {studies} {'study' if studies == 1 else 'studies'}")
        if held := _held(document):  # AMB-40
            parts.append(f"{count - held} of {count} can go on")
    if document["partial"]:
        partial = document["partial"]
        parts.append(f"number {partial['number']} of {partial['total'] or 'unknown'}")
    guard = document["protection"]
    marks = [word for word in ("encrypted", "signed", "verified") if guard[word]]
    parts.append(" and ".join(marks) if marks else "unprotected")
    if guard["signer"]:
        parts.append(f"signer {plain(guard['signer'])}")
    if guard["code"]:
        parts.append(f"code {plain(guard['code'])}")
    return ", ".join(parts) + "."


def _held(document: Document) -> int:
    """Count the instances that an error holds: one about their part, or one about the whole message."""
    wheres = {one["where"] for one in document["findings"] if one["severity"] == "error"}
    return sum(1 for one in document["instances"] if one["part"] in wheres or "" in wheres)


def _read_instances(instances: Iterable[Document]) -> Table:
    table = _table("part", "SOP Instance UID", "SOP Class UID", "Transfer Syntax UID", "bytes", "File ID")
    for one in instances:
        keys = ("part", "sop_instance", "sop_class", "transfer_syntax", "size", "file_id")
        table.add_row(*(Text(plain(one[key])) for key in keys))
    return table


def _findings(findings: Iterable[Document]) -> list[RenderableType]:
    return [
        Text.assemble(
            (f"{plain(one['severity'])}  ", _STYLES["warning"]),
            plain(one["code"]),
            f" in part {plain(one['where'])}" if one["where"] else "",
            f": {plain(one['text'])}",
        )
        for one in findings
    ]


def verdict(mark: str, subject: str, text: str, do: str = "") -> Text:
    """One line of ``check`` and ``echo``: ``ok``, ``warning``, ``problem`` or ``no answer``, and what to do."""
    line = Text.assemble((f"{mark:<9}  ", _STYLES[mark]), plain(subject))
    line.append(f": {plain(text)}" if text else "")
    return line.append(f" -> {plain(do)}" if do else "")


def _outcome(outcome: str) -> Text:
    return Text(plain(outcome), style=_STYLES.get(outcome, ""))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
