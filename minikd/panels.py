"""The panels of the dashboard, each a function that draws on a matplotlib Axes; plots.py lays them out.

A figure that is None or absent is left out.
"""

import statistics

import numpy as np

from minikd.drawing import (
    bins_of,
    curve_of,
    heading,
    label_names,
    look,
    model_name,
    short,
    three_digits,
    upright,
    values_of,
)

# One line per model.


def quality(ax, rows: list[dict], named: bool) -> None:
    """Accuracy and F1, over seeds their mean with an error bar of one standard deviation to either side."""
    binary = all(len(row.get("confusion") or "01") == 2 for row in rows)
    words = _present(rows, {"accuracy": "● accuracy", "f1": "○ F1" if binary else "○ macro F1"})
    points = _points(ax, rows, words, statistics.fmean, "{:.3f}".format)
    low, high = min(v - e for v, e in points), max(v + e for v, e in points)
    missing = max(0, 0.04 - (high - low)) / 2  # a smaller difference should look as small as it is
    low, high = low - missing - 0.1 * (high - low), high + missing + 0.1 * (high - low)
    ax.set_xlim(low, high + (0.75 if any(e for _, e in points) else 0.3) * (high - low))  # room for the values
    ax.set_xticks([tick for tick in _ticks(low, high) if low <= tick <= min(1, high)])
    ax.set_xlabel("score (0 to 1)")
    _finish_lines(ax, rows, named, "Quality", words)


def size(ax, rows: list[dict], named: bool) -> None:
    """Parameters as bars (MiB if no model has them), and both as text."""
    bars, unit, scale = "parameters", "million parameters", 1e6
    if not any(values_of(row, bars) for row in rows):
        bars, unit, scale = "size_mb", "MiB", 1
    for i, row in enumerate(rows):
        texts = [f"{three_digits(value / 1e6)} M" for value in values_of(row, "parameters")[:1]]
        texts += [f"{three_digits(value)} MiB" for value in values_of(row, "size_mb")[:1]]
        ax.annotate(",  ".join(texts) or "–", (0, i - 0.19), (4, 0), textcoords="offset points", va="center", size=11)
        width = (values_of(row, bars) or [0])[0] / scale
        ax.barh(i + 0.16, width, height=0.2, color=look(i)["color"], label=row.get("name"))
    ax.set_xlim(left=0)
    ax.locator_params(axis="x", nbins=5)
    ax.set_xlabel(unit)
    _finish_lines(ax, rows, named, "Size", {"": "parameters, weights in memory"})


def latency(ax, rows: list[dict], named: bool) -> None:
    """ms per example; over seeds the median, as a busy moment of the machine is no property of the model."""
    words = _present(rows, {"latency_1_ms": "● one at a time", "latency_ms": "○ batches of 128"})
    points = [value for value, _ in _points(ax, rows, words, statistics.median, three_digits)]
    low, high = min(points), max(points)
    far_apart = low > 0 and high / low > 10
    if far_apart:
        ax.set_xscale("log")
        left, right = low / (high / low) ** 0.12, high * (high / low) ** 0.4  # room for the values
        ax.set_xlim(left, right)
        steps = (1, 3) if high / low < 300 else (1,)
        ticks = [step * 10.0**power for power in range(-6, 9) for step in steps]
        ax.set_xticks([tick for tick in ticks if left <= tick <= 1.5 * high])
        ax.set_xticks([], minor=True)
        ax.xaxis.set_major_formatter("{x:,g}")
    else:
        ax.set_xlim(0, 1.4 * high or 1)
        ax.set_xticks([tick for tick in _ticks(0, high) if tick <= 1.1 * high])
    ax.set_xlabel("ms per example (log scale)" if far_apart else "ms per example")
    _finish_lines(ax, rows, named, "Latency", words)


