"""The targets that minikd's speed and memory are held to, and the tables of tests/README.md."""

from benchmark.tables import accuracy_table, conditions, markdown, share_of_rate, spread

MAIN = {"shape": "student", "batch": 32, "length": 128}  # the cell that the targets are set for


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


def readme_with_targets(readme: str, results: dict) -> str:
    """The text of tests/README.md, its tables between `<!-- benchmark -->` and `<!-- end -->` made anew."""
    parts = [targets(results), conditions(results)]
    if results.get("accuracy"):
        parts.append(accuracy_table(results["accuracy"], results["precision"]))
    text = "\n\n".join(parts)
    before, rest = readme.split("<!-- benchmark -->\n", 1)
    _, after = rest.split("<!-- end -->", 1)
    return f"{before}<!-- benchmark -->\n{text}\n<!-- end -->{after}"
