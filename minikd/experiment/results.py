"""The comparison of finished models: `evaluate`, and the results files."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minikd.batching import TokenizedSplit
from minikd.classifier import TextClassifier
from minikd.datasets import Dataset, Split, data_fingerprint
from minikd.datasets.sample import bayes_accuracy
from minikd.distributed import by_first
from minikd.errors import MinikdError
from minikd.evaluation.bag_of_words import bag_of_words
from minikd.evaluation.calibration import calibration_metrics, fit_temperature
from minikd.evaluation.comparison import STUDENTS, compare_students, compare_with_first, figures_of
from minikd.evaluation.costs import inference_memory_mb, measure_speed, model_size
from minikd.evaluation.significance import TOO_FEW, chance_margin, compare_counts
from minikd.experiment.caches import cached_logits, tokens_of
from minikd.experiment.labelling import predictions_file, write_predictions
from minikd.experiment.recorded import best_validation, loss_curves, training_costs
from minikd.experiment.runs import environment
from minikd.files import atomic_write, parse_json, read_text, write_json
from minikd.inference import compute_logits
from minikd.report import plots
from minikd.report.tables import report

PUBLISHED = Path(__file__).resolve().parents[2] / "data" / "results" / "published.json"


@dataclass
class Results:
    """What `evaluate` found. `str()` is the table, with notes; `values` all figures, as in results.json."""

    values: dict
    logits: dict[str, list[Tensor]]  # by model, (N, C) for each seed, in the split's own order
    split: Split

    def __str__(self) -> str:
        return report(complete(self.values))

    def save(self, folder: str | Path, seed_folders: Sequence[Path] = ()) -> None:
        """Writes results.json, results.md, dashboard.png (where matplotlib is installed) and a CSV file of predictions
        for each model, of the first seed. With `seed_folders`, the predictions of each seed go into its folder, in
        place of all that were there."""
        folder = Path(folder)
        for seed_folder in seed_folders:
            for stale in seed_folder.glob("predictions-*.csv"):  # of an earlier run, perhaps with other models
                stale.unlink(missing_ok=True)
        for name, of_seeds in self.logits.items():
            for seed_folder, logits in zip(seed_folders or [folder], of_seeds):
                write_predictions(predictions_file(seed_folder, name), self.split, logits, self.values["labels"])
        write_json(folder / "results.json", self.values)
        atomic_write(folder / "results.md", report(complete(self.values)) + "\n")
        (folder / "dashboard.png").unlink(missing_ok=True)  # of an earlier run
        print(f"results: {folder / 'results.md'}, {folder / 'results.json'}")
        try:
            draw(self.values, folder / "dashboard.png")
        except MinikdError as error:  # a picture is no reason to fail after hours of training
            print(f"no dashboard.png: {error}")


def evaluate(
    models: dict[str, TextClassifier | Sequence[TextClassifier]],
    split: Split,
    *,
    costs: bool = False,
    cache: bool = False,
    progress: bool = True,
) -> Results:
    """The figures of each model on the split, side by side; those of several models under one name, which differ in
    their seed, as mean ± std. Where there is a "teacher", how closely the others follow it. Where there are a
    "distilled" and a "baseline", whether they differ by more than chance; with a "control" too, how much of that the
    loss gives and how much the start (`compare_students`).

    `costs`: also time and memory of their passes (some seconds for each), of a name's first model, as they do not
    depend on weights. `cache`: keep tokens and logits in the user's cache. `progress`: show progress bars. The
    comparing figures (`compare_with_first`) are with the first model. Raises MinikdError where labels differ.
    """
    seeds = {name: [one] if isinstance(one, TextClassifier) else list(one) for name, one in models.items()}
    _check(seeds, split)
    logits_of = cached_logits if cache else compute_logits
    tokens, logits = {}, {}
    for name, of_seeds in seeds.items():
        desc = f"evaluate {name}" if progress else ""
        split_tokens = tokens[name] = tokens_of(split, of_seeds[0], cache)
        logits[name] = [logits_of(m.model.to(m.device), split_tokens, m.device, m.precision, desc) for m in of_seeds]
    return by_first(_results, seeds, split, tokens, logits, costs)


def _results(
    seeds: dict[str, list[TextClassifier]],
    split: Split,
    tokens: dict[str, TokenizedSplit],
    logits: dict[str, list[Tensor]],
    costs: bool,
) -> Results:
    """The figures of models whose logits (N, C) are known, by name and seed."""
    firsts, rows = [of_seeds[0] for of_seeds in seeds.values()], []
    device, precision = firsts[0].device, firsts[0].precision
    for name, of_seeds in seeds.items():
        source = of_seeds[0].source
        rows.append({"name": name, "path": source or ""} | training_costs(source) | model_size(of_seeds[0].model))
        rows[-1] |= best_validation([one.source for one in of_seeds])
    if costs:
        speeds = measure_speed([one.model for one in firsts], list(tokens.values()), device, precision)
        for row, speed, first in zip(rows, speeds, firsts):
            row |= speed
            row["peak_memory_mb"] = inference_memory_mb(first.model, tokens[row["name"]], device, precision)
    for row in rows:
        row |= figures_of(row["name"], logits, split)
        row |= compare_with_first(row, rows[0])
    values = {"dataset": "", "split": "", "examples": len(split.labels), "labels": list(firsts[0].labels)}
    values |= {"models": rows, "precision": precision, "arguments": {}} | environment(device)
    if (count := max(map(len, seeds.values()))) > 1:
        values["seeds"] = [None] * count
    return Results(values | compare_students(logits, split), logits, split)


def describe(results: Results, data: Dataset, split_name: str, arguments: dict) -> None:
    """Adds what is known of the data, the runs and the command: names, the simple baseline, the ceiling where it is
    known, loss curves, flags."""
    values = results.values
    values |= {"dataset": data.name, "split": split_name, "arguments": arguments}
    values |= {"data_fingerprint": data_fingerprint(data), "training_examples": len(data.train.texts)}
    if split_name == "test":
        values["bag_of_words"] = bag_of_words(data)
    if results.split.probabilities is not None:
        values["best_possible_accuracy"] = bayes_accuracy(results.split)
    curves = {row["name"]: loss_curves(Path(row["path"])) for row in values["models"] if row["path"]}
    values["curves"] = {name: curve for name, curve in curves.items() if curve}


def calibrate(results: Results, name: str, model: TextClassifier, validation: Split) -> None:
    """Adds to the model's figures the temperature that fits the validation split, and its calibration with it."""
    tokens, desc = tokens_of(validation, model), f"calibrate {name}"
    logits = cached_logits(model.model, tokens, model.device, model.precision, desc)
    temperature = fit_temperature(logits, torch.tensor(validation.labels))
    after = calibration_metrics(results.logits[name][0] / temperature, torch.tensor(results.split.labels))
    row = next(row for row in results.values["models"] if row["name"] == name)
    row |= {"temperature": temperature, "ece_calibrated": after["ece"], "nll_calibrated": after["nll"]}


