"""Compare finished models on a split of a corpus, look into their predictions, or label new texts.

python evaluate.py runs/sst2/teacher runs/sst2/distilled --split test --calibrate --html sst2.html
python evaluate.py runs/sst2/distilled --quantize int8 int4 --output-dir runs/sst2-small
python evaluate.py runs/sst2/distilled --text "a gripping, funny film" --text "two hours of nothing"
python evaluate.py runs/sst2/distilled --input reviews.txt --output labels.csv
python evaluate.py --plot runs/sst2
"""

from pathlib import Path

import torch

from minikd.batching import tokenize_split
from minikd.checkpoints.adapters import base_model
from minikd.checkpoints.hub import is_fine_tuned, model_folder
from minikd.checkpoints.pretrained import save_pretrained
from minikd.cli import flags
from minikd.cli import start as cli
from minikd.cli.defaults import DEFAULTS
from minikd.cli.flag_types import folder, non_empty
from minikd.cli.labelling import label_file, print_labels
from minikd.config import FORMATS, EncoderConfig
from minikd.datasets.rows import Layout
from minikd.errors import MinikdError
from minikd.evaluation.calibration import calibration_metrics, fit_temperature
from minikd.evaluation.comparison import (
    distilled_against_baseline,
    evaluate_models,
    load_finished,
    training_data,
    write_predictions,
)
from minikd.evaluation.label_order import match_labels
from minikd.experiment.inference import predict_once
from minikd.experiment.lock import only_run_in
from minikd.experiment.runs import read_run
from minikd.files import write_json
from minikd.report.page import description, write_page
from minikd.report.tables import read_results, results_of, write_results
from minikd.techniques.quantize import quantize


def parse_args():
    parser = flags.Parser(description=__doc__)
    parser.add_argument(
        "models",
        nargs="*",
        type=non_empty,
        metavar="MODEL",
        help="folder of a finished model or of LoRA adapters, or a name on the hub",
    )
    group = parser.add_argument_group("comparison")
    group.add_argument(
        "--split",
        choices=("train", "validation", "test", "all"),
        help="which examples; all: every one of them, in the order of a single file (default: test)",
    )
    group.add_argument(
        "--quantize",
        nargs="+",
        choices=FORMATS,
        metavar="FORMAT",
        help="also compare each model with itself in int8 (8-bit weights and products: faster on a CPU, more "
        "memory in a pass) or int4 (4-bit weights: smaller, slower); with --output-dir, both are saved there, as "
        "MODEL-int8 and MODEL-int4 (default: none)",
    )
    group.add_argument(
        "--calibrate",
        action="store_true",
        help="fit a temperature to each model on the validation split, and report calibration before and after",
    )
    group.add_argument(
        "--html",
        type=folder,
        metavar="FILE",
        help="write a page for a browser: what each model thinks of each text; the first MODEL is its teacher; long "
        "texts are truncated so that it stays below 5 MB where possible (default: none)",
    )
    group.add_argument(
        "--output-dir",
        type=folder,
        metavar="DIR",
        help="also write results.json, results.md, dashboard.png, predictions-<model>.csv (a row per example, with the "
        "first 200 characters of its text) and quantised models there (default: none)",
    )
    group.add_argument(
        "--plot",
        type=folder,
        metavar="DIR",
        help="draw DIR/dashboard.png again from DIR/results.json alone; takes no models (default: none)",
    )
    group = parser.add_argument_group("labelling new texts")
    group.add_argument(
        "--text", action="append", metavar="TEXT", help="label this text; may be repeated (default: none)"
    )
    group.add_argument(
        "--input",
        type=folder,
        metavar="FILE",
        help="label the texts of this file: a line each (.txt), or a column, see --text-column (.csv, .tsv, .jsonl) "
        "(default: none)",
    )
    group.add_argument(
        "--output",
        type=folder,
        metavar="FILE",
        help="where the labels of --input go: a .csv or .jsonl file (default: none)",
    )
    flags.add_data_flags(parser, default_text="as the first model was trained")
    flags.add_device_flags(parser)
    parser.set_defaults(dataset=None, data_dir=None, fpb_agreement=None)  # None: as the model was trained
    args = parser.parse_args()
    check_flags(parser, args)
    return args


