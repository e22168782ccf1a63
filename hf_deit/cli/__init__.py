"""The command line, `hf-deit`: each module holds the parsers of some commands, and their handlers."""

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; see `commands.main`."""
    from .commands import main as run

    return run(arguments)
