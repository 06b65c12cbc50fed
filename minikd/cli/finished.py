"""From flags to finished models, and to the data that they were trained on."""

from pathlib import Path

import tokenizers
import torch

from minikd.checkpoints.adapters import base_model
from minikd.checkpoints.config_json import read_config
from minikd.checkpoints.hub import model_folder
from minikd.checkpoints.label_order import name_outputs
from minikd.checkpoints.load import load_classifier, save_classifier
from minikd.classifier import TextClassifier, check_tokenizer
from minikd.cli import flags, start
from minikd.cli.defaults import DEFAULTS
from minikd.cli.models import is_finished, load_model
from minikd.datasets import Dataset
from minikd.errors import MinikdError
from minikd.experiment.caches import cached_tokens
from minikd.experiment.results import read_results
from minikd.experiment.runs import read_run
from minikd.files import write_json
from minikd.techniques.quantize import quantize


def use_recorded_flags(args) -> None:
    """Data flags that were not given are those that the first of the models was trained with, from its run.json.

    Raises MinikdError for a model that is not finished, and where no model says what it was trained on.
    """
    for model in args.models:
        if not is_finished(model):
            raise MinikdError(f"{model}: is a bare encoder without a classifier; fine-tune it first (train.py)")
    runs = [(model, read_run(model_folder(model))) for model in args.models]
    source, recorded = next(((model, run["arguments"]) for model, run in runs if run), (None, {}))
    kinds = {"dataset": str, "data_dir": str, "fpb_agreement": str, "max_length": int} | dict.fromkeys(
        ("text_column", "label_column", "encoding"), str
    )
    recorded = {key: recorded[key] for key, kind in kinds.items() if isinstance(recorded.get(key), kind)}
    if args.dataset is None and not (args.text or args.input):
        args.dataset = recorded.get("dataset")
        if args.dataset is None:
            raise MinikdError("--dataset: no model says what it was trained on; name the corpus to compare them on")
        if args.dataset not in DEFAULTS and not Path(args.dataset).exists():
            raise MinikdError(f"{args.dataset}: the data that {source} was trained on is gone; name it by --dataset")
    args.dataset = args.dataset and start.absolute(args.dataset)
    _use_recorded_layout(args, recorded)
    args.data_dir = args.data_dir or Path(recorded.get("data_dir", flags.DATA_DIR))
    args.fpb_agreement = args.fpb_agreement or recorded.get("fpb_agreement", "50")
    positions = [_config(model).max_position_embeddings for model in args.models]
    if args.max_length is None and recorded.get("max_length", 0) >= 3:
        args.max_length = min(recorded["max_length"], *positions)
    start.settle_length(args, min(positions))


def _use_recorded_layout(args, recorded: dict) -> None:
    """The columns of the training data are looked for in other data too; its encoding holds for that data alone."""
    if args.dataset in DEFAULTS or args.text or (args.input and args.input.suffix.lower() == ".txt"):
        return
    args.text_column = args.text_column or recorded.get("text_column")
    if args.dataset:
        args.label_column = args.label_column or recorded.get("label_column")
        if Path(args.dataset).resolve() == Path(recorded.get("dataset", "")).resolve():
            args.encoding = args.encoding or recorded.get("encoding")


def labels_of_first(args) -> tuple[str, ...]:
    """--label-order, else the labels of the first of the models."""
    return args.label_order or _config(args.models[0]).labels


def _config(source: str):
    return read_config(model_folder(base_model(source) or source) / "config.json")


def check_not_overwritten(args) -> None:
    """Raises MinikdError where --output-dir holds the results of a training, or --html names a folder."""
    if args.html and args.html.is_dir():
        raise MinikdError(f"--html {args.html}: is a folder; name a file")
    if args.output_dir and (args.output_dir / "results.json").exists():
        made_with = read_results(args.output_dir / "results.json")["arguments"]
        if isinstance(made_with, dict) and "epochs" in made_with:
            raise MinikdError(f"--output-dir {args.output_dir}: holds the results of training; give another folder")


def load_for_labelling(args, device: torch.device) -> dict[str, TextClassifier]:
    """The models by the name given, their outputs named by --label-order where it is given."""
    models = {}
    for source in args.models:
        model, tokenizer = load_classifier(source)
        if args.label_order:
            name_outputs(model, source, args.label_order)
        check_tokenizer(tokenizer, model.config, source, args.max_length)
        models[source] = TextClassifier(model, tokenizer, max_length=args.max_length, device=device,
                                        precision=args.precision)  # fmt: skip
    return models


def load_for_comparison(args, data: Dataset, device: torch.device) -> tuple[dict[str, TextClassifier], dict[str, str]]:
    """All models and their quantised copies, by name, an original before its copies; and of each copy its original."""
    models: dict[str, TextClassifier] = {}
    originals: dict[str, str] = {}
    for source in args.models:
        model = load_model(source, data, args, device, seed=0, quantized=True)
        name = Path(source).resolve().name if Path(source).is_dir() else source.split("/")[-1]
        if name in models:  # several folders of one name
            name = next(f"{name}-{n}" for n in range(2, len(args.models) + 2) if f"{name}-{n}" not in models)
        models[name] = model
        for format in dict.fromkeys(args.quantize or ()):
            short = f"{name}-{format}"
            if short in models:
                raise MinikdError(f"--quantize {format}: {short} is the name of another model here; leave that one out")
            copy = (args.output_dir or Path()) / short
            if args.output_dir and copy.exists() and "quantized_from" not in read_run(copy):
                raise MinikdError(
                    f"--output-dir {args.output_dir}: {short} in it is no quantised copy; give another one"
                )
            try:
                smaller = quantize(model.model, format)
            except MinikdError as error:
                raise MinikdError(f"{source}: {error}") from None
            models[short] = TextClassifier(smaller, model.tokenizer, max_length=args.max_length, device=device,
                                           precision=args.precision)  # fmt: skip
            models[short].source, originals[short] = str(copy), name
    return models, originals


def save_quantized(copy: TextClassifier, source: str) -> None:
    """Leaves a quantised model as a folder that evaluate.py takes like any other."""
    folder = Path(copy.source)
    save_classifier(copy.model, copy.tokenizer, folder)
    local = Path(source).is_dir()
    run = read_run(Path(source)) if local else {}
    origin = str(Path(source).resolve()) if local else source
    write_json(folder / "run.json", {"quantized_from": origin, "arguments": run.get("arguments", {})})
    print(f"{copy.model.config.quantization}: {folder}")


def trained_on(model: TextClassifier, source: str, data: Dataset, args) -> str | None:
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
        train = cached_tokens(data.train, model.tokenizer, recorded["max_length"])
        if train.fingerprint != made_from["data"]:
            return "another version"
    return "these"
