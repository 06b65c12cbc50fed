"""The command lines of the three scripts: each function returns the flags, checked and with their defaults."""

import argparse
from pathlib import Path

from minikd.cli import flags
from minikd.cli.defaults import LORA_LR, corpus_name, default
from minikd.cli.flag_types import integer, non_empty, path
from minikd.cli.recipes import RECIPES, recipe_defaults
from minikd.cli.start import fill_defaults
from minikd.config import FORMATS


# fmt: off
def distill_args(description: str) -> argparse.Namespace:
    """distill.py's flags."""
    parser = flags.Parser(description=description, epilog=flags.defaults_text())
    parser.add_argument("--recipe", choices=tuple(RECIPES),
        help="the settings of a published experiment; any flag given beside it wins, see minikd/cli/recipes.py "
        "(default: none)")
    flags.add_model_flags(parser)
    flags.add_distillation_flags(parser)
    flags.add_data_flags(parser)
    flags.add_training_flags(parser, "the students' ")
    flags.add_lora_flags(parser, "the teacher", students=True)
    flags.add_device_flags(parser)
    flags.add_output_flag(parser, "runs/<recipe or dataset>")
    args = parser.parse_args()
    if args.recipe:  # parsed a second time, with the recipe's settings as the defaults
        shaped = args.student_layers or args.student_hidden or args.take_layers or args.student_init != "auto"
        settings = recipe_defaults(args.recipe, bool(shaped), bool(args.student or args.take_layers))
        parser.set_defaults(output_dir=Path("runs") / args.recipe, **settings)
        args = parser.parse_args()
    if args.student and (args.student_layers or args.student_hidden or args.take_layers or args.student_init != "auto"):
        parser.error("--student brings its own shape and weights: leave out --student-layers, --student-hidden, "
                     "--take-layers and --student-init")
    if args.label_order and args.teacher in (None, "oracle") and not args.student:
        parser.error("--label-order: names the outputs of --teacher or --student; give one of them")
    if args.choose != "accuracy" and len(args.alpha) * len(args.T) == 1:
        parser.error(f"--choose {args.choose}: chooses among the pairs of a sweep; give several values of --alpha or "
                     "--T")
    fill_defaults(args)
    return args


def train_args(description: str) -> argparse.Namespace:
    """train.py's flags."""
    columns = ("max_length", "batch_size", "teacher_epochs", "teacher_lr")
    headings = ("max_length", "batch_size", "epochs", "lr")
    parser = flags.Parser(description=description, epilog=flags.defaults_text(columns, headings))
    add = parser.add_argument_group("model").add_argument
    add("--model", type=non_empty, metavar="NAME_OR_DIR",
        help="start from this checkpoint: a folder or a name on the hub "
        "(default: bert-base-uncased; for the sample, or with --layers or --hidden, a new model)")
    add("--layers", type=integer(1), metavar="N",
        help="a new model of N layers, with a vocabulary learned from the training texts (default: 4, of a new model)")
    add("--hidden", type=integer(32), metavar="H", help="its width (default: 256, of a new model)")
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
    fill_defaults(args)
    return args


def evaluate_args(description: str) -> argparse.Namespace:
    """evaluate.py's flags; those of the data that were not given are None."""
    parser = flags.Parser(description=description)
    parser.add_argument("models", nargs="*", type=non_empty, metavar="MODEL",
        help="folder of a finished model or of LoRA adapters, or a name on the hub")
    add = parser.add_argument_group("comparison").add_argument
    add("--split", choices=("train", "validation", "test", "all"),
        help="which examples; all: every one of them, in the order of a single file (default: test)")
    add("--quantize", nargs="+", choices=FORMATS, metavar="FORMAT",
        help="also compare each model with itself in int8 (8-bit weights and products: faster on a CPU, more "
        "memory in a pass) or int4 (4-bit weights: smaller, slower); with --output-dir, both are saved there, as "
        "MODEL-int8 and MODEL-int4 (default: none)")
    add("--calibrate", action="store_true",
        help="fit a temperature to each model on the validation split, and report calibration before and after")
    add("--html", type=path, metavar="FILE",
        help="write a page for a browser: what each model thinks of each text; the first MODEL is its teacher; long "
        "texts are truncated so that it stays below 5 MB where possible (default: none)")
    add("--output-dir", type=path, metavar="DIR",
        help="also write results.json, results.md, dashboard.png, predictions-<model>.csv (a row per example, with the "
        "first 200 characters of its text) and quantised models there (default: none)")
    add("--plot", type=path, metavar="DIR",
        help="draw DIR/dashboard.png again from DIR/results.json alone; takes no models (default: none)")
    add = parser.add_argument_group("labelling new texts").add_argument
    add("--text", action="append", metavar="TEXT", help="label this text; may be repeated (default: none)")
    add("--input", type=path, metavar="FILE",
        help="label the texts of this file: a line each (.txt), or a column, see --text-column (.csv, .tsv, .jsonl) "
        "(default: none)")
    add("--output", type=path, metavar="FILE",
        help="where the labels of --input go: a .csv or .jsonl file (default: none)")
    flags.add_data_flags(parser, default_text="as the first model was trained")
    flags.add_device_flags(parser)
    parser.set_defaults(dataset=None, data_dir=None, fpb_agreement=None)  # None: as the model was trained
    args = parser.parse_args()
    check_flags(parser, args)
    return args
# fmt: on


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
    if any("\ud800" <= letter <= "\udfff" for text in args.text or () for letter in text):
        parser.error("--text: is not valid text in this terminal's encoding")
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
