"""The one exception that means: this can be fixed by whoever called; and which errors mean that memory is full."""

import errno


class MinikdError(ValueError):
    """An error in what the caller gave: a setting, a file, a text. The message is one line that says what to change.

    Settings stand in backticks, by the name that they have in Python: `max_length`. The scripts print the flag instead.
    """


# How torch says in a RuntimeError that memory is full: its allocators, and oneDNN. (CUDA's OutOfMemoryError is one.)
FULL_MEMORY = ("can't allocate memory", "out of memory", "could not create a primitive")


def is_full_memory(error: BaseException) -> bool:
    """Whether the error means that there was no memory left, on the CPU or on a GPU."""
    if isinstance(error, RuntimeError):
        return any(words in str(error) for words in FULL_MEMORY)
    return isinstance(error, MemoryError) or isinstance(error, OSError) and error.errno == errno.ENOMEM
