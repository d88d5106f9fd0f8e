"""A gateway between e-mail and a PACS, by the DICOM profile STD-GEN-MIME (PS3.11 Annex G)."""

__version__ = "0.1.0"
