"""From flags to finished models, and to the data that they were trained on."""

import copy
from pathlib import Path

import tokenizers
import torch

from minikd.checkpoints.hub import model_folder
from minikd.checkpoints.load import save_classifier
from minikd.classifier import TextClassifier
from minikd.cli import flags
from minikd.cli.defaults import DEFAULTS
from minikd.cli.models import config_of, is_finished, load_model
from minikd.cli.start import absolute, resolve_max_length
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
    recorded = {key: value for key, value in recorded.items() if isinstance(value, int if key == "max_length" else str)}
    if args.dataset is None and not (args.text or args.input):
        args.dataset = recorded.get("dataset")
        if args.dataset is None:
            raise MinikdError("--dataset: no model says what it was trained on; name the corpus to compare them on")
        if args.dataset not in DEFAULTS and not Path(args.dataset).exists():
            raise MinikdError(f"{args.dataset}: the data that {source} was trained on is gone; name it by --dataset")
    args.dataset = args.dataset and absolute(args.dataset)
    _use_recorded_layout(args, recorded)
    args.data_dir = args.data_dir or Path(recorded.get("data_dir", flags.DATA_DIR))
    args.fpb_agreement = args.fpb_agreement or recorded.get("fpb_agreement", "50")
    positions = [config_of(model).max_position_embeddings for model in args.models]
    if args.max_length is None and recorded.get("max_length", 0) >= 3:
        args.max_length = min(recorded["max_length"], *positions)
    resolve_max_length(args, *positions)


def _use_recorded_layout(args, recorded: dict) -> None:
    """The columns of the training data are looked for in other data too; its encoding holds for that data alone."""
    if args.dataset in DEFAULTS or args.text or (args.input and args.input.suffix.lower() == ".txt"):
        return
    args.text_column = args.text_column or recorded.get("text_column")
    if args.dataset:
        args.label_column = args.label_column or recorded.get("label_column")
        if Path(args.dataset).resolve() == Path(recorded.get("dataset", "")).resolve():
            args.encoding = args.encoding or recorded.get("encoding")


def check_not_overwritten(output: Path) -> None:
    """Raises MinikdError where --output-dir holds the results of a training."""
    if (output / "results.json").exists():
        arguments = read_results(output / "results.json")["arguments"]
        if isinstance(arguments, dict) and "epochs" in arguments:
            raise MinikdError(f"--output-dir {output}: holds the results of training; give another folder")


def load_for_comparison(args, data: Dataset, device: torch.device) -> tuple[dict[str, TextClassifier], dict[str, str]]:
    """All models and their quantised copies, by name, an original before its copies; and of each copy its original."""
    models: dict[str, TextClassifier] = {}
    originals: dict[str, str] = {}
    for source in args.models:
        model = load_model(source, args, device, data)
        name = Path(source).resolve().name if Path(source).is_dir() else source.split("/")[-1]
        if name in models:  # several folders of one name
            name = next(f"{name}-{n}" for n in range(2, len(args.models) + 2) if f"{name}-{n}" not in models)
        models[name] = model
        for format in dict.fromkeys(args.quantize or ()):
            short = f"{name}-{format}"
            if short in models:
                raise MinikdError(f"--quantize {format}: {short} is the name of another model here; leave that one out")
            models[short], originals[short] = _quantized(model, format, (args.output_dir or Path()) / short, args), name
    return models, originals


def _quantized(model: TextClassifier, format: str, folder: Path, args) -> TextClassifier:
    """A quantised copy of the model, for `folder`. Raises MinikdError where another model is there."""
    if args.output_dir and folder.exists() and "quantized_from" not in read_run(folder):
        raise MinikdError(f"--output-dir {args.output_dir}: {folder.name} in it is no quantised copy; give another one")
    smaller = copy.copy(model)
    try:
        smaller.model = quantize(model.model, format)
    except MinikdError as error:
        raise MinikdError(f"{model.source}: {error}") from None
    smaller.source = str(folder)
    return smaller


def save_quantized(model: TextClassifier, source: str) -> None:
    """Leaves a quantised copy of the model at `source` as a folder that evaluate.py takes like any other."""
    folder, local = Path(model.source), Path(source).is_dir()
    save_classifier(model.model, model.tokenizer, folder)
    origin, run = (str(Path(source).resolve()), read_run(Path(source))) if local else (source, {})
    write_json(folder / "run.json", {"quantized_from": origin, "arguments": run.get("arguments", {})})
    print(f"{model.model.config.quantization}: {folder}")


def training_data(models: dict[str, TextClassifier], sources: dict[str, str], data: Dataset, args) -> dict:
    """Which of the models, each made from its source, were trained on these data, or on another version of them: two
    lists of names for results.json, the first for a split that holds training examples."""
    data_of = {name: _trained_on(model, sources[name], data, args) for name, model in models.items()}
    these, others = ([name for name in models if data_of[name] == which] for which in ("these", "another version"))
    found = {"trained_on": these} if args.split in ("train", "all") else {}
    return found | ({"trained_on_another_version": others} if others else {})


def _trained_on(model: TextClassifier, source: str, data: Dataset, args) -> str | None:
    """Which data the model's run.json says it was trained on: "these", `data`; "another version" of them; or None.

    Another version has the same name or path, but another --fpb-agreement or another training split, by fingerprint.
    Fingerprints of different versions of the tokenizers package are not compared. None: other data, or unknown ones, as
    of copies of other teachers, folders of adapters and data that were moved.
    """
    run = read_run(model_folder(source))
    recorded, made_from = run.get("arguments", {}), run.get("made_from") or {}
    if "copied_from" in run or recorded.get("dataset") != args.dataset:
        return None
    if args.dataset == "fpb" and recorded.get("fpb_agreement", args.fpb_agreement) != args.fpb_agreement:
        return "another version"
    max_length, same = recorded.get("max_length"), (run.get("versions") or {}).get("tokenizers")
    known = type(max_length) is int and 3 <= max_length <= model.model.config.max_position_embeddings
    if "data" in made_from and known and same == tokenizers.__version__:
        train = cached_tokens(data.train, model.tokenizer, max_length)
        if train.fingerprint != run.get("labelled", made_from["data"]):
            return "another version"
    return "these"
