"""`python -m minillm`: the command line where no `minillm` script is installed."""

from minillm.cli import run

run()
