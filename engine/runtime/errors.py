"""The exception for mistakes that the user can correct.

Entry points turn it into one line on stderr and exit status 2. Any other exception is a bug and keeps its traceback.
"""


class UserError(ValueError):
    """A mistake in a value, a file or a combination that the user gave; the message names it."""
