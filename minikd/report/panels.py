"""The dashboard's panels of lines and curves, each a function that draws on a matplotlib Axes; plots.py lays them out.

`results` is the content of results.json, `look` what `looks` gives for its models. A figure that is None or absent is
left out.
"""

import math
import statistics

import numpy as np

from minikd.report.drawing import (
    GREY,
    bins_of,
    curve_of,
    heading,
    losses,
    points,
    seeds_of,
    short,
    three_digits,
    values_of,
)

# One line per model.


def quality(ax, results: dict, look: dict) -> None:
    """Accuracy and F1, over seeds their mean with an error bar of one standard deviation to either side.

    Below the models what they are to be compared with: the bag of words, the best possible accuracy where it is known,
    and the interval of the difference between the distilled student and the baseline, drawn from the baseline's
    accuracy on, so that it is on the same scale."""
    rows = results["models"]
    binary = all(len(row.get("confusion") or "01") == 2 for row in rows)
    words = _present(rows, {"accuracy": "● accuracy", "f1": "○ F1" if binary else "○ macro F1"})
    limits = {"bag of words": results.get("bag_of_words"), "best possible": None}
    if results.get("best_possible_accuracy") is not None:
        limits["best possible"] = {"accuracy": results["best_possible_accuracy"]}
    rows = rows + [{"name": name, **figures} for name, figures in limits.items() if figures]
    look = dict.fromkeys(limits, {"color": GREY}) | look
    values = _marks(ax, rows, look, words, statistics.fmean, "{:.3f}".format)
    low, high = min(value - error for value, error in values), max(value + error for value, error in values)
    names = [row.get("name") for row in rows]
    if interval := _interval(results):
        ends = _difference(ax, interval, look, len(rows), names.index("baseline"))
        low, high = max(low - 0.1, min(low, ends[0])), min(high + 0.1, max(high, ends[1]))  # one of few seeds is huge
        names.append("distilled − baseline")
    margin = 0.005 + max(0.04 - (high - low), 0.1 * (high - low)) / 2  # a small difference should look small
    ax.set_xlim(low - margin, high + margin)
    ax.locator_params(axis="x", nbins=6)
    ax.set_xticks([tick for tick in ax.get_xticks() if low - margin <= tick <= min(1, high + margin)])
    ax.set_xlabel("score (0 to 1)")
    _finish_lines(ax, names, "Quality", words.values())


def _interval(results: dict) -> tuple[float, ...] | None:
    """(the baseline's accuracy, difference, low, high, confidence), or None where one of them is unknown."""
    rows = {row.get("name"): row for row in results["models"]}
    significance = results.get("significance") or {}
    figures = [significance.get(key) for key in ("difference", "low", "high")]
    accuracy = values_of(rows.get("baseline") or {}, "accuracy")
    if (
        "distilled" not in rows
        or not accuracy
        or not all(isinstance(f, (int, float)) and math.isfinite(f) for f in figures)
    ):
        return None
    return statistics.fmean(accuracy), *figures, significance.get("confidence", 0.95)


def _difference(ax, interval: tuple, look: dict, y: int, y_baseline: int) -> list[float]:
    """Draws the interval on line `y`, and the baseline's accuracy as a line down to it. Returns its ends."""
    accuracy, difference, low, high, confidence = interval
    color = look["distilled"]["color"]
    ends = [accuracy + low, accuracy + high]
    ax.plot(ends, [y, y], color=color, linewidth=6, alpha=0.4, solid_capstyle="butt", label="interval")
    ax.plot(accuracy + difference, y, "o", color=color, markersize=8)
    ax.plot([accuracy] * 2, [y_baseline, y + 0.35], color=look["baseline"]["color"], linestyle=":", zorder=1)
    text = f"{points(difference)} points\n{confidence:.0%}: {points(low)} to {points(high)}"
    ax.text(1.02, y, text, transform=ax.get_yaxis_transform(), va="center", fontsize=11)
    return ends


