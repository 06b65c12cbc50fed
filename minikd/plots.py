"""The dashboard: one picture of everything in results.json, legible at README width (half its own).

Here is the page: which panels, where, and the style. panels.py draws each of them. A panel without data is left out.
matplotlib is optional, so it is imported where it is used.
"""

import math
import statistics
import warnings
from functools import partial
from pathlib import Path

from minikd import panels
from minikd.drawing import INK, bins_of, curve_of, label_names, look, model_name, short, upright, values_of
from minikd.files import UserError, atomic_file

# All lengths of the page are in inches.
WIDTH, DPI = 12.0, 150
TITLE, HEADING, AXIS = 0.9, 0.66, 0.72  # heights of the page's title, of a panel's title, of ticks and label below it
GAP, RIGHT = 0.8, 0.2  # between panels, where ticks and label have to go, and at the end
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
}


def dashboard(results: dict, path: Path) -> None:
    """Draws `results`, the content of results.json, as a PNG 1,800 pixels wide at `path`, whole or not at all.

    Raises UserError if matplotlib is missing or there is nothing to draw, OSError if `path` cannot be written.
    """
    with _style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the box in the picture says as much
        figure = draw(results)
        with atomic_file(path) as file:
            figure.savefig(file, format="png", dpi=DPI)


def draw(results: dict):
    """The dashboard of `results` as a matplotlib Figure. From top to bottom: quality, size and latency; training loss,
    validation accuracy, reliability and a confusion matrix per model; the sweep over alpha × T.

    Raises UserError if matplotlib is missing or there is nothing to draw.
    """
    with _style():
        from matplotlib.figure import Figure  # pyplot would keep the figure and choose a backend for the user

        left = _left(results)
        bands = [*_lines(results), *_squares(results, left), *_sweep(results)]
        if not bands:
            raise UserError("results: no figures of models to draw; evaluate some models first")
        page = TITLE + sum(above + height + below for above, height, below, _, _ in bands)
        figure = Figure(figsize=(WIDTH, page))
        heading, settings = _title(results)
        figure.text(0.02, 1 - 0.38 / page, heading, fontsize=18, weight="bold", va="center")
        figure.text(0.02, 1 - 0.72 / page, settings, color=INK, va="center")
        y = page - TITLE
        for above, height, below, columns, drawers in bands:
            y -= above + height
            width = _width(left, columns)
            for column, drawer in enumerate(drawers):
                x = left + column * (width + GAP)
                drawer(figure.add_axes((x / WIDTH, y / page, width / WIDTH, height / page)))
            y -= below
        return figure


def _title(results: dict) -> tuple[str, str]:
    rows = results.get("models") or []
    split = results.get("split") and f"{results['split']} split"
    examples = results.get("examples") and f"{results['examples']:,} examples"
    heading = ", ".join(short(text, 40) for text in (results.get("dataset"), split, examples) if text)
    threads = results.get("threads") and f"{results['threads']} thread{'s' * (results['threads'] > 1)}"
    seeds = results.get("seeds") or [(results.get("arguments") or {}).get("seed")]
    repeats = max((len(values_of(row, "accuracy")) for row in rows), default=1)
    seed = f"mean ± std over {repeats} seeds" if repeats > 1 else None if seeds[0] is None else f"seed {seeds[0]}"
    settings = [str(text) for text in (results.get("precision"), results.get("device"), threads, seed) if text]
    return heading or "models", short(" · ".join(settings), 110)


def _left(results: dict) -> float:
    """The left edge of the first column: behind the longest name of a model or label."""
    rows = results.get("models") or []
    size = max((len(row.get("confusion") or "") for row in rows), default=0)
    names = [model_name(row) for row in rows]
    labels = label_names(results.get("labels"), size)
    return max([1, *(0.25 + 0.09 * len(name) for name in names), *(0.6 + 0.085 * len(label) for label in labels)])


def _width(left: float, columns: int) -> float:
    return (WIDTH - left - RIGHT - GAP * (columns - 1)) / columns


# The page's bands of panels: (room above, height, room below, columns, functions that draw on an Axes).


