"""Gateways that share records in PostgreSQL and an S3 store, behind the load balancer of the documents."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from canary import canary
from gateway_process import Gateway, launch
from servers import haproxy, postgresql, seaweedfs
from store_places import s3_table

#: Proxy and gateways are on one host.
TRUSTING = {"VISOR_GATEWAY__SERVER__TRUSTED_PROXIES": "127.0.0.1"}


def address(gateway: Gateway) -> str:
    """Its HOST:PORT."""
    return urlsplit(gateway.url).netloc


@contextmanager
def members(directory: Path, count: int) -> Generator[list[Gateway]]:
    """So many gateways on a PostgreSQL and a SeaweedFS of their own. All must then end by SIGTERM with exit code 0."""
    with contextlib.ExitStack() as stack:
        database = postgresql.start()
        stack.callback(database.stop)
        store = seaweedfs.start()
        stack.callback(store.stop)
        config = f'[auth]\nmaster_key_file = "{directory / "master.key"}"\n' + s3_table("shared", "s3", store)
        environment = {
            **TRUSTING,
            "VISOR_GATEWAY__METADATA__URL": database.url_for(directory),
            "VISOR_GATEWAY__STORES__DEFAULT": "shared",
        }
        gateways: list[Gateway] = []
        try:
            for number in range(count):
                beside = gateways[0] if gateways else None
                home = directory / str(number)
                gateways.append(launch(home, config=config, environment=environment, beside=beside))
            yield gateways
        except BaseException:
            for gateway in gateways:
                gateway.kill()
            raise
        for gateway in gateways:
            code = gateway.stop() if gateway.is_running() else 0
            assert code == 0, f"exit code {code}:\n{gateway.logged()[-4000:]}"
            assert "Traceback" not in gateway.logged(), gateway.logged()[-6000:]
        canary.check()


@contextmanager
def behind_haproxy(directory: Path, count: int) -> Generator[Gateway]:
    """So many gateways as one, at the address of HAProxy."""
    with (
        members(directory, count) as gateways,
        haproxy.start(directory / "haproxy", [address(gateway) for gateway in gateways]) as url,
    ):
        yield Gateway(url, gateways[0].access_key, gateways[0].secret_key)
