"""The dashboard: what it shows, that a model looks the same everywhere, and that poor results still make a picture."""

import copy
import itertools
import json
import statistics
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minikd.errors import MinikdError
from minikd.experiment.recorded import loss_curves
from minikd.experiment.results import complete, read_results
from minikd.report.drawing import ROLES, looks, short
from minikd.report.figures import losses
from minikd.report.plots import DPI, dashboard, draw

matplotlib = pytest.importorskip("matplotlib")

RESULTS = Path(__file__).parents[2] / "data" / "results"

MODELS = {
    "teacher": (0.912, 109_483_778, 47.6),
    "distilled": (0.878, 28_764_674, 6.1),
    "baseline": (0.864, 28764674, 6),
}
LONG = "distilbert-base-uncased-distilled-with-alpha-0.{}-and-T-4"


def make_results(names=tuple(MODELS), labels=("neg", "pos"), seeds=1, examples=872):
    rng = np.random.default_rng(0)
    rows, curves = [], {}
    for name in names:
        accuracy, parameters, latency = MODELS.get(name, (rng.uniform(0.7, 0.9), 4_385_920, 0.8))

        def over_seeds(value, std=0.01):
            return value if seeds == 1 else (value + std * value * rng.standard_normal(seeds)).tolist()  # noqa: B023

        confusion = rng.integers(1, 20, (len(labels), len(labels))) + np.diag(rng.integers(50, 300, len(labels)))
        confidence = (np.arange(15) + 0.5) / 15
        bins = [[int(40 * c**3), c, c - 0.03] if c > 1 / len(labels) else [0, None, None] for c in confidence.tolist()]
        rows.append(
            {
                "name": name,
                "path": f"out/{name}",
                "parameters": parameters,
                "size_mb": parameters * 4 / 2**20,
                "accuracy": over_seeds(accuracy),
                "f1": over_seeds(accuracy - 0.004),
                "ece": over_seeds(0.03),
                "latency_1_ms": over_seeds(3 * latency),
                "latency_ms": over_seeds(latency),
                "confusion": confusion.tolist(),
                "reliability": bins,
            }
        )
        steps = np.linspace(0.05, 3, 60)
        losses = 0.2 + np.exp(-steps) * rng.uniform(0.9, 1.1, 60)
        validation = [[epoch, accuracy - 0.05 / epoch, 0.4] for epoch in (1, 2, 3)]
        curves[name] = {"train": np.stack([steps, losses], axis=1).tolist(), "validation": validation}
    cells = [
        {"alpha": alpha, "T": T, "validation_accuracy": 0.8 + alpha / 10 - T / 100, "validation_ece": T / 100}
        for alpha in (0.1, 0.5, 0.9)
        for T in (1.0, 2.0, 4.0)
    ]
    return {
        "dataset": "sst2",
        "split": "test",
        "examples": examples,
        "labels": list(labels),
        "precision": "bf16",
        "device": "cpu, AMD EPYC",
        "threads": 2,
        "arguments": {"seed": 7},
        "seeds": list(range(7, 7 + seeds)),
        "models": rows,
        "curves": curves,
        "sweep": {"cells": cells, "chosen": {"alpha": 0.9, "T": 1.0}},
    }


def panels_of(figure) -> dict:
    return {ax.get_title(loc="left"): ax for ax in figure.axes if ax.get_title(loc="left")}


