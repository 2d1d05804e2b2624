"""`python -m jacjobs`."""

from jacjobs.cli.app import main

main()
