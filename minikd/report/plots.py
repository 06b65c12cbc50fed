"""The dashboard: one picture of everything in results.json, legible at README width (half its own).

Here is the page: which panels, where, and the style. panels.py and matrices.py draw each of them. A panel without data
is left out. matplotlib is optional, so it is imported where it is used.
"""

import math
import warnings
from functools import partial
from pathlib import Path

from minikd.errors import MinikdError
from minikd.files import atomic_file
from minikd.report import panels
from minikd.report.drawing import (
    INK,
    bins_of,
    curve_of,
    label_names,
    looks,
    losses,
    seeds_of,
    short,
    upright,
    values_of,
)
from minikd.report.matrices import cells_of, confusion, sweep_accuracy, sweep_ece

WIDTH, DPI = 12.0, 150  # inches, as all lengths here
TITLE, AROUND = 0.9, 1.4  # heights of the page's title, and of a panel's title, ticks and label
MANY_LABELS = 14  # from here on a confusion matrix needs half the width
STYLE = {
    "font.size": 12,
    "axes.titlesize": 14,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": "#999999",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "lines.linewidth": 1.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.12,
    "figure.constrained_layout.h_pad": 0.08,
}


def dashboard(results: dict, path: Path) -> None:
    """Draws `results`, the content of results.json, as a PNG 1,800 pixels wide at `path`, whole or not at all.

    Raises MinikdError if matplotlib is missing or there is nothing to draw, OSError if `path` cannot be written.
    """
    with _style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the box in the picture says as much
        figure = draw(results)
        with atomic_file(path) as file:
            figure.savefig(file, format="png", dpi=DPI)


def draw(results: dict):
    """The dashboard of `results` as a matplotlib Figure. From top to bottom: quality, size and latency; training loss,
    validation accuracy and reliability; a confusion matrix per model; the sweep over alpha × T.

    Raises MinikdError if matplotlib is missing or there is nothing to draw.
    """
    with _style():
        from matplotlib.figure import Figure  # pyplot would keep the figure and choose a backend for the user

        results = results | {"models": results.get("models") or []}
        look = looks(row.get("name") for row in results["models"])
        bands = [*_measures(results), *_curves(results), *_sweep(results)]
        if not bands:
            raise MinikdError("results: no figures of models to draw; evaluate some models first")
        heights = [TITLE, *(height for height, _ in bands)]
        figure = Figure(figsize=(WIDTH, sum(heights)))
        title, *parts = figure.subfigures(len(heights), 1, height_ratios=heights)
        heading, settings = _title(results)
        title.text(0.01, 0.6, heading, fontsize=18, weight="bold", va="center")
        title.text(0.01, 0.2, settings, color=INK, va="center")
        for part, (_, mosaic) in zip(parts, bands):
            for drawer, ax in part.subplot_mosaic(mosaic).items():
                drawer(ax, results, look)
        return figure


def _title(results: dict) -> tuple[str, str]:
    rows, arguments = results["models"], results.get("arguments") or {}
    split = results.get("split") and f"{results['split']} split"
    examples = results.get("examples") and f"{results['examples']:,} examples"
    heading = ", ".join(short(text, 40) for text in (results.get("dataset"), split, examples) if text)
    threads = results.get("threads") and f"{results['threads']} thread{'s' * (results['threads'] > 1)}"
    seeds = results.get("seeds") or [arguments.get("seed")]
    repeats = max(map(seeds_of, rows), default=1)
    seed = f"mean ± std over {repeats} seeds" if repeats > 1 else None if seeds[0] is None else f"seed {seeds[0]}"
    settings = [str(text) for text in (results.get("precision"), results.get("device"), threads, seed) if text]
    return heading or "models", short(" · ".join(settings), 110)


# The page's bands of panels: (height, mosaic of the functions that draw them).


def _measures(results: dict) -> list[tuple]:
    """What is measured of each model, one line per model: quality at the left, size above latency at the right."""
    rows = results["models"]

    def if_any(drawer, *keys):
        return [drawer] * any(values_of(row, key) for row in rows for key in keys)

    left = if_any(panels.quality, "accuracy", "f1")
    right = if_any(panels.size, "size_mb") + if_any(panels.latency, "latency_1_ms", "latency_ms")
    columns = [column for column in (left, right) if column]
    lines = max(1.5, len(rows)) * max(1, len(right)) + 2 * (len(right) < 2)
    return [_band(columns, 0.42 * lines)] if columns else []


def _curves(results: dict) -> list[tuple]:
    """Training loss, one panel above the other where formulas differ; validation accuracy, if of more than one epoch;
    reliability. Then the confusion matrices; a single small one has room beside the others."""
    rows = results["models"]
    loss = [partial(panels.loss, kind=kind) for kind in losses(results)]
    columns = [loss] * bool(loss)
    columns += [[panels.validation]] * any(len(curve_of(results, row, "validation")) > 1 for row in rows)
    columns += [[panels.reliability]] * any(bins_of(row) for row in rows)
    matrices = [row for row in rows if row.get("confusion")]
    labels = max((len(row["confusion"]) for row in matrices), default=0)
    if columns and len(matrices) == 1 and labels <= MANY_LABELS:
        columns += [[partial(confusion, row=matrices.pop(), width=3.0, named=True)]]
    keys = [(0.16 + 0.26 * math.ceil(len(rows) / 3), [[panels.key]])] * bool(columns)
    curves = _wrapped(columns, 2 if len(columns) == 4 else 3, 2.9)
    across = 2 if len(matrices) in (1, 2, 4) or labels > MANY_LABELS else 3
    width = WIDTH / across - 1
    names = label_names(results.get("labels"), labels)
    height = 4.8 if labels > MANY_LABELS else min(2.9, max(1.5, 0.7 * labels))
    height += 0.07 * max(map(len, names), default=0) * upright(names, width)
    panel = partial(confusion, width=width)
    matrices = [[partial(panel, row=row, named=i % across == 0)] for i, row in enumerate(matrices)]
    return keys + curves + _wrapped(matrices, across, height)


def _sweep(results: dict) -> list[tuple]:
    drawers = [(sweep_accuracy, "validation_accuracy"), (sweep_ece, "validation_ece")]
    columns = [[drawer] for drawer, key in drawers if cells_of(results, key)]
    alphas = {cell["alpha"] for _, key in drawers for cell in cells_of(results, key)}
    return [_band(columns, max(1.2, 0.55 * len(alphas)))] if columns else []


def _wrapped(columns: list[list], across: int, height: float) -> list[tuple]:
    """Bands of `across` columns; the last one is filled with blanks if there are others."""
    blank = [["."]] * (-len(columns) % across) if len(columns) > across else []
    columns = columns + blank
    return [_band(columns[i : i + across], height) for i in range(0, len(columns), across)]


def _band(columns: list[list], height: float) -> tuple[float, list[list]]:
    """Columns side by side, each of one panel or several, one above the other, that share `height`."""
    rows = max(map(len, columns))
    mosaic = [[column[row % len(column)] for column in columns] for row in range(rows)]
    return rows * AROUND + max(height, 1.1 * (rows - 1)), mosaic


def _style():
    """A context with matplotlib's own style and ours, whatever the user's, which is back when it ends."""
    try:
        import matplotlib.style
    except ImportError:
        raise MinikdError("the dashboard needs matplotlib, which is not installed: pip install matplotlib") from None
    return matplotlib.style.context(["default", STYLE])
