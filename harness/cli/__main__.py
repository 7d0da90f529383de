"""``python -m harness.cli`` is ``freezeframe``."""

from harness.cli.app import main

main()
