"""Coverage-guided fuzzing of S/MIME: messages, CMS structures, certificates and CRLs.

    python tests/fuzz/cms.py -max_total_time=600 [corpus folder…]

Needs atheris. Without a folder of its own it starts from a sound message of each form. What must hold is in
``tests/protected.py``. The first byte of an input says what the rest is.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1] / "peers")]

with atheris.instrument_imports(include=["gateway"]):
    from gateway.core import unsealing  # noqa: F401 - imported here, so that it is watched

from tests import protected  # noqa: E402 - behind what atheris watches

MESSAGE, STRUCTURE, PAPER = b"m", b"s", b"p"


def one(data: bytes) -> None:
    """Take one input."""
    kind, content = data[:1], data[1:]
    if kind == MESSAGE:
        protected.open_message(content)
    elif kind == STRUCTURE:
        protected.open_structure(content)
    elif kind == PAPER:
        protected.read_paper(content)


def seeds(folder: Path) -> None:
    """Write what to start from."""
    kinds = ((MESSAGE, protected.messages()), (STRUCTURE, protected.structures()), (PAPER, protected.papers()))
    for kind, found in kinds:
        for name, content in found.items():
            (folder / f"{kind.decode()} {name}").write_bytes(kind + content)


def main() -> None:
    """Fuzz until the time given is over."""
    arguments = list(sys.argv)
    if not any(not argument.startswith("-") for argument in arguments[1:]):
        folder = Path(tempfile.mkdtemp(prefix="fuzz-cms-"))
        seeds(folder)
        arguments.append(str(folder))
    atheris.Setup(arguments, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
