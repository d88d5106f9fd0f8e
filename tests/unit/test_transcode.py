"""Transcoding: what is refused and why, and what is bounded."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread, dcmwrite
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    RLELossless,
)

from gateway.core import contexts, transcode
from gateway.core.part10 import read_meta
from gateway.core.transcode import TranscodingError
from gateway.edges.worker import Workers
from gateway.model import Span

EXPLICIT, IMPLICIT = contexts.EXPLICIT, contexts.IMPLICIT


@pytest.fixture
def ct() -> Any:
    """A small image in Explicit VR Little Endian."""
    return dcmread(get_testdata_file("CT_small.dcm"))  # type: ignore[arg-type]


def write(folder: Path, data_set: Any, **how: Any) -> tuple[Span, str]:
    """Write a data set as a file; return its span and syntax."""
    path = folder / "in.dcm"
    dcmwrite(path, data_set, **how)
    content = path.read_bytes()
    meta = read_meta(content)
    return Span(path, meta.data_set, len(content)), meta.transfer_syntax


def transcoded(folder: Path, span: Span, syntax: str, *targets: str, lossy: bool = False) -> Any:
    transcode.transcode(span, syntax, targets or (EXPLICIT,), folder / "out.dcm", lossy=lossy)
    return dcmread(folder / "out.dcm")


def refusal(folder: Path, span: Span, syntax: str, *targets: str) -> str:
    """Try; return the code, and see that nothing is left behind."""
    before = {path.name for path in folder.iterdir()}
    with pytest.raises(TranscodingError) as caught:
        transcode.transcode(span, syntax, targets or (EXPLICIT,), folder / "out.dcm")
    assert {path.name for path in folder.iterdir()} == before
    assert caught.value.code in transcode.CODES
    return caught.value.code


def test_the_first_target_that_can_be_made_is_made(tmp_path: Path, ct: Any) -> None:
    """NET-12: as the peer's order says; what changed is on record, without a value of the patient."""
    span, syntax = write(tmp_path, ct)
    done = transcode.transcode(span, syntax, ["1.2.3", IMPLICIT, EXPLICIT], tmp_path / "out.dcm")
    assert (done.transfer_syntax, done.changed) == (IMPLICIT, f"transfer syntax {EXPLICIT} to {IMPLICIT}")
    content = (tmp_path / "out.dcm").read_bytes()
    assert read_meta(content).data_set == done.data_set
    assert len(content) == done.size
    (tmp_path / "out.dcm").unlink()
    assert refusal(tmp_path, span, syntax, "1.2.3") == "no-target"


@pytest.mark.parametrize(
    ("syntax", "code"),
    [
        ("1.2.840.10008.1.2.4.102", "syntax-not-decodable"),
        ("1.2.840.10008.1.2.4.110", "syntax-not-decodable"),
        ("1.2.3", "syntax-not-decodable"),
        ("1.2.840.10008.1.2.4.50", "syntax-lossy"),
        ("1.2.840.10008.1.2.4.91", "syntax-lossy"),
    ],
)
def test_video_and_lossy_are_left_alone(tmp_path: Path, ct: Any, syntax: str, code: str) -> None:
    """NET-12: never guessed, never re-encoded."""
    span, _ = write(tmp_path, ct)
    assert refusal(tmp_path, span, syntax) == code


@pytest.mark.parametrize("nested", [False, True])
def test_what_is_signed_is_left_alone(tmp_path: Path, ct: Any, *, nested: bool) -> None:
    """NET-15: a signature anywhere in it."""
    signature = Dataset()
    signature.DigitalSignatureUID = "1.2.3"
    bearer = Dataset() if nested else ct
    bearer.DigitalSignaturesSequence = [signature]
    if nested:
        ct.RequestAttributesSequence = [bearer]
    assert refusal(tmp_path, *write(tmp_path, ct)) == "signed"


