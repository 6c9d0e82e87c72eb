"""The `pad` command, and `python -m pad`. It imports little, so that Ctrl-C ends the imports in a line too."""

import sys


def main() -> None:
    """Run the command and end the process."""
    try:
        from pad.cli import run

        run()
    except KeyboardInterrupt:
        print("pad: stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
