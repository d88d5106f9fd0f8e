"""Why an item, or an instance at a destination, is what it is: every code of ours that no other table has, in words.

The words are those of docs/errors.md, and a test holds the two equal. Codes of findings are in ``findings``, those of
a PACS's answers in ``status``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from gateway.core import findings, status

ITEMS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "no-dicom": (
            "A partner's mail in which no usable DICOM was found. Look at the findings in `queue show`; ask the "
            "sender. `queue drop` when it is of no use."
        ),
        "not-dicom": (
            "Mail that is not for a PACS: a report, an automatic answer, or a stranger's mail without DICOM. Nothing "
            "has to be done."
        ),
        "report": "A receipt or bounce that was matched to what it is about. Nothing has to be done.",
        "fragment-waiting": (
            "A piece of a message that came as message/partial; others are missing, `queue show` says which. Nothing "
            "has to be done: it goes on by itself when they come."
        ),
        "fragment-incomplete": (
            "Pieces of a message are missing, and `limits.fragment_age` is over. Ask the sender for the missing ones,"
            " which join it even now, or for the whole message. `queue release` waits once more; `queue drop` refuses"
            " all pieces that came."
        ),
        "fragment-conflict": (
            "Two pieces claim the same place with different content: the set and the newcomer are both held, and none"
            " is joined. Ask the sender. `queue drop` the newcomer and `queue release` the set, or drop the set and "
            "release the newcomer."
        ),
        "fragment-limit": (
            "A piece needs more than its sender may have: more pieces than `limits.parts`, a whole bigger than "
            "`limits.message`, over 100 incomplete messages at a time, or waiting pieces of over four times "
            "`limits.message`. Raise the limit, or wait until others are complete; then `queue release`."
        ),
        "no-route": (
            "It was welcome when it came and no route takes it any more, or a partner's images lie in a mailbox from "
            "which no route takes them. Give it a route and reload, then `queue release`; or `queue drop`."
        ),
        "sender-unproven": (
            "DICOM from a mailbox whose From is that of a partner with `peers` or `smtp_user`. Only an SMTP session "
            "can prove these; whoever writes to a mailbox can write any From. Where this partner's mail is to come by "
            'the mailbox, take them out of its section and ask for a signature (`accept = "signed"`), reload, then '
            "`queue release`; or `queue drop`."
        ),
        "rules-differ": (
            "The mail takes several routes whose `issuer`, `patient_id` or `accession` differ, and there is one data "
            "set for all of them. Give these routes the same rules and reload, then `queue release`; or ask the "
            "sender for one mail to each address."
        ),
        "unreadable": (
            "Reading it failed three times in a way nobody foresaw. Report the events in `queue show` as a defect; "
            "the original is kept."
        ),
        "poison": (
            "The gateway stopped three times while reading it. Report it as a defect and do not release it before it "
            "is mended."
        ),
        "bytes-missing": (
            "Its bytes are gone from the spool: somebody deleted them, or the disk lost them. Ask the sender to send "
            "it again, then `queue drop`. Look at the disk."
        ),
        "reused-uid": (
            "The SOP Instance UID is known with other content: another data set or another transfer syntax. Find out "
            "which is right. `queue retry --force` sends this one too; the PACS decides what it keeps."
        ),
        "no-identity": (
            "The partner's `send` asks for protection, and no certificate of `[smime]` can sign now: it is missing, "
            "has run out, or is not for mail. Put a valid one there and reload, then `queue release`. Nothing leaves "
            "in the clear meanwhile."
        ),
        "no-certificate": (
            "The partner's `send` asks for encryption, and no certificate of the partner is at hand. Set "
            "`certificate` of the partner, or put it into `partners/` of the data folder, then `queue release`. "
            "Nothing leaves unencrypted meanwhile. Where there is one that may not be used, the code says why, as "
            "`certificate-expired` or `revoked` does."
        ),
        "too-big": (
            "One image is too big for one mail to this partner, and the partner does not take message/partial. Raise "
            "`max_message` of partner and relay, or set `partial = true`, reload, then `queue release`; else send it "
            "another way and `queue drop`."
        ),
        "partner-removed": (
            "The partner it is for is no longer in the configuration. Put it back and reload, then `queue release`; "
            "or `queue drop`."
        ),
        "no-relay": (
            "There is no `[relay]` any more to submit it to. Put it back and restart, then `queue release`; or `queue"
            " drop`."
        ),
        "no-address": (
            "The partner's `address` is a pattern, so nobody can be mailed at it. Name one address and reload, then "
            "`queue release`."
        ),
        "not-composed": (
            "Writing its mails failed three times in a way nobody foresaw. Report the events in `queue show` as a "
            "defect; the images are kept. `queue release` tries again."
        ),
        "relay-refused": (
            "The relay refused the mail for good; the reply code is in `queue show`. Look at the address of the "
            "partner and at the relay's log, then `queue retry`: where the address was corrected, it is composed anew."
        ),
        "relay-deferred": (
            "The relay answered that it cannot take the mail now, or the connection broke off before its end. It is "
            "tried again with the same Message-ID; failed after `give_up`. Look at the relay's log, then `queue retry`."
        ),
        "mail-too-big": (
            "The relay does not take a mail of this size, although its limit was not known before. Lower "
            "`relay.max_message`; `queue retry` composes it anew, in smaller mails."
        ),
        "composed-anew": (
            "A mail that other ones stand for now: it was too big, or its partner was changed before it left. Nothing "
            "has to be done."
        ),
        "bounced": (
            "The relay took the mail, and a report came back that it could not be delivered. Look at the address of "
            "the partner and ask their IT, then `queue retry`: where the address was corrected, it is composed anew."
        ),
        "destination-removed": (
            "Its destination is no longer in the configuration. Put it back and reload, then `queue release`; or "
            "`queue drop`."
        ),
        "in-doubt": (
            "A send had no valid answer: the instance may be in the PACS or not. Held after `unknown_sends` of them. "
            "Look in the PACS, then `queue resolve ID delivered`, `resend` or `dropped`."
        ),
        "peer-aborts": (
            "The PACS cut the association twice while this instance was on the wire, the second time when it was sent"
            " alone, and took others meanwhile. Look at the instance; most often its data set is damaged. Ask the "
            "sender, or the PACS team with its log; `queue retry`."
        ),
        "awaiting-confirmation": (
            "A success status came; the proof that `confirm` asks for has not come yet. Nothing has to be done: it is"
            " asked for again and again."
        ),
        "not-confirmed": (
            "A success status came, but no proof in `confirm_within`, or the proof that it is not there. Sent again "
            "up to three times in all, then held. Look in the PACS: when it is there, `queue drop`; else find out why"
            " it says that it stores what it does not have, then `queue release`."
        ),
        "found": "A send had no valid answer, and C-FIND showed that it had arrived. Nothing has to be done.",
        "already-there": (
            "It came before, and C-FIND showed that the PACS has it: it was not sent again. Nothing has to be done; "
            "`queue retry --force` sends it."
        ),
        "by-operator": "A person said so; the event names who. Nothing has to be done, or `queue release`.",
        "dropped": "A person dropped it; the event names who. Nothing has to be done.",
    }
)
"""Codes of items."""

PROTECTION: Final[Mapping[str, str]] = MappingProxyType(
    {
        "malformed": (
            "The protection cannot be read: damaged on the way, or made to confuse. Ask for it to be sent again."
        ),
        "limit-exceeded": (
            "More layers, certificates, pieces or bytes than any honest sender sends. Ask the sender how it was made."
        ),
        "unsupported-algorithm": (
            "Made with an algorithm that is not accepted, Triple-DES and AuthEnvelopedData without AES-GCM among "
            "them. Ask for AES."
        ),
        "not-signed": "The partner must sign, and this mail is not signed. Ask for it to be sent again, signed.",
        "signed-part-not-root": (
            "A signed mail has more or fewer than two parts: a mailing list or a filter added something. Ask for it "
            "to be sent past that."
        ),
        "no-signer": "It carries certificates and no signature.",
        "signer-certificate-missing": "The signer's certificate did not come and is not configured. Import it.",
        "content-digest-mismatch": (
            "The content was changed after it was signed, by a footer or by an attacker. Ask for it to be sent again."
        ),
        "bad-signature": "The signature was not made by the key of the certificate it names.",
        "signed-attributes-invalid": (
            "What the signature says beside the content contradicts itself, or it was made in the future: look at the"
            " sender's clock."
        ),
        "weak-digest": "Signed with SHA-1, MD5 or SHA-224. Ask for SHA-256.",
        "weak-key": (
            "An RSA key below 2048 or above 8192 bits, or a curve below 256. The partner needs a new certificate."
        ),
        "untrusted-issuer": (
            "The certificate leads to no anchor of yours, or is not the pinned one. Check it out of band, then add "
            "the anchor or pin it."
        ),
        "certificate-expired": (
            "The certificate, or one of its issuers', has run out. The partner needs a new one: "
            "`dicom-mail partner import`. Until it is here, `dicom-mail partner trust` lets the old one count."
        ),
        "certificate-not-yet-valid": "The certificate is not valid yet. Look at both clocks.",
        "extended-key-usage": "The certificate is not for mail.",
        "key-usage": "The certificate must not be used for this: one for encryption signed, or the other way round.",
        "revoked": (
            "The certificate is revoked: the partner's, or our own for mail that we send. Call the partner; treat "
            "what it signed lately with care. Mail to or from a new certificate goes on by itself."
        ),
        "revocation-unknown": (
            "No CRL told for 24 hours whether the certificate is revoked, and `revocation` is `hard`. Until then "
            "the mail waits, and is looked at again every 15 minutes. `check` says which CRL is missing; put it "
            "there, then `queue release`."
        ),
        "sender-address-mismatch": (
            "The certificate is for another address than From, or From differs inside the protection. Pin the "
            "certificate if this is how the partner sends."
        ),
        "not-encrypted": (
            "The partner must encrypt, and this mail came readable: data of a patient may have travelled in clear text."
        ),
        "no-key-for-us": "Encrypted for others. Send the partner your certificate.",
        "decrypt-failed": (
            "It cannot be decrypted. One code for every reason, so that nobody learns from it. Ask for it to be sent "
            "again."
        ),
        "cbc-without-inner-signature": (
            "Encrypted by AES-CBC without a good signature inside: anybody could have changed it. Ask for "
            "AES-GCM, or for signing before encryption. When there is a signature inside, the story of the mail "
            "names what is wrong with it, as certificate-expired: mend that."
        ),
    }
)
"""Codes of protection, as ``cms.failure.Failure`` has them."""


def meaning(code: str | None) -> str:
    """Say in plain words what a code means and what to do; empty when there is nothing to say.

    Args:
        code: Of an item, a delivery, a mail or a protection; None: of none.
    """
    if code is None:
        return ""
    if code in ITEMS or code in PROTECTION:
        return (ITEMS.get(code) or PROTECTION[code]).replace("`", "")
    if code in findings.CODES:
        entry = findings.CODES[code]
        return f"{entry.meaning} {entry.action}".replace("`", "")
    return _ANSWERS.get(code, "")


_ANSWERS: Final = {
    verdict.code: f"The PACS says: {verdict.meaning}."
    for verdict in (*(row.verdict for row in status.TABLE), status.UNLISTED, *status.REFUSALS.values())
}
