"""The one exception that a user may cause."""


class UserError(Exception):
    """Bad input: one line saying what is wrong, where, and what would be right.

    The command line prints the message and ends with status 2.
    """
