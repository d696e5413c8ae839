"""`python -m edgepacs` is the command line."""

from edgepacs.cli import main

main()
