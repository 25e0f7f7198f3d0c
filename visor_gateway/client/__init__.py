"""Client library of the gateway. It runs under Trio and asyncio.

async with Client("http://127.0.0.1:4568", KeyPair(access_key, secret_key)) as client:
    image = await client.create({"name": "Debian 12", "architecture": "x86_64"}, Path("debian.qcow2"))
    await client.download(image["_id"], "copy.qcow2")
"""

from .api import Client
from .body import FileBody, Source, StreamBody
from .credentials import Credentials, KeyPair, Token
from .download import Downloaded, Progress
from .entity import Record
from .errors import (
    BadRequest,
    Conflict,
    ConnectionBroken,
    CredentialsInvalid,
    DigestMismatch,
    Forbidden,
    ImageChanged,
    NoBytes,
    NotFound,
    PreconditionFailed,
    ProtocolViolation,
    RangeNotSatisfiable,
    RedirectRefused,
    Refused,
    ServerFailed,
    SourceChanged,
    TargetBusy,
    TooLarge,
    Unavailable,
    Unreachable,
    VisorError,
)
from .images import ImagePages
from .live import LiveChannel, Message
from .session import Timing

__all__ = [
    "BadRequest",
    "Client",
    "Conflict",
    "ConnectionBroken",
    "Credentials",
    "CredentialsInvalid",
    "DigestMismatch",
    "Downloaded",
    "FileBody",
    "Forbidden",
    "ImageChanged",
    "ImagePages",
    "KeyPair",
    "LiveChannel",
    "Message",
    "NoBytes",
    "NotFound",
    "PreconditionFailed",
    "Progress",
    "ProtocolViolation",
    "RangeNotSatisfiable",
    "Record",
    "RedirectRefused",
    "Refused",
    "ServerFailed",
    "Source",
    "SourceChanged",
    "StreamBody",
    "TargetBusy",
    "Timing",
    "Token",
    "TooLarge",
    "Unavailable",
    "Unreachable",
    "VisorError",
]
