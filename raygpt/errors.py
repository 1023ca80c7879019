"""The one exception a user's mistake ends in."""


class UserError(Exception):
    """A mistake the user can mend.

    The message is one sentence that names the setting or file and the way out. The command line
    prints it without a traceback and exits with status 2.
    """


def one_line(error: BaseException, length: int = 200) -> str:
    """What an error says, in one line of at most `length` characters without a full stop; else its type's name."""
    return (" ".join(str(error).split()) or type(error).__name__)[:length].rstrip(".")
