"""Stores of every type on real servers, for one real daemon: its configuration, and what is left on each server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from servers import seaweedfs
from servers.hdfs import Hdfs
from servers.s3_service import S3Service

FAMILY = ("s3", "lunacloud", "cumulus", "walrus")
DIRECTORY = "/visor/images"


@dataclass(frozen=True)
class Place:
    """One store.

    Attributes:
        name: Its name in requests.
        configuration: Its table.
        left: All objects, uploads under way and temporary files on its server, of this and other stores there.
        prefix: What the locations of its objects begin with.
    """

    name: str
    configuration: str
    left: Callable[[], list[str]]
    prefix: str


def s3_table(name: str, kind: str, service: S3Service, endpoint: str | None = None) -> str:
    """The table of a store of the S3 family in the bucket `visor`."""
    return (
        f'[stores.{name}]\ntype = "{kind}"\nendpoint = "{endpoint or service.endpoint}"\nbucket = "visor"\n'
        f'access_key = "{service.access_key}"\nsecret_key = "{service.secret_key}"\n'
    )


def s3_left(service: S3Service) -> list[str]:
    """Objects and uploads under way in all buckets of a SeaweedFS."""
    return [key for bucket in seaweedfs.BUCKETS for key in service.objects(bucket)]


def s3(name: str, service: S3Service) -> Place:
    """A store whose name is its type, of `FAMILY`."""
    return Place(name, s3_table(name, name, service), lambda: s3_left(service), f"{name}://visor/")


def rclone(service: S3Service) -> Place:
    """An S3 store on rclone, which has no list of uploads: it keeps them in memory."""
    return Place(
        "rclone",
        s3_table("rclone", "s3", service),
        lambda: _files(service.directory / "served"),
        "s3://visor/",
    )


def hdfs(server: Hdfs) -> Place:
    """A store in HDFS, whose first NameNode is dead."""
    configuration = f"""[stores.hdfs]
type = "hdfs"
endpoint = ["http://127.0.0.1:1", "{server.url}"]
directory = "{DIRECTORY}"
username = "{server.user}"
"""
    return Place("hdfs", configuration, lambda: [path for path, _, _ in server.walk(DIRECTORY)], "hdfs://127.0.0.1")


def file(directory: Path) -> Place:
    """A file store."""
    configuration = f'[stores.shelf]\ntype = "file"\ndirectory = "{directory}"\n'
    return Place("shelf", configuration, lambda: _files(directory), "file://")


def _files(directory: Path) -> list[str]:
    return [str(path) for path in directory.rglob("*") if path.is_file()]
