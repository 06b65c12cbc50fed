"""The tables and pictures of README.md and data/results/README.md, from the results files in data/results.

`python -m minikd.experiment.readme` writes the tables anew; with `--add NAME RESULTS.json` it first puts a run's
results there as NAME.json, without the paths of its machine, and draws their dashboard if a README shows it.
"""

import argparse
import re
from pathlib import Path

from minikd.checkpoints.reading import reading
from minikd.errors import MinikdError
from minikd.experiment.results import complete, draw_file, read_results
from minikd.files import atomic_write, write_json
from minikd.report.tables import conditions, format_figure, report

ROOT = Path(__file__).parents[2]
FAULT = "holds figures that no table can show ({})"
READMES = ("README.md", "data/results/README.md")


def without_paths(results: dict) -> dict:
    """The results without what only their machine knows: folders of data, models and output."""
    own = ("output_dir", "data_dir", "models", "html", "plot", "input", "output")
    arguments = {key: value for key, value in results["arguments"].items() if key not in own}
    for key in ("teacher", "teacher_base", "student", "model", "dataset"):
        if arguments.get(key) and Path(arguments[key]).is_absolute():
            arguments[key] = Path(arguments[key]).name
    for key in ("more_teachers", "unlabelled"):
        if arguments.get(key):
            arguments[key] = [Path(one).name for one in arguments[key]]
    rows = [{key: value for key, value in row.items() if key != "path"} for row in results["models"]]
    return {**results, "arguments": arguments, "models": rows}


def readme_with_tables(readme: str, results_dir: Path) -> str:
    """A README's text with the tables between `<!-- results NAME -->` and `<!-- end -->` made anew from NAME.json.

    Words after the name pick the table's lines: `<!-- results NAME accuracy retention -->`. `<!-- summary NAME … -->`
    is the table of several results files, a line for each; `<!-- ablation NAME -->` that of tests/ablation.py.
    """

    def made(match: re.Match) -> str:
        kind, names = match[1], match[2].split()
        files = names if kind == "summary" else names[:1]
        with reading(results_dir / f"{', '.join(files)}.json", FAULT):
            return f"<!-- {kind} {match[2]} -->\n{text_of(kind, names)}\n<!-- end -->"

    def text_of(kind: str, names: list[str]) -> str:
        if kind == "ablation":
            return ablation(read_results(results_dir / f"{names[0]}.json"))
        if kind == "summary":
            return summary({name: complete(read_results(results_dir / f"{name}.json")) for name in names})
        results = complete(read_results(results_dir / f"{names[0]}.json"))
        table, lines = report(results, tuple(names[1:])).rsplit("\n\n", 1)
        return f"{table}\n\n" + lines.replace("\n", "  \n")  # Markdown's line breaks

    return re.sub("<!-- (results|summary|ablation) (.*?) -->\n.*?<!-- end -->", made, readme, flags=re.DOTALL)


def summary(experiments: dict[str, dict]) -> str:
    """The accuracies of several experiments, what distillation gave in each, and the accuracies that authors published,
    if any: a line for each experiment by its name."""
    known = {row["name"] for results in experiments.values() for row in results["models"]}
    models = [name for name in ("teacher", "distilled", "control", "baseline") if name != "control" or name in known]
    published = [f"published {name}" for name in models if name != "control"]
    published *= any("published" in results for results in experiments.values())
    lines = [["accuracy", *models, "distilled − baseline, points", *published]]
    lines.append([":--"] + ["--:"] * (len(lines[0]) - 1))
    for name, results in experiments.items():
        rows = {row["name"]: row["accuracy"] for row in results["models"]}
        found, own = results.get("significance"), results.get("published", {}).get("models", {})
        difference = "–"
        if found:
            points = [f"{100 * found[key]:+.2f}".replace("-", "−") for key in ("difference", "low", "high")]
            difference = "{} ({} to {})".format(*points)
        cells = [format_figure(rows.get(model), "{:.4f}") for model in models]
        lines.append(
            [
                name,
                *cells,
                difference,
                *(own.get(name.removeprefix("published "), {}).get("accuracy", "–") for name in published),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def ablation(results: dict) -> str:
    """The table of tests/ablation.py: a line for each way of training the same student, with its accuracy, how it
    differs from plain distillation, and what it costs; and below it the conditions."""
    lines = [["", "accuracy", "− plain distillation, points", "same label as the teacher", "steps", "minutes"]]
    lines.append([":--"] + ["--:"] * 5)
    compared = {part["models"][0]: part for part in results["comparisons"]}
    for row in results["models"]:
        found, difference = compared.get(row["name"]), "–"
        if found:
            points = [f"{100 * found[key]:+.2f}".replace("-", "−") for key in ("difference", "low", "high")]
            difference = "{} ({} to {})".format(*points)
        figures = (("accuracy", "{:.4f}"), ("teacher_agreement", "{:.1%}"), ("optimizer_steps", "{:,.0f}"),
                   ("training_minutes", "{:.1f}"))  # fmt: skip
        accuracy, agreement, steps, minutes = (format_figure(row.get(key), form) for key, form in figures)
        lines.append([row["name"], accuracy, difference, agreement, steps, minutes])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table}\n\n{conditions(results)}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m minikd.experiment.readme", description=__doc__.split("\n\n")[1])
    parser.add_argument("--add", metavar="NAME", help="write data/results/NAME.json from the file given")
    parser.add_argument("file", nargs="?", type=Path, metavar="RESULTS.json")
    args = parser.parse_args()
    if bool(args.add) != bool(args.file):
        parser.error("--add NAME and RESULTS.json go together")
    results_dir = ROOT / "data" / "results"
    readmes = {path: path.read_text(encoding="utf-8") for path in map(ROOT.joinpath, READMES) if path.exists()}
    try:
        if args.add:
            with reading(args.file, FAULT):
                results = without_paths(read_results(args.file))
            write_json(results_dir / f"{args.add}.json", results)
            if any(f"{args.add}.png" in text for text in readmes.values()):
                draw_file(results_dir / f"{args.add}.json", results_dir / f"{args.add}.png")
        for path, text in readmes.items():
            atomic_write(path, readme_with_tables(text, results_dir))
    except MinikdError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