def size(ax, results: dict, look: dict) -> None:
    """MiB of the weights as bars, and the parameters as text: quantised models have as many, in less memory."""
    for i, row in enumerate(results["models"]):
        mib, parameters = values_of(row, "size_mb")[:1], values_of(row, "parameters")[:1]
        texts = [f"{three_digits(value)} MiB" for value in mib]
        texts += [f"{three_digits(value / 1e6)} M" for value in parameters]
        ax.text(1.02, i, " · ".join(texts), transform=ax.get_yaxis_transform(), va="center", fontsize=11)
        ax.barh(i, sum(mib), height=0.5, color=look[row.get("name")]["color"], label=row.get("name"))
    ax.set_xlim(left=0)
    ax.locator_params(axis="x", nbins=5)
    ax.set_xlabel("MiB")
    _finish_lines(
        ax, [row.get("name") for row in results["models"]], "Size", ["weights in memory; M: million parameters"]
    )


def latency(ax, results: dict, look: dict) -> None:
    """ms per example; over seeds the median, as a busy moment of the machine is no property of the model."""
    rows = results["models"]
    words = _present(rows, {"latency_1_ms": "● one at a time", "latency_ms": "○ batches of 128"})
    values = [value for value, _ in _marks(ax, rows, look, words, statistics.median, three_digits)]
    low, high = min(values), max(values)
    far_apart = low > 0 and high / low > 10
    if far_apart:
        ax.set_xscale("log")
        ax.set_xlim(low / 1.3, high * 1.3)
        steps = (1, 3) if high / low < 300 else (1,)
        ticks = [step * 10.0**power for power in range(-6, 9) for step in steps]
        ax.set_xticks([tick for tick in ticks if low / 1.3 <= tick <= high * 1.3])
        ax.set_xticks([], minor=True)
        ax.xaxis.set_major_formatter("{x:,g}")
    else:
        ax.set_xlim(0, 1.08 * high or 1)
        ax.locator_params(axis="x", nbins=5)
    ax.set_xlabel("ms per example (log scale)" if far_apart else "ms per example")
    _finish_lines(ax, [row.get("name") for row in rows], "Latency", words.values())


def _marks(ax, rows, look: dict, words: dict, middle, form) -> list[tuple[float, float]]:
    """Draws a mark per model and key of `words`, with its value as text at the right.

    A list over seeds is drawn at its `middle`; a mean has an error bar. Returns (value, length of the bar) of each.
    """
    drawn = []
    for i, row in enumerate(rows):
        present = [(key, word) for key, word in words.items() if values_of(row, key)]
        for place, (key, word) in enumerate(present):
            y = i + 0.4 * (place - (len(present) - 1) / 2)
            values, color = values_of(row, key), look[row.get("name")]["color"]
            error = statistics.stdev(values) if len(values) > 1 and middle is statistics.fmean else 0
            style = {"fmt": "o", "markersize": 8, "markeredgewidth": 1.8, "capsize": 4}
            style |= {"markerfacecolor": color if word.startswith("●") else "white"}
            ax.errorbar(middle(values), y, xerr=error or None, color=color, label=row.get("name"), **style)
            text = form(middle(values)) + (f" ± {form(error)}" if error else "")
            ax.text(1.02, y, text, transform=ax.get_yaxis_transform(), va="center", fontsize=11)
            drawn.append((middle(values), error))
    return drawn


def _present(rows, words: dict) -> dict:
    return {key: word for key, word in words.items() if any(values_of(row, key) for row in rows)}


def _finish_lines(ax, names: list, title: str, words) -> None:
    heading(ax, title, "    ".join(words))
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_yticks(range(len(names)), [short(name, 22) for name in names], fontsize=12)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")


# All models on the same axes.


def key(ax, results: dict, look: dict) -> None:
    """The colour, marker, name and ECE of each model, in three columns."""
    from matplotlib.lines import Line2D

    handles = []
    for row in results["models"]:
        ece = values_of(row, "ece")
        text = short(row.get("name"), 22) + (f"   ECE {statistics.fmean(ece):.3f}" if ece else "")
        handles.append(Line2D([], [], label=text, markersize=7, **look[row.get("name")]))
    ax.legend(handles=handles, ncols=3, loc="upper left", borderaxespad=0, columnspacing=3)
    ax.axis("off")