def check_flags(parser, args):
    """Ends with status 2 where flags of different uses are mixed."""
    comparing = {"--dataset": args.dataset, "--output-dir": args.output_dir, "--html": args.html,
                 "--calibrate": args.calibrate, "--quantize": args.quantize, "--split": args.split,
                 "--fpb-agreement": args.fpb_agreement, "--label-column": args.label_column}  # fmt: skip
    labelling = {"--text": args.text, "--input": args.input}
    reading = {"--text-column": args.text_column, "--encoding": args.encoding}
    used = [flag for flag, value in (comparing | labelling | {"--label-order": args.label_order}).items() if value]
    if args.plot and (used or args.models):
        parser.error(f"--plot draws from results alone: leave out {used[0] if used else 'the models'}")
    if not args.plot and not args.models:
        parser.error("which MODEL? give one or more folders of finished models, or names on the hub")
    if (args.text or args.input) and any(comparing.values()):
        mixed = ", ".join(flag for flag, value in comparing.items() if value)
        parser.error(f"--text and --input label texts alone: leave out {mixed}")
    if args.text and args.input:
        parser.error("--text and --input: give one of them")
    if (args.text or args.plot) and any(reading.values()):
        parser.error(
            f"{', '.join(flag for flag, value in reading.items() if value)}: no file is read here; leave it out"
        )
    if bool(args.input) != bool(args.output):
        parser.error("--input FILE and --output FILE go together")
    if args.output and args.output.suffix.lower() not in (".csv", ".jsonl"):
        parser.error(f"--output {args.output}: must end in .csv or .jsonl")
    if args.output and args.output.is_dir():
        parser.error(f"--output {args.output}: is a folder; name a file")
    if args.html and args.html.suffix.lower() not in (".html", ".htm"):
        parser.error(f"--html {args.html}: must end in .html")
    if args.input and args.output.exists() and args.input.exists() and args.output.samefile(args.input):
        parser.error(f"--output {args.output}: is the file of --input; give another")
    if args.calibrate and args.split in ("validation", "all"):
        parser.error("--calibrate fits on the validation split: compare on one without its examples")
    if args.input and len(args.models) > 1:
        parser.error("--input takes one model")
    args.split = args.split or "test"


def main():
    args = parse_args()
    if args.plot:
        draw_again(args.plot)
        return
    for model in args.models:
        if not base_model(model) and not is_fine_tuned(model):
            raise MinikdError(f"{model}: is a bare encoder without a classifier; fine-tune it first (train.py)")
    use_recorded_flags(args)
    device = cli.start(args)
    if args.text:
        print_labels(args.models, args.text, args, device)
    elif args.input:
        cli.check_writable(args.output.parent, "--output")
        layout = Layout(args.text_column, encoding=args.encoding)
        label_file(args.models[0], args.input, layout, args.output, args, device)
    else:
        if args.output_dir:
            cli.check_writable(args.output_dir)
        with only_run_in(args.output_dir):
            compare(args, device)


def draw_again(folder):
    """Draws FOLDER/dashboard.png from FOLDER/results.json."""
    from minikd.report.plots import dashboard  # needs matplotlib, which nothing else does

    results = read_results(folder / "results.json")
    try:
        dashboard(results, folder / "dashboard.png")
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise MinikdError(f"{folder / 'results.json'}: holds figures that cannot be drawn ({error})") from None
    print(f"pictures: {folder / 'dashboard.png'}")


def use_recorded_flags(args):
    """Data flags that were not given are those that the first of the models was trained with, from its run.json."""
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
    args.dataset = args.dataset and cli.absolute(args.dataset)
    use_recorded_layout(args, recorded)
    args.data_dir = args.data_dir or Path(recorded.get("data_dir", flags.DATA_DIR))
    args.fpb_agreement = args.fpb_agreement or recorded.get("fpb_agreement", "50")
    folders = [model_folder(base_model(model) or model) for model in args.models]
    positions = [EncoderConfig.from_file(folder / "config.json").max_position_embeddings for folder in folders]
    if args.max_length is None and recorded.get("max_length", 0) >= 3:
        args.max_length = min(recorded["max_length"], *positions)
    cli.settle_length(args, min(positions))


def use_recorded_layout(args, recorded):
    """The columns of the training data are looked for in other data too; its encoding holds for that data alone."""
    if args.dataset in DEFAULTS or args.text or (args.input and args.input.suffix.lower() == ".txt"):
        return
    args.text_column = args.text_column or recorded.get("text_column")
    if args.dataset:
        args.label_column = args.label_column or recorded.get("label_column")
        if Path(args.dataset).resolve() == Path(recorded.get("dataset", "")).resolve():
            args.encoding = args.encoding or recorded.get("encoding")


