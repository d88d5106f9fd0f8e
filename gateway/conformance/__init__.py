"""The DICOM conformance statement, written from the code's own tables and from a configuration (PS3.2 Annex N)."""

from gateway.conformance.statement import Form, write

__all__ = ("Form", "write")
