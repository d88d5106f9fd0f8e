"""Dovecot: a real IMAP and POP3 server with one account, on ports and in a folder of its own."""

from __future__ import annotations

import grp
import imaplib
import os
import pwd
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from peer import Peer, answers, free_port, need_root, program

USER, PASSWORD = "gw", 'se"cret \\ ü'

CONFIGURATION = """
base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/dovecot.log
protocols = imap pop3
listen = 127.0.0.1
ssl = yes
ssl_cert = <{folder}/cert.pem
ssl_key = <{folder}/key.pem
disable_plaintext_auth = no
auth_mechanisms = plain login
mail_location = maildir:{folder}/mail/%n
mail_uid = {uid}
mail_gid = {gid}
first_valid_uid = 1
default_login_user = dovenull
default_internal_user = dovecot
mail_max_userip_connections = 100
{capability}
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%n {folder}/users
}}
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={folder}/mail/%n
}}
service imap-login {{
  inet_listener imap {{
    port = {port}
  }}
  inet_listener imaps {{
    port = {tls_port}
    ssl = yes
  }}
}}
service pop3-login {{
  inet_listener pop3 {{
    port = {pop3_port}
  }}
  inet_listener pop3s {{
    port = 0
  }}
}}
namespace inbox {{
  inbox = yes
  separator = {separator}
  prefix = {prefix}
}}
"""


class Dovecot(Peer):
    """One account with an INBOX.

    Args:
        separator: Between the levels of folder names.
        prefix: What personal folders begin with, as on Courier and Cyrus.
        capability: What it says it can; None: everything.
        rights: What the account may do (RFC 4314); without ``w`` no keyword can be set. Empty: everything.
    """

    def __init__(self, separator: str = "/", prefix: str = "", capability: str | None = None, rights: str = "") -> None:
        super().__init__()
        self.tls_port, self.pop3_port = free_port(), free_port()
        self.ca = self.folder / "cert.pem"
        self._separator, self._prefix = separator, prefix
        self._rights = rights
        self._capability = f"imap_capability = {capability}" if capability else ""

    def command(self) -> Sequence[str]:
        need_root("run Dovecot")
        dovecot, openssl = program("dovecot"), program("openssl")
        uid, gid = pwd.getpwnam("mail").pw_uid, grp.getgrnam("mail").gr_gid
        if not self.ca.exists():
            subprocess.run(
                [
                    *(openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30"),
                    *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
                    *("-keyout", str(self.folder / "key.pem"), "-out", str(self.ca)),
                ],
                check=True,
                capture_output=True,
            )
            self.folder.chmod(0o755)
            (self.folder / "users").write_text(f"{USER}:{{PLAIN}}{PASSWORD}\n", encoding="utf-8")
            (self.folder / "mail").mkdir()
            os.chown(self.folder / "mail", uid, gid)
            if self._rights:
                self._capability += f"\nmail_plugins = acl\nplugin {{\n  acl = vfile:{self.folder}/acls\n}}\n"
                (self.folder / "acls").write_text(f"* owner {self._rights}\n")
        (self.folder / "dovecot.conf").write_text(
            CONFIGURATION.format(
                folder=self.folder,
                uid=uid,
                gid=gid,
                port=self.port,
                tls_port=self.tls_port,
                pop3_port=self.pop3_port,
                separator=self._separator,
                prefix=self._prefix,
                capability=self._capability,
            ),
            encoding="utf-8",
        )
        return [dovecot, "-F", "-c", str(self.folder / "dovecot.conf")]

    def ready(self) -> bool:
        return answers(self.port) and answers(self.pop3_port)

    @property
    def password_file(self) -> Path:
        """A file with the password, as the configuration names one."""
        path = self.folder / "password"
        path.write_text(PASSWORD + "\n", encoding="utf-8")
        return path

    @contextmanager
    def client(self) -> Iterator[imaplib.IMAP4]:
        """A logged-in client of the standard library, which is logged out whatever happens."""
        with imaplib.IMAP4("127.0.0.1", self.port) as client:
            client.authenticate("PLAIN", lambda _: f"\0{USER}\0{PASSWORD}".encode())
            yield client

    def make(self, *folders: str) -> None:
        """Make folders."""
        with self.client() as client:
            for name in folders:
                client.create(name)

    def append(self, *mails: bytes, folder: str = "INBOX") -> None:
        """Put mails into a folder."""
        with self.client() as client:
            for one in mails:
                kind, text = client.append(folder, None, None, one)
                assert kind == "OK", text

    def mails(self, folder: str = "INBOX") -> list[bytes]:
        """The mails of a folder."""
        with self.client() as client:
            kind, _ = client.select(folder, readonly=True)
            numbers = client.search(None, "ALL")[1][0].split() if kind == "OK" else []
            found = [client.fetch(number, "(BODY.PEEK[])")[1][0] for number in numbers]
        # What was deleted since the search comes without content.
        return [one[1] for one in found if isinstance(one, tuple)]

    def count(self, folder: str = "INBOX") -> int:
        """How many mails a folder has."""
        with self.client() as client:
            _, [count] = client.select(folder, readonly=True)
        return int(count or b"0")

    def flags(self, folder: str = "INBOX") -> str:
        """The flags of all mails of a folder, as the server writes them."""
        with self.client() as client:
            client.select(folder, readonly=True)
            _, found = client.fetch("1:*", "(FLAGS)")
        return " ".join(one.decode() for one in found if isinstance(one, bytes))
