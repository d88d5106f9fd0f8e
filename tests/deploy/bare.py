"""From an empty Debian machine: the commands of docs/install.md and the steps of the Dockerfile, in a clean chroot.

Makes a Debian with nothing but Python's venv and certificates, copies the sources into it, and types what the page
says, line by line, except what needs a running systemd. Then the program must say its version, check its
configuration, and run the demonstration. After that the Dockerfile's steps are run in the same machine. Needs root and
debootstrap; needs no container runtime. Ends with 1 at the first command that fails.

    python tests/deploy/bare.py [--mirror URL]
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
NEEDED = ("gateway", "config", "deploy", "docs", "pyproject.toml", "README.md", "LICENSE", "requirements.lock")
PATIENCE = 600
"""Seconds of one command."""


class Machine:
    """A Debian in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def type(self, command: str, *, where: str = "/src") -> str:
        """Run a command in it as root; return what it said. Ends the test when it fails."""
        print(f"# {command}", flush=True)
        kept = {key: value for key, value in os.environ.items() if key.startswith("PIP_") or key.endswith("_proxy")}
        done = subprocess.run(
            ["chroot", str(self.folder), "/bin/sh", "-ec", f"cd {where}; {command}"],
            env={**kept, "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        if done.returncode:
            sys.exit(f"{done.stdout[-3000:]}\nfailed with {done.returncode}: {command}")
        return done.stdout

    @contextmanager
    def switched_on(self) -> Iterator[None]:
        """Give it what a kernel shows of itself."""
        proc = self.folder / "proc"
        subprocess.run(["mount", "-t", "proc", "proc", str(proc)], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", str(proc)], check=True)

    def bring(self) -> None:
        """Copy the sources, and what this machine knows of authorities and packages, into it."""
        for name in NEEDED:
            source, target = ROOT / name, self.folder / "src" / name
            target.parent.mkdir(exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        shutil.copy(AUTHORITIES, self.folder / AUTHORITIES.relative_to("/"))
        for name in ("resolv.conf", "pip.conf"):
            if (Path("/etc") / name).exists():
                shutil.copy(Path("/etc") / name, self.folder / "etc" / name)


def make(folder: Path, mirror: str) -> None:
    """Make a Debian in a folder."""
    print(f"# debootstrap {folder}", flush=True)
    packages = "ca-certificates,python3-venv"
    command = ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(folder), mirror]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=900
    )
    if done.returncode:
        sys.exit(done.stdout[-3000:])


def page_commands() -> list[str]:
    """What the page says to type before the configuration is changed."""
    page = (ROOT / "docs/install.md").read_text("utf-8")
    section = page.partition("## On Debian")[2].partition("\n## ")[0]
    [first, *_] = re.findall(r"^```\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return [line for line in first.splitlines() if line]


def docker_steps() -> list[str]:
    """The RUN lines of the Dockerfile, in order."""
    text = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
    return re.findall(r"^RUN (.*)$", text, re.MULTILINE)


def install(machine: Machine) -> None:
    """Follow the page, and use what it made."""
    for command in page_commands():
        machine.type(command)
    print(machine.type("dicom-mail version").strip())
    # The page's own configuration is the smallest one; its folder is made by the unit's StateDirectory.
    machine.type("install -d -o dicom-mail -g dicom-mail -m 700 /var/lib/dicom-mail")
    said = machine.type("dicom-mail check --config /etc/dicom-mail/gateway.toml || true")
    print(said.strip())
    if "ok" not in said or "Traceback" in said:
        sys.exit("check did not say what is well")
    demonstration = machine.type("dicom-mail demo")
    print(demonstration.strip()[-1500:])


def build(machine: Machine) -> None:
    """Do what the Dockerfile does, in its order."""
    machine.type(
        "ln -s python3 /usr/bin/python; rm -rf /opt/dicom-mail; userdel dicom-mail; rm -rf /var/lib/dicom-mail"
    )
    for step in docker_steps():
        machine.type(step)
    owner = machine.type("stat -c %U:%a /var/lib/dicom-mail").strip()
    if owner != "dicom-mail:700":
        sys.exit(f"the data folder is {owner}")
    print(machine.type("/opt/dicom-mail/bin/dicom-mail version", where="/").strip())


def main() -> int:
    """Make, install, build, take away."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mirror", default="http://deb.debian.org/debian")
    given = parser.parse_args()
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        sys.exit("this needs root, and debootstrap: apt-get install debootstrap")
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="bare-"))
    try:
        make(folder, given.mirror)
        machine = Machine(folder)
        machine.bring()
        with machine.switched_on():
            install(machine)
            build(machine)
    finally:
        if not (folder / "proc").is_mount():
            shutil.rmtree(folder, ignore_errors=True)
    print(f"installed, checked, demonstrated and built in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
