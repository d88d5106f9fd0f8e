"""Mail with DICOM in it, built by Python's email package, as a STD-GEN-MIME sender builds it (PS3.11 Annex G)."""

from __future__ import annotations

from collections.abc import Iterable
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate, make_msgid


def compose(
    files: Iterable[bytes],
    *,
    sender: str = "dicom@clinic-a.test",
    to: str = "pacs@gateway.test",
    subject: str = "DICOM",
    message_id: str | None = None,
    text: str = "This message carries DICOM files.",
) -> bytes:
    """A multipart/mixed message with one application/dicom part for each file, lines ended by CRLF.

    Args:
        files: Whole Part 10 files.
        sender: The From field.
        to: The To field.
        subject: The Subject field.
        message_id: With its angle brackets; absent, a fresh one.
        text: The first part.
    """
    message = EmailMessage(policy=SMTP)
    message["From"] = sender
    message["To"] = to
    message["Subject"] = subject
    message["Date"] = formatdate()
    message["Message-ID"] = message_id or make_msgid(domain="clinic-a.test")
    message.set_content(text)
    for number, file in enumerate(files, start=1):
        name = f"IM{number:06}"
        message.add_attachment(file, "application", "dicom", params={"id": name}, filename=f"{name}.dcm")
    if not message.is_multipart():
        message.make_mixed()
    return message.as_bytes()
