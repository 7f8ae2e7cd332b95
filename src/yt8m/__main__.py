"""`python -m yt8m`: the command line."""

from yt8m.cli.main import main

main()
