"""Every setting there is: its section, its kind, its default and what it means.

The declaration is the only place: the loader checks by it, the sample configuration is rendered from it, and a test
holds `docs/configuration.md` to it. A field without a default must be given, or depends on the data directory
(`loading.located`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, get_type_hints

import msgspec

from . import kinds
from .kinds import Kind, Network, Secret

LOOPBACK: Final = tuple(kinds.NETWORKS.parse(["127.0.0.0/8", "::1"]))  # type: ignore[arg-type, var-annotated]


class Declared(msgspec.Struct, frozen=True):
    """One setting as it is declared. `default` is `msgspec.NODEFAULT` where it has none."""

    key: str
    kind: Kind
    meaning: str
    default: Any


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """A table of settings."""

    @classmethod
    def declared(cls) -> Iterator[Declared]:
        """Its settings, in the order of the declaration."""
        hints = get_type_hints(cls, include_extras=True)
        for field in msgspec.structs.fields(cls):
            # A field without a kind, such as `Stores.named`, is no key of the table.
            if metadata := getattr(hints[field.name], "__metadata__", None):
                kind, meaning = metadata
                yield Declared(field.name, kind, meaning, field.default)

    def shown(self) -> dict[str, Any]:
        """The values as JSON can hold them, secrets as `***`."""
        return {declared.key: shown(getattr(self, declared.key)) for declared in self.declared()}


def shown(value: object) -> Any:
    """A setting's value as JSON can hold it."""
    if isinstance(value, tuple):
        return [shown(item) for item in value]
    if isinstance(value, Network) and value.num_addresses == 1:
        return str(value.network_address)
    return value if isinstance(value, str | int | float | None) else str(value)


class Server(Section, frozen=True, kw_only=True):
    """Where the gateway listens, and what one client may take of it."""

    bind: Annotated[tuple[str, ...], kinds.ADDRESSES, "Addresses to listen on; port 0 takes a free one."] = (
        "127.0.0.1:4568",
    )
    roles: Annotated[
        tuple[str, ...],
        kinds.ROLES,
        "What it serves: images to clients, records (VISOR's Meta API) and users (Auth API) to other servers.",
    ] = ("image",)
    workers: Annotated[
        int, kinds.whole(1), "Processes that serve clients, for more than one core; 1 for this process alone."
    ] = 1
    public_url: Annotated[
        str | None, kinds.ORIGIN, "The URL that clients reach the gateway at; unset: what each request names."
    ] = None
    tls_certificate: Annotated[
        Path | None, kinds.PATH, "PEM file with the certificate chain; with it the gateway speaks TLS."
    ] = None
    tls_key: Annotated[
        Path | None, kinds.PATH, "PEM file with the private key; unset: it is in the file of the certificate."
    ] = None
    max_connections: Annotated[int, kinds.whole(1), "Client connections at a time; one more is answered 503."] = 4096
    backlog: Annotated[int, kinds.whole(1), "Connections that the kernel completes before they are accepted."] = 4096
    notsent_lowat: Annotated[
        int,
        kinds.size(zero=False),
        "Bytes that the kernel takes for a client beyond those under way: fewer cost CPU, more memory.",
    ] = 1 << 20
    notsent_lowat_fast: Annotated[
        int, kinds.size(zero=False), "The same for a client that takes 8 MiB of an image within a second."
    ] = 4 << 20
    pump_threads: Annotated[int, kinds.whole(1), "Threads that send files to clients."] = 1
    pump_nice: Annotated[
        int,
        kinds.whole(0),
        "How much these threads, and those of uploads and fills, stand back behind the event loop and other programs, "
        "up to 19.",
    ] = 10
    pump_quantum: Annotated[
        int,
        kinds.size(zero=False),
        "Bytes of one client's turn, while others wait for theirs. The first turn of each is 64 KiB.",
    ] = 4 << 20
    stall_timeout: Annotated[
        float, kinds.seconds(zero=False), "Seconds without progress after which a client, origin or store has stalled."
    ] = 60.0
    drain_timeout: Annotated[
        float, kinds.seconds(zero=True), "Seconds that transfers may go on after SIGTERM, then they are cut."
    ] = 3600.0
    max_image_size: Annotated[int, kinds.size(zero=False), "Bytes of the largest image that is taken."] = 1024**4
    trusted_proxies: Annotated[
        tuple[Network, ...], kinds.NETWORKS, "Addresses of proxies whose forwarding headers are believed."
    ] = ()
    origins: Annotated[
        tuple[str, ...], kinds.ORIGINS, "Origins, beside that of public_url, whose pages may open the WebSocket."
    ] = ()


