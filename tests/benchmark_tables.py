"""The Markdown tables of tests/benchmark.py, made from its figures alone."""

import statistics

MAIN = {"shape": "student", "batch": 32, "length": 128}  # the cell that the targets are set for


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""
    lines = [header, [":--"] + ["--:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(figure: dict | None) -> str:
    """A ratio, and in brackets the least and the largest of its rounds."""
    return f"{figure['ratio']:.2f}x ({figure['low']:.2f} to {figure['high']:.2f})" if figure else "-"


def share_of_rate(figure: dict, rates: dict, precision: str) -> float:
    """The fraction of the matrix rate that `figure`, of GFLOP and seconds, reached.

    The rate is the median of the readings before, between and after the measurements of the same part.
    """
    rate = figure.get("rate") or statistics.median(rates[precision])
    return figure["gflop"] / figure.get("seconds", figure.get("ours")) / rate


def find(results: dict, *path):
    """The figure at a path of keys, None where a part was not measured."""
    for key in path:
        results = results.get(key) if isinstance(results, dict) else None
    return results


def main_cell(results: dict, kind: str, precision: str) -> dict | None:
    """The cell 32 x 128 of the student."""
    wanted = MAIN | {"kind": kind, "precision": precision}
    cells = find(results, "steps", "cells") or []
    return next((cell for cell in cells if all(cell[key] == value for key, value in wanted.items())), None)


def targets(results: dict) -> str:
    """The table of targets: figure, target, what was measured, and whether it is met."""
    rows = []

    def row(name: str, value: float | None, limit: float, unit: str = "x", shown: str | None = None) -> None:
        """`limit` is the least value, or the largest where negative."""
        if value is None:
            return
        formats = {"x": "{:.2f}x", "%": "{:.1%}", "s": "{:.2f} s"}
        sign, wanted = ("at least", limit) if limit > 0 else ("at most", -limit)
        met = value >= limit if limit > 0 else value <= -limit
        target = f"{wanted:.0%}" if unit == "%" else f"{wanted:g}{'x' if unit == 'x' else ' s'}"
        measured = shown or formats[unit].format(value)
        rows.append([name, f"{sign} {target}", measured, "yes" if met else "no"])

    def ratio(name: str, figure: dict | None, limit: float) -> None:
        row(name, figure and figure["ratio"], limit, "x", spread(figure))

    for kind, limit in (("training", 1.35), ("inference", 1.3)):
        for precision in dict.fromkeys(("fp32", results["precision"])):
            name = {"training": "training step", "inference": "inference pass"}[kind]
            ratio(f"{name} 32 x 128 over transformers, {precision}", main_cell(results, kind, precision), limit)
    for corpus, limit in (("sst2", 3.5), ("fpb", 2.5), ("imdb", 2.2)):
        figure = find(results, "epochs", corpus)
        ratio(f"epoch of {corpus} at {figure['max_length']} over Trainer" if figure else corpus, figure, limit)
    # A target for GPUs, which wait where batches come late; on a CPU the same cores make the batches.
    share = None if results["environment"]["device"].startswith("cpu") else find(results, "feeding", "share", "ratio")
    row("steps alone over the whole epoch, SST-2", share, 0.95, "%")
    if cell := main_cell(results, "training", "fp32"):
        share = share_of_rate(cell, results["steps"]["rates"], "fp32")
        row("share of the matrix rate, training step 32 x 128, fp32", share, 0.7, "%")
    ratio(f"training step, {results['precision']} over fp32", find(results, "ratios", "short_over_fp32"), 1.7)
    ratio("epoch with cached logits / plain epoch", find(results, "distillation", "cached_over_plain"), -1.03)
    ratio("teacher's pass / its bare passes", find(results, "distillation", "pass_over_bare"), -1.05)
    for corpus, shares in (find(results, "data", "padding") or {}).items():
        row(f"padding of {corpus}", shares["ours"], -0.04, "%")
    row("tokenising IMDb, train and test", find(results, "data", "tokenize", "scratch"), -30, "s")
    row("the same from the cache", find(results, "data", "tokenize", "cached"), -1, "s")
    startup = find(results, "startup") or {}
    row("start-up, slowest script", max((startup[s] for s in startup if s.endswith(".py")), default=None), -2, "s")
    ratio("inference of the student over BERT-base", find(results, "ratios", "student_over_bert_base"), 7)
    ratio("inference 16 x 128, int8 over fp32", find(results, "quantised", "16 x 128", "int8"), 2)
    for name, figure in (find(results, "memory") or {}).items():
        if isinstance(figure, dict):
            row(f"peak memory of training, {name}, ours / Trainer", figure["ratio"], -1)
    return markdown(["Figure", "Target", "Measured (spread)", "Met"], rows)


def tables(results: dict) -> str:
    """A headed table for each part that was measured."""
    lines = [conditions(results)]
    if results["quick"]:
        lines.append("A quick run: its figures say nothing about speed.")
    return "\n\n".join(lines + [
        f"### {name}\n\n{TABLES[name](results[name], results['precision'])}" for name in TABLES if results.get(name)
    ])  # fmt: skip


def conditions(results: dict) -> str:
    """Machine, threads, precision and versions, in one line."""
    environment = results["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    return f"{environment['device']}, {environment['threads']} threads, precision {results['precision']}; {versions}"


def readme_with_targets(readme: str, results: dict) -> str:
    """The text of tests/README.md, its tables between `<!-- benchmark -->` and `<!-- end -->` made anew."""
    parts = [targets(results), conditions(results)]
    if results.get("accuracy"):
        parts.append(accuracy_table(results["accuracy"], results["precision"]))
    text = "\n\n".join(parts)
    before, rest = readme.split("<!-- benchmark -->\n", 1)
    _, after = rest.split("<!-- end -->", 1)
    return f"{before}<!-- benchmark -->\n{text}\n<!-- end -->{after}"


def rate_table(figures: dict, precision: str) -> str:
    rows = [[name, f"{statistics.median(rates):.0f}"] for name, rates in figures["rates"].items()]
    return markdown(["Precision", "GFLOP/s of matrix products"], rows)


def steps_table(figures: dict, precision: str) -> str:
    rows = [
        [
            f"{cell['kind']}, {cell['shape']}, {cell['precision']}",
            f"{cell['batch']} x {cell['length']}",
            f"{1000 * cell['ours']:.1f}",
            f"{1000 * cell['theirs']:.1f}",
            spread(cell),
            f"{share_of_rate(cell, figures['rates'], cell['precision']):.0%}",
        ]
        for cell in figures["cells"]
    ]
    table = markdown(["Pass", "Batch", "minikd, ms", "transformers, ms", "Ratio", "Of matrix rate"], rows)
    skipped = "; ".join(figures["skipped"])
    return table + (f"\n\nNot measured, since a pass takes too long: {skipped}." if skipped else "")


def ratios_table(figures: dict, precision: str) -> str:
    names = {
        "short_over_fp32": f"training step, {precision} over fp32",
        "student_over_bert_base": "inference, student over BERT-base",
    }
    return markdown(
        ["32 x 128", "Times as fast"], [[names[key], spread(figures[key])] for key in names if key in figures]
    )


def feeding_table(figures: dict, precision: str) -> str:
    row = [str(figures["examples"]), f"{figures['steps']:.1f}", f"{figures['epoch']:.1f}"]
    row.append("{ratio:.1%} ({low:.1%} to {high:.1%})".format(**figures["share"]))
    return markdown(["SST-2, examples", "Steps alone, s", "Epoch, s", "Share of the epoch"], [row])


def epochs_table(figures: dict, precision: str) -> str:
    rows = [
        [
            f"{name}, at most {figure['max_length']} tokens",
            str(figure["examples"]),
            *(f"{figure[side]:.1f}" for side in ("ours", "theirs")),
            spread(figure),
            f"{figure['padded']:.1f}",
            f"{figure['over_padded']:.1f}x",
            *(f"{figure['padding'][side]:.1%}" for side in ("ours", "theirs")),
        ]
        for name, figure in figures.items()
        if isinstance(figure, dict)
    ]
    header = ["Corpus", "Examples", "minikd, ex/s", "Trainer, ex/s", "Ratio", "Trainer, padded to the maximum, ex/s"]
    return markdown(header + ["Ratio", "minikd's padding", "Trainer's padding"], rows)


def distillation_table(figures: dict, precision: str) -> str:
    names = {
        "plain": "plain epoch",
        "cached": "epoch with cached logits",
        "first": "first epoch, with the making of the cache",
        "online": "epoch with an online teacher",
        "teacher_pass": "the teacher's pass alone",
    }
    rows = [
        [text, f"{figures[key]:.2f}", f"{figures[key] / figures['plain']:.2f}x"]
        for key, text in names.items()
        if key in figures
    ]
    ratios = f"Cached over plain {spread(figures.get('cached_over_plain'))}; teacher's pass over bare passes "
    ratios += f"{spread(figures.get('pass_over_bare'))}."
    return markdown([f"SST-2, {figures['examples']} examples", "Seconds", "Of plain"], rows) + f"\n\n{ratios}"


def memory_table(figures: dict, precision: str) -> str:
    rows = [
        [name, f"{figure['ours']:.0f}", f"{figure['theirs']:.0f}", f"{figure['ratio']:.2f}x"]
        for name, figure in figures.items()
        if isinstance(figure, dict)
    ]
    return markdown(["Training", "minikd, MiB", "Trainer, MiB", "Ratio"], rows)


def data_table(figures: dict, precision: str) -> str:
    rows = []
    if tokens := figures.get("tokenize"):
        rows += [
            [f"tokenising IMDb, {tokens['texts']:,} texts, s", f"{tokens['scratch']:.1f}", f"{tokens['theirs']:.1f}"],
            ["the same from the cache, s", f"{tokens['cached']:.2f}", "-"],
            ["IMDb's tokens, MiB", f"{tokens['bytes'] / 2**20:.1f}", "-"],
        ]
    if batches := figures.get("batches"):
        rows.append(["batches of SST-2, examples/s", f"{batches['ours']:,.0f}", f"{batches['theirs']:,.0f}"])
    for name, shares in figures.get("padding", {}).items():
        rows.append([f"padding of {name}", f"{shares['ours']:.1%}", f"{shares['theirs']:.1%}"])
    for name, size in figures.get("logits_bytes", {}).items():
        rows.append([f"cached logits of {name}, KiB", f"{size / 2**10:.0f}", "-"])
    return markdown(["", "minikd", "transformers"], rows)


def scaling_table(figures: dict, precision: str) -> str:
    titles = {
        "length": "training step, 8 x {} tokens",
        "layers": "training step, 32 x 128, {} layers",
        "examples": "epoch of SST-2, {} examples",
        "threads": "training step, 32 x 128, {} threads",
    }
    rows = []
    for kind, title in titles.items():
        for figure in figures.get(kind, []):
            name, share = title.format(figure["x"]), share_of_rate(figure, figures["rates"], precision)
            rows.append(
                [name, f"{figure['seconds']:.3f}", f"{figure['gflop'] / figure['seconds']:.0f}", f"{share:.0%}"]
            )
    return markdown(["Student", "Seconds", "GFLOP/s", "Of matrix rate"], rows)


def startup_table(figures: dict, precision: str) -> str:
    return markdown(
        ["Script", "Seconds to its first line"], [[s, f"{t:.2f}"] for s, t in figures.items() if s.endswith(".py")]
    )


def quantised_table(figures: dict, precision: str) -> str:
    batches = [name for name in figures if " x " in name]
    rows = [
        [name, f"{size:.0f}"]
        + [f"{figures[b][name]['examples_per_second']:.0f}: {spread(figures[b][name])}" for b in batches]
        for name, size in figures["mib"].items()
    ]
    return markdown(["Student", "Weights, MiB", *(f"{b}, ex/s: ratio to fp32" for b in batches)], rows)


def accuracy_table(figures: dict, precision: str) -> str:
    rows = [
        [f"seed {row['seed']}"]
        + [f"{row[side][i]:.2%}" for i in (0, 1) for side in ("ours", "theirs")]
        + [f"{row[f'{side}_seconds']:.0f}" for side in ("ours", "theirs")]
        for row in figures["seeds"]
    ]
    if len(figures["seeds"]) > 1:
        columns = list(zip(*(row["ours"][:1] + row["theirs"][:1] + row["ours"][1:] + row["theirs"][1:]
                             for row in figures["seeds"])))  # fmt: skip
        seconds = [statistics.mean(row[f"{s}_seconds"] for row in figures["seeds"]) for s in ("ours", "theirs")]
        means = [f"{statistics.mean(c):.2%} ± {100 * statistics.stdev(c):.2f}" for c in columns]
        rows.append(["mean ± std", *means, *(f"{s:.0f}" for s in seconds)])
    threads = figures.get("thread_count")
    header = [
        f"SST-2, one epoch of 3 layers of MiniLM, {threads} thread(s)",
        "minikd, validation",
        "Trainer, validation",
        "minikd, dev",
        "Trainer, dev",
    ]
    return markdown(header + ["minikd, s", "Trainer, s"], rows)


TABLES = {
    "rate": rate_table,
    "steps": steps_table,
    "ratios": ratios_table,
    "epochs": epochs_table,
    "feeding": feeding_table,
    "distillation": distillation_table,
    "memory": memory_table,
    "data": data_table,
    "scaling": scaling_table,
    "startup": startup_table,
    "quantised": quantised_table,
    "accuracy": accuracy_table,
}
