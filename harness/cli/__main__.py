"""Run ``freezeframe`` as ``python -m freezeframe.harness.cli``."""

from freezeframe.harness.cli import main

main()
