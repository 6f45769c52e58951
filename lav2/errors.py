"""The one exception for mistakes a user can mend."""


class UserError(ValueError):
    """One line that says what is wrong, where, and the way out.

    The command line prints the message without a traceback and exits with code 2.
    """
