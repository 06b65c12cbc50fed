"""The dashboard's panels of shaded cells: confusion matrices, and the sweep over alpha × T."""

import statistics

import numpy as np

from minikd.report.drawing import GREY, curve_of, heading, label_names, seeds_of, short, upright, values_of


def confusion(ax, results: dict, look: dict, row: dict, width: float, named: bool) -> None:
    """Counts, true label by predicted label, over seeds their mean, shaded by their share of the true label's
    examples. `width`: of the matrix, in inches, roughly; `named`: whether the true labels have their names."""
    seeds, total = seeds_of(row), np.array(row["confusion"], dtype=float)
    counts = total / seeds  # results.json has the sum over seeds
    shares = total / np.maximum(total.sum(axis=1, keepdims=True), 1)
    form = ("{:,.1f}" if (counts % 1).any() else "{:,.0f}").format
    cell, written = 72 * width / len(counts), len(counts) <= 10  # points
    names, fontsize = label_names(results.get("labels"), len(counts)), min(11, 0.8 * cell)
    _cells(ax, shares, ["white", look[row.get("name")]["color"]], 0, 1.15)  # full colour is heavier than it need be
    if written:
        _write(ax, counts, form, min(13, cell / (0.7 * len(form(counts.max())))))
    ax.set_xticks(range(len(counts)), names, fontsize=fontsize, rotation=90 if upright(names, width) else 0)
    ax.set_yticks(range(len(counts)), names if named else [""] * len(counts), fontsize=fontsize)
    ax.set(xlabel="predicted label", ylabel="true label" if named else "")
    note = f"mean of {seeds} seeds; " * (seeds > 1) + "shade: share of row"
    heading(ax, f"Confusion: {short(row.get('name'), int(width / 0.118) - 10)}", note)


def sweep_accuracy(ax, results: dict, look: dict) -> None:
    """Validation accuracy over alpha × T, and its difference in points from the baseline's.

    Shaded by that difference, on a scale of at least 5 points to either side, so that a small spread looks small: in
    the student's colour where it is better than the baseline, in the baseline's where that is. Without a baseline the
    median of the cells is in its place."""
    grid, Ts, alphas = _grid(results, "validation_accuracy")
    baseline = [point[1] for point in curve_of(results, {"name": "baseline"}, "validation")]
    # Training keeps the weights of the best epoch, in the baseline as in each cell.
    reference, word = (max(baseline), "baseline") if baseline else (float(np.nanmedian(grid)), "median")
    span = max(0.05, np.nanmax(np.abs(grid - reference)))
    colors = [look[name]["color"] if name in look else GREY for name in ("baseline", "distilled")]
    image = _cells(ax, grid, [colors[0], "white", colors[1]], reference - 1.15 * span, reference + 1.15 * span)
    _write(ax, grid, lambda value: f"{value:.3f}\n{100 * (value - reference):+z.1f}".replace("-", "−"), _fontsize(Ts))
    bar = ax.figure.colorbar(image, ax=ax, ticks=[reference - span, reference, reference + span])
    bar.ax.set_yticklabels([f"{reference - span:.3f}", f"{reference:.3f}\n{word}", f"{reference + span:.3f}"])
    bar.ax.set_ylim(reference - span, reference + span)
    bar.outline.set_visible(False)
    _finish_sweep(ax, results, Ts, alphas, "Sweep: validation accuracy", f"and points above the {word}")


def sweep_ece(ax, results: dict, look: dict) -> None:
    """Validation ECE over alpha × T; the scale is from 0, which is perfect, to 0.2 or more."""
    grid, Ts, alphas = _grid(results, "validation_ece")
    top = max(0.2, np.nanmax(grid))
    image = _cells(ax, grid, ["white", "#333333"], 0, 1.15 * top)
    _write(ax, grid, "{:.3f}".format, _fontsize(Ts))
    bar = ax.figure.colorbar(image, ax=ax, ticks=[0, top / 2, top])
    bar.ax.set_yticklabels(["0\nperfect", f"{top / 2:.2g}", f"{top:.2g}"])
    bar.ax.set_ylim(0, top)
    bar.outline.set_visible(False)
    _finish_sweep(ax, results, Ts, alphas, "Sweep: validation ECE", "darker is worse")


def cells_of(results: dict, key: str) -> list[dict]:
    """The cells of the sweep that have this figure."""
    cells = (results.get("sweep") or {}).get("cells") or []
    return [cell for cell in cells if None not in (cell.get("alpha"), cell.get("T"), cell.get(key))]


def _grid(results: dict, key: str):
    """(the figure by alpha and T, NaN where there is no cell; the Ts; the alphas)."""
    cells = cells_of(results, key)
    Ts, alphas = ([*sorted({cell[name] for cell in cells})] for name in ("T", "alpha"))
    grid = np.full((len(alphas), len(Ts)), np.nan)
    for cell in cells:
        grid[alphas.index(cell["alpha"]), Ts.index(cell["T"])] = statistics.fmean(values_of(cell, key))
    return grid, Ts, alphas


def _finish_sweep(ax, results: dict, Ts: list, alphas: list, title: str, note: str) -> None:
    ax.set_xticks(range(len(Ts)), [f"{T:g}" for T in Ts])
    ax.set_yticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
    ax.set(xlabel="temperature T", ylabel="alpha")
    chosen = results["sweep"].get("chosen") or {}
    if chosen.get("alpha") in alphas and chosen.get("T") in Ts:
        x, y = Ts.index(chosen["T"]) - 0.5, alphas.index(chosen["alpha"]) - 0.5
        frame = [x, x + 1, x + 1, x, x], [y, y, y + 1, y + 1, y]
        ax.plot(*frame, color="black", linewidth=3.5, clip_on=False)
        note += "; framed: chosen"
    heading(ax, title, note)


def _fontsize(columns: list) -> float:
    return 12 if len(columns) <= 6 else 9


def _cells(ax, values, colors: list[str], low: float, high: float):
    """Cells shaded from the first colour at `low` to the last at `high`. Returns matplotlib's image."""
    from matplotlib.colors import LinearSegmentedColormap

    cmap = LinearSegmentedColormap.from_list("", colors)
    ax.spines[:].set_visible(True)
    ax.tick_params(length=0)
    return ax.imshow(values, cmap=cmap, vmin=low, vmax=high, aspect="auto")


def _write(ax, values, form, fontsize: float) -> None:
    """The values in the cells of the image, in black or white, whichever stands out."""
    (image,) = ax.images
    for (y, x), value in np.ndenumerate(values):
        if np.isfinite(value):
            shade = image.cmap(image.norm(image.get_array()[y, x]))[:3]
            color = "white" if np.dot(shade, (0.299, 0.587, 0.114)) < 0.55 else "black"
            ax.text(x, y, form(value), ha="center", va="center", fontsize=fontsize, color=color)
