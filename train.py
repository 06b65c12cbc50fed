"""Fine-tune one classifier: a published encoder, or a new one from random weights.

python train.py --dataset sst2 --model bert-base-uncased --output-dir runs/sst2-teacher
python train.py --dataset imdb --layers 4 --hidden 256
"""

from minikd import evaluate, train
from minikd.cli import start
from minikd.cli.models import load_single
from minikd.cli.parse import train_args
from minikd.distributed import by_first, first_of_machine_first
from minikd.experiment.lock import only_run_in
from minikd.experiment.results import describe
from minikd.experiment.running import Run
from minikd.experiment.runs import begin
from minikd.experiment.tracking import Tracking


def main():
    args = train_args(__doc__)
    with only_run_in(args.output_dir), Tracking(args.track, args.output_dir) as tracking:
        run(args, tracking)


def run(args, tracking):
    """Trains the model and evaluates it."""
    device = start.set_up(args)
    data = start.load_data(args)
    with first_of_machine_first():  # it downloads
        model = load_single(args, data, device)
    recorded = start.flag_values(args)
    own_run = Run(args.output_dir, resume=args.resume, command=by_first(begin, args.output_dir, args.resume),
                  save_minutes=args.save_minutes, compile=args.compile, tracking=tracking,
                  arguments=recorded)  # fmt: skip
    train(model, data, start.train_config(args), lora=start.lora(args, args.lora_rank), run=own_run)

    results = evaluate({"model": model}, data.test, costs=True, cache=True)

    def report():
        describe(results, data, "test", recorded)
        tracking.summaries({"model": [model]}, results.values["models"])
        results.save(args.output_dir)
        print(f"\n{results}\n")

    by_first(report)


if __name__ == "__main__":
    start.run(main)
