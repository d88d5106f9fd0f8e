"""The gateway itself, as an operator runs it: the program with a configuration file, on ports of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from peer import Peer, answers, free_port

ROOT = Path(__file__).parents[2]

Table: TypeAlias = Mapping[str, Any]


class Daemon(Peer):
    """`dicom-mail run` with one partner, whose mail is taken as it is, and a route to each destination.

    Args:
        destinations: Title and port of each Storage SCP on this machine, by name; each is a route of its own, to
            ``NAME@gateway.test``.
        sections: More TOML, as text; a section given there replaces ours.
    """

    def __init__(self, destinations: Mapping[str, tuple[str, int]], sections: str = "") -> None:
        super().__init__()
        self.metrics = free_port()
        self.config = self.folder / "gateway.toml"
        self.data = self.folder / "data"
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
        return [sys.executable, "-m", "gateway", "run", "--config", str(self.config)]

    def environment(self) -> dict[str, str]:
        """Find the package where it lies, installed or not."""
        return {"PYTHONPATH": str(ROOT)}

    def ready(self) -> bool:
        """Its doors are open."""
        return answers(self.port)

    def kill(self) -> None:
        """End it as the power does."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process = None

    def say(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a verb of the command line on its configuration."""
        command = [sys.executable, "-m", "gateway", *words, "--config", str(self.config)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    def ask(self, *words: str) -> Any:
        """Run a verb that answers in JSON, and read its answer."""
        done = self.say(*words, "--json")
        return json.loads(done.stdout)

    def items(self) -> list[dict[str, Any]]:
        """Everything in its queue, the newest first."""
        items: list[dict[str, Any]] = self.ask("queue", "list")["items"]
        return items
