"""Errors a user can mend: the command line prints their message without a traceback and exits with 2."""


class UserError(ValueError):
    """Something given to the package is not allowed; the message says what was given, what is allowed, how to mend it."""


class DataError(UserError):
    """Data that cannot be trained on; the message names the file, class or column and the remedy."""
