"""Entry point of `effvl` and `python -m effvl_cli`."""

import sys

from effvl_cli import __version__
from effvl_cli.core import signals, waiting


def main() -> None:
    """Run the command line and leave with its exit code."""
    signals.install()  # first: a signal may come while torch is being imported
    waiting.wait_passively()
    if sys.argv[1:] == ["--version"]:
        print(f"effvl {__version__}")
        raise SystemExit(0)
    from effvl_cli.cli.app import main as run

    raise SystemExit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