def _lines(results: dict) -> list[tuple]:
    """What is measured of each model, one line per model."""
    rows = results.get("models") or []
    choices = (
        (panels.quality, ("accuracy", "f1")),
        (panels.size, ("parameters", "size_mb")),
        (panels.latency, ("latency_1_ms", "latency_ms")),
    )
    chosen = [drawer for drawer, keys in choices if any(values_of(row, key) for row in rows for key in keys)]
    drawers = [partial(drawer, rows=rows, named=i == 0) for i, drawer in enumerate(chosen)]
    return [(HEADING, 0.15 + 0.5 * len(rows), AXIS, len(drawers), drawers)] if drawers else []


def _squares(results: dict, left: float) -> list[tuple]:
    """Curves and reliability, under the key to the models' colours and markers, then a confusion matrix per model.

    Matrices come first in a row, since the names of the true labels need the page's left margin."""
    rows, curves = results.get("models") or [], results.get("curves") or {}
    upper = [
        partial(drawer, rows=rows, curves=curves)
        for kind, drawer in (("train", panels.loss), ("validation", panels.validation))
        if any(curve_of(curves, row, kind) for row in rows)
    ]
    matrices = [(i, row) for i, row in enumerate(rows) if row.get("confusion")]
    calibration = [partial(panels.reliability, rows=rows)] * any(bins_of(row) for row in rows)
    if upper and len(matrices) != 1:  # a single matrix has room beside it
        upper, calibration = upper + calibration, []
    size = max((len(row["confusion"]) for _, row in matrices), default=0)
    count = len(matrices) + len(calibration)
    columns = 2 if count in (1, 2, 4) or size > MANY_LABELS else 3
    lower = [
        partial(panels.confusion, row=row, i=i, labels=results.get("labels"), named=place % columns == 0)
        for place, (i, row) in enumerate(matrices)
    ] + calibration

    bands = []
    if upper or calibration:
        keys = [partial(_key, rows=rows, column=column, width=_width(left, 3)) for column in range(min(3, len(rows)))]
        bands.append((0, 0.3 * math.ceil(len(rows) / 3), 0, 3, keys))
    if upper:
        bands.append((HEADING, 2.9, AXIS, len(upper), upper))
    names = label_names(results.get("labels"), size)
    below = AXIS + 0.07 * max(map(len, names), default=0) * upright(names, _width(left, columns))
    height = 4.8 if size > MANY_LABELS else 2.9
    bands += [(HEADING, height, below, columns, lower[i : i + columns]) for i in range(0, count, columns)]
    return bands


def _key(ax, rows: list[dict], column: int, width: float) -> None:
    """The colour, marker, name and ECE of every third model, from `column` on."""
    for i, row in list(enumerate(rows))[column::3]:
        ax.plot([0, 0.15, 0.3], [i // 3] * 3, markevery=[1], markersize=7, label=row.get("name"), **look(i))
        text, ece = short(row.get("name"), int(width / 0.085) - 14), values_of(row, "ece")
        ax.text(0.4, i // 3, f"{text}   ECE {statistics.fmean(ece):.3f}" if ece else text, va="center")
    ax.set(xlim=(0, width), ylim=((len(rows) - 1) // 3 + 0.5, -0.5))
    ax.axis("off")


def _sweep(results: dict) -> list[tuple]:
    rows, sweep = results.get("models") or [], results.get("sweep") or {}
    cells = [cell for cell in sweep.get("cells") or [] if cell.get("alpha") is not None and cell.get("T") is not None]
    swept = next((i for i, row in enumerate(rows) if row.get("name") == "distilled"), 0)
    drawers = [
        partial(panels.heat_map, cells=cells, chosen=sweep.get("chosen"), key=key, title=title, i=swept)
        for key, title in (("validation_accuracy", "validation accuracy"), ("validation_ece", "validation ECE"))
        if any(values_of(cell, key) for cell in cells)
    ]
    height = max(1.2, 0.45 * len({cell["alpha"] for cell in cells}))
    return [(HEADING, height, AXIS, len(drawers), drawers)] if drawers else []


def _style():
    """A context with matplotlib's own style and ours, whatever the user's, which is back when it ends."""
    try:
        import matplotlib.style
    except ImportError:
        raise UserError("the dashboard needs matplotlib, which is not installed: pip install matplotlib") from None
    return matplotlib.style.context(["default", STYLE])
