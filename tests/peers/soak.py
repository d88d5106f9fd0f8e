"""How a soak ends: what is amiss, the line that counts, and the exit code."""

from __future__ import annotations

from collections.abc import Sequence


def conclude(wrong: Sequence[str]) -> int:
    """Say what is amiss; return the exit code."""
    for line in wrong:
        print("WRONG:", line)
    print("0 passed, 1 failed" if wrong else "1 passed, 0 failed")
    return 1 if wrong else 0