def test_lossy_pixels_are_decoded_where_that_is_allowed(tmp_path: Path) -> None:
    """NET-12: their attributes of loss stay, and the colours are described as they are now."""
    source = dcmread(get_testdata_file("JPEG2000.dcm"))  # type: ignore[arg-type]
    source.LossyImageCompression = "01"
    result = transcoded(tmp_path, *write(tmp_path, source), lossy=True)
    assert result.LossyImageCompression == "01"
    assert np.array_equal(result.pixel_array, source.pixel_array)


@pytest.mark.parametrize(("frames", "tail"), [(1, False), (5, True)])
def test_frames_are_decoded_one_after_another(tmp_path: Path, *, frames: int, tail: bool) -> None:
    """NET-12: of an odd number of bytes, too; what is behind the pixels stays."""
    source = dcmread(get_testdata_file("CT_small.dcm"))  # type: ignore[arg-type]
    rng = np.random.default_rng(1)
    cells = rng.integers(0, 255, (frames, 5, 7, 3), np.uint8)
    source.Rows, source.Columns, source.SamplesPerPixel, source.NumberOfFrames = 5, 7, 3, frames
    source.BitsAllocated, source.BitsStored, source.HighBit, source.PixelRepresentation = 8, 8, 7, 0
    source.PhotometricInterpretation, source.PlanarConfiguration = "RGB", 1
    if "DataSetTrailingPadding" in source:
        del source.DataSetTrailingPadding
    if tail:
        source.DataSetTrailingPadding = bytes(10)
    source.compress(RLELossless, cells if frames > 1 else cells[0], generate_instance_uid=False)
    source.PlanarConfiguration = 1
    span, syntax = write(tmp_path, source)
    result = transcoded(tmp_path, span, syntax)
    assert np.array_equal(result.pixel_array, cells if frames > 1 else cells[0])
    assert result.PlanarConfiguration == 0
    assert len(result.PixelData) == (frames * 105 + 1) // 2 * 2
    assert ("DataSetTrailingPadding" in result) is tail


def compressed(ct: Any) -> Any:
    ct.compress(RLELossless, generate_instance_uid=False)
    return ct


def test_fewer_or_more_frames_than_declared_are_damage(tmp_path: Path, ct: Any) -> None:
    """Nothing is filled up or left out."""
    compressed(ct).NumberOfFrames = 2
    assert refusal(tmp_path, *write(tmp_path, ct)) == "pixels-damaged"
    ct.PixelData = encapsulate([b"nonsense"])
    ct.NumberOfFrames = 1
    assert refusal(tmp_path, *write(tmp_path, ct)) == "pixels-damaged"


def test_pixels_that_do_not_fit_their_cells_are_damage(tmp_path: Path, ct: Any) -> None:
    """Sixteen bits cannot be said in eight; single bits are packed in ways of their own."""
    compressed(ct)
    ct.BitsAllocated = 1
    assert refusal(tmp_path, *write(tmp_path, ct)) == "pixels-damaged"
    ct.BitsAllocated = 16
    ct.Rows = 64
    assert refusal(tmp_path, *write(tmp_path, ct)) == "pixels-damaged"


class Decoder:
    """Stands for one that answers as it is told."""

    def __init__(self, *frames: Any) -> None:
        self.frames = frames

    def iter_array(self, *_: object, **__: object) -> Iterator[Any]:
        for frame in self.frames:
            if isinstance(frame, BaseException):
                raise frame
            yield frame, {"photometric_interpretation": "YBR_FULL_422"}


