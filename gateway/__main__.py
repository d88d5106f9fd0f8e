"""``python -m gateway`` is ``dicom-mail``."""

from gateway.cli import main

if __name__ == "__main__":
    main()