def texts_of(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


@pytest.fixture(scope="module")
def whole():
    """A Figure with every panel; the tests only look at it."""
    return draw(make_results())


def test_every_part_of_the_results_has_a_panel(whole):
    assert set(panels_of(whole)) == {
        "Quality",
        "Size",
        "Latency",
        "Training loss, labels alone",
        "Training loss, distilled",
        "Validation accuracy",
        "Reliability",
        "Confusion: teacher",
        "Confusion: distilled",
        "Confusion: baseline",
        "Sweep: validation accuracy",
        "Sweep: validation ECE",
    }


@pytest.mark.parametrize(
    ("absent", "panels"),
    [
        (("accuracy", "f1"), ["Quality"]),
        (("size_mb",), ["Size"]),
        (("latency_1_ms", "latency_ms"), ["Latency"]),
        (("confusion",), ["Confusion: teacher", "Confusion: distilled", "Confusion: baseline"]),
        (("reliability",), ["Reliability"]),
        (("curves",), ["Training loss, labels alone", "Training loss, distilled", "Validation accuracy"]),
        (("sweep",), ["Sweep: validation accuracy", "Sweep: validation ECE"]),
    ],
)
def test_a_part_without_data_has_no_panel_and_takes_no_room(whole, absent, panels):
    results = make_results()
    for holder in (results, *results["models"]):
        for key in absent:
            holder.pop(key, None)
    part = draw(results)
    assert set(panels_of(whole)) - set(panels_of(part)) == set(panels)
    assert part.get_figheight() <= whole.get_figheight()
    check_layout(part)


def colors_in(figure, names) -> dict:
    """{name: {panel: its colours there}} of everything that is drawn for a model."""
    found = {name: {} for name in names}

    def seen(name, color, title):
        found[name].setdefault(title, set()).add(matplotlib.colors.to_hex(color).upper())

    for title, ax in panels_of(figure).items():
        for line in ax.lines:
            if line.get_label() in found:
                seen(line.get_label(), line.get_color(), title)
        for container in ax.containers:
            if container.get_label() in found:
                first = container[0]
                color = first.get_color() if hasattr(first, "get_color") else first.get_facecolor()
                seen(container.get_label(), color, title)
        if title.removeprefix("Confusion: ") in found:
            seen(title.removeprefix("Confusion: "), ax.images[0].get_cmap()(1.0), title)
    return found


@pytest.mark.parametrize(
    "names", [("control", "baseline", "distilled", "teacher"), ("distilled", "teacher", "baseline")]
)
def test_a_role_has_its_colour_in_every_panel_whatever_the_order(names):
    found = colors_in(draw(make_results(names)), names)
    shared = {"Quality", "Size", "Latency", "Validation accuracy", "Reliability"}
    for name, panels in found.items():
        kind = "distilled" if name == "distilled" else "labels alone"
        assert set(panels) == shared | {f"Confusion: {name}", f"Training loss, {kind}"}
        assert set.union(*panels.values()) == {ROLES[name].upper()}


def test_a_role_has_its_colour_whichever_models_are_in_the_picture():
    for names in (["distilled"], ["other", "baseline", "distilled"], ["distilled", "distilled-int8"]):
        panels = colors_in(draw(make_results(names)), ["distilled"])["distilled"]
        assert set.union(*panels.values()) == {ROLES["distilled"]}
    assert looks(["sst2-teacher", "my distilled student"]).keys() == {"sst2-teacher", "my distilled student"}
    hues = {name: hue_of(look["color"]) for name, look in looks(["sst2-teacher", "my distilled student"]).items()}
    assert hues["sst2-teacher"] == pytest.approx(hue_of(ROLES["teacher"]), abs=0.01)
    assert hues["my distilled student"] == pytest.approx(hue_of(ROLES["distilled"]), abs=0.01)
    assert looks(["b", "teacher", "a"]) == looks(["a", "b", "teacher"])  # no place in a list matters
    assert looks(["teacher b", "teacher"]).items() >= looks(["teacher b"]).items()


def hue_of(color):
    return matplotlib.colors.rgb_to_hsv(matplotlib.colors.to_rgb(color))[0]


@pytest.mark.parametrize("base", ["teacher", "distilled", "control", "baseline", "fpb-full", "distilled-2"])
def test_a_quantised_copy_has_its_originals_hue_and_another_shade_marker_and_line(base):
    names = [base, f"{base}-int8", f"{base}-int4"]
    found = looks([*names, "another"])
    assert all(hue_of(found[name]["color"]) == pytest.approx(hue_of(found[base]["color"]), abs=0.02) for name in names)
    for key in ("color", "marker", "linestyle"):
        assert len({found[name][key] for name in names}) == 3, key
    if base in ROLES:  # the copy's look does not depend on its original's being there
        assert looks(names[2:]) == {names[2]: found[names[2]]}


@pytest.mark.parametrize("name", ["model {}", "distilled-{}"])
def test_twenty_models_are_told_apart_by_colour_marker_and_line(name):
    figure = draw(make_results([name.format(i) for i in range(20)]))
    lines = panels_of(figure)["Validation accuracy"].lines
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}) == 20
    if name == "model {}":
        assert len({look["color"] for look in looks(f"model {i}" for i in range(4)).values()} | {*ROLES.values()}) == 8


def test_axes_carry_their_units(whole):
    labels = {
        title: (ax.get_xlabel(), ax.get_ylabel())
        for title, ax in panels_of(whole).items()
        if title not in ("Confusion: distilled", "Confusion: baseline")  # the row's first names the true labels
    }
    assert labels["Quality"][0] == "score (0 to 1)"
    assert labels["Size"][0] == "MiB"
    assert labels["Latency"][0] == "ms per example (log scale)"
    assert labels["Training loss, distilled"] == ("epoch", "loss (nats)")
    assert labels["Validation accuracy"] == ("epoch", "accuracy (0 to 1)")
    assert labels["Reliability"] == ("confidence (0 to 1)", "accuracy (0 to 1)")
    assert labels["Confusion: teacher"] == ("predicted label", "true label")
    assert labels["Sweep: validation accuracy"] == ("temperature T", "alpha")


