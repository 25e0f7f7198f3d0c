"""`python -m benchmarks.copying`: the gateway's own command, where no image is large enough for zero-copy."""

from __future__ import annotations

import sys
from typing import Final

# Loads every module of the server, one of which holds the threshold.
from visor_gateway import daemon
from visor_gateway.cli import gateway

_THRESHOLD: Final = "ZERO_COPY_MIN"


def main() -> None:
    """Run the command.

    Raises:
        AttributeError: No module has the threshold any more: zero-copy can't be switched off this way.
    """
    package = daemon.__name__.partition(".")[0]
    holders = [
        module for name, module in sys.modules.items() if name.startswith(package) and hasattr(module, _THRESHOLD)
    ]
    if not holders:
        raise AttributeError(f"no module of {package} has {_THRESHOLD}")
    for module in holders:
        setattr(module, _THRESHOLD, sys.maxsize)
    gateway.main()


if __name__ == "__main__":
    main()