def compare(args, device):
    """The table of all models on the split, each with its own tokenizer."""
    if args.html:
        cli.check_writable(args.html.parent, "--html")
    check_not_overwritten(args)
    data = cli.load_data(args, labels_of_first(args) if args.split == "all" else None)
    split = getattr(data, args.split)
    if args.split != "all":
        count, total = len(split.texts), len(data.all.texts)
        print(f"{args.split}: {count:,} of {total:,} examples of {data.name}; --split all takes all of them")
    models, tokenizers, unquantized = load_models(args, data, device)
    tokens = {}
    for name in models:
        original = unquantized.get(name)
        tokens[name] = tokens[original] if original else tokenize_split(split, tokenizers[name], args.max_length)
    rows, logits = evaluate_models(models, tokens, split, device, args.precision)
    for row in rows:
        if row["name"] in unquantized:
            own, full = (logits[name][0].argmax(dim=-1) for name in (row["name"], unquantized[row["name"]]))
            row["agreement"] = (own == full).float().mean().item()
    results = results_of(rows, data, args.split, cli.printable(args), device)
    results |= distilled_against_baseline(logits, split)
    sources = {name: str(models[unquantized.get(name, name)][0][0]) for name in models}
    trained_on = {name: training_data(source, data, tokenizers[name], args) for name, source in sources.items()}
    if args.split in ("train", "all"):
        results["trained_on"] = [name for name in models if trained_on[name] == "these"]
    if others := [name for name in models if trained_on[name] == "another version"]:
        results["trained_on_another_version"] = others
    logits, labels = {name: of_seeds[0] for name, of_seeds in logits.items()}, torch.tensor(split.labels)
    if args.calibrate:
        for row in rows:
            name = row["name"]
            ((_, model),) = models[name]
            own = tokenize_split(data.validation, tokenizers[name], args.max_length)
            validation = predict_once(model, own, device, args.precision, desc=f"calibrate {name}")
            row["temperature"] = fit_temperature(validation, torch.tensor(data.validation.labels))
            after = calibration_metrics(logits[name] / row["temperature"], labels)
            row |= {"ece_calibrated": after["ece"], "nll_calibrated": after["nll"]}
    if args.output_dir:
        for name, original in unquantized.items():
            (folder, model), (original_folder, _) = models[name][0], models[original][0]
            save_quantized(folder, model, tokenizers[name], original_folder)
        for name, one in logits.items():
            write_predictions(args.output_dir / f"predictions-{name}.csv", split, one, data.labels)
    write_results(results, args.output_dir)
    if args.html:
        truth = None if split.probabilities is None else torch.from_numpy(split.probabilities)
        runs = {name: read_run(models[unquantized.get(name, name)][0][0]) for name in models}
        about = {name: description(runs[name], model.config) for name, ((_, model),) in models.items()}
        note = write_page(
            args.html,
            data.name,
            args.split,
            data.labels,
            split.texts,
            split.labels,
            logits,
            true_probabilities=truth,
            about=about,
        )
        print(f"page: {args.html}" + f" ({note})" * bool(note))


def labels_of_first(args):
    """--label-order, else the labels of the first of the models."""
    source = args.models[0]
    folder = model_folder(base_model(source) or source)
    return args.label_order or EncoderConfig.from_file(folder / "config.json").labels


def check_not_overwritten(args):
    """Raises MinikdError where --output-dir holds the results of a training, or --html names a folder."""
    if args.html and args.html.is_dir():
        raise MinikdError(f"--html {args.html}: is a folder; name a file")
    if args.output_dir and (args.output_dir / "results.json").exists():
        made_with = read_results(args.output_dir / "results.json")["arguments"]
        if isinstance(made_with, dict) and "epochs" in made_with:
            raise MinikdError(f"--output-dir {args.output_dir}: holds the results of training; give another folder")


def load_models(args, data, device):
    """By name: [(folder, model)] and tokenizers, of all models and their quantised copies; and of a copy its original.

    Returns (models, tokenizers, unquantized); an original stands before its copies.
    """
    models, tokenizers, unquantized = {}, {}, {}
    for source in args.models:
        model, tokenizer = load_finished(source, args.max_length)
        match_labels(model, source, data, tokenizer, args, device)
        name = Path(source).resolve().name if Path(source).is_dir() else source.split("/")[-1]
        if name in models:  # several folders of one name
            name = next(f"{name}-{n}" for n in range(2, len(args.models) + 2) if f"{name}-{n}" not in models)
        models[name], tokenizers[name] = [(Path(source), model)], tokenizer
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
                models[short] = [(copy, quantize(model, format))]
            except MinikdError as error:
                raise MinikdError(f"{source}: {error}") from None
            tokenizers[short], unquantized[short] = tokenizer, name
    return models, tokenizers, unquantized


def save_quantized(folder, model, tokenizer, source):
    """Leaves a quantised model as a folder that evaluate.py takes like any other."""
    save_pretrained(model, folder)
    tokenizer.save(folder, model.config.model_type, model.config.max_position_embeddings)
    run, source = (read_run(source), source.resolve()) if source.is_dir() else ({}, source)
    write_json(folder / "run.json", {"quantized_from": str(source), "arguments": run.get("arguments", {})})
    print(f"{model.config.quantization}: {folder}")


if __name__ == "__main__":
    cli.run(main)
