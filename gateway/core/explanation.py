"""The story of one item in plain words: facts of the ledger in, sentences out (R36).

It is written for who is woken at three in the morning and knows neither DICOM nor this gateway: what came when and from
whom, what was in it, what was decided and why, how far each destination is and what it said, what happens next by
itself and when, and what a person can do. The facts are a document of the ledger, so that logs may be deleted. Nothing
of a patient is among them (R35).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.core import codes, status
from gateway.model import Direction, Outcome, Stage

Facts = Mapping[str, Any]
"""A document of the ledger."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence, and the moment that it tells of.

    Attributes:
        text: In plain words, without a time.
        at: RFC 3339 in UTC; None when it tells of none.
    """

    text: str
    at: str | None = None


@dataclass(frozen=True, slots=True)
class Story:
    """An item in words.

    Attributes:
        headline: What it is and how far it came.
        past: What happened, and how it stands.
        next: What happens by itself, and when; its moment is None when that depends on somebody.
        do: What a person can do, as commands and advice.
    """

    headline: str
    past: tuple[Sentence, ...]
    next: Sentence
    do: tuple[str, ...]


def explain(item: Facts, lanes: Mapping[str, Facts]) -> Story:
    """Tell the story of one item.

    Args:
        item: As ``queue show`` has it, with ``account``, ``content`` and ``remarks``.
        lanes: How each destination is, by name; the relay is ``relay``. One that was never used may be missing.
    """
    told = _way_out(item) if item["direction"] == Direction.OUT else _way_in(item)
    places = _places(item)
    past = (*told, *_decision(item, places), *_remarks(item), *_standing(item, places), *_lanes(item, places, lanes))
    return Story(_headline(item), past, _next(item, places, lanes), _advice(item, places, lanes))


# What it is


def _headline(item: Facts) -> str:
    whose = item["partner"] or "a sender without a partner entry"
    what = f"mail from {whose}" if item["direction"] == Direction.IN else f"images for {whose}"
    how = str(item["outcome"])
    if item["instances"]:
        how += f", {item['delivered']} of {_count(item['instances'], 'instance')} delivered"
    if item["code"] and item["outcome"] != Outcome.DELIVERED:
        how += f" ({item['code']})"
    return f"{item['id']}, {what}: {how}"


def _way_in(item: Facts) -> Iterable[Sentence]:
    whose = item["partner"] or "a sender whom no partner entry names"
    door = item["door"]
    if "." in door:
        how = f"was taken from the mailbox {door}"
    else:
        login = f", logged in as {item['account']}" if item["account"] else ""
        how = f"came by the door {door} from {item['peer']}{login}"
    yield Sentence(f"A mail of {_size(item['size'])} from {whose} {how}.", item["received"])
    if item["duplicate_of"]:
        yield Sentence(
            f"It is the same mail as {item['duplicate_of']} and has its outcome; nothing is sent twice for it."
        )
    if item["part_of"]:
        yield Sentence(f"It is a piece of the message that {item['part_of']} stands for, and has its outcome.")
    if item["protection"]:
        yield Sentence(_protection(item["protection"]))
    elif item["kind"] == "dicom":
        yield Sentence("Nobody asked for a signature: its partner may send without.")
    yield from _content(item)


def _way_out(item: Facts) -> Iterable[Sentence]:
    who = item["account"] or "somebody"
    how = "were handed in by" if item["door"] == "send" else "came by C-STORE from"
    yield Sentence(f"Images of one study {how} {who}, {_size(item['size'])} in all.", item["received"])
    yield from _content(item)


def _protection(verdict: Facts) -> str:
    if verdict["verified"]:
        lock = "It was encrypted, and its" if verdict["encrypted"] else "Its"
        return f"{lock} signature is good: {verdict['signer'] or 'the pinned certificate'}."
    if verdict["code"]:
        seen = [word for word in ("encrypted", "signed") if verdict[word]]
        state = f"It was {' and '.join(seen)}" if seen else "It was not readably protected"
        return f"{state}, but that does not count ({verdict['code']}): {codes.meaning(verdict['code'])}"
    return "It was encrypted and not signed." if verdict["encrypted"] else "It was neither encrypted nor signed."


_KINDS: Final = {
    "report": "It is a report about a mail, not images.",
    "partial": "It is a piece of a longer message.",
    "other": "No DICOM was found in it.",
}


def _content(item: Facts) -> Iterable[Sentence]:
    if item["content"]:
        studies = "; ".join(
            f"{_count(one['instances'], 'instance')} ({', '.join(one['classes'])}) of study {one['study']}"
            for one in item["content"]
        )
        yield Sentence(f"In it: {studies}.")
    elif item["kind"] in _KINDS:
        yield Sentence(_KINDS[item["kind"]])
    elif item["kind"] is None and item["outcome"] == Outcome.WAITING:
        yield Sentence("It was not read yet.")
    noticed: dict[tuple[str, str, str], int] = {}
    for one in item["findings"]:
        key = (one["code"], one["severity"], one["text"])
        noticed[key] = noticed.get(key, 0) + 1
    for (code, severity, text), count in noticed.items():
        times = f", {count} times" if count > 1 else ""
        yield Sentence(f"Noticed ({severity}, {code}{times}): {text}")


# What was decided


@dataclass(frozen=True, slots=True)
class _Place:
    """One destination of an item, and its deliveries there."""

    name: str
    parts: Sequence[Facts]

    def count(self, outcome: str) -> int:
        return sum(1 for one in self.parts if one["outcome"] == outcome)

    @property
    def waits(self) -> bool:
        return self.count(Outcome.WAITING) > 0


def _places(item: Facts) -> list[_Place]:
    found: dict[str, list[Facts]] = {}
    for one in item["instances_detail"]:
        found.setdefault(one["destination"], []).append(one)
    return [_Place(name, parts) for name, parts in found.items()]


def _decision(item: Facts, places: Sequence[_Place]) -> Iterable[Sentence]:
    routes = ", ".join(item["routes"])
    urgent = " It is urgent." if item["urgent"] else ""
    where = ", ".join(place.name for place in places)
    if routes and where:
        verb = "mails it to" if item["direction"] == Direction.OUT else "sends it to"
        yield Sentence(f"Route {routes} {verb} {where}.{urgent}")
    elif routes:
        yield Sentence(f"Route {routes} takes it; nothing of it was handed to a destination.{urgent}")
    elif item["direction"] == Direction.IN:
        yield Sentence("No route takes it.")


def _remarks(item: Facts) -> Iterable[Sentence]:
    return (Sentence(f"{one['text'][:1].upper()}{one['text'][1:]}.", one["at"]) for one in item["remarks"])


# How it stands


def _standing(item: Facts, places: Sequence[_Place]) -> Iterable[Sentence]:
    if item["direction"] == Direction.OUT:
        yield from _mails(item)
        lost = [one for one in item["instances_detail"] if one["outcome"] in _STUCK and not one["mails"]]
        for code in dict.fromkeys(one["code"] for one in lost):
            count = sum(1 for one in lost if one["code"] == code)
            yield Sentence(f"{_count(count, 'instance')} in no mail ({code}): {codes.meaning(code)}")
    else:
        for place in places:
            yield from _place(place)
    if not places and item["code"]:
        yield Sentence(f"It is {item['outcome']} ({item['code']}): {codes.meaning(item['code']) or item['code']}")
    if item["purged"]:
        yield Sentence("Its bytes are gone by now; what is told here is on record.")


_STUCK: Final = (Outcome.HELD, Outcome.FAILED)


def _place(place: _Place) -> Iterable[Sentence]:
    counts = ", ".join(f"{count} {outcome}" for outcome in Outcome if (count := place.count(outcome)))
    sends = max(one["sends"] for one in place.parts)
    tried = f"; each was sent at most {_count(sends, 'time')}" if sends else "; nothing was sent yet"
    yield Sentence(f"{place.name}: of {_count(len(place.parts), 'instance')} {counts}{tried}.")
    answers: dict[str, int] = {}
    for one in place.parts:
        if text := _answer(one):
            answers[text] = answers.get(text, 0) + 1
    for text, count in answers.items():
        yield Sentence(f"{place.name}, {_count(count, 'instance')}: {text}")


def _answer(one: Facts) -> str:
    """What the peer said last about an instance, and why it is not delivered."""
    parts = []
    if one["status"] is not None:
        verdict = status.classify(int(one["status"], 16))
        parts.append(f"the last answer was {one['status']}, {verdict.meaning} ({verdict.clause})")
    elif one["sends"] and one["comment"]:
        parts.append(f"no answer came ({one['comment']})")
    if one["sends_unknown"]:
        parts.append(f"{_count(one['sends_unknown'], 'send')} had no valid answer, so it may be there or not")
    if one["code"] and one["outcome"] != Outcome.DELIVERED and (why := codes.meaning(one["code"])):
        parts.append(f"{one['code']}: {why.rstrip('.')}")
    return f"{'; '.join(parts)}." if parts else ""


def _mails(item: Facts) -> Iterable[Sentence]:
    for one in item["mails"]:
        text = f"Mail {one['part']} of {one['parts']}, {_size(one['size'])}, {one['message_id']}: {one['outcome']}"
        said = f", the relay answered {one['status']}" if one["status"] else ""
        enhanced = f" {one['comment']}" if one["comment"] else ""
        meaning = f", {_REPLIES.get(one['status'][:1], 'an answer nobody knows')}" if one["status"] else ""
        doubt = f"; {_count(one['sends_unknown'], 'send')} had no answer" if one["sends_unknown"] else ""
        why = codes.meaning(one["code"]) if one["outcome"] != Outcome.DELIVERED else ""
        yield Sentence(f"{text}{said}{enhanced if said else ''}{meaning}{doubt}.{' ' if why else ''}{why}")


_REPLIES: Final = {"2": "it took the mail", "4": "not now", "5": "never as it is"}


def _lanes(item: Facts, places: Sequence[_Place], lanes: Mapping[str, Facts]) -> Iterable[Sentence]:
    for name in _waited_for(item, places):
        lane = lanes.get(name)
        if lane is not None and lane["down_since"]:
            trouble = f": {lane['trouble']}" if lane["trouble"] else ""
            yield Sentence(f"{_lane_name(name)} takes nothing since then{trouble}.", lane["down_since"])


def _waited_for(item: Facts, places: Sequence[_Place]) -> list[str]:
    """Whom an item waits for: destinations, or the relay."""
    if item["outcome"] != Outcome.WAITING:
        return []
    if item["direction"] == Direction.OUT:
        return [RELAY] if item["stage"] == Stage.SUBMIT else []
    return [place.name for place in places if place.waits]


RELAY: Final = "relay"
"""The mail relay among the lanes."""


def _lane_name(name: str) -> str:
    return "The mail relay" if name == RELAY else name


# What comes


def _next(item: Facts, places: Sequence[_Place], lanes: Mapping[str, Facts]) -> Sentence:
    if item["outcome"] != Outcome.WAITING:
        return Sentence(_AT_REST[item["outcome"]])
    if item["duplicate_of"] or item["part_of"]:
        return Sentence(f"It goes with {item['duplicate_of'] or item['part_of']}.")
    waited = _waited_for(item, places)
    free = [name for name in waited if not lanes.get(name, {}).get("paused")]
    if waited and not free:
        return Sentence(f"Nothing is sent to {_names(waited)}: a person paused it, or the gateway did at its start.")
    probes = [lanes[name]["next_probe"] for name in free if lanes.get(name, {}).get("next_probe")]
    if probes and len(probes) == len(free):
        return Sentence(
            f"{_names(free)} is asked whether it is there; then what waits goes out by itself.", min(probes)
        )
    return Sentence(_forecast(item, free), item["next_attempt"])


_AT_REST: Final = {
    Outcome.DELIVERED: "Nothing more is to be done.",
    Outcome.REFUSED: "Nothing more is to be done.",
    Outcome.HELD: "Nothing happens by itself: a person decides. It is kept until then.",
    Outcome.FAILED: "Nothing happens by itself: it was given up, and a person decides. It is kept until then.",
}


def _forecast(item: Facts, free: Sequence[str]) -> str:
    if item["code"] == "fragment-waiting":
        return "It goes on when the missing pieces come; when they do not, it is held and a person is told."
    if item["stage"] == Stage.RECEIVE:
        return "It is read."
    if item["stage"] == Stage.COMPOSE:
        return "Its mails are written, unless more images of the study come before."
    if any(one["stored"] for one in item["instances_detail"] if one["outcome"] == Outcome.WAITING):
        return f"{_names(free)} is asked for the proof that it has stored them."
    return f"It is sent to {_names(free)}."


def _names(names: Sequence[str]) -> str:
    return ", ".join("the mail relay" if name == RELAY else name for name in names)


def _advice(item: Facts, places: Sequence[_Place], lanes: Mapping[str, Facts]) -> tuple[str, ...]:
    key, outcome = item["duplicate_of"] or item["part_of"] or item["id"], item["outcome"]
    paused = [name for name in _waited_for(item, places) if lanes.get(name, {}).get("paused")]
    advice = [f"dicom-mail queue resume {name}" for name in paused]
    if item["doubtful"]:
        advice.append(f"look in the PACS, then dicom-mail queue resolve {key} delivered, or resend, or dropped")
    if outcome == Outcome.WAITING:
        down = [name for name in _waited_for(item, places) if lanes.get(name, {}).get("down_since")]
        advice += ["dicom-mail check" if name == RELAY else f"dicom-mail echo {name}" for name in down]
        advice.append(f"dicom-mail queue retry {key}: try it now")
    elif outcome == Outcome.HELD:
        advice.append(f"dicom-mail queue release {key}: let it go on, when the cause is gone")
    elif outcome == Outcome.FAILED:
        advice.append(f"dicom-mail queue retry {key}: try it again, when the cause is gone")
    if outcome in _STUCK:
        advice.append(f"dicom-mail queue drop {key}: refuse it for good")
    return tuple(advice)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _size(number: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return _count(number, "byte")
