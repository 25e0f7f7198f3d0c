import pytest
from recorded_disk import RecordedDisk

pytest.register_assert_rewrite("store_suite")


@pytest.fixture
def disk() -> RecordedDisk:
    """The writeback that a store asks for, recorded and not done."""
    return RecordedDisk()
