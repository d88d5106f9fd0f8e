"""The gateway itself, as an operator runs it: the program with a configuration file, on ports of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import smtplib
import ssl
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from peer import Peer, answers, free_port, wait_until

from gateway import cli, config, control

ROOT = Path(__file__).parents[2]

Table: TypeAlias = Mapping[str, Any]


class Daemon(Peer):
    """`dicom-mail run` with one partner, whose mail is taken as it is, and a route to each destination.

    Args:
        destinations: Title and port of each Storage SCP on this machine, by name; each is a route of its own, to
            ``NAME@gateway.test``.
        sections: More TOML, as text; a section given there replaces ours.
        prefix: A program that runs it, with arguments: strace, to hurt it.
    """

    def __init__(
        self, destinations: Mapping[str, tuple[str, int]], sections: str = "", prefix: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.metrics = free_port()
        self.config = self.folder / "gateway.toml"
        self.data = self.folder / "data"
        self.prefix = prefix
        self.configure(destinations, sections)

    def configure(self, destinations: Mapping[str, tuple[str, int]], sections: str = "") -> None:
        """Write its configuration, also over another one."""
        self.config.write_text(self._toml(destinations, sections), "utf-8")

    def _toml(self, destinations: Mapping[str, tuple[str, int]], sections: str) -> str:
        given = set(tomllib.loads(sections))
        ours = {
            "gateway": 'name = "gateway.test"\npostmaster = "it@gateway.test"\ndata = "data"',
            "limits": 'free_space = "50 MB"',
            "smtp": f'listen = "127.0.0.1:{self.port}"',
            "metrics": f'listen = "127.0.0.1:{self.metrics}"',
        }
        lines = [f"[{name}]\n{body}\n" for name, body in ours.items() if name not in given]
        if "partner" not in given:
            lines.append('[partner.clinic-a]\naddress = "*@clinic-a.test"\naccept = "any"\n')
        for name, (title, port) in destinations.items():
            if "ae" not in given:
                lines.append(f'[ae.{name}]\ntitle = "{title}"\nhost = "127.0.0.1"\nport = {port}\ntimeout = "10s"\n')
            if "route" not in given:
                lines.append(f'[[route]]\nname = "to {name}"\nfrom = "clinic-a"\n')
                lines.append(f'to = "{name}@gateway.test"\nstore = ["{name}"]\n')
        return "\n".join([*lines, sections])

    def command(self) -> Sequence[str]:
        """As the README says."""
        return [*self.prefix, sys.executable, "-m", "gateway", "run", "--config", str(self.config)]

    def environment(self) -> dict[str, str]:
        """Find the package where it lies, installed or not."""
        return {"PYTHONPATH": str(ROOT)}

    def ready(self) -> bool:
        """Its doors are open."""
        return answers(self.port)

    def pid(self) -> int:
        """The gateway's own process, below whatever runs it."""
        assert self.process is not None
        if not self.prefix:
            return self.process.pid
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text("ascii")
        return int(children.split()[0])

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid(), number)

    def kill(self) -> None:
        """End it as the power does."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.wait()

    def wait(self, seconds: float = 30) -> int:
        """Wait until it has ended; return its exit code."""
        assert self.process is not None
        code = self.process.wait(seconds)
        self.process = None
        self.stop()
        return code

    # What a sender does

    def submit(
        self,
        message: bytes,
        *,
        sender: str = "dicom@clinic-a.test",
        to: str | Sequence[str] = "pacs@gateway.test",
        login: tuple[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> tuple[int, str]:
        """Hand a message over by SMTP; return the reply that decided: to RCPT when it was refused, else to the data."""
        with smtplib.SMTP("127.0.0.1", self.port, timeout=30) as wire:
            if tls is not None:
                wire.starttls(context=tls)
            if login is not None:
                wire.login(*login)
            wire.ehlo_or_helo_if_needed()
            code, text = wire.mail(sender, [f"SIZE={len(message)}"])
            for one in [to] if isinstance(to, str) else to:
                if code == 250:
                    code, text = wire.rcpt(one)
            if code == 250:
                code, text = wire.data(message)
            return code, text.decode()

    def mail(self, message: bytes, **how: Any) -> str:
        """Hand a message over that is taken; return its queue id."""
        code, text = self.submit(message, **how)
        assert code == 250, text
        return text.rpartition(" ")[2]

    # What an operator does

    def say(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a verb of the command line on its configuration; here, because Python takes a second or two to start."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.perform([*words, "--config", str(self.config)])
        return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())

    def ask(self, *words: str) -> Any:
        """Run a verb that answers in JSON, and read its answer."""
        done = self.say(*words, "--json")
        return json.loads(done.stdout)

    def items(self) -> list[dict[str, Any]]:
        """Everything in its queue, the newest first."""
        items: list[dict[str, Any]] = self.ask("queue", "list")["items"]
        return items

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of a page of its [metrics] address."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    # What a test looks at again and again; the same answers as the command line's, without starting it each time

    def view(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """Ask ``list``, ``show`` or ``reconcile``."""
        return control.call(config.load(self.config), verb, **arguments)

    def item(self, key: str) -> dict[str, Any]:
        """The story of one item."""
        return self.view("show", id=key)

    def await_item(self, key: str, outcome: str, seconds: float = 30) -> dict[str, Any]:
        """Wait until an item has an outcome, and return its story then."""
        wait_until(lambda: self.item(key)["outcome"] == outcome, f"{key} is {outcome}", seconds)
        return self.item(key)

    def await_items(self, keys: Collection[str], outcome: str, seconds: float = 30) -> None:
        """Wait until all of these items have an outcome."""

        def have() -> bool:
            found = {one["id"] for one in self.view("list")["items"] if one["outcome"] == outcome}
            return found.issuperset(keys)

        def others() -> str:
            items = [one for one in self.view("list")["items"] if one["id"] in keys and one["outcome"] != outcome]
            return "\n".join([*(self.say("queue", "show", one["id"]).stdout for one in items), self.log()[-4000:]])

        wait_until(have, f"{len(keys)} items are {outcome}", seconds, instead=others)

    def notices(self) -> set[tuple[str, str]]:
        """Kind and subject of each open notice."""
        return {(one["kind"], one["about"]) for one in self.view("list")["notices"]}

    def events(self, key: str) -> str:
        """What happened to an item, in the words that are shown."""
        return "\n".join(one["text"] for one in self.item(key)["events"])

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Every line of its log about an event."""
        lines = (json.loads(line) for line in self.log().splitlines() if line.startswith("{"))
        return [line for line in lines if line["event"] == event]

    def proven(self) -> dict[str, Any]:
        """The conservation proof, which must hold (R34)."""
        proof = self.view("reconcile")
        for unit in (proof, proof["instances"]):
            parts = ("delivered", "waiting", "refused", "held", "failed")
            assert unit["in"] == sum(unit[part] for part in parts), proof
            assert unit["unaccounted"] == 0, proof
        return proof
