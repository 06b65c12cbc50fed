"""The comparison of models, on screen and in files: a table with a column per model, and the notes under it."""

import json
import statistics
from pathlib import Path

import torch

from minikd.datasets import Dataset, data_fingerprint
from minikd.datasets.sample import bayes_accuracy
from minikd.errors import MinikdError
from minikd.evaluation.bag_of_words import bag_of_words
from minikd.evaluation.comparison import compare_with_first, quantization_changes
from minikd.evaluation.significance import TOO_FEW, chance_margin, sentence
from minikd.experiment.recipes import RECIPES
from minikd.experiment.runs import environment, read_run
from minikd.experiment.sweep import CRITERIA, sweep_choice
from minikd.files import atomic_write, write_json
from minikd.report.drawing import three_digits
from minikd.training import read_log

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
# What compares with the first model: meaningless where it is the only one, and says nothing in its own column.
COMPARISONS = tuple(compare_with_first({}, {}))
# Those that repeat what other lines tell: shown where asked for, or where a recipe's author printed them.
REPEATED = ("weighted_f1_change", "latency_1_change", "latency_change", "throughput_change", "parameter_change",
            "size_change", "memory_change")  # fmt: skip


def table(results: dict, keys: tuple[str, ...] = ()) -> str:
    """The figures as a Markdown table that also reads well on screen: a line per figure, a column per model.

    Lists of values (seeds) become mean ± std. Where a recipe was followed, what its author published stands at the
    right, under "published". `keys` picks lines; none: all that have a value, but for repetitions.
    """
    # Comparisons that the results of an earlier version lack follow from figures that they have.
    rows = [compare_with_first(row, results["models"][0]) | row for row in results["models"]]
    published = {f"published {name}": values for name, values in published_figures(results).items()}
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


def published_figures(results: dict) -> dict[str, dict[str, str]]:
    """What the author of the recipe printed, by model; {} where the run followed none, or on other data."""
    recipe = RECIPES.get(results["arguments"].get("recipe"))
    return recipe.published if recipe and recipe.flags["dataset"] == results["arguments"].get("dataset") else {}


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
    if results["examples"] < TOO_FEW:
        margin = 100 * chance_margin(results["examples"])
        lines.append(
            f"only {results['examples']} examples in the {results['split']} split, too few to tell models apart: "
            f"chance alone moves an accuracy by up to ±{margin:.0f} points (95%)"
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
        lines.append(sentence(results["significance"]))
    lines += quantization_changes(results["models"], results["precision"])
    if results.get("found_finished") is not None and (not keys or "run_minutes" in keys):
        found = results["found_finished"] + ["the steps before --resume"] * bool(results["arguments"].get("resume"))
        lines.append(
            "minutes of the whole run: those of this command, evaluation included"
            + f"; not in them, because earlier commands did it: {', '.join(found)}" * bool(found)
        )
    if published_figures(results):
        also = RECIPES[results["arguments"]["recipe"]].also
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
    second = "nll" if choose == "nll" else "ece"
    found = {(cell["alpha"], cell["T"]): cell for cell in cells}
    columns = list(dict.fromkeys(T for _, T in found))
    heading = f"validation accuracy ({second.upper()}), chosen by {choose}"
    lines = [[heading, *(f"T {T:g}" for T in columns)], ["---", *("---:" for _ in columns)]]
    for alpha in dict.fromkeys(alpha for alpha, _ in found):
        texts = []
        for T in columns:
            cell = found[alpha, T]
            text = f"{cell['validation_accuracy']:.4f} ({cell[CRITERIA[second][0]]:.4f})"
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
        f"{data}, "
        + (f"all {count} examples" if results["split"] == "all" else f"{results['split']} split of {count}"),
        f"{results['precision']} on {results['device']} ({results['threads']} threads)",
        f"{len(seeds)} seeds, mean ± std" if len(seeds) > 1 else f"seed {seeds[0]}",
    ]
    tokens = results["models"][0].get("tokens_per_example")
    if tokens:
        longest = results["models"][0]["padded_tokens"]
        parts.append(f"times on {tokens:.0f} tokens a text, in batches padded to {longest}")
    return "; ".join(text for text in parts if text != "seed None")  # evaluate.py has no seed


