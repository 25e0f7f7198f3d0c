"""`visor`: images and their transfers. Commands and options are those of VISOR's own client, and more."""

from __future__ import annotations

from typing import Final

import click

from .. import __version__
from .command import CONTEXT, Commands, add_common_commands, gateway_options
from .copies import copies, copy
from .fetch import get
from .moves import top, transfers, watch
from .put import add, update
from .records import brief, delete, detail, head, link
from .steer import cancel, limit, pause, resume

PROGRAM: Final = "visor"


@click.group(cls=Commands, context_settings=CONTEXT)
@gateway_options
@click.version_option(__version__, prog_name=PROGRAM)
def cli() -> None:
    """Register, fetch and watch virtual machine images on a gateway."""


for _command in (
    *(brief, detail, head, add, update, delete, link, get),
    *(transfers, watch, top, cancel, pause, resume, limit),
    *(copy, copies),
):
    cli.add_command(_command)
add_common_commands(cli, PROGRAM)


def main() -> None:
    """The console script."""
    cli(prog_name=PROGRAM)


if __name__ == "__main__":
    main()
