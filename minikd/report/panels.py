"""The dashboard's panels, each a function that draws on a matplotlib Axes; plots.py lays them out.

`results` is the content of results.json, `look` what `looks` gives for its models.
"""

import statistics

import numpy as np

from minikd.report.drawing import points, short, three_digits
from minikd.report.figures import bins_of, cells_of, curve_of, lines_of, losses, repeats_of, seeds_of, values_of

GREY = "#777777"


def _heading(ax, title: str, note: str) -> None:
    """The panel's title, and a note under it."""
    ax.set_title(title, pad=27)
    ax.annotate(note, (0, 1), (0, 9), xycoords="axes fraction", textcoords="offset points", fontsize=11)


# One line per model; the names are at the left of the row.


def quality(ax, results: dict, look: dict) -> None:
    """Accuracy and F1, over seeds their mean with an error bar of one standard deviation to either side. The interval
    of a difference is drawn from the second model's accuracy on, so that it is on the scale of the scores."""
    lines = lines_of(results)
    binary = all(len(row.get("confusion") or "01") == 2 for row in results["models"])
    words = {"accuracy": "● accuracy", "f1": "○ F1" if binary else "○ macro F1"}
    ends = _marks(ax, lines, look, words, statistics.fmean, "{:.3f}".format)
    left, right = min(ends), max(ends)
    for y, line in enumerate(lines):
        if "interval" not in line:
            continue
        start, (difference, low, high), (one, other) = line["start"], line["interval"], line["models"]
        color, ground = look[one]["color"], look[other]["color"]
        style = {"linewidth": 6, "alpha": 0.4, "solid_capstyle": "butt", "label": "interval"}
        ax.plot([start + low, start + high], [y, y], color=color, **style)
        ax.plot(start + difference, y, "|", color=color, markersize=16, markeredgewidth=2)
        ax.plot([start] * 2, [list(look).index(other), y + 0.35], color=ground, linestyle=":", zorder=1)
        text = f"{line['confidence']:.0%}: {points(low)} to {points(high)}"
        _at_right(ax, y, f"{points(difference)} points\n{text}")
        left = max(left - 0.1, min(left, start + low))  # one of few seeds is huge
        right = min(right + 0.1, max(right, start + high))
    margin = 0.005 + max(0.04 - (right - left), 0.1 * (right - left)) / 2  # a small difference should look small
    ax.set(xlim=(left - margin, min(1.02, right + margin)), xlabel="score (0 to 1)")
    ax.locator_params(axis="x", nbins=5)
    _finish_lines(ax, results, "Quality", words)


def size(ax, results: dict, look: dict) -> None:
    """MiB of the weights as bars, and the parameters as text: quantised models have as many, in less memory."""
    for y, row in enumerate(results["models"]):
        mib, parameters = values_of(row, "size_mb")[:1], values_of(row, "parameters")[:1]
        texts = [f"{three_digits(value)} MiB" for value in mib] + [f"{three_digits(n / 1e6)} M" for n in parameters]
        ax.barh(y, sum(mib), height=0.5, color=look[row.get("name")]["color"], label=row.get("name"))
        _at_right(ax, y, "\n".join(texts))
    ax.locator_params(axis="x", nbins=4)
    ax.set(xlim=(0, None), xlabel="MiB")
    _finish_lines(ax, results, "Size", {"size_mb": "weights; M: million parameters"})


def latency(ax, results: dict, look: dict) -> None:
    """ms per example; over seeds the median, as a busy moment of the machine is no property of the model."""
    from matplotlib.ticker import LogLocator

    words = {"latency_1_ms": "● one at a time", "latency_ms": "○ batches of 128"}
    ends = _marks(ax, results["models"], look, words, statistics.median, three_digits)
    low, high = min(ends), max(ends)
    if low > 0 and high / low > 10:
        ax.set(xscale="log", xlim=(low / 1.3, high * 1.3), xlabel="ms per example (log scale)")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 3) if high / low < 300 else (1,)))
        ax.xaxis.set_major_formatter("{x:,g}")
        ax.minorticks_off()
    else:
        ax.locator_params(axis="x", nbins=4)
        ax.set(xlim=(0, 1.08 * high or 1), xlabel="ms per example")
    _finish_lines(ax, results, "Latency", words)