def test_the_title_says_corpus_split_examples_device_precision_and_seeds(whole):
    heading, settings = (text.get_text() for text in whole.subfigs[0].texts)
    assert heading == "sst2, test split of 872 examples"
    assert settings == "bf16 on cpu, AMD EPYC (2 threads) · seed 7"
    settings = draw(make_results(["teacher"], seeds=5)).subfigs[0].texts[1].get_text()
    assert settings.endswith("(2 threads) · 5 seeds, mean ± std")


def test_quality_over_seeds_is_the_mean_with_its_std_and_latency_the_median():
    results = make_results(["distilled"], seeds=5)
    row = results["models"][0]
    panels = panels_of(draw(results))
    mean, std = statistics.fmean(row["accuracy"]), statistics.stdev(row["accuracy"])
    accuracy = panels["Quality"].containers[0]
    assert accuracy[0].get_xdata()[0] == pytest.approx(mean)
    (segment,) = accuracy[2][0].get_segments()
    assert segment[:, 0] == pytest.approx([mean - std, mean + std])
    assert f"{mean:.3f} ± {std:.3f}" in texts_of(panels["Quality"])
    assert panels["Latency"].containers[0][0].get_xdata()[0] == statistics.median(row["latency_1_ms"])
    assert texts_of(panels["Validation accuracy"])[-1] == "after each epoch, first seed"


@pytest.mark.parametrize(("slow", "scale"), [(9.0, "linear"), (11.0, "log")])
def test_latency_has_a_log_axis_where_figures_are_far_apart(slow, scale):
    results = make_results(["teacher"])
    results["models"][0] |= {"latency_1_ms": slow, "latency_ms": 1.0}
    assert panels_of(draw(results))["Latency"].get_xscale() == scale


def test_size_bars_are_as_long_as_the_weights_so_that_quantised_models_differ():
    results = make_results(["distilled", "distilled-int8", "distilled-int4"])
    for row, mib in zip(results["models"], (59.571, 15.636, 8.3745)):
        row |= {"parameters": 15_615_234, "size_mb": mib}
    ax = panels_of(draw(results))["Size"]
    assert [bar.get_width() for bar in ax.patches] == [59.571, 15.636, 8.3745]
    assert ax.get_xlim()[0] == 0 and ax.get_xscale() == "linear"
    assert texts_of(ax)[:3] == ["59.6 MiB\n15.6 M", "15.6 MiB\n15.6 M", "8.37 MiB\n15.6 M"]


def test_quality_holds_the_bag_of_words_the_best_possible_and_the_interval():
    results = make_results()
    results |= {"bag_of_words": {"accuracy": 0.81, "f1": 0.8}, "best_possible_accuracy": 0.95}
    results["significance"] = {"difference": 0.014, "low": -0.004, "high": 0.031, "confidence": 0.95}
    ax = panels_of(draw(results))["Quality"]
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == [*MODELS, "bag of words", "best possible", "distilled − baseline"]
    marks = {container.get_label(): container[0].get_xdata()[0] for container in ax.containers[::-1]}
    assert (marks["bag of words"], marks["best possible"]) == (0.81, 0.95)
    assert {"0.810", "0.800", "0.950", "+1.40 points\n95%: −0.40 to +3.10"} <= set(texts_of(ax))
    (interval,) = (line for line in ax.lines if line.get_label() == "interval")
    baseline = MODELS["baseline"][0]
    assert interval.get_xdata() == pytest.approx([baseline - 0.004, baseline + 0.031])  # on the scale of the scores
    assert ax.get_xlim()[0] < 0.8 and ax.get_xlim()[1] > 0.95
    for broken in ({"low": None}, {"high": float("nan")}, {"difference": None}):
        part = draw(results | {"significance": results["significance"] | broken})
        assert "distilled − baseline" not in [
            label.get_text() for label in panels_of(part)["Quality"].get_yticklabels()
        ]


