"""The Markdown tables of the benchmark, made from its figures alone."""

import statistics


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


def layers_table(figures: dict, precision: str) -> str:
    rows = [
        [name, f"{1000 * figure['seconds']:.1f}", spread(figure)]
        for name, figure in figures.items()
        if isinstance(figure, dict)
    ]
    return markdown(["Step of 3 layers of MiniLM, 32 x 128, with", "ms", "Of a step with cached logits"], rows)


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


def serving_table(figures: dict, precision: str) -> str:
    cells = {name: figure for name, figure in figures.items() if " x " in name}
    sides = list(next(iter(cells.values()))["ms"])
    rows = []
    for name, figure in cells.items():
        best = figure.get("over_onnx")
        shown = f"{spread(best)}, {best['ours'].removeprefix('minikd ')}" if best else "-"
        rows.append([name, *(f"{figure['ms'][side]:.2f}" for side in sides), shown])
    return markdown(["Texts x tokens, ms", *sides, "ONNX Runtime's best over ours"], rows)


TABLES = {
    "rate": rate_table,
    "steps": steps_table,
    "ratios": ratios_table,
    "epochs": epochs_table,
    "feeding": feeding_table,
    "distillation": distillation_table,
    "layers": layers_table,
    "memory": memory_table,
    "data": data_table,
    "scaling": scaling_table,
    "startup": startup_table,
    "quantised": quantised_table,
    "serving": serving_table,
    "accuracy": accuracy_table,
}
