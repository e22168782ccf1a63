"""The base of every error a user can mend: the command line prints its message without a traceback and exits with 2."""


class UserError(ValueError):
    """Something given to the package is not allowed; the message says what was given, what is allowed, how to mend it."""
