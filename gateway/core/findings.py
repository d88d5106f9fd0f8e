"""Everything the File-set Reader can notice: one table of codes, what each means and what to do about it.

An error is why an instance, or with an empty ``where`` the whole message, is held; a warning is for a person to know;
an info is a remark. Texts are constant: no value of a message or of a patient can get into one (PRV-2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gateway.model import Finding, Severity


@dataclass(frozen=True, slots=True)
class Code:
    """One kind of finding.

    Attributes:
        severity: How much it matters.
        meaning: One sentence: what was seen.
        action: One sentence: what a person can do.
    """

    severity: Severity
    meaning: str
    action: str


_INFO, _WARNING, _ERROR = Severity.INFO, Severity.WARNING, Severity.ERROR
_ASK: Final = "Ask the sender to send it again; the original is kept."
_NONE: Final = "Nothing has to be done."

CODES: Final[dict[str, Code]] = {
    # its protection
    "signer-may-be-revoked": Code(
        _WARNING,
        "No CRL tells whether the signer's certificate is revoked; smime.revocation lets that pass.",
        "Look at what check says of its issuer's CRL.",
    ),
    "signer-certificate-overdue": Code(
        _WARNING,
        "The signer's certificate has run out; a person lets it count for some days.",
        "Ask the partner for its new certificate, and import it with dicom-mail partner import.",
    ),
    # the message and its parts
    "too-many-parts": Code(
        _ERROR, "The message has more parts than the limit allows.", "Raise limits.parts or ask for several mails."
    ),
    "too-deep": Code(
        _ERROR, "Parts are nested deeper than the limit allows.", "Raise limits.depth or ask for a plain mail."
    ),
    "header-too-long": Code(
        _ERROR, "A header is longer than the limit allows.", "Raise limits.header if the sender is to be trusted."
    ),
    "no-boundary": Code(
        _WARNING,
        "A multipart names no boundary that can be used; it was guessed, or read as one part.",
        "Ask the sender's IT.",
    ),
    "missing-boundary": Code(_WARNING, "The closing boundary is missing: the end of the message may be lost.", _ASK),
    "cut-message": Code(_ERROR, "The mail ends inside this file, and nothing shows that the file is whole.", _ASK),
    "damaged-base64": Code(
        _WARNING, "The base64 text is damaged; it was decoded as far as possible.", "Watch whether it happens again."
    ),
    "damaged-quoted-printable": Code(
        _WARNING, "The quoted-printable text is damaged; it was decoded as far as possible.", _ASK
    ),
    "wrong-encoding": Code(
        _WARNING, "The part is not in the transfer encoding it names; the right one was found.", "Tell the sender's IT."
    ),
    "not-dicom": Code(
        _WARNING, "The part is labelled application/dicom and has no DICM mark.", "Ask the sender what it is."
    ),
    "invalid-fragment": Code(
        _ERROR, "A message/partial does not say which piece of what it is.", "Ask the sender for a whole mail."
    ),
    "only-images": Code(
        _INFO, "There are pictures in the mail, but no DICOM.", "Ask the sender for the images from their PACS."
    ),
    "only-links": Code(
        _INFO, "There are links in the mail, but no DICOM. Links are never followed.", "Open it by hand if it is known."
    ),
    # archives, by ZIP-8
    "damaged-archive": Code(_ERROR, "An archive cannot be unpacked.", _ASK),
    "encrypted-archive": Code(
        _ERROR, "An archive is locked with a password.", "Ask for S/MIME or an open archive in a sealed mail."
    ),
    "unsupported-archive": Code(
        _ERROR, "An archive is of a kind that is not opened (RAR, 7z, ISO or alike).", "Ask the sender for a ZIP."
    ),
    "nested-archive": Code(
        _ERROR, "Archives lie in each other deeper than is allowed.", "Ask the sender for one archive."
    ),
    "too-many-members": Code(
        _ERROR, "An archive has more members than the limit allows.", "Raise limits.parts or ask for several mails."
    ),
    "unsafe-name": Code(_ERROR, "A name in an archive leads out of it.", "Do not open it; ask the sender's IT."),
    "damaged-uuencode": Code(_ERROR, "Uuencoded text is damaged.", _ASK),
    # the file (PS3.10 7.1)
    "bare-data-set": Code(
        _ERROR, "A data set came without preamble and File Meta Information.", "Allow bare_dicom for the route."
    ),
    "bare-data-set-taken": Code(
        _WARNING, "A data set came without preamble and File Meta Information; the route allows that.", _NONE
    ),
    "instance-too-big": Code(
        _ERROR, "A file is bigger than the limit allows.", "Raise limits.instance and have the mail read again."
    ),
    "preamble-in-use": Code(
        _INFO, "The preamble is not empty; it stays out of what is sent to a PACS or mailed on.", _NONE
    ),
    "executable-preamble": Code(
        _WARNING,
        "The preamble looks like the beginning of a program; it stays out of what is sent to a PACS or mailed on.",
        "Do not save or open the attachment itself; tell the sender's IT.",
    ),
    "damaged-meta": Code(_ERROR, "The File Meta Information cannot be read.", _ASK),
    "meta-length": Code(_WARNING, "The group length of the File Meta Information is wrong or missing.", _NONE),
    "no-transfer-syntax": Code(_ERROR, "The File Meta Information names no transfer syntax.", _ASK),
    "directory-id": Code(_WARNING, "An image calls itself DICOMDIR; it was taken as the image it is.", _NONE),
    "meta-incomplete": Code(_INFO, "The File Meta Information lacks the SOP Class or SOP Instance UID.", _NONE),
    "meta-instance": Code(
        _WARNING, "The File Meta Information names another SOP Instance than the data set, which holds.", _NONE
    ),
    "sop-class-mismatch": Code(
        _ERROR, "The File Meta Information names another SOP Class than the data set.", "Ask the sender which is right."
    ),
    # the data set (PS3.5 7)
    "wrong-transfer-syntax": Code(_ERROR, "The data set is not in the transfer syntax the file names.", _ASK),
    "damaged-data-set": Code(_ERROR, "The data set cannot be parsed to its end.", _ASK),
    "truncated-data-set": Code(_ERROR, "The data set ends before it is complete.", _ASK),
    "nested-too-deep": Code(_ERROR, "Sequences are nested deeper than any real data set.", "Do not release it."),
    "unpacked-too-big": Code(
        _ERROR, "Compressed content unpacks to more than the limits allow.", "Raise limits.unpacked or limits.ratio."
    ),
    "odd-length": Code(
        _ERROR,
        "The data set has an odd number of bytes, which DICOM forbids and PACS break off at.",
        "Ask the sender to export it anew; the original is kept.",
    ),
    "trailing-padding": Code(_INFO, "Zero bytes follow the data set.", _NONE),
    "no-sop-class": Code(_ERROR, "The data set has no SOP Class UID.", _ASK),
    "no-sop-instance": Code(_ERROR, "The data set has no SOP Instance UID.", _ASK),
    "no-study": Code(_ERROR, "The data set has no Study Instance UID.", _ASK),
    "no-series": Code(_ERROR, "The data set has no Series Instance UID.", _ASK),
    "invalid-uid": Code(_ERROR, "A UID has characters or a length that no UID may have.", _ASK),
    "zero-led-uid": Code(_WARNING, "A component of a UID has a leading zero.", _NONE),
    "repeated-instance": Code(_INFO, "The same instance came twice in one mail.", _NONE),
    "reused-uid": Code(
        _ERROR, "Another instance of this mail has the same SOP Instance UID.", "Ask the sender which one is right."
    ),
    "no-patient-id": Code(_WARNING, "The data set has no Patient ID.", "Have the PACS team match the patient."),
    # the patient
    "patient-mismatch": Code(
        _ERROR,
        "One Patient ID of this mail has two birth dates or two different names.",
        "Ask the sender who is shown, then release or drop it.",
    ),
    "patient-mismatch-urgent": Code(
        _WARNING,
        "One Patient ID of this mail has two birth dates or two different names; it was stored, as it is urgent.",
        "Ask the sender at once who is shown.",
    ),
    "patient-mismatch-accepted": Code(
        _WARNING,
        "One Patient ID of this mail has two birth dates or two different names; the route accepts that.",
        "Have the PACS team look at it.",
    ),
    "several-patients": Code(_INFO, "The mail holds instances of several patients.", _NONE),
    "study-of-several-patients": Code(
        _WARNING, "One study of this mail has several Patient IDs.", "Ask the sender who is shown."
    ),
    "unknown-characters": Code(
        _WARNING,
        "A patient's name is in a character set that cannot be read, so it was not compared.",
        "Compare the names in the PACS.",
    ),
    "patient-rewritten": Code(
        _INFO,
        "Instances were changed by the rules of the route; the original values are in (0400,0561).",
        _NONE,
    ),
    "signed-instance": Code(
        _ERROR,
        "The rules of the route would break the digital signature in this instance, so it was not changed.",
        "Decide whether the PACS may have it as it came; release sends it so.",
    ),
    "invalid-patient-id": Code(
        _ERROR,
        "With the route's prefix the Patient ID would be too long or several, so the instance was not changed.",
        "Shorten the prefix, or decide whether the PACS may have it as it came; release sends it so.",
    ),
    "repeated-element": Code(
        _ERROR,
        "An element that the rules of the route change is there twice, so the instance was not changed.",
        "Ask the sender's IT; release sends it as it came.",
    ),
    "not-coerced": Code(
        _ERROR,
        "The rules of the route cannot be applied to this instance, so it was not changed.",
        "Ask the sender's IT; release sends it as it came.",
    ),
    # the directory (PS3.10 8.6)
    "directory-unreadable": Code(
        _WARNING, "The DICOMDIR cannot be read; the parts speak for themselves.", "Check that all images came."
    ),
    "directory-repeated": Code(
        _WARNING, "There are several DICOMDIRs; the parts speak for themselves.", "Check that all images came."
    ),
    "directory-missing": Code(
        _WARNING, "The DICOMDIR names files that did not come.", "Ask the sender for the missing ones."
    ),
    "directory-extra": Code(_INFO, "Files came that the DICOMDIR does not name.", _NONE),
}
"""Code → what it means and what to do: the source of docs/errors.md."""


def finding(code: str, where: str = "") -> Finding:
    """Make a finding of the table."""
    entry = CODES[code]
    return Finding(code, entry.severity, where, entry.meaning)