def _points(ax, rows, words: dict, middle, form) -> list[tuple[float, float]]:
    """Draws a point per model and key of `words`, its value as text at the right edge.

    A list over seeds stands at its `middle`; a mean has an error bar. Returns (value, length of the bar) of each point.
    """
    points = []
    for i, row in enumerate(rows):
        for place, (key, word) in enumerate(words.items()):
            y = i + 0.38 * (place - (len(words) - 1) / 2)
            values, color, text = values_of(row, key), look(i)["color"], "–"
            if values:
                error = statistics.stdev(values) if len(values) > 1 and middle is statistics.fmean else 0
                text = form(middle(values)) + (f" ± {form(error)}" if error else "")
                face = color if word.startswith("●") else "white"
                style = {"fmt": "o", "markersize": 8, "markerfacecolor": face, "markeredgewidth": 1.8, "capsize": 4}
                ax.errorbar(middle(values), y, xerr=error or None, color=color, label=row.get("name"), **style)
                points.append((middle(values), error))
            ax.text(0.99, y, text, transform=ax.get_yaxis_transform(), ha="right", va="center", fontsize=11)
    return points


def _present(rows, words: dict) -> dict:
    return {key: word for key, word in words.items() if any(values_of(row, key) for row in rows)}


def _finish_lines(ax, rows, named: bool, title: str, words: dict) -> None:
    heading(ax, title, "    ".join(words.values()))
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_yticks(range(len(rows)), [model_name(row) if named else "" for row in rows], fontsize=12)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")


# All models on the same axes.


