"""Decoding for a peer that refuses the transfer syntax: the same pixels in Explicit or Implicit VR Little Endian.

Runs in a worker, since decoders are what hostile files aim at. One frame is in memory at a time, beside the data set
without its pixels. What cannot be carried over exactly is refused with a code, never approximated (NET-12 to NET-15).
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Final

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import as_pixel_options
from pydicom.uid import UID

from gateway.core import dataset
from gateway.core.contexts import DECODABLE, LOSSY
from gateway.errors import GatewayError
from gateway.model import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, Span

TARGETS: Final = (dataset.EXPLICIT, dataset.IMPLICIT)
"""What is decoded to, in the order of preference (NET-12)."""

LONGEST: Final = 0xFFFFFFFE
"""Bytes of Pixel Data that its length can say (PS3.5 7.1.1)."""

CODES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "syntax-not-decodable": "its transfer syntax is not decoded here: video, or one that is not known",
        "syntax-lossy": "it is lossy compressed, and is not decoded unless that is allowed",
        "signed": "it bears digital signatures, which decoding would break",
        "pixels-too-long": "its decoded pixels do not fit into a data set",
        "pixels-damaged": "its pixels cannot be decoded exactly",
        "data-set-damaged": "its data set cannot be rewritten exactly",
        "no-target": "the peer takes no syntax that can be decoded to",
    }
)
"""Why an instance is not transcoded."""

_ENCAPSULATED: Final = 0xFFFFFFFF
_BLOCK: Final = 1 << 20
_SIGNATURE: Final = frozenset({0x04000100})
"""Digital Signature UID: every signature has one, in the data set or in an item (PS3.3 C.12.1.1.3)."""

_PIXELS: Final = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_OFFSET_TABLES: Final = (0x7FE00001, 0x7FE00002, 0x7FE00003)
_WORDS: Final = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}
_SUBSAMPLED: Final = frozenset({"YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420"})


class TranscodingError(GatewayError):
    """An instance that is not transcoded. The text is the code, a key of ``CODES``: it crosses process borders."""

    def __init__(self, code: str) -> None:
        super().__init__(code)

    @property
    def code(self) -> str:
        """A key of ``CODES``."""
        return self.text


@dataclass(frozen=True, slots=True)
class Transcoded:
    """A new file, with what differs from the original.

    Attributes:
        transfer_syntax: What its data set is in.
        data_set: Offset of the data set in the file.
        size: Bytes of the file.
        changed: What was changed, for the record: tags and coded values, nothing of the patient.
    """

    transfer_syntax: str
    data_set: int
    size: int
    changed: str


def transcode(
    source: Span, transfer_syntax: str, targets: Sequence[str], out: Path, *, lossy: bool = False
) -> Transcoded:
    """Write an instance anew in the first of the target syntaxes that it can be decoded to. No UID changes (NET-14).

    Args:
        source: Its data set.
        transfer_syntax: What that is in.
        targets: What the peer takes, the best first.
        out: The file to write, a DICOM file with its header; removed when something goes wrong.
        lossy: Decode lossy compressed pixels, too; their Lossy Image Compression attributes stay as they are.

    Raises:
        TranscodingError: It cannot or may not be done; the code says why.
        OSError: A file cannot be read or written.
    """
    inflated = out.with_name(f"{out.name}.inflated")
    try:
        target = _target(transfer_syntax, targets, lossy=lossy)
        if transfer_syntax == dataset.DEFLATED:
            source = _inflate(source, inflated)
        with source.path.open("rb") as file, out.open("wb") as sink, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a library that judges values; they are carried over as they are
            return _Transcoding(_Part(file, source), transfer_syntax, target, sink).run()
    except (TranscodingError, MemoryError, OSError):
        out.unlink(missing_ok=True)
        raise
    except Exception:  # noqa: BLE001  what the library raises on what it cannot read is documented nowhere
        out.unlink(missing_ok=True)
        raise TranscodingError("data-set-damaged") from None
    finally:
        inflated.unlink(missing_ok=True)


def _target(transfer_syntax: str, targets: Sequence[str], *, lossy: bool) -> str:
    if transfer_syntax in LOSSY and not lossy:
        raise TranscodingError("syntax-lossy")
    if transfer_syntax not in DECODABLE | LOSSY:
        raise TranscodingError("syntax-not-decodable")
    for target in targets:
        if target in TARGETS:
            return target
    raise TranscodingError("no-target")


def _inflate(source: Span, out: Path) -> Span:
    """Inflate a deflated data set (PS3.5 A.5) into a file."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    size = 0
    with source.path.open("rb") as file, out.open("wb") as sink:
        part = _Part(file, source)
        while not inflater.eof and (block := inflater.unconsumed_tail or part.read(_BLOCK)):
            try:
                piece = inflater.decompress(block, _BLOCK)
            except zlib.error:
                raise TranscodingError("data-set-damaged") from None
            size += sink.write(piece)
            if size > LONGEST:
                raise TranscodingError("pixels-too-long")
        if not inflater.eof:
            raise TranscodingError("data-set-damaged")
    return Span(out, 0, size)


