"""``python -m freezeframe.harness.cli`` is ``freezeframe``."""

from freezeframe.harness.cli import main

main()
