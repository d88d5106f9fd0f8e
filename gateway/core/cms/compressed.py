"""CompressedData (RFC 3274), which is only read: compressing before encrypting tells lengths (SMIME-18)."""

from __future__ import annotations

import zlib
from collections.abc import Callable

from gateway.core.cms import algorithms, ber
from gateway.core.cms.algorithms import Algorithm
from gateway.core.cms.ber import BLOCK, Reader
from gateway.core.cms.failure import exceeded, malformed, unsupported


def read(reader: Reader, sink: Callable[[bytes], object], limit: int) -> str:
    """Inflate a CompressedData, from its SEQUENCE on; return its content type.

    Args:
        reader: Stands before it.
        sink: Gets the content.
        limit: Bytes that it may inflate to.

    Raises:
        ProtectionError: It cannot be read, or grows over the limit.
    """
    reader.enter(ber.SEQUENCE)
    reader.node(ber.INTEGER)
    if Algorithm.read(reader.node(ber.SEQUENCE)).oid != algorithms.ZLIB:
        unsupported("its compression algorithm is not supported")
    reader.enter(ber.SEQUENCE)
    content_type = ber.oid(reader.node(ber.OBJECT_IDENTIFIER))
    reader.enter(ber.context(0))
    _inflate(reader, sink, limit)
    for _ in range(3):
        reader.leave()
    return content_type


def _inflate(reader: Reader, sink: Callable[[bytes], object], limit: int) -> None:
    inflating = zlib.decompressobj()
    left = limit
    for block in reader.octets():
        try:
            piece = inflating.decompress(block, BLOCK)
            while piece or inflating.unconsumed_tail:
                left -= len(piece)
                if left < 0:
                    exceeded(f"it inflates to more than {limit} bytes")
                sink(piece)
                piece = inflating.decompress(inflating.unconsumed_tail, BLOCK)
        except zlib.error:
            malformed("its compressed content is damaged")
    if not inflating.eof:
        malformed("its compressed content ends too early")
