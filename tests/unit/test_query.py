"""Queries: what is asked for together, and what a match says."""

from __future__ import annotations

from io import BytesIO

import pytest
from pydicom.filereader import read_dataset

from gateway.core import query
from gateway.core.dimse import ProtocolError
from gateway.core.query import Query, Wanted


def test_instances_of_one_series_are_asked_for_together() -> None:
    """In lists of at most so many; what has no study or series cannot be asked for (PS3.4 C.6.2.1)."""
    wanted = [Wanted("1", "1.1", f"1.1.{key}") for key in range(5)]
    wanted += [Wanted("1", "1.2", "1.2.1"), Wanted("", "1.3", "x"), Wanted("2", "", "y"), wanted[0]]
    assert list(query.queries(wanted, 2)) == [
        Query("1", "1.1", ("1.1.0", "1.1.1")),
        Query("1", "1.1", ("1.1.2", "1.1.3")),
        Query("1", "1.1", ("1.1.4",)),
        Query("1", "1.2", ("1.2.1",)),
    ]


def test_an_identifier_holds_the_unique_keys_of_every_level() -> None:
    """PS3.4 C.6.2.1: level, study, series and the list of instances, as pydicom reads them."""
    content = query.identifier(Query("1.2", "1.2.3", ("1.2.3.4", "1.2.3.55")))
    identifier = read_dataset(BytesIO(content), is_implicit_VR=True, is_little_endian=True)
    assert identifier.QueryRetrieveLevel == "IMAGE"
    assert identifier.StudyInstanceUID == "1.2"
    assert identifier.SeriesInstanceUID == "1.2.3"
    assert list(identifier.SOPInstanceUID) == ["1.2.3.4", "1.2.3.55"]
    assert [element.tag for element in identifier] == sorted(element.tag for element in identifier)


def test_a_match_names_its_instance_or_none() -> None:
    """A match without its key is about nobody; one that is no data set ends the association."""
    assert query.sop_instance(query.identifier(Query("1", "2", ("1.2.34",)))) == "1.2.34"
    assert query.sop_instance(query.identifier(Query("1", "2", ()))[8:]) == ""
    assert query.sop_instance(b"") == ""
    with pytest.raises(ProtocolError):
        query.sop_instance(b"\x08\0\x18\0\xff\xff\0\0")
