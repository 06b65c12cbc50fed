"""Sentences of the notes under a table: what a comparison of two models found, and what quantisation changes."""

import statistics

from minikd.report.drawing import points
from minikd.report.figures import values_of

# What a quantised copy changes: words, key, format, unit.
QUANTIZED = (
    ("latency one at a time", "latency_1_change", "+z.0%", ""),
    ("in batches of 100", "latency_change", "+z.0%", ""),
    ("peak memory", "memory_change", "+z.0%", ""),
    ("size", "size_change", "+z.0%", ""),
    ("accuracy", "accuracy_change", "+z.2f", " points"),
)


def start_of_students(results: dict) -> str:
    """What the students start from, and which of them learn from the labels alone. results["first_weights"] says it of
    all students in words, or is a dictionary of such words for each by its name."""
    students = [row["name"] for row in results["models"] if row["name"] in ("distilled", "control", "baseline")]
    weights = results["first_weights"]
    weights = weights if isinstance(weights, dict) else dict.fromkeys(students, weights)
    parts = []
    for words in dict.fromkeys(weights[name] for name in students):
        names = [name for name in students if weights[name] == words]
        parts.append(f"{_listed(names)} start{'s' * (len(names) == 1)} from {words}")
    alone = [name for name in students if name != "distilled"]
    if alone:
        is_or_are = "control and baseline are" if len(alone) == 2 else f"the {alone[0]} is"
        parts.append(f"{is_or_are} trained on the labels alone")
    return "; ".join(parts)


def nothing_to_distil(models: list[dict]) -> str:
    """A warning where the teacher is no better on validation than the baseline, over seeds on average; "" where it is,
    or where one of the two is unknown or was validated on another split."""
    rows = {row["name"]: row for row in models if row.get("validated_on")}
    if (
        not {"teacher", "baseline"} <= rows.keys()
        or rows["teacher"]["validated_on"] != rows["baseline"]["validated_on"]
    ):
        return ""
    known = {name: values_of(row, "validation_accuracy") for name, row in rows.items()}
    teacher, alone = statistics.fmean(known["teacher"]), statistics.fmean(known["baseline"])
    if teacher > alone:
        return ""
    return (
        f"the teacher is no better on validation ({teacher:.4f}) than the student trained alone ({alone:.4f}): there "
        f"is nothing to distil"
    )


def _listed(names: list[str]) -> str:
    """The names as in a sentence: a, a and b, or a, b and c."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def sentence(
    comparison: dict, name_a: str = "distilled", name_b: str = "baseline", gives: str = "", too_few: bool = False
) -> str:
    """What `compare` found, in plain words: the difference, the interval, the verdict, McNemar's p per seed, and how
    small a difference such a test finds.

    A record of several seeds without "method" is of an earlier version, which used a paired bootstrap: too narrow for a
    verdict. `gives`: what this difference is the gain of. `too_few`: the examples allow no verdict.
    """
    low, high, seeds = points(comparison["low"]), points(comparison["high"]), len(comparison["seeds"])
    method = comparison.get("method", "paired bootstrap")
    over = f"{method} over {comparison['examples']:,} examples and {seeds} seed{'s' * (seeds > 1)}"
    verdict = "So few examples allow no verdict" if too_few else _verdict(comparison, name_a, name_b)
    p_values = ", ".join("<0.001" if test["p"] < 0.001 else f"{test['p']:.3f}" for test in comparison["seeds"])
    detectable = comparison.get("detectable")  # results of earlier versions lack it
    power = ""
    if detectable is not None and not too_few:
        power = f" A true difference of {100 * detectable:.2f} points would be found in 4 of 5 such experiments."
    title = f"{name_a} − {name_b}" + f" (what {gives} gives)" * bool(gives)
    return (
        f"{title}: {points(comparison['difference'])} points of accuracy "
        f"({comparison['confidence']:.0%} interval {low} to {high}, {over}). "
        f"{verdict}; McNemar's p{' per seed' * (seeds > 1)}: {p_values}." + power
    )


def _verdict(comparison: dict, name_a: str, name_b: str) -> str:
    """What the interval allows to say: of these two models with one seed, of such training runs with several."""
    one_pair, better = len(comparison["seeds"]) == 1, name_a if comparison["low"] > 0 else name_b
    if comparison["low"] <= 0 <= comparison["high"]:
        what = (
            "which of this pair of models is better" if one_pair else "that training runs like these make either better"
        )
        return f"The interval includes 0: this test does not show {what}"
    if one_pair:
        return (
            f"The interval excludes 0: of this pair of models, {better} is the better one (other training runs may "
            f"differ)"
        )
    if "method" not in comparison:
        return "The interval excludes 0, but a bootstrap of so few seeds is too narrow for a verdict"
    return f"The interval excludes 0: in training runs like these, {better} is better on average"


def quantization_changes(copies: list[dict], precision: str) -> list[str]:
    """A line for each quantised copy: what it changes against its original in `precision`; and a line on what
    experiment E5's author hoped for. [] where there are none."""
    lines = []
    for copy in copies:
        parts = [f"{words} {copy[key]:{form}}{unit}" for words, key, form, unit in QUANTIZED if copy[key] is not None]
        changes = f"{copy['name']} against {copy['original']} in {precision}: {', '.join(parts)}"
        lines.append(changes.replace(" -", " −"))
    wish = "for comparison: the author of experiment E5 hoped for 30 % less latency and half the size"
    return [*lines, wish] if lines else []
