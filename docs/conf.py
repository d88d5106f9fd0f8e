"""How Sphinx builds the pages of this folder into a site: ``make docs``."""

project = "DICOM mail gateway"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = project
html_show_sphinx = False
html_copy_source = False
myst_heading_anchors = 3
# The README and the unit lie outside: their links are for those who read the pages where they are.
suppress_warnings = ["myst.xref_missing", "misc.highlighting_failure"]
