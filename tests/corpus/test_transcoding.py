"""Every DICOM file of the corpus decoded: the same pixels and elements, or a reason why not (NET-12 to NET-15)."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pacs import read_meta
from pydicom import dcmread
from pydicom.dataset import FileDataset

from gateway.core import contexts
from gateway.core.transcode import CODES, TARGETS, Transcoded, TranscodingError, transcode
from gateway.model import Span

CORPUS = Path(__file__).parents[2].parent / "shared" / "corpus" / "dicom"
IMAGE_TAGS = {0x00280004, 0x00280006, 0x7FE00001, 0x7FE00002, 0x7FE00003, 0x7FE00010}
"""What decoding changes: photometric interpretation, planar configuration, offset tables, the pixels."""


def files() -> list[Path]:
    return sorted(path for path in CORPUS.rglob("*") if path.is_file()) if CORPUS.is_dir() else []


pytestmark = pytest.mark.skipif(not files(), reason=f"no corpus at {CORPUS}")


def attempt(path: Path, target: str, out: Path) -> Transcoded | str:
    content = path.read_bytes()
    meta = read_meta(content)
    assert meta is not None
    try:
        return transcode(Span(path, meta.data_set, len(content)), meta.transfer_syntax, [target], out, lossy=True)
    except TranscodingError as error:
        assert not out.exists()
        return error.code


def pixels(data_set: FileDataset) -> np.ndarray | None:  # type: ignore[type-arg]
    """Decode; None when there is nothing that can be decoded."""
    try:
        return data_set.pixel_array
    except Exception:  # noqa: BLE001  broken files fail in many ways
        return None


def readable() -> list[Path]:
    """Files with a meta header; a DICOMDIR is never sent."""
    metas = [(path, read_meta(path.read_bytes())) for path in files()]
    return [path for path, meta in metas if meta is not None and meta.sop_class != "1.2.840.10008.1.3.10"]


@pytest.mark.parametrize("target", TARGETS)
def test_pixels_and_elements_stay_the_same(target: str, tmp_path: Path) -> None:
    """NET-12, NET-13: nothing differs but how the pixels are described and laid out."""
    outcomes: Counter[str] = Counter()
    out = tmp_path / "out.dcm"
    for path in readable():
        done = attempt(path, target, out)
        if isinstance(done, str):
            assert done in CODES
            outcomes["refused"] += 1
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            before, after = dcmread(path), dcmread(out)
            assert after.file_meta.TransferSyntaxUID == target == done.transfer_syntax
            assert done.size == out.stat().st_size
            old, new = pixels(before), pixels(after)
            if old is not None:
                assert new is not None, path
                assert old.shape == new.shape, path
                assert np.array_equal(old, new), path
                outcomes["pixels"] += 1
            kept = {element.tag for element in before if element.tag.element} - IMAGE_TAGS
            assert {element.tag for element in after} - IMAGE_TAGS == kept, path
            assert after.SOPInstanceUID == before.SOPInstanceUID  # NET-14
        outcomes["done"] += 1
        outcomes[before.file_meta.TransferSyntaxUID] += 1
    assert outcomes["done"] > 10 * outcomes["refused"]
    assert outcomes["pixels"] > 100
    missing = contexts.DECODABLE - outcomes.keys() - {"1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.202"}
    assert not missing, "no sample of these"


DCMTK = {
    "1.2.840.10008.1.2.4.57": "dcmdjpeg",
    "1.2.840.10008.1.2.4.70": "dcmdjpeg",
    "1.2.840.10008.1.2.4.80": "dcmdjpls",
    "1.2.840.10008.1.2.5": "dcmdrle",
    "1.2.840.10008.1.2.1.99": "dcmconv",
    "1.2.840.10008.1.2.2": "dcmconv",
}


@pytest.mark.peer
def test_dcmtk_decodes_to_the_same_pixels(tmp_path: Path) -> None:
    """NET-12: another decoder, by other people, agrees on every lossless file that it takes."""
    compared: Counter[str] = Counter()
    ours, theirs = tmp_path / "ours.dcm", tmp_path / "theirs.dcm"
    for path in readable():
        meta = read_meta(path.read_bytes())
        assert meta is not None
        tool = shutil.which(DCMTK.get(meta.transfer_syntax, "absent"))
        if tool is None:
            continue
        theirs.unlink(missing_ok=True)
        flags = ["+te"] if tool.endswith("dcmconv") else ["+cn"] if tool.endswith("dcmdjpeg") else []
        run = subprocess.run([tool, "-q", *flags, str(path), str(theirs)], capture_output=True, check=False)
        done = attempt(path, contexts.EXPLICIT, ours)
        if run.returncode or isinstance(done, str):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mine, other = dcmread(ours), dcmread(theirs)
            if "PixelData" not in mine:
                continue
            assert np.array_equal(mine.pixel_array, other.pixel_array), path
            assert mine.PhotometricInterpretation == other.PhotometricInterpretation, path
        compared[tool.rpartition("/")[2]] += 1
    if not compared:
        pytest.skip("DCMTK is not installed: tests/peers/install")
    assert compared.keys() == set(DCMTK.values())
