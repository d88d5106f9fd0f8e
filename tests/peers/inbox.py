"""A partner's mailboxes: Dovecot, which shows by IMAP what a Postfix has delivered into its folders."""

from __future__ import annotations

import imaplib
import shutil
from collections.abc import Mapping, Sequence

from peer import Peer, need_root, program

OWNER = 65534
"""Whom the mail belongs to: nobody."""

CONFIGURATION = """
base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/dovecot.log
protocols = imap
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no
mail_location = maildir:{folder}/mail/%n
mail_uid = 65534
mail_gid = 65534
first_valid_uid = 65534
last_valid_uid = 65534
first_valid_gid = 65534
passdb {{
  driver = static
  args = password=secret
}}
userdb {{
  driver = static
  args = uid=65534 gid=65534 home={folder}/mail/%n
}}
service imap-login {{
  inet_listener imap {{
    address = 127.0.0.1
    port = {port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
namespace inbox {{
  inbox = yes
}}
"""


class Inbox(Peer):
    """A Dovecot with one mailbox for each name; ``postfix`` says how a Postfix delivers into them.

    Args:
        domain: Of the addresses.
        names: What stands before the ``@``.
    """

    def __init__(self, domain: str, names: Sequence[str]) -> None:
        super().__init__()
        self.domain = domain
        self.names = tuple(names)
        self.folder.chmod(0o755)
        mail = self.folder / "mail"
        mail.mkdir()
        shutil.chown(mail, OWNER, OWNER)

    def command(self) -> Sequence[str]:
        need_root("run a Dovecot of its own")
        for name in ("run", "state"):
            (self.folder / name).mkdir(exist_ok=True)
        path = self.folder / "dovecot.conf"
        path.write_text(CONFIGURATION.format(folder=self.folder, port=self.port), encoding="utf-8")
        return [program("dovecot"), "-F", "-c", str(path)]

    def postfix(self) -> Mapping[str, str]:
        """Settings of a Postfix that delivers to these mailboxes."""
        maps = " ".join(f"{{{name}@{self.domain} = {name}/}}" for name in self.names)
        return {
            "transport_maps": "",
            "virtual_mailbox_domains": self.domain,
            "virtual_mailbox_base": str(self.folder / "mail"),
            "virtual_mailbox_maps": f"inline:{{ {maps} }}",
            "virtual_uid_maps": f"static:{OWNER}",
            "virtual_gid_maps": f"static:{OWNER}",
            "virtual_mailbox_limit": "0",
        }

    def count(self, name: str) -> int:
        """How many mails a mailbox has."""
        with imaplib.IMAP4("127.0.0.1", self.port, timeout=30) as wire:
            wire.login(name, "secret")
            return int(wire.select("INBOX", readonly=True)[1][0] or b"0")

    def mails(self, name: str) -> list[bytes]:
        """Every mail of a mailbox, as IMAP gives it."""
        with imaplib.IMAP4("127.0.0.1", self.port, timeout=30) as wire:
            wire.login(name, "secret")
            count = int(wire.select("INBOX", readonly=True)[1][0] or b"0")
            return [wire.fetch(str(number), "(BODY.PEEK[])")[1][0][1] for number in range(1, count + 1)]  # type: ignore[index,misc]
