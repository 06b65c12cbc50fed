"""What the dashboard reads from results.json, also of earlier versions. A figure may be absent or None."""

import math
import statistics

from minikd.report.drawing import role_of, short


def values_of(row: dict, key: str) -> list:
    """A figure as the list of its values over seeds; an absent one as the empty list."""
    value = row.get(key)
    return [v for v in (value if isinstance(value, list) else [value]) if v is not None]


def seeds_of(row: dict) -> int:
    """The number of seeds that a row's figures of quality were taken over."""
    return max(1, *(len(values_of(row, key)) for key in ("accuracy", "f1", "ece")))


def repeats_of(results: dict) -> str:
    """What the figures were taken over where there are several: "fold" or "seed"."""
    return "fold" if results.get("folds") else "seed"


def bins_of(row: dict) -> list:
    """The bins of the reliability diagram that hold examples: [number, mean confidence, accuracy] of each."""
    return [bin for bin in row.get("reliability") or [] if bin[0] and None not in bin]


def curve_of(results: dict, name: str, kind: str) -> list:
    """The model's "train" or "validation" curve; empty where there is none."""
    return ((results.get("curves") or {}).get(name) or {}).get(kind) or []


def cells_of(results: dict, key: str) -> list[dict]:
    """The cells of the sweep that have this figure."""
    cells = (results.get("sweep") or {}).get("cells") or []
    return [cell for cell in cells if None not in (cell.get("alpha"), cell.get("T"), cell.get(key))]


def lines_of(results: dict) -> list[dict]:
    """The models, and below them what their quality is compared with, where it is known: the bag of words, the best
    possible accuracy, and the interval of each difference between students, from the accuracy of the second on."""
    lines, words, best = list(results["models"]), results.get("bag_of_words"), results.get("best_possible_accuracy")
    accuracies = {row.get("name"): values_of(row, "accuracy") for row in lines}
    lines += [{"name": "bag of words", **words}] if words else []
    lines += [{"name": "best possible", "accuracy": best}] if best is not None else []
    compared = [{"models": ["distilled", "baseline"], **(results.get("significance") or {})}]
    for found in compared + (results.get("comparisons") or []):
        (one, other), interval = found["models"], [found.get(key) for key in ("difference", "low", "high")]
        known = all(isinstance(value, int | float) and math.isfinite(value) for value in interval)
        if known and accuracies.get(other) and one in accuracies:
            lines.append({
                "name": f"{one} − {other}",
                "models": (one, other),
                "start": statistics.fmean(accuracies[other]),
                "interval": interval,
                "confidence": found.get("confidence", 0.95),
            })  # fmt: skip
    return lines


def losses(results: dict) -> dict[tuple[str, str], list[str]]:
    """{(title, formula): models} with a training loss: only losses of one formula can be compared.

    The settings are those recorded with the curve. Older results have them in their arguments, if at all."""
    arguments, kinds = results.get("arguments") or {}, {}
    older = {key: arguments[key][0] for key in ("alpha", "T") if len(arguments.get(key) or []) == 1}
    older |= (results.get("sweep") or {}).get("chosen") or {}
    for name in [row.get("name") for row in results["models"] if curve_of(results, row.get("name"), "train")]:
        settings = results["curves"][name].get("settings") or (older if role_of(name) == "distilled" else {"alpha": 1})
        smoothing = settings.get("label_smoothing", arguments.get("label_smoothing"))
        ce = f"CE (label smoothing {smoothing:g})" if smoothing else "CE"
        if settings.get("alpha") == 1:
            kind = "labels alone", ce
        elif settings.keys() >= {"alpha", "T"}:
            alpha, T, soft = settings["alpha"], settings["T"], settings.get("soft_loss", "kl").upper()
            soft = soft if soft == "MSE" else f"{T:g}² · {soft}"
            kind = "distilled", f"{alpha:g} · {ce} + " * (alpha > 0) + f"{1 - alpha:g} · {soft}"
        else:
            kind = short(name, 20), f"alpha · {ce} + (1 − alpha) · T² · KL"
        kinds.setdefault(kind, []).append(name)
    return kinds