class PeerServer(Section, frozen=True, kw_only=True):
    """Where a role for other servers listens, and whom it serves."""

    bind: Annotated[tuple[str, ...], kinds.ADDRESSES, "Addresses to listen on; port 0 takes a free one."]
    shared_key: Annotated[
        Secret | None, kinds.SHARED_KEY, "The key that peers show they have; unset: none is accepted."
    ] = None
    client_ca: Annotated[
        Path | None, kinds.PATH, "PEM file with the authorities whose client certificates let peers in, over TLS."
    ] = None
    allow: Annotated[
        tuple[Network, ...], kinds.NETWORKS, "Networks whose peers are let in without key or certificate."
    ] = ()
    tls_certificate: Annotated[
        Path | None, kinds.PATH, "PEM file with the certificate chain; with it the role speaks TLS."
    ] = None
    tls_key: Annotated[
        Path | None, kinds.PATH, "PEM file with the private key; unset: it is in the file of the certificate."
    ] = None


class MetaServer(PeerServer, frozen=True, kw_only=True):
    """The role `meta`: records of images for other gateways and for VISOR's image servers."""

    bind: Annotated[tuple[str, ...], kinds.ADDRESSES, "Addresses to listen on; port 0 takes a free one."] = (
        "127.0.0.1:4567",
    )


class AuthServer(PeerServer, frozen=True, kw_only=True):
    """The role `auth`: users and their secrets for other gateways and for VISOR's image servers."""

    bind: Annotated[tuple[str, ...], kinds.ADDRESSES, "Addresses to listen on; port 0 takes a free one."] = (
        "127.0.0.1:4566",
    )


class Auth(Section, frozen=True, kw_only=True):
    """Who may do what."""

    anonymous_pull: Annotated[bool, kinds.FLAG, "Whether public images can be read without credentials."] = False
    visor_sha1: Annotated[bool, kinds.FLAG, "Whether the HMAC-SHA1 signatures of VISOR clients are accepted."] = True
    clock_skew: Annotated[int, kinds.whole(1), "Seconds that the date of a signed request may be off."] = 300
    master_key_file: Annotated[
        Path | None,
        kinds.PATH,
        "File with the key that encrypts users' secrets; unset: the credential master.key, else master.key in the"
        " data directory.",
    ] = None


class Metadata(Section, frozen=True, kw_only=True):
    """Where records and users are kept."""

    url: Annotated[Secret, kinds.DATABASE, "Database of records, users and tokens, or a VISOR Meta server for records."]
    history: Annotated[int, kinds.whole(0), "Transfers that ended and are remembered; 0 for none."] = 10_000
    stale_if_error: Annotated[
        float,
        kinds.seconds(zero=True),
        "How long after they were last read public images, accounts and tokens may be used while PostgreSQL, the Meta"
        " or the Auth server is away; 0 for not at all.",
    ] = 300.0


class Accounts(Section, frozen=True, kw_only=True):
    """Users of an Auth server."""

    url: Annotated[
        Secret | None, kinds.AUTH_SERVER, "A VISOR Auth server that has the users; unset: they are in the database."
    ] = None


class Peers(Section, frozen=True, kw_only=True):
    """Gateways on one PostgreSQL that show and steer each other's transfers."""

    url: Annotated[
        str | None, kinds.ORIGIN, "The URL that other gateways reach this one at; unset: it shows its own transfers."
    ] = None
    name: Annotated[
        str | None, kinds.NAME, "This gateway's name, another one for each gateway; unset: the host's name."
    ] = None


class Digests(Section, frozen=True, kw_only=True):
    """Digests beside SHA-256."""

    visor_md5: Annotated[bool, kinds.FLAG, "Whether `checksum` is the MD5 that VISOR clients expect."] = False


