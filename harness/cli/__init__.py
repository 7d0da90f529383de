"""The command line. ``main`` is small: hardly any time passes before Ctrl-C is understood."""

from harness.cli import interrupt


def main() -> None:
    interrupt.leave_at_once()
    from harness.cli import app

    app.main()