def test_a_decoder_is_held_to_what_the_data_set_says(tmp_path: Path, ct: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One frame too many, one of another size, or no memory: which is no fault of the instance."""
    span, syntax = write(tmp_path, compressed(ct))
    good = np.zeros((128, 128), np.int16)
    for frames in ((good, good), (good[1:],), (RuntimeError(),), ()):
        monkeypatch.setattr(transcode, "get_decoder", lambda _, frames=frames: Decoder(*frames))
        assert refusal(tmp_path, span, syntax) in {"pixels-damaged", "data-set-damaged"}
    monkeypatch.setattr(transcode, "get_decoder", lambda _: Decoder(MemoryError()))
    with pytest.raises(MemoryError):
        transcode.transcode(span, syntax, [EXPLICIT], tmp_path / "out.dcm")
    monkeypatch.setattr(transcode, "get_decoder", lambda _: Decoder(good))
    assert transcoded(tmp_path, span, syntax).PhotometricInterpretation == "YBR_FULL"


def test_a_file_that_shrinks_on_the_way_is_damage(tmp_path: Path, ct: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the walk saw is read a second time."""
    span, syntax = write(tmp_path, ct)
    monkeypatch.setattr(transcode._Transcoding, "_refuse_signed", lambda _: None)
    assert refusal(tmp_path, Span(span.path, span.start, span.end - 1000), syntax) == "data-set-damaged"


def test_cells_are_widened_and_never_narrowed() -> None:
    """A decoder may answer 8 bits for a cell of 16, never the other way round."""
    head = Dataset()
    head.Rows, head.Columns, head.SamplesPerPixel, head.BitsAllocated, head.PixelRepresentation = 1, 2, 1, 16, 1
    cells = transcode._cell(np.array([[-1, 1]], np.int8), head)
    assert (cells.dtype, cells.tolist()) == (np.dtype("<i2"), [[-1, 1]])
    with pytest.raises(TranscodingError):
        transcode._cell(np.array([[1, 1]], np.uint32), head)


def test_encapsulated_pixels_in_a_native_syntax_are_damage(tmp_path: Path, ct: Any) -> None:
    """So is an icon that is compressed within a data set that will not be (PS3.5 A.4)."""
    span, _ = write(tmp_path, compressed(ct))
    assert refusal(tmp_path, span, EXPLICIT, IMPLICIT) == "pixels-damaged"
    icon = Dataset()
    icon.PixelData = encapsulate([b"ab"])
    icon["PixelData"].VR = "OB"
    icon["PixelData"].is_undefined_length = True
    ct.IconImageSequence = [icon]
    assert refusal(tmp_path, *write(tmp_path, ct)) == "pixels-damaged"


def test_offset_tables_go_with_the_fragments_they_are_about(tmp_path: Path, ct: Any) -> None:
    """PS3.5 A.4: they have no meaning for native pixels."""
    before = ct.pixel_array.copy()
    ct.compress(RLELossless, encapsulate_ext=True, generate_instance_uid=False)
    assert "ExtendedOffsetTable" in ct
    result = transcoded(tmp_path, *write(tmp_path, ct))
    assert "ExtendedOffsetTable" not in result
    assert np.array_equal(result.pixel_array, before)


def test_big_endian_words_are_turned(tmp_path: Path, ct: Any) -> None:
    """NET-13: pixels and every other binary value; cells whose order is not settled are left alone."""
    before = ct.pixel_array.copy()
    ct.PixelData = before.astype(">i2").tobytes()
    ct.add_new(0x60003000, "OW", b"\1\2\3\4")
    how = {"implicit_vr": False, "little_endian": False, "force_encoding": True}
    ct.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    result = transcoded(tmp_path, *write(tmp_path, ct, **how))
    (tmp_path / "out.dcm").unlink()
    assert np.array_equal(result.pixel_array, before)
    assert result[0x60003000].value == b"\2\1\4\3"
    ct.BitsAllocated = 32
    assert refusal(tmp_path, *write(tmp_path, ct, **how)) == "pixels-damaged"


def test_deflated_data_sets_are_inflated_within_bounds(
    tmp_path: Path, ct: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NET-13: one that ends early or never ends is damage."""
    ct.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    span, syntax = write(tmp_path, ct)
    assert np.array_equal(transcoded(tmp_path, span, syntax).pixel_array, ct.pixel_array)
    (tmp_path / "out.dcm").unlink()
    assert refusal(tmp_path, Span(span.path, span.start, span.end - 500), syntax) == "data-set-damaged"
    assert refusal(tmp_path, Span(span.path, span.start + 1, span.end), syntax) == "data-set-damaged"
    monkeypatch.setattr(transcode, "LONGEST", 1000)
    assert refusal(tmp_path, span, syntax) == "pixels-too-long"


def test_pixels_longer_than_a_length_can_say_are_refused(
    tmp_path: Path, ct: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PS3.5 7.1.1: 32 bits."""
    span, syntax = write(tmp_path, ct)
    monkeypatch.setattr(transcode, "LONGEST", 1000)
    assert refusal(tmp_path, span, syntax, IMPLICIT) == "pixels-too-long"


def test_a_data_set_that_ends_early_is_damage(tmp_path: Path, ct: Any) -> None:
    """Within the pixels, or within an element."""
    span, syntax = write(tmp_path, ct)
    for short in (100, span.size - 150):
        assert refusal(tmp_path, Span(span.path, span.start, span.end - short), syntax) == "data-set-damaged"
    del ct.SOPInstanceUID
    assert refusal(tmp_path, *write(tmp_path, ct, enforce_file_format=False)) == "data-set-damaged"


def test_a_data_set_without_pixels_is_written_anew(tmp_path: Path, ct: Any) -> None:
    """A report or a plan has none."""
    del ct.PixelData
    del ct.DataSetTrailingPadding
    result = transcoded(tmp_path, *write(tmp_path, ct), IMPLICIT)
    assert result.PatientID == ct.PatientID
    assert "PixelData" not in result


def test_a_file_that_cannot_be_written_is_the_disk_s_trouble(tmp_path: Path, ct: Any) -> None:
    """Not the instance's: it is tried again."""
    span, syntax = write(tmp_path, ct)
    with pytest.raises(FileNotFoundError):
        transcode.transcode(span, syntax, [EXPLICIT], tmp_path / "nowhere" / "out.dcm")


def test_a_part_of_a_file_is_a_file(tmp_path: Path) -> None:
    """It ends where the span does."""
    path = tmp_path / "x"
    path.write_bytes(b"0123456789")
    with path.open("rb") as file:
        part = transcode._Part(file, Span(path, 2, 8))
        assert part.readable()
        assert part.seekable()
        assert (part.read(), part.read(), part.tell()) == (b"234567", b"", 6)
        part.seek(-2, io.SEEK_END)
        assert part.read(1) == b"6"
        part.seek(-3, io.SEEK_CUR)
        assert part.read(None) == b"4567"


async def test_a_worker_transcodes_and_hands_the_code_back(tmp_path: Path, ct: Any) -> None:
    """The limits of a worker are enough for the decoders; its refusals cross the border by their code."""
    span, syntax = write(tmp_path, compressed(ct))
    workers = Workers(1, memory=512 << 20, seconds=30)
    await workers.open()
    try:
        done = await workers.run(transcode.transcode, span, syntax, [EXPLICIT], tmp_path / "out.dcm")
        assert done.transfer_syntax == EXPLICIT
        with pytest.raises(Exception, match="no-target"):
            await workers.run(transcode.transcode, span, syntax, [], tmp_path / "out.dcm")
    finally:
        await workers.close()


def test_implicit_becomes_explicit(tmp_path: Path, ct: Any) -> None:
    """NET-13: the pixels of more than eight bits are words."""
    span, _ = write(tmp_path, ct, implicit_vr=True, little_endian=True, force_encoding=True)
    result = transcoded(tmp_path, span, IMPLICIT)
    assert result["PixelData"].VR == "OW"
    assert np.array_equal(result.pixel_array, ct.pixel_array)
