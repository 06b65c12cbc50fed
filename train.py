"""Fine-tune one classifier: a published encoder, or a new one from random weights.

python train.py --dataset sst2 --model bert-base-uncased --output-dir runs/sst2-teacher
python train.py --dataset imdb --layers 4 --hidden 256
"""

from dataclasses import replace
from pathlib import Path

import torch

from minikd.batching import tokenize_split
from minikd.checkpoints.hub import model_folder
from minikd.checkpoints.pretrained import from_pretrained
from minikd.cli import flags
from minikd.cli import start as cli
from minikd.cli.defaults import LORA_LR, SAMPLE_TEACHER, SAMPLE_VOCABULARY, corpus_name, default
from minikd.cli.flag_types import integer, non_empty
from minikd.config import bert_like
from minikd.errors import MinikdError
from minikd.evaluation.comparison import evaluate_models, write_predictions
from minikd.evaluation.label_order import match_labels
from minikd.experiment.lock import only_run_in
from minikd.experiment.runs import check_not_source, check_tokenizer, train_or_reuse
from minikd.experiment.tracking import Tracking
from minikd.model import Classifier
from minikd.report.tables import results_of, write_results
from minikd.tokenizer import load_tokenizer, train_wordpiece


def parse_args():
    columns = ("max_length", "batch_size", "teacher_epochs", "teacher_lr")
    headings = ("max_length", "batch_size", "epochs", "lr")
    parser = flags.Parser(description=__doc__, epilog=flags.defaults_text(columns, headings))
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        type=non_empty,
        metavar="NAME_OR_DIR",
        help="start from this checkpoint: a folder or a name on the hub "
        "(default: bert-base-uncased; for the sample, or with --layers or --hidden, a new model)",
    )
    group.add_argument(
        "--layers",
        type=integer(1),
        metavar="N",
        help="a new model of N layers, with a vocabulary learned from the training texts (default: 4, of a new model)",
    )
    group.add_argument("--hidden", type=integer(32), metavar="H", help="its width (default: 256, of a new model)")
    flags.add_data_flags(parser)
    flags.add_training_flags(parser)
    flags.add_lora_flags(parser, "the model")
    flags.add_device_flags(parser)
    flags.add_output_flag(parser, "runs/<dataset>-model")
    args = parser.parse_args()
    if args.model and (args.layers or args.hidden):
        parser.error("--model brings its own shape: leave out --layers and --hidden")
    if args.label_order and not args.model:
        parser.error("--label-order: names the outputs of --model; give it too")
    args.epochs = args.epochs or default("teacher_epochs", args.dataset)
    if args.lora_rank:
        args.lr = args.lr or LORA_LR
    new = args.layers or args.hidden  # random weights want the rate of the sample's models, not of pre-trained ones
    args.lr = args.lr or default("teacher_lr", "sample" if new else args.dataset)
    args.output_dir = args.output_dir or Path("runs") / f"{corpus_name(args.dataset)}-model"  # not among distill.py's
    cli.fill_defaults(args)
    return args


def main():
    args = parse_args()
    with only_run_in(args.output_dir), Tracking(args.track, args.output_dir) as tracking:
        run(args, tracking)


def run(args, tracking):
    """Trains the model and evaluates it."""
    device = cli.start(args)
    data = cli.load_data(args)
    model, tokenizer = starting_model(args, data, device)
    train, validation, test = (
        tokenize_split(split, tokenizer, args.max_length) for split in (data.train, data.validation, data.test)
    )
    model = train_or_reuse(
        "model",
        model,
        tokenizer,
        train,
        validation,
        cli.training_settings(args),
        args.output_dir,
        device,
        cli.printable(args),
        compile=args.compile,
        resume=args.resume,
        lora=cli.lora_settings(args, args.lora_rank),
        base=args.model,
        tracking=tracking,
    )
    models, tokens = {"model": [(args.output_dir, model)]}, {"model": test}
    rows, logits = evaluate_models(models, tokens, data.test, device, args.precision)
    tracking.summary(args.output_dir, rows[0])
    write_predictions(args.output_dir / "predictions-model.csv", data.test, logits["model"][0], data.labels)
    write_results(results_of(rows, data, "test", cli.printable(args), device), args.output_dir)


def starting_model(args, data, device):
    """The model before training, and its tokenizer."""
    torch.manual_seed(args.seed)
    if args.model or (args.dataset != "sample" and not (args.layers or args.hidden)):
        args.model = args.model or "bert-base-uncased"
        model, tokenizer = from_pretrained(args.model, labels=data.labels), load_tokenizer(model_folder(args.model))
        check_not_source(args.output_dir, "--model", args.model)
        cli.settle_length(args, model.config.max_position_embeddings)
        check_tokenizer(tokenizer, model.config, args.model, args.max_length)
        match_labels(model, args.model, data, tokenizer, args, device)
        return model, tokenizer
    if args.lora_rank:
        raise MinikdError(
            "--lora-rank: a new model starts from random weights; adapters need learned ones, see --model"
        )
    size = SAMPLE_VOCABULARY if args.dataset == "sample" else 30522  # BERT's own size
    tokenizer = train_wordpiece(data.train.texts, size)
    config = SAMPLE_TEACHER
    if args.dataset != "sample" or args.hidden not in (None, config.hidden_size):
        config = bert_like(args.hidden or 256, args.layers or 4, config)
    cli.settle_length(args, 512)
    positions = max(args.max_length, config.max_position_embeddings)
    config = replace(
        config,
        num_hidden_layers=args.layers or 4,
        labels=data.labels,
        vocab_size=tokenizer.vocab_size,
        max_position_embeddings=positions,
    )
    return Classifier(config), tokenizer


if __name__ == "__main__":
    cli.run(main)
