"""When a store would have the disk take bytes."""

from visor_gateway.store.filecalls import FileCalls


class RecordedDisk:
    """A disk that is given nothing before the sync.

    Attributes:
        calls: What a store or a cache is made with.
        steps: `start` or `wait`, offset and length of each call for writeback, in order.
    """

    def __init__(self) -> None:
        self.steps: list[tuple[str, int, int]] = []
        self.calls = FileCalls(
            start_writeback=lambda fd, offset, length: self.steps.append(("start", offset, length)),
            wait_writeback=lambda fd, offset, length: self.steps.append(("wait", offset, length)),
        )
