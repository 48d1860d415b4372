"""Every screen of the `act` command."""

from __future__ import annotations

import sys

from resources.errors import ActError


def main() -> None:
    """Entry point. A task or a method of another package that cannot be used is a message, too."""
    try:
        from act_assets.cli.app import main as run  # reads what is installed beside this package
    except ActError as error:
        sys.exit(f"error: {error}")
    run()
