"""What the dashboard's panels share: the look of a model, names that fit, and figures from results.json.

A model keeps its colour in every panel, and its marker where models share axes. The colours are Okabe & Ito's (2008),
which readers with any colour vision can tell apart; a grey replaces their yellow, too pale for a line on white.
"""

import math

# Teacher, distilled and baseline have the first three, here and on the page (dark_knowledge.html).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # 7 against 8 colours: no pair comes twice in 56 models
LINES = ("-", "--", ":", "-.")
INK = "#444444"


def heading(ax, title: str, note: str) -> None:
    """The panel's title, and a note under it."""
    ax.set_title(title, pad=27)
    ax.annotate(note, (0, 1), (0, 9), xycoords="axes fraction", textcoords="offset points", color=INK, fontsize=11)


def look(i: int) -> dict:
    """Colour, marker and line of the i-th model."""
    line = LINES[i // len(COLORS) % len(LINES)]
    return {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)], "linestyle": line}


def values_of(row: dict, key: str) -> list:
    """A figure as the list of its values over seeds; an absent one as the empty list."""
    value = row.get(key)
    return [v for v in (value if isinstance(value, list) else [value]) if v is not None]


def bins_of(row: dict) -> list:
    """The bins of the reliability diagram that hold examples."""
    return [bin for bin in row.get("reliability") or [] if bin[0] and None not in bin]


def curve_of(curves: dict, row: dict, kind: str) -> list:
    """The model's "train" or "validation" curve, as in results.json; empty where there is none."""
    return (curves.get(row.get("name")) or {}).get(kind) or []


def model_name(row: dict) -> str:
    """The model's name, short enough for an axis."""
    return short(row.get("name"), 20)


def label_names(labels: list | None, size: int) -> list[str]:
    """The names of the labels where there is one for each, otherwise their ids."""
    return [short(name, 14) for name in (labels if labels and len(labels) == size else range(size))]


def upright(names: list[str], width: float) -> bool:
    """Whether names below a matrix of this width (inches) have to stand upright."""
    return len(names) * 0.09 * max(map(len, names), default=0) > width


def short(text, limit: int) -> str:
    """One line of at most `limit` characters; the middle is left out, since names often differ at their ends."""
    text = " ".join(str(text).split())
    half = (limit - 1) // 2
    text = text if len(text) <= limit else f"{text[: limit - 1 - half]}…{text[-half:]}"
    return text.replace("$", "\\$")  # $…$ would be set as mathematics


def three_digits(value: float) -> str:
    """Three significant digits without a power of ten: 1,140, 28.8, 0.958, 0.00213."""
    if value >= 100:
        return f"{value:,.0f}"
    rounded = float(f"{value:.3g}")  # 9.999 is 10.0, not 10.00
    return f"{rounded:.{2 - math.floor(math.log10(rounded))}f}" if rounded else "0"