class Cache(Section, frozen=True, kw_only=True):
    """Local copies of images that live in remote stores."""

    directory: Annotated[Path, kinds.PATH, "Where copies are kept."]
    max_bytes: Annotated[int, kinds.size(zero=True), "Bytes that copies may take; 0 turns the cache off."] = 0
    spool_max_bytes: Annotated[
        int, kinds.size(zero=True), "Bytes that parts of uploads may take in `spool` below the directory."
    ] = 32 << 30
    min_free: Annotated[int, kinds.size(zero=True), "Bytes that stay free on their file system."] = 256 << 20
    finish_percent: Annotated[
        int, kinds.percent(), "A copy that nobody waits for any more is finished if so much of it is there."
    ] = 50
    strict_ranges: Annotated[bool, kinds.FLAG, "Whether a 206 waits until the whole image is verified."] = False


class Locations(Section, frozen=True, kw_only=True):
    """Which locations clients may refer to."""

    allow: Annotated[tuple[str, ...], kinds.SCHEMES, "Schemes that a location may have."] = ("http", "https")
    deny_private: Annotated[
        bool, kinds.FLAG, "Whether locations are refused that resolve to addresses not globally reachable."
    ] = True
    allow_hosts: Annotated[tuple[str, ...], kinds.HOSTS, "Hosts, or host:port, exempt from deny_private."] = ()


class Limits(Section, frozen=True, kw_only=True):
    """How many transfers run at a time, and how fast."""

    transfers: Annotated[
        int, kinds.whole(0), "Transfers that run at a time, 0 for any number; one more waits in a queue."
    ] = 0
    transfers_per_store: Annotated[int, kinds.whole(0), "The same for each store."] = 0
    transfers_per_user: Annotated[int, kinds.whole(0), "The same for each user, and for each anonymous address."] = 0
    queue_limit: Annotated[int, kinds.whole(0), "Transfers that may wait; one more is answered 503."] = 1000
    bytes_per_s: Annotated[
        int, kinds.size(zero=True), "Bytes per second of all transfers together, 0 for no limit."
    ] = 0
    bytes_per_s_per_transfer: Annotated[
        int, kinds.size(zero=True), "Bytes per second of each transfer, 0 for no limit."
    ] = 0
    min_bytes_per_s: Annotated[
        int,
        kinds.size(zero=True),
        "Bytes per second below which a client, waited for through stall_timeout, is cut; 0 for none.",
    ] = 0


class Metrics(Section, frozen=True, kw_only=True):
    """Who reads metrics."""

    allow: Annotated[
        tuple[Network, ...], kinds.NETWORKS, "Networks that read /metrics without credentials."
    ] = LOOPBACK  # fmt: skip


class Log(Section, frozen=True, kw_only=True):
    """What is logged, to standard error."""

    level: Annotated[
        str, kinds.choice("debug", "info", "warning", "error"), "The least severe level that is logged."
    ] = "info"
    format: Annotated[str, kinds.choice("text", "json"), "Text, or one JSON object a line."] = "text"


# --- stores --------------------------------------------------------------------------------------


class StoreSettings(Section, frozen=True, kw_only=True):
    """One store. `type` says which kind of store it is."""

    type: ClassVar[str]
    transfers: Annotated[
        int, kinds.whole(0), "Transfers that run at a time with this store; 0: limits.transfers_per_store."
    ] = 0


class FileStore(StoreSettings, frozen=True, kw_only=True):
    """Files under a directory of this host."""

    type = "file"
    directory: Annotated[Path, kinds.PATH, "Where the images' bytes are kept."]
    verify: Annotated[
        str, kinds.choice("stat", "always"), "What a pull relies on: an untouched file, or its digest each time."
    ] = "stat"
    scrub_interval: Annotated[
        float, kinds.seconds(zero=True), "Seconds after which an image is read and hashed again; 0 for never."
    ] = 30 * 24 * 3600.0
    scrub_rate: Annotated[int, kinds.size(zero=False), "Bytes per second at which that reads."] = 64 << 20


class S3Store(StoreSettings, frozen=True, kw_only=True):
    """A bucket of an S3 service."""

    type = "s3"
    endpoint: Annotated[str, kinds.ENDPOINT, "URL of the service."]
    region: Annotated[str, kinds.TEXT, "Region that signatures name."] = "us-east-1"
    max_parts: Annotated[
        int,
        kinds.whole(1, 10_000),
        "Parts of one object that the service takes.",
    ] = 10_000
    bucket: Annotated[str, kinds.TEXT, "Bucket that holds the images; it must exist."]
    access_key: Annotated[Secret, kinds.SECRET, "Access key of the service."]
    secret_key: Annotated[Secret, kinds.SECRET, "Secret key of the service."]


