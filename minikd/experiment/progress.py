"""The estimate of a training's time, printed while there is still time to stop it."""

import time

STEPS = 10  # optimizer steps that are timed
SOON = 20  # seconds; where STEPS take longer, fewer of them are timed
WORTH_TELLING = 60  # seconds; a shorter training needs no estimate


class Estimate:
    """Times the first steps of a training that has `tokens` to read, and estimates the time of all of them.

    `what` begins the line: 'teacher: 2 epochs'. Tokens are counted, not steps, because a batch holds texts of similar
    length, and batches differ.
    """

    def __init__(self, what: str, tokens: float):
        self.what, self.tokens, self.read, self.steps, self.made = what, tokens, 0, 0, False

    def after_step(self, tokens: int) -> str | None:
        """The line, once, as soon as the time is known; None otherwise. To be called after each step, with the tokens
        that it read. The first step is not timed: in it memory is allocated and kernels are chosen."""
        self.steps += 1
        if self.steps == 1:
            self.began = time.perf_counter()
        if self.made or self.steps == 1:
            return None
        self.read += tokens
        seconds = time.perf_counter() - self.began
        if self.steps <= STEPS and seconds < SOON:
            return None
        self.made, total = True, seconds * self.tokens / self.read
        return f"{self.what}: about {duration(total)}, by its first steps" if total > WORTH_TELLING else None


def duration(seconds: float) -> str:
    """'1 minute', '12 minutes' or '3.4 hours'."""
    minutes = round(seconds / 60)
    return f"{seconds / 3600:.1f} hours" if minutes >= 90 else f"{minutes} minute{'s' * (minutes != 1)}"
