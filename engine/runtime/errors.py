"""The one exception that means: the user can mend this.

Command entry points turn it into one line on stderr and exit status 2; everything else is a bug and
keeps its traceback.
"""


class UserError(ValueError):
    """A mistake in what the user gave (a value, a file, a combination); the message names it."""
