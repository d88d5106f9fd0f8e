"""Courier-IMAP: a second real IMAP server, unlike Dovecot: folders below INBOX, a dot between them, no MOVE.

Its Debian package conflicts with Dovecot's, so ``tests/peers/install`` only unpacks it. Who may log in is asked of a
socket that the test serves, with Courier's own protocol; a mount namespace puts it where Courier looks.
"""

from __future__ import annotations

import grp
import imaplib
import pwd
import shutil
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

from peer import Peer, absent, need_root, program

UNPACKED = Path(__file__).parents[2] / "build/courier"
USER, PASSWORD = "gw", "secret"


class Courier(Peer):
    """One account with an INBOX, in a folder of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.folder.chmod(0o755)
        self.mail = self.folder / "Maildir"
        for name in ("cur", "new", "tmp"):
            (self.mail / name).mkdir(parents=True)
            shutil.chown(self.mail / name, "mail", "mail")
        shutil.chown(self.mail, "mail", "mail")
        (self.folder / "auth").mkdir()
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(str(self.folder / "auth/socket"))
        (self.folder / "auth/socket").chmod(0o777)
        self._door.listen()
        threading.Thread(target=self._answer, daemon=True).start()

    def command(self) -> Sequence[str]:
        need_root("run Courier in a mount namespace")
        if not (UNPACKED / "usr/bin/imapd").exists():
            absent("courier-imap (tests/peers/install unpacks it)")
        places = "mount -t tmpfs tmpfs /run && mkdir -p /run/courier/authdaemon && mount --bind"
        options = f"-address=127.0.0.1 -maxprocs=40 -maxperip=40 -nodnslookup -noidentlookup {self.port}"
        login = f"{UNPACKED}/usr/lib/courier/courier/imaplogin {UNPACKED}/usr/bin/imapd Maildir"
        script = f"{places} {self.folder}/auth /run/courier/authdaemon && exec {UNPACKED}/usr/sbin/couriertcpd"
        return [program("unshare"), "--mount", "sh", "-c", f"{script} {options} {login}"]

    def environment(self) -> dict[str, str]:
        """What /etc/courier/imapd sets, and where its libraries lie."""
        return {
            "LD_LIBRARY_PATH": f"{UNPACKED}/usr/lib:{UNPACKED}/usr/lib/x86_64-linux-gnu",
            "IMAP_CAPABILITY": "IMAP4rev1 UIDPLUS CHILDREN NAMESPACE QUOTA IDLE",
            "IMAP_KEYWORDS": "1",
            "IMAP_IDLE_TIMEOUT": "1",
            "IMAP_ULIMITD": "131072",
            "IMAP_TRASHFOLDERNAME": "Trash",
            **dict.fromkeys(
                (
                    *("IMAP_CHECK_ALL_FOLDERS", "IMAP_OBSOLETE_CLIENT", "IMAP_USELOCKS", "IMAP_ENHANCEDIDLE"),
                    *("IMAP_MAILBOX_SANITY_CHECK", "IMAP_TLS_REQUIRED"),
                ),
                "0",
            ),
        }

    def stop(self) -> None:
        super().stop()
        self._door.close()

    def _answer(self) -> None:
        uid, gid = pwd.getpwnam("mail").pw_uid, grp.getgrnam("mail").gr_gid
        yes = f"UID={uid}\nGID={gid}\nHOME={self.folder}\nADDRESS={USER}\nMAILDIR={self.mail}\nOPTIONS=\n.\n"
        while True:
            try:
                wire, _ = self._door.accept()
            except OSError:
                return
            with wire:
                right = wire.recv(4096).endswith(f"login\n{USER}\n{PASSWORD}\n".encode())
                wire.sendall(yes.encode() if right else b"FAIL\n")

    def client(self) -> imaplib.IMAP4:
        """A logged-in client of the standard library."""
        client = imaplib.IMAP4("127.0.0.1", self.port)
        client.login(USER, PASSWORD)
        return client

    def make(self, *folders: str) -> None:
        """Make folders."""
        client = self.client()
        for name in folders:
            assert client.create(name)[0] == "OK"
        client.logout()

    def append(self, *mails: bytes) -> None:
        """Put mails into INBOX."""
        client = self.client()
        for one in mails:
            assert client.append("INBOX", None, None, one)[0] == "OK"
        client.logout()

    def mails(self, folder: str = "INBOX") -> list[bytes]:
        """The mails of a folder."""
        client = self.client()
        kind, _ = client.select(folder, readonly=True)
        found = []
        if kind == "OK":
            for number in client.search(None, "ALL")[1][0].split():
                data = client.fetch(number, "(BODY.PEEK[])")[1][0]
                assert isinstance(data, tuple)
                found.append(data[1])
        client.logout()
        return found

    def forget_uids(self) -> None:
        """Begin a new life of the UIDs, as a server does whose index was lost: another UIDVALIDITY."""
        for one in self.mail.glob("courierimapuiddb"):
            one.unlink()