def _marks(ax, rows: list[dict], look: dict, words: dict, middle, form) -> list[float]:
    """Draws a mark per row and key of `words`, with its value as text at the right: a list over seeds at its `middle`,
    with an error bar if that is the mean. Returns the ends of all that it drew."""
    ends = []
    for line, row in enumerate(rows):
        present = [(key, word) for key, word in words.items() if values_of(row, key)]
        for place, (key, word) in enumerate(present):
            y, values = line + 0.4 * (place - (len(present) - 1) / 2), values_of(row, key)
            color = look.get(row.get("name"), {"color": GREY})["color"]
            error = statistics.stdev(values) if len(values) > 1 and middle is statistics.fmean else 0
            style = {"fmt": "o", "markersize": 8, "markeredgewidth": 1.8, "capsize": 4, "label": row.get("name")}
            style |= {"color": color, "markerfacecolor": color if word.startswith("●") else "white"}
            ax.errorbar(middle(values), y, xerr=error or None, **style)
            _at_right(ax, y, form(middle(values)) + (f" ± {form(error)}" if error else ""))
            ends += [middle(values) - error, middle(values) + error]
    return ends


def _at_right(ax, y: float, text: str) -> None:
    ax.text(1.02, y, text, transform=ax.get_yaxis_transform(), va="center", fontsize=11)


def _finish_lines(ax, results: dict, title: str, words: dict) -> None:
    lines = lines_of(results)
    names = [short(row.get("name"), 22) if ax.get_subplotspec().is_first_col() else "" for row in lines]
    _heading(ax, title, "    ".join(word for key, word in words.items() if any(values_of(row, key) for row in lines)))
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_yticks(range(len(names)), names, fontsize=12)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")


# All models on the same axes.


def key(ax, results: dict, look: dict) -> None:
    """The colour, marker, name and ECE of each model, in three columns."""
    for row in results["models"]:
        ece = values_of(row, "ece")
        text = short(row.get("name"), 22) + (f"   ECE {statistics.fmean(ece):.3f}" if ece else "")
        ax.plot([], [], label=text, markersize=7, **look[row.get("name")])
    ax.legend(ncols=3, loc="upper left", borderaxespad=0, columnspacing=3)
    ax.axis("off")


def loss(ax, results: dict, look: dict, kind: tuple[str, str]) -> None:
    """Training loss of one formula over epochs: as logged, and where there are enough points that one pale, with its
    moving average over a twentieth of the curve."""
    title, note = kind
    for name in losses(results)[kind]:
        epochs, logged = np.array(curve_of(results, name, "train"), dtype=float).T
        half, style = len(logged) // 40, {**look[name], "marker": ""}
        if half:
            ax.plot(epochs, logged, **{**style, "linewidth": 0.8, "alpha": 0.3})
            note = f"{kind[1]}, smoothed"
        means = [logged[max(0, i - half) : i + half + 1].mean() for i in range(len(logged))]
        ax.plot(epochs, means, label=name, **style)
    ax.set_ylim(bottom=0)
    ax.set_xlim(
        0, 1.04 * max(curve_of(results, name, "train")[-1][0] for of in losses(results).values() for name in of)
    )
    _finish_curves(ax, results, f"Training loss, {title}", note, "loss (nats)")


def validation(ax, results: dict, look: dict) -> None:
    """Validation accuracy after each epoch."""
    for name, style in look.items():
        if values := curve_of(results, name, "validation"):
            epochs, accuracies, *_ = zip(*values)
            ax.plot(epochs, accuracies, label=name, markersize=7, **style)
    _finish_curves(ax, results, "Validation accuracy", "after each epoch", "accuracy (0 to 1)")


