"""What ends a run early. The command line prints the message, one line, and exits with `status`."""


class UserError(Exception):
    """Bad input: says what is wrong, where, and what would be right."""

    status = 2


class NotJoined(UserError):
    """The processes of a run did not find each other in time."""


class TrainingFailed(Exception):
    """The run cannot go on: says why, where to look, and what is kept."""

    status = 1


class Interrupted(Exception):
    """Stopped by a signal after saving: says how to resume. 130 for Ctrl-C; 75 for SIGTERM."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def one_line(error: Exception) -> str:
    """What an error of somebody else's code says, for a message of ours."""
    return ' '.join(str(error).split())[:200]


def shown(text: str, at_most: int = 80) -> str:
    """What a file says, for a message of ours: on one line, and not a long one."""
    return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text[:at_most])
