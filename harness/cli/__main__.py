"""``python -m harness.cli`` is ``freezeframe``."""

from harness.cli import main

main()
