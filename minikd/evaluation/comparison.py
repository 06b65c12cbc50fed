"""The figures of finished models on a split: quality, calibration, cost, and how they compare."""

from pathlib import Path

import tokenizers
import torch
from torch import Tensor

from minikd.batching import TokenizedSplit, tokenize_split
from minikd.checkpoints.adapters import base_model, load_adapted
from minikd.checkpoints.hub import model_folder
from minikd.checkpoints.pretrained import from_pretrained
from minikd.datasets import Dataset, Split
from minikd.evaluation.calibration import calibration_metrics
from minikd.evaluation.costs import inference_memory_mb, measure_speed, model_size
from minikd.evaluation.significance import compare
from minikd.experiment.inference import predict_once
from minikd.experiment.runs import check_tokenizer, read_run
from minikd.files import write_rows
from minikd.metrics import classification_metrics, confusion_matrix, kl_to_truth
from minikd.model import Classifier
from minikd.tokenizer import Tokenizer, load_tokenizer

TEXT_SHOWN = 200  # characters of a text in a file of predictions


def load_finished(source: str, max_length: int) -> tuple[Classifier, Tokenizer]:
    """The classifier and the tokenizer of a folder of a model or of LoRA adapters, or of a name on the hub.

    Raises MinikdError where they do not fit each other or `max_length`.
    """
    base = base_model(source)  # of a folder of LoRA adapters
    model = load_adapted(source) if base else from_pretrained(source, may_be_quantized=True)
    tokenizer = load_tokenizer(model_folder(base or source))
    check_tokenizer(tokenizer, model.config, source, max_length)
    return model, tokenizer


def evaluate_models(
    models: dict[str, list[tuple[Path, Classifier]]],
    tokens: dict[str, TokenizedSplit],
    split: Split,
    device: torch.device,
    precision: str,
) -> tuple[list[dict], dict[str, list[Tensor]]]:
    """A row of figures per model; and by name the logits (N, C) of each of its seeds, in the split's own order.

    `models` maps a name to the folder and the model of each seed (mostly there is one), `tokens` to the split as that
    model's tokenizer cuts it. With several seeds, a figure of quality becomes the list of its values, confusion
    matrices are summed and reliability curves pooled; costs are measured on the first seed's model, because they do
    not depend on weights. The comparing figures (`compare_with_first`) are with the first model of `models`.
    """
    logits = {
        name: [predict_once(model, tokens[name], device, precision, desc=f"evaluate {name}") for _, model in seeds]
        for name, seeds in models.items()
    }
    firsts = [seeds[0][1] for seeds in models.values()]
    speeds = measure_speed(firsts, [tokens[name] for name in models], device, precision)
    rows = []
    for (name, seeds), speed in zip(models.items(), speeds):
        path, model = seeds[0]
        row = {"name": name, "path": str(path), **training_costs(path), **model_size(model), **speed}
        row["peak_memory_mb"] = inference_memory_mb(model, tokens[name], device, precision)
        rows.append(row | merge_seeds([quality(one, split) for one in logits[name]]))
    for row in rows:
        row |= compare_with_first(row, rows[0])
    return rows, logits


def quality(logits: Tensor, split: Split) -> dict:
    """How good predictions are: all of `classification_metrics` and `calibration_metrics`, the confusion matrix (row =
    true label), and `kl_to_truth` where the true probabilities are known."""
    labels, predicted = torch.tensor(split.labels), logits.argmax(dim=-1)
    figures = classification_metrics(labels, predicted, logits.shape[1]) | calibration_metrics(logits, labels)
    figures["confusion"] = confusion_matrix(labels, predicted, logits.shape[1]).tolist()
    if split.probabilities is not None:
        figures["kl_to_truth"] = kl_to_truth(logits, torch.from_numpy(split.probabilities))
    return figures


def distilled_against_baseline(logits: dict[str, list[Tensor]], split: Split) -> dict:
    """{"significance": …} (`compare`), or {} where there are no models of these names."""
    if not {"distilled", "baseline"} <= logits.keys():
        return {}
    labels = torch.tensor(split.labels)
    right = {name: torch.stack(of_seeds).argmax(dim=-1) == labels for name, of_seeds in logits.items()}  # (S, N) each
    return {"significance": compare(right["distilled"], right["baseline"])}


def merge_seeds(figures: list[dict]) -> dict:
    """One dictionary from those of several seeds: lists of values; the sum of confusion matrices; pooled bins."""
    if len(figures) == 1:
        return figures[0]
    merged = {key: [one[key] for one in figures] for key in figures[0]}
    merged["confusion"] = torch.tensor(merged["confusion"]).sum(dim=0).tolist()
    merged["reliability"] = [_pool(bins) for bins in zip(*merged["reliability"])]
    return merged


def _pool(bins) -> list:
    """Bins of several reliability curves, [count, mean confidence, accuracy] each, as one."""
    filled = [one for one in bins if one[0]]
    count = sum(one[0] for one in filled)
    if not count:
        return [0, None, None]
    return [count, *(sum(one[0] * one[i] for one in filled) / count for i in (1, 2))]


