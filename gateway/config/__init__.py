"""The configuration: one TOML file as frozen values, read once and checked as a whole.

What is loaded is complete: paths are absolute, names in routes exist, files can be read. A section that is absent is
a door that is shut.
"""

from gateway.config.file import find, load
from gateway.config.review import Advice, advice, in_force, restart_needed, unbuilt
from gateway.config.sections import (
    DEFAULT_PATH,
    ApplicationEntity,
    ClientTls,
    Configuration,
    Console,
    Gateway,
    Identity,
    Limits,
    Log,
    Mailbox,
    Metrics,
    Notice,
    OAuth,
    Partner,
    PopMailbox,
    Relay,
    Route,
    ServerTls,
    SMime,
    Smtp,
    StorageSCP,
)
from gateway.config.values import Downtime, Listen, Network, is_loopback

__all__ = [
    "DEFAULT_PATH",
    "Advice",
    "ApplicationEntity",
    "ClientTls",
    "Configuration",
    "Console",
    "Downtime",
    "Gateway",
    "Identity",
    "Limits",
    "Listen",
    "Log",
    "Mailbox",
    "Metrics",
    "Network",
    "Notice",
    "OAuth",
    "Partner",
    "PopMailbox",
    "Relay",
    "Route",
    "SMime",
    "ServerTls",
    "Smtp",
    "StorageSCP",
    "advice",
    "find",
    "in_force",
    "is_loopback",
    "load",
    "restart_needed",
    "unbuilt",
]