class LunacloudStore(S3Store, frozen=True, kw_only=True):
    """A bucket of the Lunacloud storage service, which speaks S3."""

    type = "lunacloud"


class CumulusStore(StoreSettings, frozen=True, kw_only=True):
    """A bucket of a Nimbus Cumulus service."""

    type = "cumulus"
    endpoint: Annotated[str, kinds.ENDPOINT, "URL of the service."]
    bucket: Annotated[str, kinds.TEXT, "Bucket that holds the images; it must exist."]
    access_key: Annotated[Secret, kinds.SECRET, "Access key of the service."]
    secret_key: Annotated[Secret, kinds.SECRET, "Secret key of the service."]


class WalrusStore(CumulusStore, frozen=True, kw_only=True):
    """A bucket of a Eucalyptus Walrus service."""

    type = "walrus"


class HdfsStore(StoreSettings, frozen=True, kw_only=True):
    """A directory of a Hadoop file system, by WebHDFS."""

    type = "hdfs"
    endpoint: Annotated[
        tuple[str, ...], kinds.ENDPOINTS, "The NameNode's http address; of several, the one that is active is asked."
    ]
    directory: Annotated[str, kinds.HDFS_DIRECTORY, "Directory that holds the images; made if it is missing."]
    username: Annotated[str, kinds.HDFS_USER, "User on whose behalf files are kept."]


class HttpStore(StoreSettings, frozen=True, kw_only=True):
    """References to images elsewhere; it keeps no bytes."""

    type = "http"


STORE_TYPES: Final[Mapping[str, type[StoreSettings]]] = {
    cls.type: cls for cls in (FileStore, S3Store, LunacloudStore, CumulusStore, WalrusStore, HdfsStore, HttpStore)
}


class Stores(Section, frozen=True, kw_only=True):
    """Where images' bytes live. `file` and `http` are there without being configured.

    Attributes:
        named: The stores by name.
    """

    default: Annotated[str, kinds.TEXT, "The store of images that name none."] = "file"
    retry_timeout: Annotated[
        float,
        kinds.seconds(zero=True),
        "Seconds without a byte after which a broken read is given up; 0: each location is tried once.",
    ] = 60.0
    verify_direct_pulls: Annotated[
        bool, kinds.FLAG, "Whether images that come straight from another server are hashed on their way to the client."
    ] = True
    unsafe_images: Annotated[
        str,
        kinds.choice("refuse", "warn"),
        "What becomes of bytes that contradict their format or refer outside themselves: refused, or kept and logged.",
    ] = "refuse"
    named: Mapping[str, StoreSettings]

    def shown(self) -> dict[str, Any]:
        """What holds for all of them and a table for each store, as in the configuration file."""
        return super().shown() | {name: {"type": store.type, **store.shown()} for name, store in self.named.items()}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of one daemon."""

    server: Server
    meta_server: MetaServer
    auth_server: AuthServer
    auth: Auth
    metadata: Metadata
    accounts: Accounts
    peers: Peers
    digests: Digests
    cache: Cache
    locations: Locations
    limits: Limits
    metrics: Metrics
    log: Log
    stores: Stores

    def shown(self) -> dict[str, Any]:
        """The settings as JSON can hold them, in the shape of the configuration file, secrets as `***`."""
        return {name: getattr(self, name).shown() for name in SECTIONS}

    def peer_servers(self) -> dict[str, PeerServer]:
        """The roles for other servers that are served, by name."""
        known: dict[str, PeerServer] = {"meta": self.meta_server, "auth": self.auth_server}
        return {name: known[name] for name in self.server.roles if name in known}


SECTIONS: Final[Mapping[str, type[Section]]] = get_type_hints(Settings)
_WITH_SECRETS: Final[tuple[type[Section], ...]] = (Metadata, Accounts, PeerServer, *STORE_TYPES.values())
SECRET_KEYS: Final = frozenset(
    declared.key for cls in _WITH_SECRETS for declared in cls.declared() if declared.kind.secret
)
