"""The entry point of the console command `lumos`: `experiments.cli`, quiet at Ctrl-C even during imports."""

from __future__ import annotations


def main() -> int:
    """Run one command of sys.argv; returns the exit status."""
    try:
        from experiments.cli import main  # takes seconds on a busy machine or a slow file system

        return main()
    except KeyboardInterrupt:
        return 130
