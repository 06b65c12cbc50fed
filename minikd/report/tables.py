"""The comparison of models, on screen and in files: a table with a column per model, and the notes under it."""

import statistics

from minikd.report.drawing import three_digits

THREE_DIGITS = "three significant digits"  # in place of a format

# key in results.json, heading, format; a line without any value is left out
LINES = (
    ("parameters", "parameters", "{:,.0f}"),
    ("trained_parameters", "trained parameters", "{:,.0f}"),
    ("size_mb", "weights, MiB", "{:.2f}"),
    ("accuracy", "accuracy", "{:.4f}"),
    ("agreement", "same label as unquantised", "{:.2%}"),
    ("f1", "F1", "{:.4f}"),
    ("precision", "precision", "{:.4f}"),
    ("recall", "recall", "{:.4f}"),
    ("weighted_f1", "weighted F1", "{:.4f}"),
    ("kl_to_truth", "KL to truth", "{:.4f}"),
    ("nll", "negative log-likelihood", "{:.4f}"),
    ("brier", "Brier score", "{:.4f}"),
    ("ece", "ECE, 15 bins", "{:.4f}"),
    ("temperature", "calibrating temperature", "{:.2f}"),
    ("ece_calibrated", "ECE, calibrated", "{:.4f}"),
    ("nll_calibrated", "negative log-likelihood, calibrated", "{:.4f}"),
    ("latency_1_ms", "ms/sample, one at a time", THREE_DIGITS),
    ("latency_ms", "ms/sample, in batches of 128", THREE_DIGITS),
    ("batch_100_ms", "ms/batch of 100", THREE_DIGITS),
    ("batch_128_ms", "ms/batch of 128", THREE_DIGITS),
    ("throughput", "samples/s, in batches of 100", "{:,.0f}"),
    ("peak_memory_mb", "peak memory of inference, MiB", "{:,.0f}"),
    ("training_minutes", "minutes of training", "{:,.1f}"),
    ("caching_minutes", "minutes of caching its logits", "{:,.1f}"),
    ("run_minutes", "minutes of the whole run", "{:,.1f}"),
    ("training_peak_mb", "peak memory of training alone, MiB", "{:,.0f}"),
    ("training_memory_mb", "peak memory of training, MiB", "{:,.0f}"),  # of older versions: with all the process held
    ("accuracy_change", "change of accuracy, points", "{:+.2f}"),
    ("weighted_f1_change", "change of weighted F1, points", "{:+.2f}"),
    ("latency_1_change", "change of latency, one at a time", "{:+.0%}"),
    ("latency_change", "change of latency, in batches of 100", "{:+.0%}"),
    ("throughput_change", "change of throughput", "{:+.0%}"),
    ("parameter_change", "change of parameters", "{:+.0%}"),
    ("size_change", "change of the weights' size", "{:+.0%}"),
    ("memory_change", "change of peak memory of inference", "{:+.0%}"),
    ("retention", "retention of accuracy", "{:.1%}"),
    ("f1_retention", "retention of F1", "{:.1%}"),
    ("speed_up", "speed-up, in batches of 128", "{:.2f}×"),
    ("parameter_fraction", "share of parameters", "{:.1%}"),
    ("efficiency_ratio", "efficiency ratio", "{:.1%}"),
)
# The figure of a sweep's cell by which each criterion chooses, and whether the lowest (1) or highest (-1) is best.
BEST = {"accuracy": ("validation_accuracy", -1), "nll": ("validation_loss", 1), "ece": ("validation_ece", 1)}
# What compares with the first model: meaningless where it is the only one, and says nothing in its own column.
COMPARISONS = ("accuracy_change", "weighted_f1_change", "latency_1_change", "latency_change", "throughput_change",
               "parameter_change", "size_change", "memory_change", "retention", "f1_retention", "speed_up",
               "parameter_fraction", "efficiency_ratio")  # fmt: skip
# Those that repeat what other lines tell: shown where asked for, or where a recipe's author printed them.
REPEATED = ("weighted_f1_change", "latency_1_change", "latency_change", "throughput_change", "parameter_change",
            "size_change", "memory_change")  # fmt: skip


