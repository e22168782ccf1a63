"""The command line, `hf-deit`: each file holds parsers and the handlers that belong to them."""

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command, see `commands.main`."""
    from .commands import main as run

    return run(arguments)