def compare_with_first(row: dict, first: dict) -> dict:
    """What a smaller model keeps and saves against the first one; None where one of them lacks the figure,
    or for a ratio to 0.

    Of experiment E4: `retention` and `f1_retention`, its accuracy and F1 over the first's; `speed_up` in batches of
    128; `parameter_fraction`; and `efficiency_ratio`, retention over parameter fraction. Of E5: `accuracy_change` and
    `weighted_f1_change`, in points; and as fractions of the first's (−0.49: 49 % less) `latency_change` and
    `throughput_change` in batches of 100, `parameter_change`, `size_change`. Of E3: `latency_1_change`, one at a time,
    and `memory_change`, of inference.
    """

    def compare(function, key):
        figures = row.get(key), first.get(key)
        return None if None in figures else _each(function, *figures)

    def points(mine, its):
        return 100 * (mine - its)

    def ratio(mine, its):
        return mine / its if its else None

    def change(mine, its):
        return mine / its - 1 if its else None

    retention, fraction = compare(ratio, "accuracy"), compare(ratio, "parameters")
    return {
        "accuracy_change": compare(points, "accuracy"),
        "weighted_f1_change": compare(points, "weighted_f1"),
        "latency_1_change": compare(change, "latency_1_ms"),
        "latency_change": compare(change, "batch_100_ms"),
        "throughput_change": compare(change, "throughput"),
        "parameter_change": compare(change, "parameters"),
        "size_change": compare(change, "size_mb"),
        "memory_change": compare(change, "peak_memory_mb"),
        "retention": retention,
        "f1_retention": compare(ratio, "f1"),
        "speed_up": compare(lambda mine, its: ratio(its, mine), "batch_128_ms"),
        "parameter_fraction": fraction,
        "efficiency_ratio": None if None in (retention, fraction) else _each(ratio, retention, fraction),
    }


def quantization_changes(rows: list[dict], precision: str) -> list[str]:
    """A line for each quantised copy among the rows: what it changes against its original in `precision`; and a line
    on what experiment E5's author hoped for. [] where there are none.

    A copy has the figure `agreement`, and is called <original>-<format>.
    """
    originals, lines = {row["name"]: row for row in rows}, []
    for row in rows:
        name = row["name"].rpartition("-")[0]
        if "agreement" in row and name in originals:
            changes = compare_with_first(row, originals[name])
            parts = [f"{words} {changes[key]:{form}}{unit}" for words, key, form, unit in (
                ("latency one at a time", "latency_1_change", "+z.0%", ""),
                ("in batches of 100", "latency_change", "+z.0%", ""),
                ("peak memory", "memory_change", "+z.0%", ""),
                ("size", "size_change", "+z.0%", ""),
                ("accuracy", "accuracy_change", "+z.2f", " points"),
            ) if changes[key] is not None]  # fmt: skip
            lines.append(f"{row['name']} against {name} in {precision}: {', '.join(parts)}".replace(" -", " −"))
    wish = "for comparison: the author of experiment E5 hoped for 30 % less latency and half the size"
    return [*lines, wish] if lines else []


def _each(function, mine, its):
    """`function` of two figures; where one is a list over seeds, of each of its values."""
    if not isinstance(mine, list) and not isinstance(its, list):
        return function(mine, its)
    count = len(mine if isinstance(mine, list) else its)
    mine, its = (value if isinstance(value, list) else [value] * count for value in (mine, its))
    values = [function(a, b) for a, b in zip(mine, its)]
    return None if None in values else values


def training_costs(folder: Path) -> dict:
    """What the run that made the model recorded, if it did.

    trained_parameters
    training_minutes    of its steps and validations; of a run that was stopped and resumed, of all its parts, less the
                        steps that a kill lost
    training_peak_mb    peak memory of such a training in a process of its own
    training_memory_mb  in runs of older versions: peak memory with all else that the process held
    """
    run = read_run(folder) if folder.is_dir() else {}
    keys = ("trained_parameters", "training_peak_mb", "training_memory_mb")
    costs = {key: run[key] for key in keys if run.get(key) is not None}
    if run.get("history"):
        costs["training_minutes"] = sum(epoch["seconds"] for epoch in run["history"]) / 60
    return costs


def training_data(source: str, data: Dataset, tokenizer: Tokenizer, args) -> str | None:
    """Which data the model's run.json says it was trained on: "these", `data`; "another version" of them; or None.

    Another version has the same name or path, but another --fpb-agreement or another training split, by fingerprint.
    Fingerprints of different versions of the tokenizers package are not compared. None: other data, or unknown ones, as
    of copies of other teachers, folders of adapters and data that were moved.
    """
    run = read_run(model_folder(source))
    recorded, made_from = run.get("arguments", {}), run.get("made_from") or {}
    if "copied_from" in run or recorded.get("dataset") != args.dataset:
        return None
    agreement = recorded.get("fpb_agreement", args.fpb_agreement)
    if args.dataset == "fpb" and agreement != args.fpb_agreement:
        return "another version"
    versions = run.get("versions") or {}
    if "data" in made_from and versions.get("tokenizers") == tokenizers.__version__:
        train = tokenize_split(data.train, tokenizer, recorded["max_length"])
        if train.fingerprint != made_from["data"]:
            return "another version"
    return "these"


def write_predictions(path: Path, split: Split, logits: Tensor, names: tuple[str, ...]) -> None:
    """A CSV row per example: index in the split, label and predicted (by name), the probability of each label, text.

    Of a long text the first 200 characters are written: enough to recognise it, where whole reviews would make the file
    of each model and seed as large as the corpus.
    """
    shown = (text if len(text) <= TEXT_SHOWN else f"{text[:TEXT_SHOWN]}…" for text in split.texts)
    examples = zip(split.labels, answers(logits.double().softmax(dim=-1), names), shown)
    write_rows(
        path,
        [
            {"index": index, "label": names[label], **answer, "text": text}
            for index, (label, answer, text) in enumerate(examples)
        ],
    )


def answers(probs: Tensor, names: tuple[str, ...]) -> list[dict]:
    """{"predicted": label, "prob_<label>": …} of each row of probabilities (N, C)."""
    return [
        {"predicted": names[label], **{f"prob_{name}": round(prob, 6) for name, prob in zip(names, row)}}
        for label, row in zip(probs.argmax(dim=-1).tolist(), probs.tolist())
    ]
