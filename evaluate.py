"""Compare finished models on a split of a corpus, or label new texts.

python evaluate.py runs/sst2/teacher runs/sst2/distilled --split test
python evaluate.py runs/sst2/distilled --text "a gripping, funny film" --text "two hours of nothing"
"""

from pathlib import Path

import numpy as np

from minikd import cli
from minikd.batching import TokenizedSplit, tokenize_split
from minikd.checkpoint import from_pretrained
from minikd.config import EncoderConfig
from minikd.defaults import DEFAULTS
from minikd.files import UserError
from minikd.hub import is_fine_tuned, model_folder
from minikd.inference import predict
from minikd.report import evaluate_models, results_of, write_results
from minikd.runs import check_tokenizer, read_run
from minikd.tokenizer import load_tokenizer


def parse_args():
    parser = cli.Parser(description=__doc__)
    parser.add_argument(
        "models",
        nargs="+",
        type=cli.non_empty,
        metavar="MODEL",
        help="folder of a finished model, or a name on the hub",
    )
    parser.add_argument("--split", choices=("train", "validation", "test"), default="test", help="default: test")
    parser.add_argument("--text", action="append", metavar="TEXT", help="label this text instead (may be repeated)")
    cli.add_data_flags(parser, default_text="as the first model was trained")
    cli.add_device_flags(parser)
    parser.add_argument(
        "--output-dir",
        type=cli.folder,
        metavar="DIR",
        help="also write results.json, results.md and predictions-<model>.csv there",
    )
    parser.set_defaults(dataset=None, data_dir=None, fpb_agreement=None)  # None: as the model was trained
    args = parser.parse_args()
    if args.text and (args.output_dir or args.dataset):
        parser.error("--text labels the texts alone: leave out --dataset and --output-dir")
    return args


def main():
    args = parse_args()
    for model in args.models:
        if not is_fine_tuned(model):
            raise UserError(f"{model}: is a bare encoder without a classifier; fine-tune it first (train.py)")
    use_recorded_flags(args)
    device = cli.start(args)
    if args.text:
        if any("\ud800" <= letter <= "\udfff" for text in args.text for letter in text):
            raise UserError("--text: is not valid text in this terminal's encoding")
        label_texts(args, device)
    else:
        compare(args, device)


def use_recorded_flags(args):
    """Data flags that were not given are those that the first of the models was trained with, from its run.json."""
    runs = [(model, read_run(model_folder(model))) for model in args.models]
    source, recorded = next(((model, run["arguments"]) for model, run in runs if run), (None, {}))
    kinds = {"dataset": str, "data_dir": str, "fpb_agreement": str, "max_length": int}
    recorded = {key: recorded[key] for key, kind in kinds.items() if isinstance(recorded.get(key), kind)}
    if args.dataset is None and not args.text:
        args.dataset = recorded.get("dataset")
        if args.dataset is None:
            raise UserError("--dataset: no model says what it was trained on; name the corpus to compare them on")
        if args.dataset not in DEFAULTS and not Path(args.dataset).exists():
            raise UserError(f"{args.dataset}: the data that {source} was trained on is gone; name it by --dataset")
    args.data_dir = args.data_dir or Path(recorded.get("data_dir", cli.DATA_DIR))
    args.fpb_agreement = args.fpb_agreement or recorded.get("fpb_agreement", "50")
    positions = [
        EncoderConfig.from_file(model_folder(model) / "config.json").max_position_embeddings for model in args.models
    ]
    if args.max_length is None and recorded.get("max_length", 0) >= 3:
        args.max_length = min(recorded["max_length"], *positions)
    cli.settle_length(args, min(positions))


def compare(args, device):
    """The table of all models on the split, each with its own tokenizer."""
    if args.output_dir:
        cli.check_writable(args.output_dir)
    data = cli.load_data(args)
    split, models = getattr(data, args.split), {}
    for source in args.models:
        model, tokenizer = load(source, args.max_length, labels=data.labels)
        name = Path(source).resolve().name if Path(source).is_dir() else source.split("/")[-1]
        if name in models:  # several folders of one name
            name = next(f"{name}-{n}" for n in range(2, len(args.models) + 2) if f"{name}-{n}" not in models)
        models[name] = (source, model, tokenize_split(split, tokenizer, args.max_length))
    rows = evaluate_models(models, split, device, args.precision, args.output_dir)
    write_results(results_of(rows, data, args.split, cli.printable(args), device), args.output_dir)


def label_texts(args, device):
    """Prints each model's label for each text, with the probability of every label."""
    loaded = [(source, *load(source, args.max_length)) for source in args.models]
    for source, model, tokenizer in loaded:
        ids, offsets = tokenizer.encode(args.text, args.max_length)
        tokens = TokenizedSplit(ids, offsets, np.zeros(len(args.text), dtype=np.int64), tokenizer.pad_token_id, "")
        probs = predict(model.to(device), tokens, device, args.precision).softmax(dim=-1)
        for text, row in zip(args.text, probs):
            others = ", ".join(f"{label} {prob:.3f}" for label, prob in zip(model.config.labels, row.tolist()))
            print(f"{source}: {model.config.labels[int(row.argmax())]} ({others}): {text}")


def load(source, max_length, labels=None):
    """The model and its tokenizer. Raises UserError where they do not fit each other, the labels or `max_length`."""
    model, tokenizer = from_pretrained(source, labels=labels), load_tokenizer(model_folder(source))
    check_tokenizer(tokenizer, model.config, source, max_length)
    return model, tokenizer


if __name__ == "__main__":
    cli.run(main)
