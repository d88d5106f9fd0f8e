"""The Storage SCU: an association to a PACS, and file bytes over it, exactly as they lie in the spool.

pynetdicom encodes and decodes the negotiation, and nothing more. Its own association runs two threads that poll the
socket every millisecond, and the two can race for it: under load one takes the response the other waits for, and an
image that was stored looks lost. Its data path copies every instance into memory, and it never turns off Nagle's
algorithm, which stalls each C-STORE by some 40 ms. A peer that stops in the middle of a PDU blocks its thread for
ever. So the socket is ours from the first byte: no thread but the caller's, a deadline on every wait, memory flat.

What is sent is the data set without group 0002 (P10-6), undecoded and unaltered (R8). What comes back counts only if
it is the response to this message about this instance (R12). Anything else drops the association (R13).
"""

from gateway.edges.storescu.association import Association
from gateway.edges.storescu.enquiry import EchoResult, commit, echo, find, refusals
from gateway.edges.storescu.library import LibraryAssociation
from gateway.edges.storescu.wire import Peer

__all__ = ["Association", "EchoResult", "LibraryAssociation", "Peer", "commit", "echo", "find", "refusals"]
