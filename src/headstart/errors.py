"""The exception for whatever the user can mend."""


class UserError(Exception):
    """A mistake in what the user gave: one sentence that says what was got, what is accepted and what to do.

    The command line prints it and leaves with exit code 2; a library user catches it.
    """
