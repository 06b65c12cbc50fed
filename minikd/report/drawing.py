"""What the dashboard's panels and the page share: the look of a model, names that fit, and figures from results.json.

The colours are Okabe & Ito's (2008), which readers with any colour vision can tell apart, without their yellow and
black, and two of Tol's (2021): yellow is too pale for a line on white, and black has no darker shade.
"""

import math
import re

FORMATS = ("int8", "int4")  # of quantised copies, whose names end in one
ROLES = {"teacher": "#0072B2", "distilled": "#D55E00", "baseline": "#009E73"}
OTHERS = ("#CC79A7", "#E69F00", "#56B4E9", "#882255", "#332288")
SHADES = (0, 0.45, -0.35, 0.25, -0.2)  # towards white, or black where negative
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")
INK, GREY = "#444444", "#777777"


def role_of(name: str) -> str | None:
    """Which of teacher, distilled and baseline is a word of the model's name; None: none of them."""
    return next((word for word in re.findall("[a-z]+", name.lower()) if word in ROLES), None)


def looks(names) -> dict[str, dict]:
    """{name: {"color", "marker", "linestyle"}} for the models of a picture, whatever their order.

    The word teacher, distilled or baseline in a name decides the colour, so that it is the same in every picture; the
    other models share the other colours in the order of their names. Models of one colour differ in shade, marker and
    line: a quantised copy from its original, always in the same way, and models of one role from each other.
    """
    split = {name: re.fullmatch(rf"(.*?)(?:-({'|'.join(FORMATS)}))?", str(name), re.DOTALL).groups() for name in names}
    palette, roles = [*ROLES.values(), *OTHERS], list(ROLES)
    places, others = {}, 0  # name without the format -> (its colour, its number among the models of that colour)
    numbers = [1] * len(ROLES) + [0] * len(OTHERS)  # of the next model; 0 is kept for the role's own name
    for base in sorted({base for base, _ in split.values()}):
        role = role_of(base)
        if role == base:
            places[base] = roles.index(role), 0
            continue
        hue = roles.index(role) if role else len(ROLES) + others % len(OTHERS)
        places[base] = hue, numbers[hue]
        numbers[hue] += 1
        others += not role
    found = {}
    for name, (base, quantised) in split.items():
        hue, number = places[base]
        step = number * (1 + len(FORMATS)) + ("", *FORMATS).index(quantised or "")
        found[name] = {
            "color": _shade(palette[hue], SHADES[step % len(SHADES)]),
            "marker": MARKERS[(hue + step) % len(MARKERS)],
            "linestyle": LINES[step % len(LINES)],
        }
    return found


def _shade(color: str, amount: float) -> str:
    """The colour moved by a share `amount` of the way to white, or to black where it is negative."""
    parts = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(part + abs(amount) * ((255 if amount > 0 else 0) - part)):02X}" for part in parts)


def heading(ax, title: str, note: str) -> None:
    """The panel's title, and a note under it."""
    ax.set_title(title, pad=27)
    ax.annotate(note, (0, 1), (0, 9), xycoords="axes fraction", textcoords="offset points", color=INK, fontsize=11)


def values_of(row: dict, key: str) -> list:
    """A figure as the list of its values over seeds; an absent one as the empty list."""
    value = row.get(key)
    return [v for v in (value if isinstance(value, list) else [value]) if v is not None]


def seeds_of(row: dict) -> int:
    """The number of seeds that a row's figures of quality were taken over."""
    return max(1, *(len(values_of(row, key)) for key in ("accuracy", "f1", "ece")))


def bins_of(row: dict) -> list:
    """The bins of the reliability diagram that hold examples."""
    return [bin for bin in row.get("reliability") or [] if bin[0] and None not in bin]


def curve_of(results: dict, row: dict, kind: str) -> list:
    """The model's "train" or "validation" curve, as in results.json; empty where there is none."""
    return ((results.get("curves") or {}).get(row.get("name")) or {}).get(kind) or []


def losses(results: dict) -> dict[tuple[str, str], list[dict]]:
    """{(title, formula): rows} of the models with a training loss: only losses of one formula can be compared.

    The settings are those recorded with the curve. Older results have them in their arguments, if at all."""
    arguments, kinds = results.get("arguments") or {}, {}
    older = {key: arguments[key][0] for key in ("alpha", "T") if len(arguments.get(key) or []) == 1}
    older |= (results.get("sweep") or {}).get("chosen") or {}
    for row in results["models"]:
        if not curve_of(results, row, "train"):
            continue
        name = str(row.get("name"))
        settings = results["curves"][name].get("settings") or (older if role_of(name) == "distilled" else {"alpha": 1})
        smoothing = settings.get("label_smoothing", arguments.get("label_smoothing"))
        ce = f"CE (label smoothing {smoothing:g})" if smoothing else "CE"
        if settings.get("alpha") == 1:
            kind = "labels alone", ce
        elif settings.keys() >= {"alpha", "T"}:
            alpha, T = settings["alpha"], settings["T"]
            kind = "distilled", f"{alpha:g} · {ce} + " * (alpha > 0) + f"{1 - alpha:g} · {T:g}² · KL"
        else:
            kind = short(name, 20), f"alpha · {ce} + (1 − alpha) · T² · KL"
        kinds.setdefault(kind, []).append(row)
    return kinds


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


def points(difference: float) -> str:
    """A difference of two accuracies in points, with its sign: +0.41, −1.03."""
    return f"{100 * difference:+z.2f}".replace("-", "−")
