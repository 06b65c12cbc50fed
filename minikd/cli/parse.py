"""The command lines of the three scripts: each function returns the flags, checked and with their defaults."""

import argparse
from dataclasses import fields
from pathlib import Path

from minikd.cli import flags
from minikd.cli.defaults import LORA_LR, corpus_name, default
from minikd.cli.flag_types import integer, non_empty, path
from minikd.cli.recipes import RECIPES
from minikd.cli.start import fill_defaults
from minikd.config import FORMATS
from minikd.techniques.layer_losses import LAYER_LOSSES, LayerLosses


# fmt: off
def distill_args(description: str) -> argparse.Namespace:
    """distill.py's flags."""
    parser = flags.Parser(description=description, epilog=flags.defaults_text())
    parser.add_argument("--recipe", choices=tuple(RECIPES),
        help="the settings of a published experiment, or the best that we know of for a corpus; any flag given beside "
        "it wins, see minikd/cli/recipes.py (default: none)")
    flags.add_model_flags(parser)
    flags.add_distillation_flags(parser)
    flags.add_layer_flags(parser)
    flags.add_data_flags(parser)
    flags.add_training_flags(parser, "the students' ")
    flags.add_lora_flags(parser, "the teacher", students=True)
    flags.add_device_flags(parser)
    parser.add_argument("--output-dir", type=path, metavar="DIR",
        help="where results go (default: runs/<recipe or dataset>)")
    parser.set_defaults(more_teachers=[])
    args = parser.parse_args()
    shaped = args.student_layers or args.student_hidden or args.take_layers or args.student_init != "auto"
    if args.recipe:  # parsed a second time, with the recipe's settings as the defaults
        settings = {"output_dir": Path("runs") / args.recipe} | RECIPES[args.recipe]
        replaced = {  # by the user's own student and teachers
            "student": shaped, "student_layers": args.student or args.take_layers,
            "teacher_seeds": len(args.teacher or ()) > 1,
        }
        parser.set_defaults(**{name: value for name, value in settings.items() if not replaced.get(name)})
        args = parser.parse_args()
    if isinstance(args.teacher, list):  # a recipe names one
        args.teacher, args.more_teachers = args.teacher[0], args.teacher[1:]
    if args.more_teachers and (args.teacher_seeds > 1 or "oracle" in (args.teacher, *args.more_teachers)):
        parser.error("--teacher: several of them are models that differ; leave out --teacher-seeds and oracle")
    if args.augment and args.teacher == "oracle":
        parser.error("--augment: the oracle knows nothing of altered texts; leave it out")
    if args.teacher_seeds > 1 and args.teacher == "oracle":
        parser.error("--teacher-seeds: the oracle is not trained; leave it out")
    if args.teacher_logits == "online" and (args.more_teachers or args.teacher_seeds > 1):
        parser.error("--teacher-logits online: takes one teacher")
    if args.student and shaped:
        parser.error("--student brings its own shape and weights: leave out --student-layers, --student-hidden, "
                     "--take-layers and --student-init")
    if args.label_order and args.teacher in (None, "oracle") and not args.student:
        parser.error("--label-order: names the outputs of --teacher or --student; give one of them")
    if args.choose != "accuracy" and len(args.alpha) * len(args.T) == 1:
        parser.error(f"--choose {args.choose}: chooses among the pairs of a sweep; give several values of --alpha or "
                     "--T")
    if args.folds and args.seeds > 1:
        parser.error("--folds: each fold has another seed already; leave out --seeds")
    check_layer_flags(parser, args)
    adapted = {"teacher_lr": args.lora_rank, "lr": args.student_lora_rank}
    fill_defaults(args, **{rate: LORA_LR for rate, rank in adapted.items() if rank})
    if args.layer_epochs:
        args.layer_lr = args.layer_lr or args.lr
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
    parser.add_argument("--output-dir", type=path, metavar="DIR",
        help="where results go (default: runs/<dataset>-model)")
    args = parser.parse_args()
    if args.model and (args.layers or args.hidden):
        parser.error("--model brings its own shape: leave out --layers and --hidden")
    if args.label_order and not args.model:
        parser.error("--label-order: names the outputs of --model; give it too")
    new = args.layers or args.hidden  # random weights want the rate of the sample's models, not of pre-trained ones
    lr = LORA_LR if args.lora_rank else default("teacher_lr", "sample" if new else args.dataset)
    output = Path("runs") / f"{corpus_name(args.dataset)}-model"  # not among distill.py's
    fill_defaults(args, epochs=default("teacher_epochs", args.dataset), lr=lr, output_dir=output)
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
    args.split = args.split or "test"
    return args
