"""Orthanc: a real PACS, looked into through its REST interface."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import httpx
from peer import Peer, free_port, program
from samples import data_set


class Orthanc(Peer):
    """An empty Orthanc. It binds all addresses whatever it is told; only this machine may use its REST interface."""

    title = "ORTHANC"

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings
        self.rest = httpx.Client(base_url=f"http://127.0.0.1:{free_port()}", trust_env=False, timeout=30)

    def command(self) -> Sequence[str]:
        store = str(self.folder / "store")
        configuration = {
            "Name": "PACS under test",
            "StorageDirectory": store,
            "IndexDirectory": store,
            "Plugins": [],
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "HttpPort": self.rest.base_url.port,
            "DicomAet": self.title,
            "DicomPort": self.port,
            "DicomCheckCalledAet": True,
            "DicomAlwaysAllowEcho": True,
            "DicomAlwaysAllowStore": True,
            "UnknownSopClassAccepted": True,
            "OverwriteInstances": False,
            "StableAge": 1,
            **self.settings,
        }
        path = self.folder / "orthanc.json"
        path.write_text(json.dumps(configuration), encoding="utf-8")
        return [program("Orthanc"), str(path)]

    def ready(self) -> bool:
        try:
            return super().ready() and self.rest.get("/system").is_success
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        super().stop()
        self.rest.close()
        self.rest = httpx.Client(base_url=self.rest.base_url, trust_env=False, timeout=30)

    def get(self, path: str) -> Any:
        """One JSON document of the REST interface."""
        return self.rest.get(path).raise_for_status().json()

    def instances(self) -> dict[str, str]:
        """SOP Instance UIDs of everything it has, each with Orthanc's own identifier."""
        found = self.get("/instances?expand&requestedTags=SOPInstanceUID")
        return {one["MainDicomTags"]["SOPInstanceUID"]: one["ID"] for one in found}

    def file(self, sop_instance: str) -> bytes:
        """A stored instance as a file, its header Orthanc's own."""
        found = self.rest.post("/tools/lookup", content=sop_instance).raise_for_status().json()
        [identifier] = [one["ID"] for one in found if one["Type"] == "Instance"]
        return self.rest.get(f"/instances/{identifier}/file").raise_for_status().content

    def data_set(self, sop_instance: str) -> bytes:
        """The bytes of a stored instance behind group 0002."""
        return data_set(self.file(sop_instance))