def loss(ax, results: dict, look: dict, kind: tuple[str, str]) -> None:
    """Training loss of one formula over epochs: as logged, and where there are enough points that one pale, with its
    moving average over a twentieth of the curve."""
    title, note = kind
    kinds = losses(results)
    for row in kinds[kind]:
        values = np.array(curve_of(results, row, "train"), dtype=float)
        window = np.ones(len(values) // 20 // 2 * 2 + 1)  # odd: an even one would move the curve
        style = {**look[row.get("name")], "marker": ""}
        if len(window) > 1:
            ax.plot(*values.T, **{**style, "linewidth": 0.8, "alpha": 0.3})
            # The window hangs over both ends, so its sum is divided by the number of points that it holds.
            held = np.convolve(np.ones(len(values)), window, "same")
            values[:, 1] = np.convolve(values[:, 1], window, "same") / held
            note = f"{kind[1]}, smoothed"
        ax.plot(*values.T, label=row.get("name"), **style)
    ax.set_ylim(bottom=0)
    heading(ax, f"Training loss, {title}", note + _of_first_seed(results))
    last = max(curve_of(results, row, "train")[-1][0] for rows in kinds.values() for row in rows)
    _finish_curves(ax, 0, last, "loss (nats)")


def validation(ax, results: dict, look: dict) -> None:
    """Validation accuracy after each epoch."""
    for row in results["models"]:
        if values := curve_of(results, row, "validation"):
            x, y = [value[0] for value in values], [value[1] for value in values]
            ax.plot(x, y, label=row.get("name"), markersize=7, **look[row.get("name")])
    heading(ax, "Validation accuracy", "after each epoch" + _of_first_seed(results))
    _finish_curves(ax, 1, max(line.get_xdata()[-1] for line in ax.lines), "accuracy (0 to 1)")


def _finish_curves(ax, first: int, last: float, unit: str) -> None:
    ax.set_xlim(first - 0.04 * (last - first) * first, last + 0.04 * (last - first))
    ax.locator_params(axis="x", integer=True)
    ax.set_xticks([tick for tick in ax.get_xticks() if first <= tick <= last])
    ax.set(xlabel="epoch", ylabel=unit)
    ax.grid()


def _of_first_seed(results: dict) -> str:
    """Logs are those of the first seed, whatever the rest of the picture shows."""
    return ", first seed" if any(seeds_of(row) > 1 for row in results["models"]) else ""


def reliability(ax, results: dict, look: dict) -> None:
    """Accuracy against mean confidence in each bin, of all seeds together; the area of a marker is the bin's share of
    the examples. Lines join the bins with at least 1 % of them: the others are noise."""
    ax.plot([0, 1], [0, 1], color="#999999", linewidth=1, zorder=1)
    for row in results["models"]:
        if bins := bins_of(row):
            counts, confidences, accuracies = np.array(bins, dtype=float).T
            style, shares = look[row.get("name")], counts / counts.sum()
            joined = shares >= 0.01
            line = {**style, "marker": "", "linewidth": 1.2, "label": row.get("name")}
            ax.plot(confidences[joined], accuracies[joined], **line)
            area = 10 + 250 * shares
            ax.scatter(confidences, accuracies, area, style["color"], marker=style["marker"], alpha=0.8, linewidths=0)
    classes = max((len(row["confusion"]) for row in results["models"] if row.get("confusion")), default=10)
    lowest = int(10 / classes) / 10  # the largest of C probabilities is at least 1/C
    bottom = min([lowest, *(bin[2] for row in results["models"] for bin in bins_of(row))]) - 0.03
    ax.set(xlim=(lowest, 1.02), ylim=(bottom, 1.03), xlabel="confidence (0 to 1)", ylabel="accuracy (0 to 1)")
    ax.grid()
    seeds = max(seeds_of(row) for row in results["models"])
    heading(ax, "Reliability", "area: share of examples" + f", {seeds} seeds pooled" * (seeds > 1))