def test_quality_draws_each_difference_from_the_second_models_accuracy_on():
    results = make_results(["teacher", "distilled", "control", "baseline"])
    accuracy = {row["name"]: row["accuracy"] for row in results["models"]}
    results["significance"] = {"difference": 0.014, "low": -0.004, "high": 0.031}
    parts = [{"models": ["distilled", "control"], "difference": 0.01, "low": 0.002, "high": 0.02}]
    parts += [{"models": ["control", "baseline"], "difference": 0.004, "low": -0.01, "high": 0.03}]
    ax = panels_of(draw(results | {"comparisons": parts}))["Quality"]
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names[4:] == ["distilled − baseline", "distilled − control", "control − baseline"]
    intervals = [line for line in ax.lines if line.get_label() == "interval"]
    ends = [(line.get_xdata()[0], line.get_xdata()[1], line.get_ydata()[0]) for line in intervals]
    base, control = accuracy["baseline"], accuracy["control"]
    assert ends == [(pytest.approx(base - 0.004), pytest.approx(base + 0.031), 4),
                    (pytest.approx(control + 0.002), pytest.approx(control + 0.02), 5),
                    (pytest.approx(base - 0.01), pytest.approx(base + 0.03), 6)]  # fmt: skip
    assert [line.get_color() for line in intervals] == [ROLES["distilled"]] * 2 + [ROLES["control"]]
    assert {"+1.00 points\n95%: +0.20 to +2.00", "+0.40 points\n95%: −1.00 to +3.00"} <= set(texts_of(ax))


def losses_of(results) -> dict:
    """{title without "Training loss, ": (note, names drawn)}"""
    panels = panels_of(draw(results)).items()
    return {
        title.removeprefix("Training loss, "): (texts_of(ax)[-1], {line.get_label() for line in ax.lines} & names)
        for title, ax in panels
        for names in [{row["name"] for row in results["models"]}]
        if title.startswith("Training loss")
    }


@pytest.mark.parametrize("seeds", [1, 3])
def test_curves_of_several_seeds_say_that_they_are_the_first_seeds(seeds):
    panels = panels_of(draw(make_results(seeds=seeds)))
    notes = [texts_of(ax)[-1] for title, ax in panels.items() if title.startswith(("Training", "Validation"))]
    assert len(notes) > 1 and {note.endswith(", first seed") for note in notes} == {seeds > 1}


def test_losses_of_different_formulas_share_no_axis():
    results = make_results() | {"arguments": {"alpha": [0.5], "T": [2.0]}}
    del results["sweep"]
    assert losses_of(results) == {
        "labels alone": ("CE, smoothed", {"teacher", "baseline"}),
        "distilled": ("0.5 · CE + 0.5 · 2² · KL, smoothed", {"distilled"}),
    }
    results["arguments"] = {"alpha": [0.1, 0.5], "T": [2.0], "label_smoothing": 0.1}
    results["sweep"] = {"chosen": {"alpha": 0.1, "T": 2.0}}
    assert losses_of(results) == {
        "labels alone": ("CE (label smoothing 0.1), smoothed", {"teacher", "baseline"}),
        "distilled": ("0.1 · CE (label smoothing 0.1) + 0.9 · 2² · KL, smoothed", {"distilled"}),
    }
    results |= {"sweep": None, "arguments": {}}
    assert losses_of(results)["distilled"] == ("alpha · CE + (1 − alpha) · T² · KL, smoothed", {"distilled"})


def test_the_formula_is_that_recorded_with_the_curve_whatever_the_models_name():
    results = make_results(["a", "b", "distilled"]) | {"arguments": {"alpha": [0.9], "T": [2.0]}, "sweep": None}
    for name, alpha, T in (("a", 0.0, 4.0), ("b", 1.0, 2.0), ("distilled", 0.5, 8.0)):
        results["curves"][name]["settings"] = {"alpha": alpha, "T": T, "label_smoothing": 0.0}
    figure = draw(results)
    notes = [texts_of(ax)[-1] for ax in figure.axes if ax.get_title(loc="left").startswith("Training loss")]
    assert sorted(notes) == ["0.5 · CE + 0.5 · 8² · KL, smoothed", "1 · 4² · KL, smoothed", "CE, smoothed"]
    for soft, words in (("mse", "0.5 · CE + 0.5 · MSE"), ("dkd", "0.5 · CE + 0.5 · 8² · DKD")):
        results["curves"]["distilled"]["settings"] = {"alpha": 0.5, "T": 8.0, "soft_loss": soft}
        assert ("distilled", words) in losses(results)


