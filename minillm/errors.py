"""The one error that is the user's to mend. The command line prints its single line and exits with status 2.

Read next: `config.py`, which raises it for unknown keys.
"""


class InputError(ValueError):
    """What the user gave is wrong: the text says what was asked, what came and what to do, in one line."""