def results_of(rows: list[dict], data: Dataset, split_name: str, arguments: dict, device: torch.device) -> dict:
    """Everything that results.json holds: the rows, the simple baseline, the ceiling where known, loss curves, machine
    and flags."""
    split = getattr(data, split_name)
    results = {"dataset": data.name, "split": split_name, "examples": len(split.labels), "labels": list(data.labels)}
    results["models"] = rows
    if split_name == "test":
        results["bag_of_words"] = bag_of_words(data)
    if split.probabilities is not None:
        results["best_possible_accuracy"] = bayes_accuracy(split)
    results["curves"] = {row["name"]: curves for row in rows if (curves := loss_curves(Path(row["path"])))}
    results |= {"precision": arguments["precision"], "arguments": arguments, "data_fingerprint": data_fingerprint(data)}
    return results | environment(device)


def loss_curves(folder: Path, points: int = 200) -> dict:
    """The curves in a run's log.jsonl: train [[epoch, loss], …], thinned to about `points` means of neighbours;
    validation [[epoch, accuracy, loss], …]; and the settings of that loss: alpha (1 without a teacher), T and
    label_smoothing. {} where there is no log."""
    lines = read_log(folder)
    train = [(line["epoch"], line["loss"]) for line in lines if "loss" in line]
    size = -(-len(train) // points) or 1
    groups = [train[i : i + size] for i in range(0, len(train), size)]
    keys = ("epoch", "validation_accuracy", "validation_loss")
    validation = [[line[key] for key in keys] for line in lines if "validation_loss" in line]
    if not validation:
        return {}
    curves = {"train": [[statistics.mean(column) for column in zip(*group)] for group in groups],
              "validation": validation}  # fmt: skip
    made_from = read_run(folder).get("made_from") or {}
    settings = (made_from.get("settings") or {}) | ({} if made_from.get("teacher") else {"alpha": 1.0, "T": 1.0})
    if "label_smoothing" in settings:
        curves["settings"] = {key: settings[key] for key in ("alpha", "T", "label_smoothing")}
    return curves


def write_results(results: dict, output_dir: Path | None) -> None:
    """Prints table and notes, and leaves results.json, results.md and dashboard.png in `output_dir` if there is one."""
    text = report(results)
    if output_dir is not None:  # first the files: printing can fail where the terminal cannot show a character
        write_json(output_dir / "results.json", results)
        atomic_write(output_dir / "results.md", text + "\n")
    print(f"\n{text}\n")
    if output_dir is not None:
        print(f"results: {output_dir / 'results.md'}, {output_dir / 'results.json'}")
        (output_dir / "dashboard.png").unlink(missing_ok=True)  # of an earlier run
        try:
            from minikd.report.plots import dashboard

            dashboard(results, output_dir / "dashboard.png")
            print(f"pictures: {output_dir / 'dashboard.png'}")
        except MinikdError as error:  # a picture is no reason to fail after hours of training
            print(f"no dashboard.png: {error}")


def read_results(path: Path) -> dict:
    """A results.json. Raises MinikdError that names the file where it is missing or something else."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MinikdError(f"{path}: is not a results file ({error})") from None
    needed = {"models", "arguments", "dataset", "examples", "split", "precision", "device", "threads"}
    if not isinstance(results, dict) or not needed <= results.keys() or not isinstance(results["models"], list):
        raise MinikdError(f"{path}: is not a results file (it lacks some of {', '.join(sorted(needed))})")
    rows = results["models"]
    if not rows or not all(isinstance(row, dict) and isinstance(row.get("name"), str) for row in rows):
        raise MinikdError(f"{path}: is not a results file (its models must be a list of objects with a name)")
    return results
