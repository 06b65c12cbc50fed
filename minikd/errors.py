"""The one exception that means: this can be fixed by whoever called."""


class MinikdError(ValueError):
    """An error in what the caller gave: a setting, a file, a text. The message is one line that says what to change.

    Settings stand in backticks, by the name that they have in Python: `max_length`. The scripts print the flag instead.
    """
