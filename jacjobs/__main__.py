"""`python -m jacjobs`: the command line."""

from jacjobs.cli.app import main

main()
