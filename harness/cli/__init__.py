"""The command line. ``main`` is small: hardly any time passes before Ctrl-C is understood."""

from freezeframe.harness.cli import interrupt


def main() -> None:
    interrupt.leave_at_once()
    from freezeframe.harness.cli import app

    app.main()