def test_a_curve_comes_with_the_settings_of_its_loss(tmp_path):
    lines = [{"step": 1, "epoch": 0.5, "loss": 0.7}, {"epoch": 1, "validation_accuracy": 0.8, "validation_loss": 0.5}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {"alpha": 0.3, "T": 4.0, "label_smoothing": 0.1, "soft_loss": "mse", "lr": 1e-4}
    for teacher, expected in (("key", settings), (None, settings | {"alpha": 1.0, "T": 1.0})):
        run = {"arguments": {}, "made_from": {"teacher": teacher, "settings": settings}}
        (tmp_path / "run.json").write_text(json.dumps(run))
        assert loss_curves(tmp_path)["settings"] == {key: expected[key] for key in settings if key != "lr"}
    (tmp_path / "run.json").unlink()
    assert loss_curves(tmp_path) == {"train": [[0.5, 0.7]], "validation": [[1, 0.8, 0.5]]}


def test_long_curves_are_thinned_to_means_of_neighbours(tmp_path):
    lines = [{"step": i, "epoch": i / 5, "loss": float(loss)} for i, loss in enumerate((8, 4, 3, 1, 5), start=1)]
    lines.append({"step": 5, "epoch": 1, "validation_accuracy": 0.8, "validation_loss": 0.5})
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert np.allclose(loss_curves(tmp_path, points=3)["train"], [(0.3, 6), (0.7, 2), (1, 5)])
    assert np.allclose(loss_curves(tmp_path, points=5)["train"], [(line["epoch"], line["loss"]) for line in lines[:5]])


@pytest.mark.parametrize("count", [150, 200, 201, 1000])
def test_a_long_curve_is_thinned_to_at_most_200_means_of_neighbours(count, tmp_path):
    steps = [{"step": i + 1, "epoch": (i + 1) / 100, "loss": 1 / (i + 1)} for i in range(count)]
    lines = [*steps, {"epoch": 1, "validation_accuracy": 0.8, "validation_loss": 0.5}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    train, size = loss_curves(tmp_path)["train"], -(-count // 200)
    assert len(train) == -(-count // size) <= 200
    for i, point in enumerate(train):
        group = steps[i * size : (i + 1) * size]
        assert point == pytest.approx([statistics.mean(line[key] for line in group) for key in ("epoch", "loss")])


@pytest.mark.parametrize("text", ["distilbert-base-uncased-distilled-with-alpha-0.5-and-T-4", "two\nlines  of words"])
def test_a_name_is_shortened_to_one_line_of_its_beginning_and_end(text):
    line = " ".join(text.split())
    for limit in range(5, 70):
        found = short(text, limit)
        assert len(found) == min(limit, len(line)) and "\n" not in found
        start, _, end = found.partition("…")
        assert line.startswith(start) and line.endswith(end) and abs(len(start) - len(end)) <= 1 or found == line
    assert short("costs $5 or $6", 20) == r"costs \$5 or \$6"  # or matplotlib would set 5 or as mathematics


def test_one_epoch_of_validation_is_no_curve_and_takes_no_room():
    results = make_results()
    for curve in results["curves"].values():
        curve["validation"] = curve["validation"][:1]
    figure = draw(results)
    assert "Validation accuracy" not in panels_of(figure) and "Training loss, distilled" in panels_of(figure)
    widths = {title: ax.get_subplotspec().colspan for title, ax in panels_of(figure).items()}
    assert (widths["Reliability"].start, widths["Reliability"].stop) == (1, 2)  # half the page each
    results["curves"]["teacher"]["validation"].append([2, 0.8, 0.4])
    assert "Validation accuracy" in panels_of(draw(results))


def test_only_what_is_smoothed_says_so():
    results = make_results(["teacher"])
    results["curves"]["teacher"]["train"] = [[i / 37, 0.7] for i in range(1, 38)]
    ax = panels_of(draw(results))["Training loss, labels alone"]
    assert len(ax.lines) == 1 and not any("smoothed" in text for text in texts_of(ax))


def test_the_smoothed_loss_is_a_moving_average_over_a_twentieth_of_the_curve():
    results = make_results(["teacher"])
    raw, smooth = panels_of(draw(results))["Training loss, labels alone"].lines
    assert raw.get_alpha() < 1 and smooth.get_alpha() is None
    assert smooth.get_ydata()[30] == pytest.approx(np.mean(raw.get_ydata()[29:32]))
    assert smooth.get_ydata()[0] == pytest.approx(np.mean(raw.get_ydata()[:2]))  # no zeros from beyond the end
    results["curves"]["teacher"]["train"] = [[i / 80, 1 - i / 100] for i in range(1, 81)]  # a twentieth: 4 points
    raw, smooth = panels_of(draw(results))["Training loss, labels alone"].lines
    assert smooth.get_ydata()[10:-10] == pytest.approx(raw.get_ydata()[10:-10])  # not moved to the left


def test_reliability_joins_the_bins_that_hold_examples_and_sizes_them_by_count():
    results = make_results(["teacher"])
    bins = results["models"][0]["reliability"] = [[0, None, None]] * 10 + [[1, 0.69, 0.0]] + [[0, None, None]] * 2
    bins += [[4, 0.9, 0.85], [395, 0.98, 0.95]]  # of 400: lines join the bins with 1 % or more
    ax = panels_of(draw(results))["Reliability"]
    assert ax.lines[0].get_xydata().tolist() == [[0.69, 0.69], [1, 1]]  # where confidence is accuracy
    assert ax.lines[1].get_xydata().tolist() == [[0.9, 0.85], [0.98, 0.95]]  # one example of 400 is noise: a dot only
    assert ax.collections[0].get_offsets().tolist() == [[0.69, 0.0], [0.9, 0.85], [0.98, 0.95]]
    assert ax.collections[0].get_sizes() == pytest.approx([10 + 250 * count / 400 for count in (1, 4, 395)])


def test_the_key_gives_every_models_look_and_ece(whole):
    (legend,) = (ax.get_legend() for ax in whole.axes if ax.get_legend())
    assert [text.get_text() for text in legend.get_texts()] == [f"{name}   ECE 0.030" for name in MODELS]
    assert [line.get_color() for line in legend.get_lines()] == [ROLES[name] for name in MODELS]


def test_confusion_is_shaded_by_share_of_the_true_label_and_written_in_counts():
    results = make_results(["teacher"])
    results["models"][0]["confusion"] = [[900, 100], [0, 0]]  # no example of the second label
    ax = panels_of(draw(results))["Confusion: teacher"]
    assert ax.images[0].get_array().tolist() == [[0.9, 0.1], [0, 0]]
    assert ax.images[0].get_clim()[0] == 0
    assert texts_of(ax)[:4] == ["900", "100", "0", "0"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["neg", "pos"]


def test_confusion_of_several_seeds_is_their_mean_and_says_so():
    results = make_results(["teacher", "distilled"], seeds=5)
    results["models"][0] |= {"accuracy": 0.9, "f1": 0.9, "ece": 0.03, "confusion": [[40, 10], [5, 45]]}  # of one seed
    results["models"][1]["confusion"] = [[218, 32], [25, 225]]  # the sum of 5
    panels = panels_of(draw(results))
    assert texts_of(panels["Confusion: teacher"])[:4] == ["40", "10", "5", "45"]
    assert texts_of(panels["Confusion: distilled"])[:4] == ["43.6", "6.4", "5.0", "45.0"]
    assert "mean of 5 seeds" in texts_of(panels["Confusion: distilled"])[-1]
    assert "seeds" not in texts_of(panels["Confusion: teacher"])[-1]


def test_a_single_matrix_is_beside_the_curves():
    panels = panels_of(draw(make_results(["bert"])))
    assert panels["Confusion: bert"].figure is panels["Reliability"].figure
    assert panels["Confusion: bert"].get_ylabel() == "true label"


def test_what_is_written_in_cells_stands_out(whole):
    for ax in panels_of(whole).values():
        for text in [text for text in ax.texts if ax.images and text.get_transform() == ax.transData]:
            x, y = map(int, text.get_position())
            darker, lighter = sorted(
                0.05 + np.dot(matplotlib.colors.to_rgb(color) ** np.array(2.2), (0.2126, 0.7152, 0.0722))
                for color in (text.get_color(), shade(ax.images[0], ax.images[0].get_array()[y, x]))
            )
            assert lighter / darker > 4.5, (ax.get_title(loc="left"), text)  # as WCAG asks


@pytest.mark.parametrize(("labels", "written"), [(10, True), (11, False)])
def test_many_labels_are_shaded_but_not_written(labels, written):
    ax = panels_of(draw(make_results(["teacher"], [f"topic {i}" for i in range(labels)])))["Confusion: teacher"]
    assert (len(ax.texts) > labels**2) is written
    assert len(ax.get_xticklabels()) == labels


def test_the_sweep_frames_the_chosen_cell_and_writes_the_points_above_the_baseline(whole):
    panels = panels_of(whole)
    accuracy, ece = panels["Sweep: validation accuracy"], panels["Sweep: validation ECE"]
    best = max(point[1] for point in make_results()["curves"]["baseline"]["validation"])
    expected = [f"{value:.3f}\n{100 * (value - best):+.1f}".replace("-", "−") for value in (0.8, 0.79, 0.77)]
    assert texts_of(accuracy)[:3] == expected  # alpha 0.1 at T 1, 2 and 4
    assert texts_of(ece)[:3] == ["0.010", "0.020", "0.040"]
    for ax in (accuracy, ece):
        (frame,) = ax.lines
        assert (min(frame.get_xdata()), max(frame.get_xdata())) == (-0.5, 0.5)
        assert (min(frame.get_ydata()), max(frame.get_ydata())) == (1.5, 2.5)
        assert "framed: chosen" in texts_of(ax)[-1]


def shade(image, value):
    """The colour that is seen: the image lets the white page through."""
    return 1 - image.get_alpha() * (1 - np.array(image.cmap(image.norm(value))[:3]))


def test_the_sweeps_colours_have_an_absolute_scale_with_the_baseline_as_its_middle():
    results = make_results()
    results["curves"]["baseline"]["validation"] = [[1, 0.78, 0.5], [2, 0.80, 0.5], [3, 0.79, 0.5]]
    for i, cell in enumerate(results["sweep"]["cells"]):
        cell |= {"validation_accuracy": 0.801 + i / 4000, "validation_ece": 0.05 + i / 4000}  # 0.2 points apart
    panels = panels_of(draw(results))
    for title in ("Sweep: validation accuracy", "Sweep: validation ECE"):
        image = panels[title].images[0]
        values = image.get_array()
        assert np.ptp(values) == pytest.approx(0.002)  # the figures themselves, not a stretched copy
        assert np.abs(shade(image, values.max()) - shade(image, values.min())).max() < 0.04  # which can hardly be seen
    assert panels["Sweep: validation ECE"].images[0].get_clim() == (0, 0.2)
    image = panels["Sweep: validation accuracy"].images[0]
    assert shade(image, 0.80) == pytest.approx(1, abs=0.01)  # the baseline's best epoch is white
    assert np.mean(image.get_clim()) == pytest.approx(0.80)
    assert hue_of(shade(image, 0.84)) == pytest.approx(hue_of(ROLES["distilled"]), abs=0.02)
    assert hue_of(shade(image, 0.76)) == pytest.approx(hue_of(ROLES["baseline"]), abs=0.02)
    assert image.colorbar.ax.get_yticklabels()[1].get_text() == "0.800\nbaseline"
    results["sweep"]["cells"][0]["validation_accuracy"] = 0.5  # outside ± 5 points: the scale makes room
    image = panels_of(draw(results))["Sweep: validation accuracy"].images[0]
    assert image.get_clim()[0] <= 0.5 and np.mean(image.get_clim()) == pytest.approx(0.80)


def test_a_sweep_without_a_baseline_is_compared_with_its_median():
    results = make_results(["teacher", "distilled"])
    image = panels_of(draw(results))["Sweep: validation accuracy"].images[0]
    assert np.mean(image.get_clim()) == pytest.approx(np.median(image.get_array().data))
    assert image.colorbar.ax.get_yticklabels()[1].get_text().endswith("median")


def check_layout(figure):
    """Asserts that no panel, titles and labels included, reaches over the page's edge or into another panel."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()  # which lays it out
    boxes = [(ax.get_title(loc="left") or "key", ax.get_tightbbox(renderer)) for ax in figure.axes]
    boxes += [(text.get_text(), text.get_window_extent(renderer)) for text in figure.subfigs[0].texts]
    for name, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0, name
        assert box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height, name
    for ax in figure.axes:
        labels = [label.get_window_extent(renderer) for label in ax.get_xticklabels() if ax.images]
        assert not any(one.overlaps(next_one) for one, next_one in itertools.pairwise(labels)), ax.get_title(loc="left")
    for (name, box), (other, other_box) in itertools.combinations(boxes, 2):
        assert not box.padded(-1).overlaps(other_box.padded(-1)), (name, other)


@pytest.mark.parametrize(
    ("names", "labels", "absent"),
    [
        (["bert"], ["neg", "pos"], ["sweep"]),
        (["bert"], ["neg", "pos"], ["sweep", "curves"]),
        (list(MODELS), ["negative", "neutral", "positive"], []),
        (list(MODELS), [f"{i}: a label of many words" for i in range(20)], []),
        ([LONG.format(i) for i in range(8)], [f"{i}: a label of many words" for i in range(12)], ["sweep"]),
    ],
    ids=lambda value: str(len(value)),
)
def test_panels_lie_apart_and_on_the_page(names, labels, absent):
    results = make_results(names, labels, seeds=3)
    check_layout(draw({key: value for key, value in results.items() if key not in absent}))


@pytest.mark.parametrize(
    "path", sorted(set(RESULTS.glob("*.json")) - {RESULTS / "published.json"}), ids=lambda p: p.stem
)
def test_the_results_files_of_every_version_are_drawn_in_full(path):
    if "models" not in json.loads(path.read_text()):
        pytest.skip("no comparison of models")
    results = complete(read_results(path))
    figure = draw(results)
    timed = {"Latency"} if "latency_1_ms" in results["models"][0] else set()
    assert {"Quality", "Size"} | timed <= panels_of(figure).keys()
    assert {f"Confusion: {row['name']}" for row in results["models"]} <= panels_of(figure).keys()
    check_layout(figure)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.pop("labels"),
        lambda r: r.update(labels=["only one"]),
        lambda r: r.update(curves={"teacher": None, "distilled": {"train": []}, "gone": {"train": [[1, 2]]}}),
        lambda r: r.update(curves={"teacher": {"train": [[1.0, 0.3]], "validation": [[1, 0.5, None]]}}),
        lambda r: r["sweep"].update(chosen=None),
        lambda r: r["sweep"]["cells"].pop(),
        lambda r: r["sweep"].update(cells=[r["sweep"]["cells"][0] | {"validation_ece": None}, {"alpha": None}]),
        lambda r: [row.update({key: None for key in row if key != "name"}) for row in r["models"][:1]],
        lambda r: [row.update({key: None for key in row if key not in ("name", "f1")}) for row in r["models"]],
        lambda r: [row.update(parameters=None, latency_1_ms=None, ece=None) for row in r["models"]],
        lambda r: [row.update(accuracy=[0.5], latency_ms=0.0, latency_1_ms=0.0) for row in r["models"]],
        lambda r: r["models"][0].update(confusion=[[1]], reliability=[[3, 1.0, 1.0]]),
        lambda r: r["models"][0].update(name="_a $x$ ^ name\nof two lines"),
        lambda r: r.update(labels=["否定的", "положительный $_$"]),
    ],
)
def test_partial_and_odd_results_make_a_picture(change, tmp_path, recwarn):
    results = make_results(["teacher", "distilled"])
    change(results)
    before = copy.deepcopy(results)
    dashboard(results, tmp_path / "dashboard.png")
    assert (tmp_path / "dashboard.png").stat().st_size > 10_000
    assert results == before
    assert not [str(warning.message) for warning in recwarn]


def test_the_file_is_a_png_of_1800_pixels_and_nothing_else_is_left(tmp_path):
    dashboard(make_results(["teacher"]), tmp_path / "new" / "dashboard.png")
    content = (tmp_path / "new" / "dashboard.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and content[-8:-4] == b"IEND"
    assert struct.unpack(">I", content[16:20])[0] == 12 * DPI == 1800
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["dashboard.png"]


@pytest.mark.parametrize("results", [{}, {"models": []}, {"models": [{"name": "teacher", "accuracy": None}]}])
def test_results_without_figures_are_refused_and_the_old_picture_stays(results, tmp_path):
    path = tmp_path / "dashboard.png"
    path.write_bytes(b"old")
    with pytest.raises(MinikdError, match="no figures of models to draw"):
        dashboard(results, path)
    assert path.read_bytes() == b"old"


def test_a_picture_that_cannot_be_written_whole_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "dashboard.png"
    path.write_bytes(b"old")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        dashboard(make_results(["teacher"]), path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("dashboard.png", b"old")]


def test_without_matplotlib_one_line_says_what_to_install(tmp_path, monkeypatch):
    for module in ("matplotlib", "matplotlib.style", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MinikdError, match="pip install matplotlib") as error:
        dashboard(make_results(), tmp_path / "dashboard.png")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_the_users_style_neither_changes_nor_is_changed(tmp_path):
    results = make_results(["teacher"]) | {"curves": {}, "sweep": None}
    dashboard(results, tmp_path / "plain.png")
    with matplotlib.rc_context({"figure.facecolor": "black", "font.size": 30, "text.color": "red"}):
        before = dict(matplotlib.rcParams)
        dashboard(results, tmp_path / "styled.png")
        assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "styled.png").read_bytes()


def test_importing_loads_no_matplotlib_and_drawing_no_pyplot(tmp_path):
    code = f"""
import sys
from minikd.report.plots import dashboard
assert "matplotlib" not in sys.modules
dashboard({make_results(["teacher"])!r}, {str(tmp_path / "dashboard.png")!r})
assert "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
