"""How a command fails: a message for people and an exit code for scripts.

Owns: the errors of ``terrace plan`` and ``terrace explain``. Next: ``__main__.py`` prints them.
"""

from __future__ import annotations

EXIT_NO = 1
"""The answer is no: it does not fit, or it is not Ready."""
EXIT_BAD_INPUT = 2
EXIT_NO_ANSWER = 3


class CommandError(Exception):
    """The command ends here; the message names what is wrong and what to do."""

    code = EXIT_NO_ANSWER


class InputError(CommandError):
    """An option, a file or a name is not what it should be."""

    code = EXIT_BAD_INPUT


class NoAnswerError(CommandError):
    """What has to be asked did not answer: a cluster, a server, the reader of a model file."""
