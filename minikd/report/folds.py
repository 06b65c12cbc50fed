"""What folds found, in words."""

from collections import Counter

from minikd.report.drawing import points


def fold_sentence(
    comparison: dict, name_a: str = "distilled", name_b: str = "baseline", gives: str = "", too_few: bool = False
) -> str:
    """What `compare_folds` found: the difference, the interval, the verdict, and how small a difference such an
    experiment finds. `gives`: what this difference is the gain of. `too_few`: the examples allow no verdict."""
    difference, low, high = (points(comparison[key]) for key in ("difference", "low", "high"))
    over = f"{comparison['method']} over {comparison['examples']:,} examples in {comparison['folds']} folds"
    better = name_a if comparison["low"] > 0 else name_b
    verdict = f"The interval excludes 0: in training runs like these, {better} is better on average."
    if comparison["low"] <= 0 <= comparison["high"]:
        verdict = "The interval includes 0: these folds do not show that training runs like these make either better."
    power = (
        f" A true difference of {100 * comparison['detectable']:.2f} points would be found in 4 of 5 such experiments."
    )
    title = f"{name_a} − {name_b}" + f" (what {gives} gives)" * bool(gives)
    return (
        f"{title}: {difference} points of accuracy ({comparison['confidence']:.0%} interval {low} to "
        f"{high}, {over}). " + ("So few examples allow no verdict." if too_few else verdict + power)
    )


def choices(chosen: list[dict]) -> str:
    """Which alpha and T the folds chose, each in its own sweep, the most frequent first."""
    pairs = Counter("alpha {alpha:g} and T {T:g}".format(**pair) for pair in chosen)
    counted = ", ".join(f"{pair} in {count} fold{'s' * (count > 1)}" for pair, count in pairs.most_common())
    return f"chosen in each fold on its own validation split: {counted}"
