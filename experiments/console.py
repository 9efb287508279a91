"""The console command `lumos`: what `experiments.cli` does, quiet at Ctrl-C from the first import on."""

from __future__ import annotations


def main() -> int:
    """Run one command of sys.argv; returns the exit status."""
    try:
        from experiments.cli import main  # which takes seconds on a busy machine or a slow file system

        return main()
    except KeyboardInterrupt:
        return 130
