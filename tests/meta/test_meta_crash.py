"""What a gateway that is killed leaves behind: everything that was acknowledged, and nothing half done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

LATER = datetime.now(UTC) + timedelta(days=1)
PRELUDE = """
import os, signal, sys, trio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from visor_gateway.image import Image
from visor_gateway.meta.contract import Attempt, Written
from visor_gateway.meta.sql import open_metadata

url, master_key, image_id = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
attempt = Attempt(image_id=image_id, attempt_id="a", instance_id="killed", store="file", location="file:///x")
written = Written(size=1, checksum="c", sha256="c", validator=None)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with open_metadata(url, master_key) as metadata:
        await act(metadata)

async def act(metadata):
"""


def program(body: str) -> str:
    return PRELUDE + "\n".join(f"    {line}" for line in body.strip().splitlines()) + "\ntrio.run(main)\n"


@pytest.fixture
def run(backend, killed) -> Callable[[str, str], Awaitable[bytes]]:
    async def run(image_id: str, body: str) -> bytes:
        return await killed(program(body), backend.url, str(backend.master_key), image_id)

    return run


@pytest.fixture
async def image(backend, make_image):
    image = make_image(id="image")
    async with backend.open() as metadata:
        await metadata.images.insert(image)
    return image


async def test_a_killed_writer_leaves_a_lease_that_its_successor_ends(backend, run, image, make_attempt, written):
    await run(image.id, "await metadata.images.begin(attempt)\ndie()")
    async with backend.open() as metadata:
        assert (await metadata.images.get(image.id)).status == "uploading"
        [attempt] = await metadata.images.expired(ended="killed")
        assert (attempt.key, attempt.instance_id) == ("image/a", "killed")
        await metadata.images.fail(attempt)
        assert (await metadata.images.get(image.id)).status == "error"
        again = make_attempt(image)
        await metadata.images.begin(again)
        assert (await metadata.images.commit(again, written)).status == "available"


async def test_a_lease_of_a_killed_writer_runs_out_for_other_gateways_too(backend, run, image, make_attempt):
    await run(image.id, "await metadata.images.begin(attempt)\ndie()")
    async with backend.open() as metadata:
        assert await metadata.images.expired() == []
        backend.leave_lease(make_attempt(image, "killed", attempt_id="a"), seconds=-1)
        assert [attempt.key for attempt in await metadata.images.expired()] == ["image/a"]


async def test_a_transaction_that_is_killed_half_way_never_was(backend, run, image):
    await run(
        image.id,
        """
from visor_gateway.meta import attempts
await metadata.images.begin(attempt)
attempts.end_lease = lambda *_: die()
await metadata.images.commit(attempt, written)
""",
    )
    async with backend.open() as metadata:
        assert (await metadata.images.get(image.id)).status == "uploading"
        assert len(await metadata.images.expired(ended="killed")) == 1


async def test_what_was_committed_before_the_kill_is_there(backend, run, image):
    await run(
        image.id,
        "await metadata.images.begin(attempt)\nawait metadata.images.commit(attempt, written)\ndie()",
    )
    async with backend.open() as metadata:
        assert (await metadata.images.get(image.id)).status == "available"
        assert await metadata.images.expired(ended="killed") == []


async def test_a_delete_that_was_killed_is_finished_later(backend, run, image):
    await run(image.id, "await metadata.images.entomb(image_id)\ndie()")
    async with backend.open() as metadata:
        assert await metadata.images.get(image.id) is None
        assert await metadata.images.entombed() == [image]


async def test_no_signature_that_was_accepted_before_a_kill_is_accepted_after_it(backend, run, image):
    accepted = await run(
        image.id,
        """
for number in range(30):
    assert await metadata.accounts.use_once("signature", str(number), datetime.now(UTC) + timedelta(days=1))
    print(number, flush=True)
die()
""",
    )
    assert len(accepted.split()) == 30
    async with backend.open() as metadata:
        repeated = [
            await metadata.accounts.use_once("signature", number, LATER) for number in accepted.decode().split()
        ]
        assert not any(repeated)


async def test_a_kill_while_the_schema_is_made_leaves_a_database_that_can_be_opened(backend, killed):
    program = """
import os, signal, sys, trio
from pathlib import Path
from visor_gateway.meta.migrations import history
from visor_gateway.meta.sql import open_metadata
upgrade = history.command.upgrade
def die(config, target):
    upgrade(config, target)
    os.kill(os.getpid(), signal.SIGKILL)
history.command.upgrade = die
async def main():
    async with open_metadata(sys.argv[1], Path(sys.argv[2])):
        pass
trio.run(main)
"""
    await killed(program, backend.url, str(backend.master_key))
    async with backend.open() as metadata:
        await metadata.check()
