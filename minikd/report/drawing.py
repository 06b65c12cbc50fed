"""What the tables, the dashboard and the page share: the look of a model, and texts that fit.

The colours are Okabe & Ito's (2008), which readers with any colour vision can tell apart, without their yellow and
black, and two of Tol's (2021): yellow is too pale for a line on white, and black has no darker shade.
"""

import math
import re

ROLES = {"teacher": "#0072B2", "distilled": "#D55E00", "baseline": "#009E73", "control": "#CC79A7"}
OTHERS = ("#E69F00", "#56B4E9", "#882255", "#332288")
SHADES = (0, 0.45, -0.35, 0.25, -0.2)  # towards white, or black where negative
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")


def role_of(name: str) -> str | None:
    """Which of ROLES is a word of the model's name; None: none of them."""
    return next((word for word in re.findall("[a-z]+", str(name).lower()) if word in ROLES), None)


def looks(names) -> dict[str, dict]:
    """{name: {"color", "marker", "linestyle"}} for the models of a picture, whatever their order.

    A role (teacher, distilled, control or baseline) that is a word of a name decides the colour, so that it is the same
    in every picture; the other models share the other colours in the order of their names. Models of one colour differ
    in shade, marker and line: a quantised copy from its original, always in the same way, and models of one role from
    each other.
    """
    parts = {name: re.fullmatch(r"(.*?)(|-int8|-int4)", str(name), re.DOTALL).groups() for name in names}
    originals = sorted({original for original, _ in parts.values()})
    others = [name for name in originals if not role_of(name)]
    families = [[role, *(name for name in originals if role_of(name) == role != name)] for role in ROLES]
    families += [others[i :: len(OTHERS)] for i in range(len(OTHERS))]
    found = {}
    for name, (original, copy) in parts.items():
        hue = next(hue for hue, family in enumerate(families) if original in family)
        step = 3 * families[hue].index(original) + ("", "-int8", "-int4").index(copy)
        found[name] = {
            "color": _shade([*ROLES.values(), *OTHERS][hue], SHADES[step % len(SHADES)]),
            "marker": MARKERS[(hue + step) % len(MARKERS)],
            "linestyle": LINES[step % len(LINES)],
        }
    return found


def _shade(color: str, amount: float) -> str:
    """The colour moved by a share `amount` of the way to white, or to black where it is negative."""
    parts = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(part + abs(amount) * ((255 if amount > 0 else 0) - part)):02X}" for part in parts)


def short(text, limit: int) -> str:
    """One line of at most `limit` characters; the middle is left out, since names often differ at their ends."""
    text = " ".join(str(text).split())
    half = (limit - 1) // 2
    text = text if len(text) <= limit else f"{text[: limit - 1 - half]}…{text[-half:]}"
    return text.replace("$", "\\$")  # matplotlib would set $…$ as mathematics


def three_digits(value: float) -> str:
    """Three significant digits without a power of ten: 1,140, 28.8, 0.958, 0.00213."""
    if value >= 100:
        return f"{value:,.0f}"
    rounded = float(f"{value:.3g}")  # 9.999 is 10.0, not 10.00
    return f"{rounded:.{2 - math.floor(math.log10(rounded))}f}" if rounded else "0"


def points(difference: float) -> str:
    """A difference of two accuracies in points, with its sign: +0.41, −1.03."""
    return f"{100 * difference:+z.2f}".replace("-", "−")
