"""The command line. ``main`` imports little, so that Ctrl-C works almost from the start."""

from freezeframe.harness.cli import interrupt


def main() -> None:
    interrupt.leave_at_once()
    from freezeframe.harness.cli import app

    app.main()
