"""The comparison of models, on screen and in files: a table with a column per model, and the notes under it."""

import statistics

from minikd.report.drawing import three_digits
from minikd.report.folds import choices, fold_sentence
from minikd.report.sentences import nothing_to_distil, quantization_changes, sentence, start_of_students

# Key in results.json, heading, format (None: three significant digits). A line without any value is left out.
MEASURES = (
    ("parameters", "parameters", "{:,.0f}"),
    ("trained_parameters", "trained parameters", "{:,.0f}"),
    ("size_mb", "weights, MiB", "{:.2f}"),
    ("accuracy", "accuracy", "{:.4f}"),
    ("agreement", "same label as unquantised", "{:.2%}"),
    ("teacher_agreement", "same label as the teacher", "{:.2%}"),
    ("f1", "F1", "{:.4f}"),
    ("precision", "precision", "{:.4f}"),
    ("recall", "recall", "{:.4f}"),
    ("weighted_f1", "weighted F1", "{:.4f}"),
    ("kl_to_truth", "KL to truth", "{:.4f}"),
    ("kl_to_teacher", "KL to the teacher", "{:.4f}"),
    ("nll", "negative log-likelihood", "{:.4f}"),
    ("brier", "Brier score", "{:.4f}"),
    ("ece", "ECE, 15 bins", "{:.4f}"),
    ("temperature", "calibrating temperature", "{:.2f}"),
    ("ece_calibrated", "ECE, calibrated", "{:.4f}"),
    ("nll_calibrated", "negative log-likelihood, calibrated", "{:.4f}"),
    ("latency_1_ms", "ms/sample, one at a time", None),
    ("latency_ms", "ms/sample, in batches of 128", None),
    ("batch_100_ms", "ms/batch of 100", None),
    ("batch_128_ms", "ms/batch of 128", None),
    ("throughput", "samples/s, in batches of 100", "{:,.0f}"),
    ("peak_memory_mb", "peak memory of inference, MiB", "{:,.0f}"),
    ("optimizer_steps", "optimizer steps", "{:,.0f}"),
    ("training_minutes", "minutes of training", "{:,.1f}"),
    ("caching_minutes", "minutes of caching its logits", "{:,.1f}"),
    ("run_minutes", "minutes of the whole run", "{:,.1f}"),
    ("training_peak_mb", "peak memory of training alone, MiB", "{:,.0f}"),
    ("training_memory_mb", "peak memory of training, MiB", "{:,.0f}"),  # of older versions: with all the process held
)
# With the first model: meaningless where it is the only one, and empty in its own column.
COMPARISONS = (
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
# Those that other lines imply: shown where asked for, or where a recipe's author published them.
IMPLIED = {key for key, *_ in COMPARISONS if key.endswith("_change")} - {"accuracy_change"}
# What a sweep can choose by: the figure of a cell, and whether the lowest (1) or the highest (-1) is the best.
CRITERIA = {"accuracy": ("validation_accuracy", -1), "nll": ("validation_loss", 1), "ece": ("validation_ece", 1)}


def report(results: dict, keys: tuple[str, ...] = ()) -> str:
    """The table (lines picked by `keys`), that of the sweep if there was one, and the notes, as Markdown."""
    parts = [table(results, keys), *([sweep_table(results)] if results.get("sweep") else []), notes(results, keys)]
    return "\n\n".join(parts)


def table(results: dict, keys: tuple[str, ...] = ()) -> str:
    """The figures as a Markdown table that also reads well on screen: a line per figure, a column per model.

    Lists of values (seeds) become mean ± std. Where a recipe was followed, what its author published is at the right,
    under "published". `keys` picks lines; without them: all that have a value, but for those that others imply.
    """
    rows = results["models"]
    published = results.get("published", {}).get("models", {})
    lines = [["", *(row["name"].replace("|", "\\|") for row in rows), *(f"published {name}" for name in published)]]
    for key, heading, form in MEASURES + COMPARISONS * (len(rows) > 1):
        theirs = [values.get(key, "–") for values in published.values()]
        if key not in keys if keys else key in IMPLIED and set(theirs) <= {"–"}:
            continue
        if key == "trained_parameters" and all(row.get(key) in (None, row.get("parameters")) for row in rows):
            continue  # nothing was frozen
        ours = [format_figure(row.get(key), form) for row in rows]
        if (key, heading, form) in COMPARISONS:
            ours[0] = "–"
        if {*ours, *theirs} != {"–"}:
            lines.append([heading, *ours, *theirs])
    first, *widths = (max(map(len, column)) for column in zip(*lines))
    text = [
        "| " + " | ".join([heading.ljust(first), *map(str.rjust, cells, widths)]) + " |" for heading, *cells in lines
    ]
    text.insert(1, f"|{'-' * (first + 2)}|" + "".join(f"{'-' * (width + 1)}:|" for width in widths))
    return "\n".join(text)


def format_figure(value, form: str | None) -> str:
    """A figure as text: '–' for None, the mean ± standard deviation of a list over seeds."""
    if value is None:
        return "–"
    show = form.format if form else three_digits
    if not isinstance(value, list):
        return show(value)
    mean = show(statistics.mean(value))
    return mean if len(set(value)) == 1 else f"{mean} ± {show(statistics.stdev(value)).lstrip('+')}"


def sweep_table(results: dict) -> str:
    """Validation accuracy and ECE (NLL, if that chose) of every pair of a sweep: a line per alpha, a column per T, the
    chosen pair bold."""
    sweep = results["sweep"]
    choose = sweep.get("choose", "accuracy")  # results of before --choose have none
    second, figure = ("NLL", "validation_loss") if choose == "nll" else ("ECE", "validation_ece")
    found = {(cell["alpha"], cell["T"]): cell for cell in sweep["cells"]}
    alphas, Ts = (list(dict.fromkeys(values)) for values in zip(*found))
    lines = [[f"validation accuracy ({second}), chosen by {choose}", *(f"T {T:g}" for T in Ts)]]
    lines += [["---", *("---:" for _ in Ts)]]
    for alpha in alphas:
        texts = {T: f"{found[alpha, T]['validation_accuracy']:.4f} ({found[alpha, T][figure]:.4f})" for T in Ts}
        chosen = sweep["chosen"]["T"] if sweep["chosen"]["alpha"] == alpha else None
        lines.append([f"alpha {alpha:g}", *(f"**{text}**" if T == chosen else text for T, text in texts.items())])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def notes(results: dict, keys: tuple[str, ...] = ()) -> str:
    """The lines under the table: a warning where the split is too small, what the students started from, the simple
    baseline, the ceiling where it is known, significance, machine."""
    lines = []
    if margin := results.get("chance_margin"):
        lines.append(
            f"only {results['examples']} examples in the {_split(results)}, too few to tell models apart: "
            f"chance alone moves an accuracy by up to ±{100 * margin:.0f} points (95%)"
        )
    if results.get("first_weights"):
        lines.append(start_of_students(results))
    if words := results.get("bag_of_words"):
        lines.append(f"bag of words (logistic regression): accuracy {format_figure(words['accuracy'], '{:.4f}')}")
    if ceiling := results.get("best_possible_accuracy"):
        lines.append(f"best possible, from the known probabilities: accuracy {ceiling:.4f}")
    if results.get("sweep"):
        lines.append(sweep_choice(results["sweep"]))
    for key, what in (
        ("trained_on", "a part of these examples: {} figures are too optimistic"),
        ("trained_on_another_version", "another version of these data: {} training texts may be in this split"),
    ):
        if names := results.get(key):
            was, its = ("were", "their") if len(names) > 1 else ("was", "its")
            lines.append(f"{', '.join(names)} {was} trained on {what.format(its)}")
    if line := nothing_to_distil(results["models"]):
        lines.append(line)
    if results.get("chosen"):
        lines.append(choices(results["chosen"]))
    say, too_few = fold_sentence if results.get("folds") else sentence, "chance_margin" in results
    if results.get("significance"):
        lines.append(say(results["significance"], too_few=too_few))
    for part in results.get("comparisons", []):
        gives = "the loss" if part["models"] == ["distilled", "control"] else "the start"
        lines.append(say(part, *part["models"], gives, too_few))
    lines += quantization_changes(results.get("quantized", []), results["precision"])
    if results.get("found_finished") is not None and (not keys or "run_minutes" in keys):
        found = results["found_finished"] + ["the steps before --resume"] * bool(results["arguments"].get("resume"))
        whose = "a fold" if results.get("folds") else "this command"
        lines.append(
            f"minutes of the whole run: those of {whose}, evaluation included"
            + f"; not in them, because earlier commands did it: {', '.join(found)}" * bool(found)
        )
    if published := results.get("published"):
        lines.append(
            "published: what the experiment's author printed, measured on other hardware with other weights"
            + f"; also: {published.get('also')}" * bool(published.get("also"))
        )
    return "\n".join([*lines, conditions(results)])


def conditions(results: dict) -> str:
    """Data, precision, machine and seeds of the figures, in one line."""
    arguments, first = results["arguments"], results["models"][0]
    seeds = results.get("seeds") or [arguments.get("seed")]
    data, split, examples = results["dataset"], results["split"], f"{results['examples']:,}"
    if arguments.get("dataset") == "fpb":
        agreement = arguments["fpb_agreement"]
        data += f" ({'all' if agreement == 'all' else f'at least {agreement}%'} agree)"
    which = f"all {examples} examples" if split == "all" else f"{_split(results)} of {examples}"
    if folds := results.get("folds"):
        which = f"{folds} folds, which test {examples} examples"
    parts = [f"{data}, {which}" if data else which]
    parts += [f"{results['precision']} on {results['device']} ({results['threads']} threads)"]
    if folds:
        parts += ["mean ± std over the folds"]
    elif seeds != [None]:  # evaluate.py has no seed
        parts += [f"{len(seeds)} seeds, mean ± std" if len(seeds) > 1 else f"seed {seeds[0]}"]
    if tokens := first.get("tokens_per_example"):
        parts += [f"times on {tokens:.0f} tokens a text, in batches padded to {first['padded_tokens']}"]
    return "; ".join(parts)


def _split(results: dict) -> str:
    """The split's name, as in "test split"; "split" where it has none."""
    return f"{results['split']} split".lstrip()


def best_cell(cells: list[dict], choose: str) -> dict:
    """The cell of a sweep with the best figure: the highest "accuracy", or the lowest "nll" or "ece"; ties go to the
    lower nll, and then to the earlier cell."""
    key, sign = CRITERIA[choose]
    return min(cells, key=lambda cell: (sign * cell[key], cell["validation_loss"]))


def sweep_choice(sweep: dict) -> str:
    """Which pair a sweep chose and by which figure; and those that the other figures favour, where they differ."""
    cells, pair = sweep["cells"], "alpha {alpha:g} and T {T:g}"
    chosen, others = pair.format(**sweep["chosen"]), ""
    for name in CRITERIA:
        best = pair.format(**best_cell(cells, name))
        others += f"; by {name}: {best}" * (best != chosen)
    by = sweep.get("choose", "accuracy")
    return f"{chosen} chosen on validation by {by}, among {len(cells)} pairs of a sweep{others}"