def loss(ax, rows: list[dict], curves: dict) -> None:
    """Training loss over epochs: as logged, pale, and its moving average over a twentieth of the curve."""
    for i, row in enumerate(rows):
        points = np.array(curve_of(curves, row, "train") or np.empty((0, 2)), dtype=float)
        window = np.ones(max(1, len(points) // 20))
        style = {**look(i), "marker": ""}
        if len(window) > 1:
            ax.plot(*points.T, **{**style, "linewidth": 0.8, "alpha": 0.3})
            # The window hangs over both ends, so its sum is divided by the number of points that it holds.
            held = np.convolve(np.ones(len(points)), window, "same")
            points[:, 1] = np.convolve(points[:, 1], window, "same") / held
        if len(points):
            ax.plot(*points.T, label=row.get("name"), **style)
    ax.set_ylim(bottom=0)
    heading(ax, "Training loss", _of_first_seed(rows) + "smoothed")
    _finish_curves(ax, 0, "loss (nats)")


def validation(ax, rows: list[dict], curves: dict) -> None:
    """Validation accuracy after each epoch."""
    for i, row in enumerate(rows):
        if points := curve_of(curves, row, "validation"):
            ax.plot([p[0] for p in points], [p[1] for p in points], label=row.get("name"), markersize=7, **look(i))
    heading(ax, "Validation accuracy", _of_first_seed(rows) + "after each epoch")
    _finish_curves(ax, 0.7, "accuracy (0 to 1)")


def _finish_curves(ax, first: float, unit: str) -> None:
    last = max(line.get_xdata()[-1] for line in ax.lines)
    ax.set_xlim(first, last + max(first / 3, 0.02 * last))
    ax.set_xticks([tick for tick in _ticks(0, last) if first <= tick <= last and tick == int(tick)])
    ax.set(xlabel="epoch", ylabel=unit)
    ax.grid()


def reliability(ax, rows: list[dict]) -> None:
    """Accuracy against mean confidence in each bin; the area of a marker is the bin's share of the examples. Lines
    join the bins with at least 1 % of them: the others are noise."""
    ax.plot([0, 1], [0, 1], color="#999999", linewidth=1, zorder=1)
    for i, row in enumerate(rows):
        if bins := bins_of(row):
            counts, confidences, accuracies = np.array(bins, dtype=float).T
            style, shares = look(i), counts / counts.sum()
            joined = shares >= 0.01
            line = {**style, "marker": "", "linewidth": 1.2, "label": row.get("name")}
            ax.plot(confidences[joined], accuracies[joined], **line)
            area = 10 + 250 * shares
            ax.scatter(confidences, accuracies, area, style["color"], marker=style["marker"], alpha=0.8, linewidths=0)
    classes = max((len(row["confusion"]) for row in rows if row.get("confusion")), default=10)
    lowest = int(10 / classes) / 10  # the largest of C probabilities is at least 1/C
    ax.set(xlim=(lowest, 1.02), ylim=(-0.03, 1.03), xlabel="confidence (0 to 1)", ylabel="accuracy (0 to 1)")
    ax.grid()
    heading(ax, "Reliability", "area: share of examples (lines: ≥ 1 %)")


# Matrices.


def confusion(ax, row: dict, i: int, labels: list | None, named: bool) -> None:
    """Counts, true label by predicted label, shaded by their share of the true label's examples."""
    counts = np.array(row["confusion"], dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    width = ax.get_figure().get_figwidth() * ax.get_position().width
    cell, digits = 72 * width / len(counts), len(f"{counts.max():,.0f}")  # points, characters
    names, fontsize = label_names(labels, len(counts)), min(11, 0.8 * cell)
    written = len(counts) <= 10
    _matrix(ax, shares, i, counts if written else None, "{:,.0f}".format, min(13, cell / (0.7 * digits)))
    rotation = 90 if upright(names, width) else 0
    ax.set_xticks(range(len(counts)), names, fontsize=fontsize, rotation=rotation)
    ax.set_yticks(range(len(counts)), names if named else [""] * len(counts), fontsize=fontsize)
    ax.set(xlabel="predicted label", ylabel="true label" if named else "")
    note = "shade: share of the true label"
    heading(ax, f"Confusion: {short(row.get('name'), int(width / 0.118) - 10)}", f"counts; {note}" if written else note)


def heat_map(ax, cells: list[dict], chosen: dict | None, key: str, title: str, i: int) -> None:
    """A score over the cells of alpha × T, the chosen one framed; darker is better."""
    alphas, Ts = sorted({cell["alpha"] for cell in cells}), sorted({cell["T"] for cell in cells})
    grid = np.full((len(alphas), len(Ts)), np.nan)
    for cell in cells:
        if values := values_of(cell, key):
            grid[alphas.index(cell["alpha"]), Ts.index(cell["T"])] = statistics.fmean(values)
    best, worst = np.nanmax(grid), np.nanmin(grid)
    if key == "validation_ece":
        best, worst = worst, best
    shades = 0.1 + 0.8 * (grid - worst) / ((best - worst) or 1)
    _matrix(ax, shades, i, grid, "{:.3f}".format, 12 if len(Ts) <= 6 else 9)
    ax.set_xticks(range(len(Ts)), [f"{T:g}" for T in Ts])
    ax.set_yticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
    ax.set(xlabel="temperature T", ylabel="alpha")
    note = "darker is better"
    if chosen and chosen.get("alpha") in alphas and chosen.get("T") in Ts:
        x, y = Ts.index(chosen["T"]) - 0.5, alphas.index(chosen["alpha"]) - 0.5
        frame = [x, x + 1, x + 1, x, x], [y, y, y + 1, y + 1, y]
        ax.plot(*frame, color="black", linewidth=3.5, clip_on=False)
        note += f"; framed: chosen, alpha {chosen['alpha']:g}, T {chosen['T']:g}"
    heading(ax, f"Sweep: {title}", note)


def _matrix(ax, shades, i: int, values, form, fontsize: float) -> None:
    """Cells shaded from white to the model's colour, with the values in black or white, whichever stands out."""
    from matplotlib.colors import LinearSegmentedColormap

    cmap = LinearSegmentedColormap.from_list("", ["white", look(i)["color"]])
    top = 1.15  # full black or blue is heavier than it needs to be
    ax.imshow(shades, cmap=cmap, vmin=0, vmax=top, aspect="auto")
    for (y, x), value in np.ndenumerate(np.empty(0) if values is None else values):
        if np.isfinite(value):
            color = "white" if np.dot(cmap(shades[y, x] / top)[:3], (0.299, 0.587, 0.114)) < 0.55 else "black"
            ax.text(x, y, form(value), ha="center", va="center", fontsize=fontsize, color=color)
    ax.spines[:].set_visible(True)
    ax.tick_params(length=0)


def _of_first_seed(rows: list[dict]) -> str:
    """Logs are those of the first seed, whatever the rest of the picture shows."""
    return "first seed, " if any(len(values_of(row, "accuracy")) > 1 for row in rows) else ""


def _ticks(low: float, high: float):
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high)
