"""The one exception a user's mistake ends in."""


class UserError(Exception):
    """A mistake the user can mend.

    The message is one sentence that names the setting or file and the way out. The command line
    prints it without a traceback and exits with status 2.
    """
