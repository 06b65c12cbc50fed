"""Compare finished models on a split of a corpus, look into their predictions, or label new texts.

python evaluate.py runs/sst2/teacher runs/sst2/distilled --split test --calibrate --html sst2.html
python evaluate.py runs/sst2/distilled --quantize int8 int4 --output-dir runs/sst2-small
python evaluate.py runs/sst2/distilled --text "a gripping, funny film" --text "two hours of nothing"
python evaluate.py runs/sst2/distilled --input reviews.txt --output labels.csv
python evaluate.py --plot runs/sst2
"""

from pathlib import Path

from minikd import evaluate
from minikd.cli import finished, start
from minikd.cli.models import config_of, load_model
from minikd.cli.parse import evaluate_args
from minikd.distributed import world_size
from minikd.errors import MinikdError
from minikd.experiment.labelling import label_file, print_labels, texts_of
from minikd.experiment.lock import only_run_in
from minikd.experiment.results import calibrate, describe, draw_file
from minikd.experiment.runs import read_run
from minikd.report.page import description, write_page


def main():
    args = evaluate_args(__doc__)
    if world_size() > 1:
        raise MinikdError("runs in a single process; start it with python, not with torchrun")
    if args.plot:
        draw_file(args.plot / "results.json", args.plot / "dashboard.png")
        return
    finished.use_recorded_flags(args)
    device = start.set_up(args)
    if args.text:
        print_labels({source: load_model(source, args, device) for source in args.models}, args.text)
    elif args.input:
        start.check_writable(args.output.parent, "--output")
        texts = texts_of(args.input, args.text_column, args.encoding)
        label_file(load_model(args.models[0], args, device), texts, args.output)
    else:
        if args.html:
            start.check_writable(args.html.parent, "--html")
        if args.output_dir:
            start.check_writable(args.output_dir)
            finished.check_not_overwritten(args.output_dir)
        with only_run_in(args.output_dir):
            compare(args, device)


def compare(args, device):
    """The table of all models on the split, each with its own tokenizer."""
    labels = args.label_order or config_of(args.models[0]).labels
    data = start.load_data(args, labels if args.split == "all" else None, unlabelled=())
    split = getattr(data, args.split)
    if args.split != "all":
        count, total = len(split.texts), len(data.all.texts)
        print(f"{args.split}: {count:,} of {total:,} examples of {data.name}; --split all takes all of them")
    models, originals = finished.load_for_comparison(args, data, device)
    sources = {name: models[originals.get(name, name)].source for name in models}  # of the weights that were trained

    results = evaluate(models, split, costs=True, cache=True)
    describe(results, data, args.split, start.flag_values(args))
    results.values |= finished.training_data(models, sources, data, args)
    for name, original in originals.items():
        own, full = (results.logits[one][0].argmax(dim=-1) for one in (name, original))
        row = next(row for row in results.values["models"] if row["name"] == name)
        row["agreement"] = (own == full).float().mean().item()
    if args.calibrate:
        for name, model in models.items():
            calibrate(results, name, model, data.validation)
    if args.output_dir:
        for name in originals:
            finished.save_quantized(models[name], sources[name])
        results.save(args.output_dir)
    print(f"\n{results}\n")
    if args.html:
        write_html(args, data, models, sources, results)


def write_html(args, data, models, sources, results):
    """The page of predictions."""
    about = {}
    for name, model in models.items():
        config = model.model.config
        about[name] = description(read_run(Path(sources[name])), config.num_hidden_layers, config.quantization)
    split, logits = results.split, {name: of_seeds[0] for name, of_seeds in results.logits.items()}
    note = write_page(args.html, data.name, args.split, data.labels, split.texts, split.labels, logits,
                      true_probabilities=split.probabilities, about=about)  # fmt: skip
    print(f"page: {args.html}" + f" ({note})" * bool(note))


if __name__ == "__main__":
    start.run(main)