class _Part(io.RawIOBase):
    """A span of a file, as a file of its own."""

    def __init__(self, file: IO[bytes], span: Span) -> None:
        super().__init__()
        self._file = file
        self._span = span
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, (0, self._at, self._span.size)[whence] + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        rest = max(0, self._span.size - self._at)
        self._file.seek(self._span.start + self._at)
        block = self._file.read(rest if size is None or size < 0 else min(size, rest))
        self._at += len(block)
        return block


class _Transcoding:
    """One instance on its way from one syntax to another."""

    def __init__(self, part: _Part, transfer_syntax: str, target: str, sink: IO[bytes]) -> None:
        self._part = part
        self._syntax = UID(transfer_syntax)
        self._target = target
        self._sink = sink
        self._encoding = transfer_syntax == dataset.IMPLICIT, transfer_syntax != dataset.BIG_ENDIAN
        self._changed = [f"transfer syntax {transfer_syntax} to {target}"]

    def run(self) -> Transcoded:
        """Write the whole file."""
        self._refuse_signed()
        head = self._read()
        pixels = self._pixel_header()
        start = self._write_meta(head)
        if pixels is None:
            self._write(head)
        else:
            tag, vr, length = pixels
            if length == _ENCAPSULATED:
                self._decode(head, tag)
            else:
                self._copy(head, tag, vr, length)
            self._write(self._read(whole=True))
        return Transcoded(self._target, start, self._sink.tell(), "; ".join(self._changed))

    def _refuse_signed(self) -> None:
        end = self._part.seek(0, 2)

        def read(offset: int, size: int) -> bytes:
            self._part.seek(offset)
            return self._part.read(size)

        syntax = dataset.EXPLICIT if self._syntax == dataset.DEFLATED else str(self._syntax)
        try:
            walked = dataset.walk(dataset.Stored(read, b"", end), 0, syntax, _SIGNATURE, nested=True)
        except dataset.Problem:
            raise TranscodingError("data-set-damaged") from None
        if walked.found:
            raise TranscodingError("signed")  # NET-15
        self._part.seek(0)

    def _read(self, *, whole: bool = False) -> Dataset:
        """Read elements from here to the pixels, or to the end."""
        part: Any = self._part
        read = read_dataset(part, *self._encoding, stop_when=None if whole else lambda tag, *_: tag in _PIXELS)
        for item in _items(read):
            if 0x7FE00010 in item and item is not read and item["PixelData"].is_undefined_length:
                raise TranscodingError("pixels-damaged")  # an icon that is compressed, too
        if self._syntax == dataset.BIG_ENDIAN:
            _swap(read)
        return read

    def _pixel_header(self) -> tuple[int, str, int] | None:
        """Read the tag, VR and length of the pixel element that comes next; None when none does."""
        order = "<" if self._encoding[1] else ">"
        head = self._part.read(8)
        if len(head) < 8:
            return None
        group, element = struct.unpack_from(f"{order}HH", head)
        if self._encoding[0]:
            return group << 16 | element, "", struct.unpack_from("<L", head, 4)[0]
        vr = head[4:6].decode("ascii")
        length: int = struct.unpack(f"{order}L", self._part.read(4))[0]
        return group << 16 | element, vr, length

    def _write_meta(self, head: Dataset) -> int:
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = head.SOPClassUID
        meta.MediaStorageSOPInstanceUID = head.SOPInstanceUID
        meta.TransferSyntaxUID = UID(self._target)
        meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
        meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
        self._sink.write(bytes(128) + b"DICM")
        write_file_meta_info(DicomIO(self._sink), meta)
        return self._sink.tell()

    def _write(self, part: Dataset) -> None:
        sink = DicomIO(self._sink)
        sink.is_implicit_VR, sink.is_little_endian = self._target == dataset.IMPLICIT, True
        write_dataset(sink, part)

    def _write_header(self, tag: int, vr: str, length: int) -> None:
        if length > LONGEST:
            raise TranscodingError("pixels-too-long")
        self._sink.write(struct.pack("<HH", tag >> 16, tag & 0xFFFF))
        if self._target == dataset.EXPLICIT:
            self._sink.write(vr.encode("ascii") + b"\0\0")
        self._sink.write(struct.pack("<L", length))

    def _copy(self, head: Dataset, tag: int, vr: str, length: int) -> None:
        """Carry native pixels over: no pixel changes, only the order of bytes (NET-13)."""
        vr = vr or {0x7FE00008: "OF", 0x7FE00009: "OD"}.get(tag) or ("OW" if head.BitsAllocated > 8 else "OB")
        word = _WORDS.get(vr, 1) if self._syntax == dataset.BIG_ENDIAN else 1
        if word == 2 and head.BitsAllocated > 16:
            raise TranscodingError("pixels-damaged")  # the order of the words of such a cell is not settled
        self._write(head)
        self._write_header(tag, vr, length + length % 2)
        left = length
        while left:
            block = self._part.read(min(left, _BLOCK))
            if not block:
                raise TranscodingError("data-set-damaged")
            left -= len(block)
            self._sink.write(_swapped(block, word) if word > 1 else block)
        self._sink.write(bytes(length % 2))

    def _decode(self, head: Dataset, tag: int) -> None:
        """Decode encapsulated pixels, frame by frame."""
        if tag != 0x7FE00010 or not self._syntax.is_encapsulated:
            raise TranscodingError("pixels-damaged")
        cell = int(head.BitsAllocated)
        if cell % 8:
            raise TranscodingError("pixels-damaged")  # single bits, which decoders unpack in ways of their own
        frames = self._frames(head)
        first, properties = next(frames)
        size = _cell(first, head).nbytes
        count = int(head.get("NumberOfFrames") or 1)
        for table in _OFFSET_TABLES:
            if table in head:
                del head[table]
        self._describe(head, properties)
        self._write(head)
        length = size * count
        self._write_header(tag, "OB" if cell <= 8 else "OW", length + length % 2)
        self._sink.write(_cell(first, head).tobytes())
        done = 1
        for frame, described in frames:
            cells = _cell(frame, head)
            if cells.nbytes != size or described != properties or done == count:
                raise TranscodingError("pixels-damaged")
            self._sink.write(cells.tobytes())
            done += 1
        if done != count:
            raise TranscodingError("pixels-damaged")
        self._sink.write(bytes(length % 2))

    def _frames(self, head: Dataset) -> Iterator[tuple[np.ndarray[Any, Any], dict[str, str | int]]]:
        """Decode one frame after another, and go on behind them."""
        start = self._part.tell()
        part: Any = self._part
        options = as_pixel_options(head, pixel_keyword="PixelData", pixel_vr="OB")
        try:
            yield from get_decoder(self._syntax).iter_array(part, raw=True, **options)
        except (MemoryError, GeneratorExit, KeyboardInterrupt):
            raise
        except BaseException:  # noqa: BLE001  QUIRK: the RLE decoder, written in Rust, panics at fragments too long
            raise TranscodingError("pixels-damaged") from None
        self._part.seek(start)
        self._skip_fragments()

    def _skip_fragments(self) -> None:
        while True:
            tag, length = struct.unpack("<LL", self._part.read(8))
            if tag == 0xE0DDFFFE:  # (FFFE,E0DD) as its bytes lie
                return
            self._part.seek(length, 1)

    def _describe(self, head: Dataset, properties: Mapping[str, str | int]) -> None:
        """Say in the Image Pixel module what the decoded pixels are (PS3.3 C.7.6.3)."""
        photometric = str(properties["photometric_interpretation"])
        if photometric in _SUBSAMPLED:
            photometric = "YBR_FULL"  # a decoder gives every pixel its own three samples
        self._set(head, 0x00280004, "CS", photometric)
        if int(head.SamplesPerPixel) > 1:
            self._set(head, 0x00280006, "US", 0)

    def _set(self, head: Dataset, tag: int, vr: str, value: str | int) -> None:
        before = head[tag].value if tag in head else "nothing"
        if before != value:
            head[tag] = DataElement(tag, vr, value)
            self._changed.append(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) {before} to {value}")


