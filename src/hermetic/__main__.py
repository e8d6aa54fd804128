"""`python -m hermetic` is the command `hermetic`."""

from hermetic.cli import main

main()
