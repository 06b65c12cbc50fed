"""The dashboard: what it shows, that a model looks the same everywhere, and that poor results still make a picture."""

import copy
import itertools
import statistics
import struct
import subprocess
import sys

import numpy as np
import pytest

from minikd.files import UserError
from minikd.plots import DPI, dashboard, draw

matplotlib = pytest.importorskip("matplotlib")

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
    assert list(panels_of(whole)) == [
        "Quality",
        "Size",
        "Latency",
        "Training loss",
        "Validation accuracy",
        "Reliability",
        "Confusion: teacher",
        "Confusion: distilled",
        "Confusion: baseline",
        "Sweep: validation accuracy",
        "Sweep: validation ECE",
    ]


@pytest.mark.parametrize(
    ("absent", "panels"),
    [
        (("accuracy", "f1"), ["Quality"]),
        (("parameters", "size_mb"), ["Size"]),
        (("latency_1_ms", "latency_ms"), ["Latency"]),
        (("confusion",), ["Confusion: teacher", "Confusion: distilled", "Confusion: baseline"]),
        (("reliability",), ["Reliability"]),
        (("curves",), ["Training loss", "Validation accuracy"]),
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


def test_a_model_keeps_its_colour_in_every_panel(whole):
    colors = {name: set() for name in MODELS}
    where = {name: set() for name in MODELS}

    def seen(name, color, title):
        colors[name].add(matplotlib.colors.to_hex(color))
        where[name].add(title)

    for title, ax in panels_of(whole).items():
        for line in ax.lines:
            if line.get_label() in colors:
                seen(line.get_label(), line.get_color(), title)
        for container in ax.containers:
            if isinstance(container, matplotlib.container.ErrorbarContainer):
                seen(container.get_label(), container[0].get_color(), title)
        if title == "Size":
            for name, bar in zip(MODELS, ax.patches):
                seen(name, bar.get_facecolor(), title)
        if title.startswith("Confusion"):
            seen(title.removeprefix("Confusion: "), ax.images[0].get_cmap()(1.0), title)
    shared = {"Quality", "Size", "Latency", "Training loss", "Validation accuracy", "Reliability"}
    assert where == {name: shared | {f"Confusion: {name}"} for name in MODELS}
    assert all(len(found) == 1 for found in colors.values()) and len(set.union(*colors.values())) == 3


def test_twenty_models_are_told_apart_by_colour_marker_and_line():
    figure = draw(make_results([f"model {i}" for i in range(20)]))
    lines = panels_of(figure)["Validation accuracy"].lines
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 20
    assert len({line.get_color() for line in lines[:8]}) == 8


def test_axes_carry_their_units(whole):
    labels = {
        title: (ax.get_xlabel(), ax.get_ylabel())
        for title, ax in panels_of(whole).items()
        if title not in ("Confusion: distilled", "Confusion: baseline")  # the row's first names the true labels
    }
    assert labels["Quality"][0] == "score (0 to 1)"
    assert labels["Size"][0] == "million parameters"
    assert labels["Latency"][0] == "ms per example (log scale)"
    assert labels["Training loss"] == ("epoch", "loss (nats)")
    assert labels["Validation accuracy"] == ("epoch", "accuracy (0 to 1)")
    assert labels["Reliability"] == ("confidence (0 to 1)", "accuracy (0 to 1)")
    assert labels["Confusion: teacher"] == ("predicted label", "true label")
    assert labels["Sweep: validation accuracy"] == ("temperature T", "alpha")


def test_the_title_says_corpus_split_examples_device_precision_and_seeds(whole):
    heading, settings = (text.get_text() for text in whole.texts)
    assert heading == "sst2, test split, 872 examples"
    assert settings == "bf16 · cpu, AMD EPYC · 2 threads · seed 7"
    assert draw(make_results(["teacher"], seeds=5)).texts[1].get_text().endswith("2 threads · mean ± std over 5 seeds")


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


@pytest.mark.parametrize(("slow", "scale"), [(9.0, "linear"), (11.0, "log")])
def test_latency_has_a_log_axis_where_figures_are_far_apart(slow, scale):
    results = make_results(["teacher"])
    results["models"][0] |= {"latency_1_ms": slow, "latency_ms": 1.0}
    assert panels_of(draw(results))["Latency"].get_xscale() == scale


def test_size_is_written_in_millions_and_mib(whole):
    assert "109 M,  418 MiB" in texts_of(panels_of(whole)["Size"])


def test_a_constant_loss_stays_constant_when_smoothed():
    results = make_results(["teacher"])
    results["curves"]["teacher"]["train"] = [[i / 100, 0.7] for i in range(1, 301)]
    raw, smooth = panels_of(draw(results))["Training loss"].lines
    assert smooth.get_ydata() == pytest.approx(np.full(300, 0.7))
    assert raw.get_alpha() < 1 and smooth.get_alpha() is None


def test_the_smoothed_loss_is_a_moving_average_over_a_twentieth_of_the_curve():
    results = make_results(["teacher"])
    raw, smooth = (line.get_ydata() for line in panels_of(draw(results))["Training loss"].lines)
    assert smooth[30] == pytest.approx(np.mean(raw[29:32]))
    assert smooth[0] == pytest.approx(np.mean(raw[:2]))


def test_reliability_joins_the_bins_that_hold_examples_and_sizes_them_by_count():
    results = make_results(["teacher"])
    bins = results["models"][0]["reliability"] = [[0, None, None]] * 10 + [[1, 0.69, 0.0]] + [[0, None, None]] * 2
    bins += [[99, 0.9, 0.85], [300, 0.98, 0.95]]
    ax = panels_of(draw(results))["Reliability"]
    assert ax.lines[0].get_xydata().tolist() == [[0, 0], [1, 1]]
    assert ax.lines[1].get_xydata().tolist() == [[0.9, 0.85], [0.98, 0.95]]  # one example of 400 is noise: a dot only
    assert ax.collections[0].get_offsets().tolist() == [[0.69, 0.0], [0.9, 0.85], [0.98, 0.95]]
    areas = ax.collections[0].get_sizes()
    assert areas[2] - areas[0] == pytest.approx((areas[1] - areas[0]) * 299 / 98)


def test_the_key_gives_the_ece(whole):
    texts = [text for ax in whole.axes for text in texts_of(ax)]
    assert {f"{name}   ECE 0.030" for name in MODELS} <= set(texts)


def test_confusion_is_shaded_by_share_of_the_true_label_and_written_in_counts():
    results = make_results(["teacher"])
    results["models"][0]["confusion"] = [[900, 100], [0, 0]]  # no example of the second label
    ax = panels_of(draw(results))["Confusion: teacher"]
    assert ax.images[0].get_array().tolist() == [[0.9, 0.1], [0, 0]]
    assert ax.images[0].get_clim()[0] == 0
    assert texts_of(ax)[:4] == ["900", "100", "0", "0"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["neg", "pos"]


@pytest.mark.parametrize(("labels", "written"), [(10, True), (11, False)])
def test_many_labels_are_shaded_but_not_written(labels, written):
    ax = panels_of(draw(make_results(["teacher"], [f"topic {i}" for i in range(labels)])))["Confusion: teacher"]
    assert (len(ax.texts) > labels**2) is written
    assert len(ax.get_xticklabels()) == labels


def test_the_sweep_frames_the_chosen_cell_and_darkens_the_better_ones(whole):
    panels = panels_of(whole)
    accuracy, ece = panels["Sweep: validation accuracy"], panels["Sweep: validation ECE"]
    assert texts_of(accuracy)[:3] == ["0.800", "0.790", "0.770"]  # alpha 0.1 at T 1, 2 and 4
    assert np.unravel_index(accuracy.images[0].get_array().argmax(), (3, 3)) == (2, 0)
    assert np.ptp(ece.images[0].get_array()[:, 0]) == 0 and ece.images[0].get_array()[0].argmax() == 0
    for ax in (accuracy, ece):
        (frame,) = ax.lines
        assert (min(frame.get_xdata()), max(frame.get_xdata())) == (-0.5, 0.5)
        assert (min(frame.get_ydata()), max(frame.get_ydata())) == (1.5, 2.5)
        assert "chosen, alpha 0.9, T 1" in texts_of(ax)[-1]


def check_layout(figure):
    """Asserts that no panel, titles and labels included, reaches over the page's edge or into another panel."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [(ax.get_title(loc="left") or "key", ax.get_tightbbox(renderer)) for ax in figure.axes]
    boxes += [(text.get_text(), text.get_window_extent(renderer)) for text in figure.texts]
    for name, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0, name
        assert box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height, name
    for (name, box), (other, other_box) in itertools.combinations(boxes, 2):
        assert not box.padded(-1).overlaps(other_box.padded(-1)), (name, other)


@pytest.mark.parametrize(
    ("names", "labels", "absent"),
    [
        (["bert"], ["neg", "pos"], ["sweep"]),
        (["bert"], ["neg", "pos"], ["sweep", "curves"]),
        (["teacher", "distilled"], ["neg", "pos"], []),
        (list(MODELS), ["negative", "neutral", "positive"], []),
        (list(MODELS), ["negative", "neutral", "positive"], ["curves"]),
        (list(MODELS), [f"{i}: a label of many words" for i in range(20)], []),
        ([LONG.format(i) for i in range(8)], [f"{i}: a label of many words" for i in range(12)], ["sweep"]),
    ],
    ids=lambda value: str(len(value)),
)
def test_panels_lie_apart_and_on_the_page(names, labels, absent):
    results = make_results(names, labels, seeds=3)
    check_layout(draw({key: value for key, value in results.items() if key not in absent}))


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.pop("labels"),
        lambda r: r.update(labels=["only one"]),
        lambda r: r.update(arguments=None, device=None, threads=None, precision=None, split=None, examples=None),
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
    with pytest.raises(UserError, match="no figures of models to draw"):
        dashboard(results, path)
    assert path.read_bytes() == b"old"


def test_without_matplotlib_one_line_says_what_to_install(tmp_path, monkeypatch):
    for module in ("matplotlib", "matplotlib.style", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match="pip install matplotlib") as error:
        dashboard(make_results(), tmp_path / "dashboard.png")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_the_users_style_neither_changes_nor_is_changed(tmp_path):
    results = make_results(["teacher"])
    dashboard(results, tmp_path / "plain.png")
    with matplotlib.rc_context({"figure.facecolor": "black", "font.size": 30, "text.color": "red"}):
        before = dict(matplotlib.rcParams)
        dashboard(results, tmp_path / "styled.png")
        assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "styled.png").read_bytes()


def test_importing_loads_no_matplotlib_and_drawing_no_pyplot(tmp_path):
    code = f"""
import sys
from minikd.plots import dashboard
assert "matplotlib" not in sys.modules
dashboard({make_results(["teacher"])!r}, {str(tmp_path / "dashboard.png")!r})
assert "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