def _cell(frame: np.ndarray[Any, Any], head: Dataset) -> np.ndarray[Any, Any]:
    """Put the samples of a frame into cells of Bits Allocated; some decoders choose smaller ones."""
    cells = (int(head.Rows), int(head.Columns), int(head.SamplesPerPixel))
    wanted = np.dtype(f"<{'i' if head.get('PixelRepresentation') == 1 else 'u'}{int(head.BitsAllocated) // 8}")
    if frame.size != cells[0] * cells[1] * cells[2] or frame.dtype.itemsize > wanted.itemsize:
        raise TranscodingError("pixels-damaged")
    return frame.astype(wanted)


def _items(part: Dataset) -> Iterator[Dataset]:
    """Go over a data set and all items in it. Sequences are read on the way, so a nested compressed icon is seen."""
    yield part
    for tag in list(part.keys()):
        element: Any = part.get_item(tag)
        if element.VR == "SQ" or (element.VR is None and part[tag].VR == "SQ"):
            for item in part[tag].value:
                yield from _items(item)


def _swap(part: Dataset) -> None:
    """Turn the words of binary values, which the library leaves as they came."""
    for item in _items(part):
        for element in item:
            if element.VR in _WORDS and element.value:
                element.value = _swapped(element.value, _WORDS[element.VR])


def _swapped(block: bytes, word: int) -> bytes:
    return np.frombuffer(block, f"u{word}").byteswap().tobytes()