def complete(values: dict) -> dict:
    """The values with all that a table shows: comparisons and intervals that files of earlier versions lack, and the
    figures that a recipe's author published."""
    first = values["models"][0]
    values = values | {"models": [compare_with_first(row, first) | row for row in values["models"]]}
    significance = values.get("significance")
    if significance and "detectable" not in significance and len(significance["seeds"]) == 1:
        (test,) = significance["seeds"]  # its counts are enough for all that `compare` finds
        values["significance"] = compare_counts(test["only_a"], test["only_b"], significance["examples"])
    if values["examples"] < TOO_FEW:
        values["chance_margin"] = chance_margin(values["examples"])
    rows = {row["name"]: row for row in values["models"]}
    values["quantized"] = [
        {"name": name, "original": original} | compare_with_first(row, rows[original])
        for name, row in rows.items()
        if "agreement" in row and (original := name.rpartition("-")[0]) in rows
    ]
    recipe = values["arguments"].get("recipe")
    if recipe and PUBLISHED.exists():
        published = json.loads(PUBLISHED.read_text(encoding="utf-8")).get(recipe, {})
        if published.get("dataset") == values["arguments"].get("dataset"):
            values["published"] = published
    return values


def draw(values: dict, path: Path) -> None:
    """Draws the dashboard. Raises MinikdError where matplotlib is not installed."""
    plots.dashboard(complete(values), path)
    print(f"pictures: {path}")


def draw_file(path: Path, picture: Path) -> None:
    """Draws the dashboard of a results.json. Raises MinikdError that names it."""
    values = read_results(path)
    try:
        draw(values, picture)
    except Exception as error:  # of many kinds, by matplotlib too
        if isinstance(error, MinikdError | OSError):  # which say themselves what is wrong
            raise
        raise MinikdError(f"{path}: holds figures that cannot be drawn ({error})") from None


def read_results(path: Path) -> dict:
    """A results.json. Raises MinikdError that names the file where it is missing or something else."""
    try:
        results = parse_json(read_text(path))
    except (OSError, ValueError) as error:
        raise MinikdError(f"{path}: is not a results file ({error})") from None
    needed = {"models", "arguments", "dataset", "examples", "split", "precision", "device", "threads"}
    if not isinstance(results, dict) or not needed <= results.keys():
        raise MinikdError(f"{path}: is not a results file (it lacks some of {', '.join(sorted(needed))})")
    rows = results["models"]
    named = isinstance(rows, list) and all(isinstance(row, dict) and isinstance(row.get("name"), str) for row in rows)
    if not named or not rows:
        raise MinikdError(f"{path}: is not a results file (its models must be a list of objects with a name)")
    return results


def _check(models: dict[str, list[TextClassifier]], split: Split) -> None:
    """Raises MinikdError where there is nothing to compare, or labels differ."""
    if not isinstance(split, Split):
        raise MinikdError(f"evaluate: give a Split, such as data.test, not a {type(split).__name__}")
    if not models or not all(models.values()) or not split.texts:
        raise MinikdError("evaluate: give at least one model and a split with texts")
    labels = {one.labels for of_seeds in models.values() for one in of_seeds}
    if len(labels) > 1:
        raise MinikdError(f"evaluate: the models' labels differ: {', '.join(map(str, sorted(labels)))}")
    (names,) = labels
    if split.label_names is not None and names != split.label_names:
        raise MinikdError(
            f"evaluate: the models' labels {list(names)} are not the split's {list(split.label_names)}, in this order: "
            f"give labels=data.labels to TextClassifier.load"
        )
    if not all(0 <= label < len(names) for label in split.labels):
        raise MinikdError(f"evaluate: the split has other labels than 0 to {len(names) - 1}, the models'")
    counts = {name: len(models[name]) for name in STUDENTS if name in models}
    if len(set(counts.values())) > 1:
        words = " and ".join(f"{count} {name}" for name, count in counts.items())
        raise MinikdError(f"evaluate: {words} models; give one of each for each seed")