# fmt: on


def check_layer_flags(parser, args):
    """Ends with status 2 where flags of the layer losses do not fit each other or the teacher."""
    weighed = any(getattr(args, name) for name in LAYER_LOSSES)
    for field in fields(LayerLosses):
        if not weighed and getattr(args, field.name, field.default) != field.default:
            flag = f"--{field.name.replace('_', '-')}"
            parser.error(f"{flag}: is for layer losses; give one of them a weight, such as --hidden-loss 1")
    refusals = {
        "--layer-epochs: of which losses? give one of them a weight, such as --hidden-loss 1":
            args.layer_epochs and not weighed,
        "--layer-lr: is the rate of the first of two stages; give --layer-epochs too":
            args.layer_lr and not args.layer_epochs,
        "--layer-epochs: the adapters of two stages are not adapters of one rank; leave out --student-lora-rank, or "
        "--layer-epochs to train both losses together": args.layer_epochs and args.student_lora_rank,
        "--teacher: of several teachers the first one's layers can be imitated in a stage of their own; give "
        "--layer-epochs": weighed and not args.layer_epochs and (args.more_teachers or args.teacher_seeds > 1),
        "--teacher oracle: has no layers to imitate; leave out the layer losses": weighed and args.teacher == "oracle",
    }  # fmt: skip
    for message, refused in refusals.items():
        if refused:
            parser.error(message)


def check_flags(parser, args):
    """Ends with status 2 where flags of different uses are mixed."""

    def given(*names: str) -> str:
        return ", ".join(f"--{name.replace('_', '-')}" for name in names if getattr(args, name))

    compare = ("dataset", "output_dir", "html", "calibrate", "quantize", "split", "fpb_agreement", "label_column")
    comparing, reading = given(*compare), given("text_column", "encoding")
    used = given(*compare, "text", "input", "label_order").partition(",")[0]
    output, html = args.output, args.html
    refusals = {
        f"--plot draws from results alone: leave out {used or 'the models'}": args.plot and (used or args.models),
        "which MODEL? give one or more folders of finished models, or names on the hub": not (args.plot or args.models),
        f"--text and --input label texts alone: leave out {comparing}": (args.text or args.input) and comparing,
        "--text and --input: give one of them": args.text and args.input,
        f"{reading}: no file is read here; leave it out": (args.text or args.plot) and reading,
        "--text: is not valid text in this terminal's encoding":
            any("\ud800" <= letter <= "\udfff" for text in args.text or () for letter in text),
        "--input FILE and --output FILE go together": bool(args.input) != bool(output),
        f"--output {output}: must end in .csv or .jsonl": output and output.suffix.lower() not in (".csv", ".jsonl"),
        f"--output {output}: is a folder; name a file": output and output.is_dir(),
        f"--html {html}: must end in .html": html and html.suffix.lower() not in (".html", ".htm"),
        f"--html {html}: is a folder; name a file": html and html.is_dir(),
        f"--output {output}: is the file of --input; give another":
            args.input and output and output.exists() and args.input.exists() and output.samefile(args.input),
        "--calibrate fits on the validation split: compare on one without its examples":
            args.calibrate and args.split in ("validation", "all"),
        "--input takes one model": args.input and len(args.models) > 1,
    }  # fmt: skip
    for message, refused in refusals.items():
        if refused:
            parser.error(message)
