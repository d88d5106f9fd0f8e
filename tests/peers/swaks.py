"""Swaks, the Swiss army knife of SMTP: mail sent the way an administrator tries a server out."""

from __future__ import annotations

import subprocess

from peer import program


def swaks(port: int, *options: str, message: bytes | None = None) -> subprocess.CompletedProcess[str]:
    """Speak with an SMTP server on this machine.

    Args:
        port: Its port.
        options: Swaks's own, as ``--from``, ``--to``, ``--tls``, ``--quit-after RCPT``.
        message: The whole message, header included; absent, swaks makes one up.

    Returns:
        The finished program; its output is the dialog. 0 means that the server took the mail.
    """
    command = [program("swaks"), "--server", "127.0.0.1", "--port", str(port), "--timeout", "60", *options]
    if message is not None:
        # Swaks ends lines itself, and stuffs dots.
        command += ["--data", "-"]
        message = message.replace(b"\r\n", b"\n")
    done = subprocess.run(command, input=message, capture_output=True, check=False, timeout=300)
    return subprocess.CompletedProcess(
        command, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    )
