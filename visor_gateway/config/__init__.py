"""Frozen settings from a TOML file, the environment, systemd credentials and the command line.

`kinds` says what a value may be, `settings` which settings there are, `loading` where values come from, `sample`
renders the commented configuration from the same declarations, `handover` passes settings on to another process,
`changes` tells what a reload may change.
Nothing is opened but the configuration and the files that hold secrets.
"""

from .changes import NEXT_START, reconciled
from .handover import handed_over, taken_over
from .kinds import Network, Secret, split_address
from .loading import load
from .sample import sample
from .settings import (
    STORE_TYPES,
    Auth,
    AuthServer,
    Cache,
    CumulusStore,
    Digests,
    FileStore,
    HdfsStore,
    HttpStore,
    Limits,
    Locations,
    Log,
    LunacloudStore,
    Metadata,
    MetaServer,
    Metrics,
    Peers,
    PeerServer,
    S3Store,
    Server,
    Settings,
    Stores,
    StoreSettings,
    WalrusStore,
)

__all__ = [
    "NEXT_START",
    "STORE_TYPES",
    "Auth",
    "AuthServer",
    "Cache",
    "CumulusStore",
    "Digests",
    "FileStore",
    "HdfsStore",
    "HttpStore",
    "Limits",
    "Locations",
    "Log",
    "LunacloudStore",
    "MetaServer",
    "Metadata",
    "Metrics",
    "Network",
    "PeerServer",
    "Peers",
    "S3Store",
    "Secret",
    "Server",
    "Settings",
    "StoreSettings",
    "Stores",
    "WalrusStore",
    "handed_over",
    "load",
    "reconciled",
    "sample",
    "split_address",
    "taken_over",
]
