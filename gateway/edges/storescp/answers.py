"""What the DICOM door says to those who send, and what is to be done about it.

No failure of ours is ever answered as a success, and whatever is not answered with 0x0000 stays with its sender.
"""

from __future__ import annotations

from typing import Final, NamedTuple

SUCCESS: Final = 0x0000
OUT_OF_RESOURCES: Final = 0xA700
MISMATCH: Final = 0xA900
NOT_UNDERSTOOD: Final = 0xC000
TOO_BIG: Final = 0xC001
UNIDENTIFIED: Final = 0xC002
PROCESSING_FAILURE: Final = 0x0110
INVALID_ARGUMENT: Final = 0x0115
INVALID_INSTANCE: Final = 0x0117
NO_SUCH_CLASS: Final = 0x0122
NOT_AUTHORIZED: Final = 0x0124
UNRECOGNISED_OPERATION: Final = 0x0211


class Meaning(NamedTuple):
    """Of an answer, for people.

    Attributes:
        meaning: When it is given.
        action: What is to be done.
    """

    meaning: str
    action: str


STATUSES: Final = {
    SUCCESS: Meaning("The bytes are synced, and the row is committed: custody is taken.", "Nothing has to be done."),
    OUT_OF_RESOURCES: Meaning(
        "There is no room, or the disk or the ledger did not take it.",
        "The sender sends it again by itself, or when told; look at the disk under `gateway.data` and at the log.",
    ),
    MISMATCH: Meaning(
        "The data set is of another SOP Class, or another instance, than the command says.",
        "The sender's software is wrong: show its vendor the comment of the answer.",
    ),
    NOT_UNDERSTOOD: Meaning(
        "The data set is missing, or cannot be parsed to its end.",
        "Look at the image at the sender; when it is whole there, show the vendor the comment of the answer.",
    ),
    TOO_BIG: Meaning(
        "It is bigger than `limits.instance`.", "Raise the limit and restart, when images of this size are wanted."
    ),
    UNIDENTIFIED: Meaning(
        "It lacks a Study or Series Instance UID, or one of its UIDs is none.",
        "Nobody could file it: have it repaired at the sender.",
    ),
    PROCESSING_FAILURE: Meaning(
        "Something went wrong here that nobody foresaw, or a storage commitment report was not noted.",
        "It is sent again; when it stays so, report the log lines of that moment as a defect.",
    ),
    INVALID_ARGUMENT: Meaning(
        "A storage commitment report about a transaction that is not ours.",
        "Nothing has to be done, unless the archive repeats it: then ask the PACS team.",
    ),
    INVALID_INSTANCE: Meaning(
        "Affected SOP Instance UID is no UID.", "The sender's software is wrong: show its vendor the answer."
    ),
    NO_SUCH_CLASS: Meaning(
        "Affected SOP Class UID is not the one of the presentation context.",
        "The sender's software is wrong: show its vendor the answer.",
    ),
    NOT_AUTHORIZED: Meaning(
        "The route of this sender went while its association was open.",
        "Give it a route again and reload, or stop the sender.",
    ),
    UNRECOGNISED_OPERATION: Meaning(
        "The operation is none of those that are done here: C-STORE of images, C-ECHO, and reports of a commitment.",
        "The sender asks for something a gateway does not do, as to query it or to move images: switch that off there.",
    ),
}
"""Every status of a response (PS3.4 B.2.3, PS3.7 Annex C)."""

BY_CODE: Final = {
    **dict.fromkeys(("sop-class-mismatch", "meta-instance", "no-sop-class", "no-sop-instance"), MISMATCH),
    **dict.fromkeys(("no-study", "no-series", "invalid-uid"), UNIDENTIFIED),
}
"""By the code of what is wrong with a data set; what is not named here cannot be understood."""

_PERMANENT: Final = 1
_TRANSIENT: Final = 2
NO_SUCH_CONTEXT_NAME: Final = (_PERMANENT, 1, 2)
NO_SUCH_CALLING: Final = (_PERMANENT, 1, 3)
NO_SUCH_CALLED: Final = (_PERMANENT, 1, 7)
NO_SUCH_VERSION: Final = (_PERMANENT, 2, 2)
LOCAL_LIMIT: Final = (_TRANSIENT, 3, 2)
"""Result, source and reason of an A-ASSOCIATE-RJ (PS3.8 Table 9-21)."""


class Rejection(NamedTuple):
    """Why an association is rejected as a whole.

    Attributes:
        reason: The word in the log.
        meaning: When it is given.
        action: What is to be done.
    """

    reason: str
    meaning: str
    action: str


REJECTIONS: Final = {
    NO_SUCH_CALLED: Rejection(
        "called-title",
        "Called AE title not recognized: it is neither `storescp.title` nor the `called` of a route.",
        "Correct the title at the sender, or give it a route and reload.",
    ),
    NO_SUCH_CALLING: Rejection(
        "calling-title",
        "Calling AE title not recognized: it is not in `storescp.callers`, or no route takes its images.",
        "Add it there, or give it a route, and reload.",
    ),
    NO_SUCH_CONTEXT_NAME: Rejection(
        "application-context",
        "Application context name not supported: the peer does not speak DICOM's.",
        "Find out what connects to this port.",
    ),
    NO_SUCH_VERSION: Rejection(
        "protocol-version",
        "Protocol version not supported: the peer offers another one than 1, the only there is.",
        "Find out what connects to this port.",
    ),
    LOCAL_LIMIT: Rejection(
        "local-limit",
        "Local limit exceeded, for now: `storescp.associations` are open, the disk is low, or the gateway stops.",
        "The sender tries again by itself, or when told; look at the disk, and at who holds associations open.",
    ),
}
"""Every rejection (PS3.8 Table 9-21), by result, source and reason."""
