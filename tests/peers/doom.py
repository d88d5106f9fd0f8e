"""The power goes at a chosen system call of a running gateway."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

from daemon import Daemon
from peer import program, wait_until

OTHER_NAMES = {"rename": "rename,renameat,renameat2", "mkdir": "mkdir,mkdirat"}


@contextlib.contextmanager
def doomed(gateway: Daemon, call: str, number: int) -> Iterator[None]:
    """Let a running gateway be killed as it is about to make a system call for the n-th time."""
    calls = OTHER_NAMES.get(call, call)
    inject = f"inject={calls}:signal=SIGKILL:when={number}"
    said = gateway.folder / f"strace-{call}-{number}"
    trace = [program("strace"), "-f", "-p", str(gateway.pid()), "-o", "/dev/null", "-e", f"trace={calls}", "-e", inject]
    with said.open("wb") as log, subprocess.Popen(trace, stderr=log) as process:
        try:
            wait_until(lambda: "attached" in said.read_text() or process.poll() is not None, "strace is there", 10)
            yield
        finally:
            # It may wait for ever for a thread that died as it was attached; the dead process stays as long as it does.
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