def _finish_curves(ax, results: dict, title: str, note: str, unit: str) -> None:
    ax.locator_params(axis="x", integer=True)
    ax.set(xlabel="epoch", ylabel=unit)
    ax.grid()
    several = any(seeds_of(row) > 1 for row in results["models"])
    _heading(ax, title, note + f", first {repeats_of(results)}" * several)  # whatever the rest of the picture shows


def reliability(ax, results: dict, look: dict) -> None:
    """Accuracy against mean confidence in each bin, of all seeds together; the area of a marker is the bin's share of
    the examples. Lines join the bins with at least 1 % of them: the others are noise."""
    lowest = min(confidence for row in results["models"] for _, confidence, _ in bins_of(row))
    ax.plot([lowest, 1], [lowest, 1], color="#999999", linewidth=1, zorder=1)
    for row in results["models"]:
        if bins := bins_of(row):
            counts, confidences, accuracies = np.array(bins, dtype=float).T
            style, shares = look[row.get("name")], counts / counts.sum()
            joined = shares >= 0.01
            line = {**style, "marker": "", "linewidth": 1.2, "label": row.get("name")}
            ax.plot(confidences[joined], accuracies[joined], **line)
            area = 10 + 250 * shares
            ax.scatter(confidences, accuracies, area, style["color"], marker=style["marker"], alpha=0.8, linewidths=0)
    ax.set(xlabel="confidence (0 to 1)", ylabel="accuracy (0 to 1)")
    ax.grid()
    seeds = max(seeds_of(row) for row in results["models"])
    _heading(ax, "Reliability", "area: share of examples" + f", {seeds} {repeats_of(results)}s pooled" * (seeds > 1))


# Shaded cells.


def confusion(ax, results: dict, look: dict, row: dict) -> None:
    """Counts, true label by predicted label, over seeds their mean, over folds (each example is in one) their sum,
    shaded by their share of the true label's examples. The first matrix of a row names the true labels."""
    seeds, total = 1 if results.get("folds") else seeds_of(row), np.array(row["confusion"], dtype=float)
    counts, labels = total / seeds, results.get("labels") or []  # results.json has the sum over seeds
    names = [short(name, 14) for name in (labels if len(labels) == len(counts) else range(len(counts)))]
    form = ("{:,.1f}" if (counts % 1).any() else "{:,.0f}").format
    width = 800 / ax.get_gridspec().ncols / (len(counts) + 0.5)  # of a cell in points, roughly
    shares = total / np.maximum(total.sum(axis=1, keepdims=True), 1)
    _cells(ax, shares, ["white", look[row.get("name")]["color"]], (0, 1))
    if len(counts) <= 10:
        _write(ax, np.vectorize(form)(counts), width)
    fontsize, upright = min(11, 0.8 * width), 6 * max(map(len, names)) > width
    first = ax.get_subplotspec().is_first_col() or sum(bool(row.get("confusion")) for row in results["models"]) == 1
    ax.set_xticks(range(len(counts)), names, fontsize=fontsize, rotation=90 if upright else 0)
    ax.set_yticks(range(len(counts)), names if first else [""] * len(counts), fontsize=fontsize)
    ax.set(xlabel="predicted label", ylabel="true label" if first else "")
    note = f"mean of {seeds} seeds; " * (seeds > 1) + "shade: share of row"
    _heading(ax, f"Confusion: {short(row.get('name'), 16)}", note)


