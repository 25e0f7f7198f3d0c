"""What the operator decides about the socket edge. The daemon maps its configuration onto this."""

from __future__ import annotations

from pathlib import Path

import msgspec


class RoleSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Listeners of another application than that of images.

    Attributes:
        name: The role, and what its sockets are called where another process passes them.
        bind, tls_certificate, tls_key: As those of `ServerSettings`.
        client_ca: Authorities of client certificates in PEM: who shows one is known. None: nobody is asked for any.
    """

    name: str
    bind: tuple[str, ...]
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    client_ca: Path | None = None


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one `Server`. Times are seconds, sizes bytes.

    Attributes:
        bind: Where to listen: `host:port`, `[ipv6]:port` or `unix:/path`. Unused where sockets are inherited.
        serves_images: Whether images are served at all. Without, `bind` is empty.
        roles: What is served beside images, on listeners of its own.
        backlog: Connections that the kernel completes before they are accepted.
        notsent_lowat: What the kernel may hold for a client beyond what is under way to it (TCP_NOTSENT_LOWAT).
        tls_certificate: Chain in PEM; with it every TCP listener speaks TLS.
        tls_key: Its private key in PEM; None if the key is in the same file.
        max_connections: Connections served at a time; one more is answered 503.
        head_timeout: How long a request head may take, from the accept or from its first byte.
        keep_alive_timeout: How long a connection may wait for its next request.
        stall_timeout: How long a client may take nothing of what is sent to it, or send nothing of its body.
        min_body_rate: Bytes per second that a request body must reach on average once `stall_timeout` has been waited.
        websocket_max_message_size: Length of a WebSocket message that is accepted.
    """

    bind: tuple[str, ...] = ("127.0.0.1:4568",)
    serves_images: bool = True
    roles: tuple[RoleSettings, ...] = ()
    backlog: int = 4096
    notsent_lowat: int = 1 << 20
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    max_connections: int = 4096
    head_timeout: float = 30.0
    keep_alive_timeout: float = 75.0
    stall_timeout: float = 60.0
    min_body_rate: float = 256.0
    websocket_max_message_size: int = 64 * 1024
