"""How long a training will take, told while there is still time to stop it."""

import time

STEPS = 10  # optimizer steps that are timed
SOON = 20  # seconds; where STEPS take longer, fewer of them are timed
WORTH_TELLING = 60  # seconds; a shorter training needs no estimate


class Estimate:
    """Times the first steps of a training that has `tokens` to read, and makes of them an estimate of the whole.

    `what` begins the line that tells it: 'teacher: 2 epochs'. Tokens are counted, not steps, because a batch holds
    texts of similar length, and batches differ.
    """

    def __init__(self, what: str, tokens: float):
        self.what, self.tokens, self.read, self.steps, self.made = what, tokens, 0, 0, False

    def after_step(self, tokens: int) -> str | None:
        """To be called after each step, with the tokens that it read. Returns the line, once; None otherwise. The first
        step is not timed: in it memory is allocated and kernels are chosen."""
        if self.made:
            return None
        self.steps += 1
        if self.steps == 1:
            self.began = time.perf_counter()
            return None
        self.read += tokens
        seconds = time.perf_counter() - self.began
        if self.steps <= STEPS and seconds < SOON:
            return None
        self.made, whole = True, seconds * self.tokens / self.read
        return f"{self.what}: about {duration(whole)}, by its first steps" if whole > WORTH_TELLING else None


def duration(seconds: float) -> str:
    """'1 minute', '12 minutes' or '3.4 hours'."""
    minutes = round(seconds / 60)
    if minutes >= 90:
        return f"{seconds / 3600:.1f} hours"
    return f"{minutes} minute{'s' * (minutes != 1)}"
