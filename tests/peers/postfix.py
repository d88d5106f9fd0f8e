"""Postfix: the hospital's mail server, as an instance of its own beside whatever the machine runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from textwrap import dedent

from peer import PATH, Peer, need_root, program


class Postfix(Peer):
    """A Postfix that takes mail by SMTP on ``port`` and from its own sendmail, and relays named domains.

    Args:
        relay: Port on this machine for each domain; all other mail is refused.
        settings: More of main.cf.
    """

    def __init__(self, relay: Mapping[str, int], **settings: str) -> None:
        super().__init__()
        self.relay = dict(relay)
        self.settings = settings

    def command(self) -> Sequence[str]:
        need_root("run a Postfix of its own")
        etc = self.folder / "etc"
        if not etc.exists():
            self.folder.chmod(0o755)
            for name in ("etc", "queue", "data"):
                (self.folder / name).mkdir()
            shutil.chown(self.folder / "data", "postfix")
            (etc / "main.cf").write_text(self._main(), encoding="utf-8")
            (etc / "master.cf").write_text(self._master(), encoding="utf-8")
        return [program("postfix"), "-c", str(etc), "start-fg"]

    def stop(self) -> None:
        pid = self.folder / "queue" / "pid" / "master.pid"
        if self.process is not None and pid.exists():
            # The script we started waits for this one and ends with it, but does not hand a signal on.
            os.kill(int(pid.read_text(encoding="ascii")), signal.SIGTERM)
            self.process.wait(15)
        super().stop()

    def sendmail(self, sender: str, recipient: str, message: bytes) -> None:
        """Hand a message to this Postfix the way a program on its machine does."""
        subprocess.run(
            [program("sendmail"), "-C", str(self.folder / "etc"), "-i", "-f", sender, recipient],
            input=message,
            env={**os.environ, "PATH": PATH},
            check=True,
        )

    def queue(self) -> int:
        """How many messages still wait in it."""
        command = [program("postqueue"), "-c", str(self.folder / "etc"), "-j"]
        return len(subprocess.run(command, capture_output=True, check=True).stdout.splitlines())

    def maillog(self) -> str:
        """What it did with mail so far."""
        path = self.folder / "maillog"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def _main(self) -> str:
        transports = " ".join(f"{{{domain} = smtp:[127.0.0.1]:{port}}}" for domain, port in self.relay.items())
        settings = {
            "compatibility_level": "3.6",
            "queue_directory": self.folder / "queue",
            "data_directory": self.folder / "data",
            "maillog_file": self.folder / "maillog",
            "maillog_file_prefixes": self.folder,
            "command_directory": "/usr/sbin",
            "daemon_directory": "/usr/lib/postfix/sbin",
            "mail_owner": "postfix",
            "setgid_group": "postdrop",
            "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4",
            "smtp_bind_address": "127.0.0.1",
            "myhostname": "mail.hospital.test",
            "mydestination": "",
            "mynetworks": "127.0.0.0/8",
            "local_transport": "error:no local delivery",
            "local_recipient_maps": "",
            "alias_maps": "",
            "alias_database": "",
            "default_transport": "error:outside mail not allowed here",
            "transport_maps": f"inline:{{ {transports} }}",
            "relay_domains": ", ".join(self.relay),
            "smtpd_relay_restrictions": "permit_mynetworks, reject",
            "disable_dns_lookups": "yes",
            "smtp_dns_support_level": "disabled",
            "smtp_host_lookup": "native",
            "message_size_limit": "0",
            "mailbox_size_limit": "0",
            "minimal_backoff_time": "2s",
            "maximal_backoff_time": "4s",
            "queue_run_delay": "2s",
            "smtputf8_enable": "yes",
            **self.settings,
        }
        return "".join(f"{name} = {value}\n" for name, value in settings.items())

    def _master(self) -> str:
        return f"127.0.0.1:{self.port} inet n - n - - smtpd\n" + dedent("""\
            pickup unix n - n 60 1 pickup
            cleanup unix n - n - 0 cleanup
            qmgr unix n - n 300 1 qmgr
            tlsmgr unix - - n 1000? 1 tlsmgr
            rewrite unix - - n - - trivial-rewrite
            bounce unix - - n - 0 bounce
            defer unix - - n - 0 bounce
            trace unix - - n - 0 bounce
            verify unix - - n - 1 verify
            flush unix n - n 1000? 0 flush
            proxymap unix - - n - - proxymap
            smtp unix - - n - - smtp
            relay unix - - n - - smtp
            showq unix n - n - - showq
            error unix - - n - - error
            retry unix - - n - - error
            discard unix - - n - - discard
            virtual unix - n n - - virtual
            anvil unix - - n - 1 anvil
            scache unix - - n - 1 scache
            postlog unix-dgram n - n - 1 postlogd
            """)
