"""Mail as people's own programs write it: mutt, s-nail and swaks, through Postfix into Dovecot, to Orthanc."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from daemon import Daemon
from inbox import Inbox
from orthanc import Orthanc
from peer import Start, program, wait_until
from postfix import Postfix
from samples import Samples, data_set, sop_instance

pytestmark = pytest.mark.peer

SENDER, RECIPIENT = "dicom@clinic-a.test", "radiology@hospital.test"
BODY = b"Please have a look at these.\n\nFrom here on nothing is an image.\n.\n"


def mutt(port: int, files: Sequence[Path], home: Path) -> list[str]:
    """Mutt guesses a type for each file and chooses the encoding."""
    (home / "muttrc").write_text(
        f'set smtp_url="smtp://127.0.0.1:{port}/"\nset from="{SENDER}"\nset copy=no\n'
        "set ssl_starttls=no\nset ssl_force_tls=no\n"
        f'set envelope_from_address="{SENDER}"\nset use_envelope_from=yes\nset hostname="clinic-a.test"\n'
    )
    attached = [word for file in files for word in ("-a", str(file))]
    return [program("mutt"), "-F", str(home / "muttrc"), "-s", "Images", *attached, "--", RECIPIENT]


def s_nail(port: int, files: Sequence[Path], home: Path) -> list[str]:
    """S-nail, the mailx of Debian."""
    assert home
    settings = (f"mta=smtp://127.0.0.1:{port}", "smtp-auth=none", f"from={SENDER}", "hostname=clinic-a.test")
    options = [word for one in ("v15-compat", *settings) for word in ("-S", one)]
    attached = [word for file in files for word in ("-a", str(file))]
    return [program("s-nail"), "-:/", *options, *attached, "-s", "Images", RECIPIENT]


def swaks(port: int, files: Sequence[Path], home: Path) -> list[str]:
    """Swaks writes every attachment as application/octet-stream."""
    assert home
    attached = [word for file in files for word in ("--attach", f"@{file}")]
    who = ("--from", SENDER, "--to", RECIPIENT, "--helo", "clinic-a.test")
    return [program("swaks"), "--server", "127.0.0.1", "--port", str(port), *who, *attached]


@pytest.mark.parametrize("write", [mutt, s_nail, swaks])
def test_what_a_mail_program_sends_lies_in_the_pacs(
    write: Callable[[int, Sequence[Path], Path], list[str]],
    start: Start,
    orthanc: Orthanc,
    samples: Samples,
    tmp_path: Path,
) -> None:
    """Identical data sets: of a mail that came while the gateway ran, and of one that waited while it did not (R1)."""
    inbox = start(Inbox("hospital.test", ["radiology"]))
    postfix = start(Postfix({}, **inbox.postfix()))
    password = tmp_path / "password"
    password.write_text("secret\n")
    gateway = start(
        Daemon(
            {"orthanc": (orthanc.title, orthanc.port)},
            f'[imap.radiology]\nhost = "127.0.0.1"\nport = {inbox.port}\ntls = "none"\nuser = "radiology"\n'
            f'password_file = "{password}"\naddress = "orthanc@gateway.test"\npoll = "1s"\n'
            'done = "Processed"\nfailed = "Failed"\n',
        )
    )
    assert gateway.say("check", "--make-folders").returncode in {0, 1}  # its SMTP port is its own: that is a problem
    stored: dict[str, bytes] = {}

    def send() -> None:
        files = []
        for number in (1, 2):
            content = samples.fresh().file
            path = tmp_path / f"image {len(stored)} {number}.dcm"
            path.write_bytes(content)
            files.append(path)
            stored[sop_instance(content)] = data_set(content)
        environment = {**os.environ, "HOME": str(tmp_path), "LC_ALL": "C.UTF-8", "MAILRC": "/dev/null"}
        done = subprocess.run(
            write(postfix.port, files, tmp_path),
            input=BODY,
            env=environment,
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")

    send()
    wait_until(lambda: set(stored) <= set(orthanc.instances()), "the first mail is in the PACS", 40)
    wait_until(lambda: inbox.count("radiology") == 0, "the first mail is filed", 20)
    gateway.stop()
    send()
    wait_until(lambda: inbox.count("radiology") == 1, "the second mail waits in the mailbox", 20)
    gateway.start()
    wait_until(lambda: set(stored) <= set(orthanc.instances()), "the second mail is in the PACS", 40)
    assert {uid: orthanc.data_set(uid) for uid in stored} == stored
    wait_until(lambda: inbox.count("radiology") == 0, "both mails are filed", 20)
    assert [item["outcome"] for item in gateway.items()] == ["delivered", "delivered"]
    assert gateway.say("reconcile").returncode == 0
