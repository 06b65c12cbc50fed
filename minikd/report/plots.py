"""The dashboard: one picture of everything in results.json, legible at README width (half its own).

Here is the page: which panels, in which rows, and the style; panels.py draws each panel. A panel without data is left
out. matplotlib is optional, so it is imported where it is used.
"""

import math
import warnings
from functools import partial
from pathlib import Path

from minikd.errors import MinikdError
from minikd.files import atomic_file
from minikd.report import panels
from minikd.report.drawing import looks, short
from minikd.report.figures import bins_of, cells_of, curve_of, lines_of, losses, values_of
from minikd.report.tables import conditions

WIDTH, DPI = 12.0, 150  # inches, as all heights here
MANY_LABELS = 14  # from here on a confusion matrix needs half the width
STYLE = {
    "font.size": 12,
    "axes.titlesize": 14,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#999999",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "lines.linewidth": 1.8,
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
        rows = _rows(results)
        if not rows:
            raise MinikdError("results: no figures of models to draw; evaluate some models first")
        look = looks(row.get("name") for row in results["models"])
        heights = [0.9, *(height for height, _ in rows)]
        figure = Figure(figsize=(WIDTH, sum(heights)))
        title, *parts = figure.subfigures(len(heights), 1, height_ratios=heights)
        data, *settings = conditions(results).split("; ")
        heading = f"{short(data.removesuffix(' examples'), 60)} examples"
        title.text(0.01, 0.6, heading, fontsize=18, weight="bold", va="center")
        title.text(0.01, 0.2, short(" · ".join(settings), 120), fontsize=11, va="center")
        for part, (_, mosaic) in zip(parts, rows):
            for panel, ax in part.subplot_mosaic(mosaic).items():
                panel(ax, results, look)
        return figure


def _rows(results: dict) -> list[tuple[float, list]]:
    """The rows of the page: (height, mosaic of the functions that draw its panels)."""
    rows = results["models"]

    def if_any(panel, *keys):
        return [[panel]] * any(values_of(row, key) for row in rows for key in keys)

    measures = if_any(panels.quality, "accuracy", "f1") + if_any(panels.size, "size_mb")
    measures += if_any(panels.latency, "latency_1_ms", "latency_ms")
    loss = [partial(panels.loss, kind=kind) for kind in losses(results)]  # one above the other
    curves = [loss] * bool(loss)
    curves += [[panels.validation]] * any(len(curve_of(results, row.get("name"), "validation")) > 1 for row in rows)
    curves += [[panels.reliability]] * any(bins_of(row) for row in rows)
    keys = [[panels.key]] * bool(curves)
    matrices = [[partial(panels.confusion, row=row)] for row in rows if row.get("confusion")]
    labels = max((len(row["confusion"]) for row in rows if row.get("confusion")), default=0)
    if curves and len(matrices) == 1 and labels <= MANY_LABELS:  # it has room beside the others
        curves, matrices = curves + matrices, []
    sweeps = [key for key in ("validation_accuracy", "validation_ece") if cells_of(results, key)]
    alphas = {cell["alpha"] for key in sweeps for cell in cells_of(results, key)}
    return [
        *_across(measures, 3, 1.7 + 0.5 * len(lines_of(results))),
        *_across(keys, 1, 0.16 + 0.26 * math.ceil(len(rows) / 3)),
        *_across(curves, 3, max(4.2, 2.5 * len(loss))),
        *_across(matrices, 2 if labels > MANY_LABELS else 3, min(6.5, 1.9 + 0.5 * labels)),
        *_across([[partial(panels.sweep, key=key)] for key in sweeps], 2, 1.6 + 0.6 * len(alphas)),
    ]


def _across(columns: list[list], most: int, height: float) -> list[tuple[float, list]]:
    """Rows of at most `most` columns, each of one panel or several, one above the other; blanks fill the last row."""
    across = 2 if len(columns) == 4 else min(most, len(columns)) or 1
    columns = columns + [["."]] * (-len(columns) % across)
    rows = [columns[i : i + across] for i in range(0, len(columns), across)]
    return [(height, [[column[i % len(column)] for column in row] for i in range(max(map(len, row)))]) for row in rows]


def _style():
    """A context with matplotlib's own style and ours, whatever the user's, which is back when it ends."""
    try:
        import matplotlib.style
    except ImportError:
        raise MinikdError("the dashboard needs matplotlib, which is not installed: pip install matplotlib") from None
    return matplotlib.style.context(["default", STYLE])