def sweep(ax, results: dict, look: dict, key: str) -> None:
    """A figure of the validation split over alpha × T, on a scale that makes a small spread look small.

    validation_ece: shaded from 0, which is perfect, to 0.2 or more.
    validation_accuracy: shaded by the difference from the baseline's, which is written too in points, on a scale of at
    least 5 points to either side: in the student's colour where that is better, in the baseline's where that is.
    Without a baseline the median of the cells is in its place."""
    cells, chosen = cells_of(results, key), results["sweep"].get("chosen") or {}
    Ts, alphas = ([*sorted({cell[name] for cell in cells})] for name in ("T", "alpha"))
    grid = np.full((len(alphas), len(Ts)), np.nan)
    for cell in cells:
        grid[alphas.index(cell["alpha"]), Ts.index(cell["T"])] = statistics.fmean(values_of(cell, key))
    if key == "validation_ece":
        title, note, top = "Sweep: validation ECE", "darker is worse", max(0.2, np.nanmax(grid))
        colors, marks, form = ["white", "#333333"], {0: "0\nperfect", top: f"{top:.2g}"}, "{:.3f}".format
    else:
        # Training keeps the weights of the best epoch, in the baseline as in each cell.
        baseline = [epoch[1] for epoch in curve_of(results, "baseline", "validation")]
        middle, word = (max(baseline), "baseline") if baseline else (float(np.nanmedian(grid)), "median")
        title, note = "Sweep: validation accuracy", f"and points above the {word}"
        span = max(0.05, np.nanmax(np.abs(grid - middle)))
        colors = [look[name]["color"] if name in look else GREY for name in ("baseline", "distilled")]
        colors.insert(1, "white")
        marks = {middle - span: f"{middle - span:.3f}", middle: f"{middle:.3f}\n{word}"}
        marks[middle + span] = f"{middle + span:.3f}"
        form = lambda value: f"{value:.3f}\n{100 * (value - middle):+z.1f}".replace("-", "−")  # noqa: E731
    image = _cells(ax, grid, colors, (min(marks), max(marks)))
    _write(ax, np.vectorize(form)(grid), 300 / len(Ts))
    bar = ax.figure.colorbar(image, ax=ax, ticks=list(marks))
    bar.set_ticklabels(list(marks.values()))
    bar.outline.set_visible(False)
    ax.set_xticks(range(len(Ts)), [f"{T:g}" for T in Ts])
    ax.set_yticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
    ax.set(xlabel="temperature T", ylabel="alpha")
    if chosen.get("alpha") in alphas and chosen.get("T") in Ts:
        x, y = Ts.index(chosen["T"]) - 0.5, alphas.index(chosen["alpha"]) - 0.5
        ax.plot([x, x + 1, x + 1, x, x], [y, y, y + 1, y + 1, y], color="black", linewidth=3.5, clip_on=False)
        note += "; framed: chosen"
    _heading(ax, title, note)


def _cells(ax, values, colors: list[str], limits: tuple[float, float]):
    """Cells shaded from the first colour at the low limit to the last at the high one. Returns matplotlib's image."""
    from matplotlib.colors import LinearSegmentedColormap

    ax.spines[:].set_visible(True)
    ax.tick_params(length=0)
    colormap, (low, high) = LinearSegmentedColormap.from_list("", colors), limits
    return ax.imshow(values, colormap, aspect="auto", vmin=low, vmax=high, alpha=0.85)  # full colour would be heavy


def _write(ax, texts, width: float) -> None:
    """A text in each cell, `width` points wide, of the image: in black or white, whichever stands out."""
    (image,) = ax.images
    fontsize = min(13, 1.4 * width / max(len(line) for text in texts.flat for line in text.split("\n")))
    for (y, x), text in np.ndenumerate(texts):
        value = image.get_array()[y, x]
        if np.isfinite(value):
            seen = 0.15 + 0.85 * np.array(image.to_rgba(value, alpha=1)[:3])
            color = "white" if np.dot(seen**2.2, (0.2126, 0.7152, 0.0722)) < 0.18 else "black"  # by WCAG's luminance
            ax.text(x, y, text, ha="center", va="center", fontsize=fontsize, color=color)
