"""The DICOM door: takes images from the network into the spool, and says 0x0000 only when custody is taken (R20).

pynetdicom encodes and decodes the negotiation, and nothing more, for the reasons that the Storage SCU gives: its own
association polls, copies every instance into memory, and can be held up for ever in the middle of a PDU. Here each
association is one thread that owns its socket. What arrives of a data set goes to the disk at once; a deadline stands
behind every wait; memory is flat whatever a peer sends.

What is written is the data set as it came, behind a File Meta Information of our own (P10-3, P10-6). Before the
answer it is walked to its end: what cannot be parsed, has no study, or is not what the command set says is refused,
and the sender keeps it and knows (NET-18).
"""

import logging

from gateway.edges.storescp.door import Counters, Deadlines, Incoming, Limits, OnReport, StorageScpDoor

for _name in ("pydicom", "pynetdicom"):  # they log UIDs, titles and whole PDUs at will
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)

__all__ = ["Counters", "Deadlines", "Incoming", "Limits", "OnReport", "StorageScpDoor"]