def table(results: dict, keys: tuple[str, ...] = ()) -> str:
    """The figures as a Markdown table that also reads well on screen: a line per figure, a column per model.

    Lists of values (seeds) become mean ± std. Where a recipe was followed, what its author published stands at the
    right, under "published". `keys` picks lines; none: all that have a value, but for repetitions.
    """
    rows = results["models"]
    published = results.get("published", {}).get("models", {})
    published = {f"published {name}": values for name, values in published.items()}
    lines = [["", *(row["name"].replace("|", "\\|") for row in rows), *published]]
    for key, heading, form in LINES:
        if (keys and key not in keys) or (key in COMPARISONS and len(rows) == 1):
            continue
        if key in REPEATED and not keys and not any(key in values for values in published.values()):
            continue
        if key == "trained_parameters" and all(row.get(key) in (None, row.get("parameters")) for row in rows):
            continue  # nothing was frozen
        cells = ["–" if key in COMPARISONS and row is rows[0] else _cell(row.get(key), form) for row in rows]
        cells += [values.get(key, "–") for values in published.values()]
        if set(cells) != {"–"}:
            lines.append([heading, *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["| " + " | ".join(_pad(cell, width, i) for i, (cell, width) in enumerate(zip(line, widths))) + " |"
            for line in lines]  # fmt: skip
    rule = "|" + "|".join("-" * (width + 1) + ("-" if i == 0 else ":") for i, width in enumerate(widths)) + "|"
    return "\n".join([text[0], rule, *text[1:]])


def _pad(text: str, width: int, column: int) -> str:
    return text.ljust(width) if column == 0 else text.rjust(width)


def _cell(value, form: str) -> str:
    if value is None:
        return "–"
    if not isinstance(value, list):
        return three_digits(value) if form == THREE_DIGITS else form.format(value)
    mean = form.format(statistics.mean(value))
    return mean if len(set(value)) == 1 else f"{mean} ± {form.format(statistics.stdev(value)).lstrip('+')}"


def notes(results: dict, keys: tuple[str, ...] = ()) -> str:
    """The lines under the table: a warning where the split is too small, what the students started from, the simple
    baseline, the ceiling where it is known, significance, machine."""
    lines = []
    if results.get("chance_margin"):
        lines.append(
            f"only {results['examples']} examples in the {results['split']} split, too few to tell models apart: "
            f"chance alone moves an accuracy by up to ±{100 * results['chance_margin']:.0f} points (95%)"
        )
    if results.get("first_weights"):
        students = [row["name"] for row in results["models"] if row["name"] in ("distilled", "baseline")]
        lines.append(
            f"{' and '.join(students)} start{'s' * (len(students) == 1)} from {results['first_weights']}"
            + "; the baseline is trained on the labels alone" * ("baseline" in students)
        )
    if results.get("bag_of_words"):
        lines.append(
            f"bag of words (logistic regression): accuracy {_cell(results['bag_of_words']['accuracy'], '{:.4f}')}"
        )
    if results.get("best_possible_accuracy"):
        lines.append(f"best possible, from the known probabilities: accuracy {results['best_possible_accuracy']:.4f}")
    if results.get("sweep"):
        lines.append(sweep_choice(results["sweep"]))
    if names := results.get("trained_on"):
        was, its = ("were", "their") if len(names) > 1 else ("was", "its")
        lines.append(f"{', '.join(names)} {was} trained on a part of these examples: {its} figures are too optimistic")
    if names := results.get("trained_on_another_version"):
        was, its = ("were", "their") if len(names) > 1 else ("was", "its")
        lines.append(
            f"{', '.join(names)} {was} trained on another version of these data: {its} training texts may be in this "
            f"split"
        )
    if results.get("significance"):
        lines.append(sentence(results["significance"], too_few="chance_margin" in results))
    lines += quantization_changes(results.get("quantized", []), results["precision"])
    if results.get("found_finished") is not None and (not keys or "run_minutes" in keys):
        found = results["found_finished"] + ["the steps before --resume"] * bool(results["arguments"].get("resume"))
        lines.append(
            "minutes of the whole run: those of this command, evaluation included"
            + f"; not in them, because earlier commands did it: {', '.join(found)}" * bool(found)
        )
    if results.get("published"):
        also = results["published"].get("also", "")
        lines.append(
            "published: what the experiment's author printed, measured on other hardware with other weights"
            + f"; also: {also}" * bool(also)
        )
    lines.append(conditions(results))
    return "\n".join(lines)


def sweep_table(results: dict) -> str:
    """Validation accuracy and ECE (NLL, if that chose) of every pair of a sweep: a line per alpha, a column per T, the
    chosen pair bold."""
    cells, chosen = results["sweep"]["cells"], results["sweep"]["chosen"]
    choose = results["sweep"].get("choose", "accuracy")  # results of before --choose have none
    second, figure = ("nll", "validation_loss") if choose == "nll" else ("ece", "validation_ece")
    found = {(cell["alpha"], cell["T"]): cell for cell in cells}
    columns = list(dict.fromkeys(T for _, T in found))
    heading = f"validation accuracy ({second.upper()}), chosen by {choose}"
    lines = [[heading, *(f"T {T:g}" for T in columns)], ["---", *("---:" for _ in columns)]]
    for alpha in dict.fromkeys(alpha for alpha, _ in found):
        texts = []
        for T in columns:
            cell = found[alpha, T]
            text = f"{cell['validation_accuracy']:.4f} ({cell[figure]:.4f})"
            texts.append(f"**{text}**" if {"alpha": alpha, "T": T} == chosen else text)
        lines.append([f"alpha {alpha:g}", *texts])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(results: dict, keys: tuple[str, ...] = ()) -> str:
    """The table (lines picked by `keys`), that of the sweep if there was one, and the notes, as Markdown."""
    parts = [table(results, keys), *([sweep_table(results)] if results.get("sweep") else []), notes(results, keys)]
    return "\n\n".join(parts)


def conditions(results: dict) -> str:
    """Data, precision, machine and seeds of the figures, in one line."""
    seeds = results.get("seeds") or [results["arguments"].get("seed")]
    count, data = f"{results['examples']:,}", results["dataset"]
    if results["arguments"].get("dataset") == "fpb":
        agreement = results["arguments"]["fpb_agreement"]
        data += f" ({'all' if agreement == 'all' else f'at least {agreement}%'} agree)"
    parts = [
        (f"{data}, " if data else "")
        + (
            f"all {count} examples"
            if results["split"] == "all"
            else f"{results['split']} of {count}"
            if not data
            else f"{results['split']} split of {count}"
        ),
        f"{results['precision']} on {results['device']} ({results['threads']} threads)",
        f"{len(seeds)} seeds, mean ± std" if len(seeds) > 1 else f"seed {seeds[0]}",
    ]
    tokens = results["models"][0].get("tokens_per_example")
    if tokens:
        longest = results["models"][0]["padded_tokens"]
        parts.append(f"times on {tokens:.0f} tokens a text, in batches padded to {longest}")
    return "; ".join(text for text in parts if text != "seed None")  # evaluate.py has no seed


def sentence(comparison: dict, name_a: str = "distilled", name_b: str = "baseline", too_few: bool = False) -> str:
    """What `compare` found, in plain words: the difference, the interval, the verdict, and McNemar's p per seed.

    A record of several seeds without "method" is of an earlier version, which used a paired bootstrap: too narrow for a
    verdict. `too_few`: the examples allow none.
    """
    low, high, seeds = comparison["low"], comparison["high"], len(comparison["seeds"])
    method = comparison.get("method", "paired bootstrap")
    over = f"{method} over {comparison['examples']:,} examples and {seeds} seed{'s' * (seeds > 1)}"
    p_values = ", ".join("<0.001" if test["p"] < 0.001 else f"{test['p']:.3f}" for test in comparison["seeds"])
    verdict = "So few examples allow no verdict" if too_few else _verdict(comparison, name_a, name_b)
    return (
        f"{name_a} − {name_b}: {_points(comparison['difference'])} points of accuracy "
        f"({comparison['confidence']:.0%} interval {_points(low)} to {_points(high)}, {over}). "
        f"{verdict}; McNemar's p{' per seed' * (seeds > 1)}: {p_values}."
    )


def _verdict(comparison: dict, name_a: str, name_b: str) -> str:
    """What the interval allows to say: of these two models with one seed, of such training runs with several."""
    low, high, one_pair = comparison["low"], comparison["high"], len(comparison["seeds"]) == 1
    if low <= 0 <= high:
        if one_pair:
            return "The interval includes 0: this test does not show which of this pair of models is better"
        return "The interval includes 0: this test does not show that training runs like these make either better"
    better = name_a if low > 0 else name_b
    if not one_pair and "method" not in comparison:
        return "The interval excludes 0, but a bootstrap of so few seeds is too narrow for a verdict"
    if one_pair:
        verdict = f"of this pair of models, {better} is the better one (other training runs may differ)"
    else:
        verdict = f"in training runs like these, {better} is better on average"
    return f"The interval excludes 0: {verdict}"


def _points(difference: float) -> str:
    return f"{100 * difference:+z.2f}".replace("-", "−")


def sweep_choice(sweep: dict) -> str:
    """Which pair a sweep chose and by which figure; and those that the other figures favour, where they differ."""
    cells, choose = sweep["cells"], sweep.get("choose", "accuracy")
    pair = "alpha {alpha:g} and T {T:g}"
    chosen, best = pair.format(**sweep["chosen"]), {name: pair.format(**_best(cells, name)) for name in BEST}
    others = (f"; by {name}: {other}" for name, other in best.items() if other != chosen)
    return f"{chosen} chosen on validation by {choose}, among {len(cells)} pairs of a sweep{''.join(others)}"


def _best(cells: list[dict], name: str) -> dict:
    key, sign = BEST[name]
    return min(cells, key=lambda cell: (sign * cell[key], cell["validation_loss"]))


def quantization_changes(copies: list[dict], precision: str) -> list[str]:
    """A line for each quantised copy: what it changes against its original in `precision`; and a line on what
    experiment E5's author hoped for. [] where there are none."""
    lines = []
    for changes in copies:
        parts = [f"{words} {changes[key]:{form}}{unit}" for words, key, form, unit in (
            ("latency one at a time", "latency_1_change", "+z.0%", ""),
            ("in batches of 100", "latency_change", "+z.0%", ""),
            ("peak memory", "memory_change", "+z.0%", ""),
            ("size", "size_change", "+z.0%", ""),
            ("accuracy", "accuracy_change", "+z.2f", " points"),
        ) if changes[key] is not None]  # fmt: skip
        lines.append(
            f"{changes['name']} against {changes['original']} in {precision}: {', '.join(parts)}".replace(" -", " −")
        )
    wish = "for comparison: the author of experiment E5 hoped for 30 % less latency and half the size"
    return [*lines, wish] if lines else []
