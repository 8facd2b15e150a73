"""``python -m nmsat``: the command line without its script."""

from nmsat.cli import main

main()
