"""`python -m minillm`: the command line where no `minillm` script is installed.

Read next: `cli/__init__.py`.
"""

from minillm.cli import run

run()
