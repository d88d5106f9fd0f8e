"""Every bench, one after another: `make bench`. Ends with 1 when one of them missed its bar."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BENCHES = (
    "acceptance",
    "reading",
    "sending",
    "forwarding",
    "creating",
    "footprint",
    "receiving",
    "outgoing",
    "sealing",
    "console",
)


def main() -> int:
    """Run those that are named, or all."""
    root = HERE.parents[1]
    paths = os.pathsep.join([str(root), str(root / "tests/peers")])
    code = 0
    for name in sys.argv[1:] or BENCHES:
        print(f"== {name}", flush=True)
        done = subprocess.run(
            [sys.executable, str(HERE / f"{name}.py")], env={**os.environ, "PYTHONPATH": paths}, check=False
        )
        code = code or done.returncode
    return code


if __name__ == "__main__":
    sys.exit(main())
