"""The dark-knowledge page, driven in a headless Chromium: what it shows is what torch computes, and data stays data."""

import base64
import gzip
import json
import math
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from minikd.errors import MinikdError
from minikd.report.drawing import ROLES, looks
from minikd.report.page import LIMIT, SHORTEST, TEMPLATE, description, disagreement, write_page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--virtual-time-budget=20000", "--dump-dom"]  # fmt: skip
NAMES = ("teacher", "distilled", "baseline")
HOSTILE = (
    "</script><script>document.title='pwned'</script>",
    "<!-- <script>",
    "<img src=x onerror=\"document.title='pwned'\">",
    "a \" quote ' and &amp; &lt;b&gt; @TEXTS@ @META@",
    "line\u2028paragraph\u2029end",
    "lone \ud800 and \udfff halves",
    "a\0NUL",
    "\u202eright to left\u202c שלום",
    "javascript:alert(1) ]]> {{x}} ${y}",
)


class Page(HTMLParser):
    """A finished page: `items` are (index, text, [[cell, …] of each row]) of the examples shown."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.items, self.texts, self.titles, self.verdicts = [], [], {}, [], []
        self.open = []  # (tag, id, class)
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        kind = (attributes.get("class") or "").split()
        if tag == "article":
            self.items.append((int(attributes["data-index"]), [], []))
        if self.items and tag == "tr" and self._inside("article"):
            self.items[-1][2].append([])
        if self.items and "p" in kind and self._inside("article"):
            self.items[-1][2][-1].append("")
        if tag not in ("meta", "input", "link", "br", "img"):
            self.open.append((tag, attributes.get("id"), kind))

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        for _, name, _ in self.open:
            if name:
                self.texts[name] = self.texts.get(name, "") + data
        if self._inside("article"):
            if any("text" in kind for _, _, kind in self.open):
                self.items[-1][1].append(data)
            elif "p" in self.open[-1][2]:
                self.items[-1][2][-1][-1] += data
        if self._inside("title"):
            self.titles.append(data)
        if any("verdict" in kind for _, _, kind in self.open):
            self.verdicts.append(data)

    def _inside(self, tag):
        return any(name == tag for name, _, _ in self.open)

    def hides(self, name):
        return "hidden" in next(attributes for _, attributes in self.tags if attributes.get("id") == name)

    @property
    def indices(self):
        return [index for index, _, _ in self.items]

    def probabilities(self, position):
        """The numbers of the example at this position, by row of its table (the heading's row left out)."""
        return torch.tensor([[float(cell) for cell in row] for row in self.items[position][2][1:]])


@pytest.fixture(scope="session")
def browse(tmp_path_factory):
    """Opens a file at a state (the address's hash) and gives the finished page."""
    binary = next(filter(None, map(shutil.which, BROWSERS)), MAC if os.path.exists(MAC) else None)
    if binary is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    profile = tmp_path_factory.mktemp("profile")

    def open_page(path, state=""):
        command = [binary, *FLAGS, f"--user-data-dir={profile}", f"{path.as_uri()}#{state}"]
        html = subprocess.run(command, capture_output=True, timeout=120, check=True).stdout
        page = Page(html.decode("utf-8", "replace"))
        assert ("main", "false") in [(tag, a.get("aria-busy")) for tag, a in page.tags], page.texts.get("status")
        return page

    return open_page


def predictions(examples, num_labels, models=NAMES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_labels, (examples,), generator=generator)
    near = 2.0 * torch.nn.functional.one_hot(labels, num_labels)
    logits = {name: near + 2 * torch.randn(examples, num_labels, generator=generator) for name in models}
    return [f"review number {i}" for i in range(examples)], labels, logits


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A page of 60 examples, 3 labels and 3 models, with what it was made of."""
    path = tmp_path_factory.mktemp("page") / "three.html"
    texts, labels, logits = predictions(60, 3)
    truth = torch.randn(60, 3, generator=torch.Generator().manual_seed(1)).softmax(dim=-1)
    truth[0] = torch.tensor([0.0, 1.0, 0.0])
    about = {"distilled": "3 layers, distilled with alpha 0.3 and T 5"}
    names = ("bad", "so-so", "good")
    write_page(path, "reviews", "test", names, texts, labels.tolist(), logits, true_probabilities=truth, about=about)
    return path, texts, labels, logits, truth


def unpacked(path, name):
    """The bytes of a stream in the page."""
    return gzip.decompress(base64.b64decode(re.search(rf'id="{name}">([^<]*)<', path.read_text(encoding="utf-8"))[1]))


def test_the_page_holds_every_logit_and_label_to_the_bit(three):
    path, _, labels, logits, truth = three
    numbers = np.frombuffer(unpacked(path, "numbers"), "<f4")
    given = torch.stack([*(logits[name] for name in NAMES), truth]).numpy()
    assert np.array_equal(numbers[: given.size], given.ravel())
    assert numbers[given.size :].view("<u4").tolist() == labels.tolist()


@pytest.mark.parametrize("T", [1.0, 4.0])
def test_probabilities_are_the_softmax_of_the_logits_over_T_and_the_truth_is_itself_at_every_T(browse, three, T):
    path, _, _, logits, truth = three
    page = browse(path, f"T={T}&sort=corpus")
    assert page.texts["T-value"] == f"{T:.1f}" and page.indices == list(range(25))
    for i in range(25):
        rows = [*((logits[name][i] / T).softmax(dim=-1) for name in NAMES), truth[i]]
        assert torch.allclose(page.probabilities(i), torch.stack(rows), atol=5.01e-4)
    assert f"truth {truth.amax(dim=-1).mean():.3f}" in page.texts["means"]
    bars = [re.search(r"scaleX\(([^)]*)\)", a["style"])[1] for _, a in page.tags if a.get("class") == "fill"]
    drawn = torch.tensor([float(bar) for bar in bars]).view(25, 4, 3)
    assert torch.allclose(drawn, torch.stack([page.probabilities(i) for i in range(25)]), atol=5.01e-4)


@pytest.mark.parametrize("T", [1.0, 4.0])
def test_true_labels_and_predictions_are_marked_and_do_not_change_with_T(browse, three, T):
    path, _, labels, logits, _ = three
    page, labels = browse(path, f"T={T}&sort=corpus"), labels[:25]
    predicted = torch.stack([logits[name][:25].argmax(dim=-1) for name in NAMES], dim=1)  # (25, 3)
    heads = [a["class"] == "true" for tag, a in page.tags if tag == "th" and a.get("class") in ("", "true")]
    assert heads == torch.nn.functional.one_hot(labels, 3).bool().flatten().tolist()
    cells = [a["class"] == "predicted" for tag, a in page.tags if tag == "td" and a.get("class") in ("", "predicted")]
    assert cells == torch.nn.functional.one_hot(predicted, 3).bool().flatten().tolist()
    assert page.verdicts == ["✓" if right else "✗" for right in (predicted == labels[:, None]).flatten()]


def test_a_page_may_open_at_another_T_and_filters_and_orders_by_the_models_own_probabilities(browse, tmp_path):
    texts, labels, logits = predictions(60, 3)
    write_page(tmp_path / "p.html", "reviews", "test", ("a", "b", "c"), texts, labels.tolist(), logits, T=6.0)
    page = browse(tmp_path / "p.html")
    assert page.texts["T-value"] == "6.0" and page.texts["meaning"] == "softened"
    softened = torch.stack([(logits[name][page.indices[0]] / 6).softmax(dim=-1) for name in NAMES])
    assert torch.allclose(page.probabilities(0), softened, atol=5.01e-4)
    apart, softly = (
        disagreement({name: (logits[name] / T).numpy() for name in NAMES}).argsort()[::-1].tolist() for T in (1, 6)
    )
    assert page.indices == apart[:25] != softly[:25]
    probs = logits["teacher"].softmax(dim=-1)
    assert f"largest probability below 0.9 ({int((probs.amax(dim=-1) < 0.9).sum())})" in page.texts["unsure"]
    unsure = (-(probs * probs.log()).sum(dim=-1)).argsort(descending=True)[:25].tolist()
    assert browse(tmp_path / "p.html", "sort=entropy").indices == unsure


def test_the_page_opens_at_the_models_own_probabilities_where_they_differ_most(browse, three):
    path, _, _, logits, _ = three
    page = browse(path)
    assert page.texts["T-value"] == "1.0" and page.texts["meaning"] == "the models’ own probabilities"
    assert page.hides("note")  # nothing is truncated
    probs = {name: logits[name].softmax(dim=-1) for name in NAMES}
    apart = torch.stack([(probs[a] - probs[b]).abs().sum(-1) for a in NAMES for b in NAMES]).amax(dim=0)
    assert page.indices == apart.argsort(descending=True)[:25].tolist()
    first = page.indices[0]
    assert len({int(logits[name][first].argmax()) for name in NAMES}) > 1
    assert torch.allclose(page.probabilities(0)[:3], torch.stack([probs[n][first] for n in NAMES]), atol=5.01e-4)
    assert browse(path, "T=4").texts["meaning"] == "softened"


def with_script(path, source, target):
    """A copy of the page in which one more script may run: it has no policy."""
    html = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", source.read_text(encoding="utf-8"))
    path.write_text(f"{html}<script>setTimeout(() => {{ {target} }}, 2000)</script>", encoding="utf-8")
    return path


def test_the_slider_is_logarithmic_from_1_to_20(browse, three, tmp_path):
    move = """const slider = document.getElementById("T"), seen = [];
        for (const x of [0, .25, .5, .75, 1]) {
            slider.value = x;
            slider.dispatchEvent(new Event("input"));
            seen.push(T);
        }
        for (const button of document.querySelectorAll("#presets button")) { button.click(); seen.push(slider.value) }
        document.title = seen.join(" ");"""
    page = browse(with_script(tmp_path / "moved.html", three[0], move))
    *moved, at_1, at_2, at_4, at_8, at_20 = map(float, page.titles[0].split())
    assert moved == pytest.approx([20**x for x in (0, 0.25, 0.5, 0.75, 1)], rel=0.005)
    assert (at_1, at_20) == (0, 1)
    assert [at_2, at_4, at_8] == pytest.approx([math.log(T, 20) for T in (2, 4, 8)], abs=0.0051)  # to the slider's step


def test_the_page_says_of_each_model_what_is_known_of_it(browse, three):
    page = browse(three[0])
    assert page.texts["models"] == "teacherdistilled: 3 layers, distilled with alpha 0.3 and T 5baseline"


def test_a_description_has_the_layers_alpha_and_T_of_run_json():
    settings = {"alpha": 0.5, "T": 2.0, "epochs": 3}
    run = {"arguments": {"alpha": [0.1, 0.5]}, "made_from": {"teacher": "key", "settings": settings}}
    assert description(run, 3) == "3 layers, distilled with alpha 0.5 and T 2"
    run["made_from"]["settings"]["soft_loss"] = "mse"
    assert description(run, 3) == "3 layers, distilled by the soft loss mse with alpha 0.5 and T 2"
    run["made_from"]["teacher"] = None
    assert description(run, 3) == "3 layers, trained on the labels alone"
    assert description({}, 1, "int8") == "1 layer, int8"


def test_evaluate_tells_the_page_what_the_models_run_json_say(browse, script, corpus, fine_tuned):
    shutil.copytree(fine_tuned, "distilled")
    settings = {"alpha": 0.2, "T": 4.0, "label_smoothing": 0.0}
    run = {"arguments": {"dataset": str(corpus)}, "made_from": {"teacher": "key", "settings": settings}}
    Path("distilled", "run.json").write_text(json.dumps(run))
    status, out, err = script("evaluate.py", fine_tuned, "distilled", "--quantize", "int8", "--html", "page.html")
    assert (status, err) == (0, "") and "page: page.html" in out
    layers = json.loads((fine_tuned / "config.json").read_text())["num_hidden_layers"]
    known = f"{layers} layers{{}}, distilled with alpha 0.2 and T 4"
    listed = browse(Path("page.html").resolve()).texts["models"]
    assert listed == (
        f"{fine_tuned.name}: {layers} layers{fine_tuned.name}-int8: {layers} layers, int8"
        f"distilled: {known.format('')}distilled-int8: {known.format(', int8')}"
    )


@pytest.mark.parametrize("names", [("baseline", "distilled", "teacher"), ("distilled-int8", "teacher", "another")])
def test_a_model_has_the_colour_that_it_has_in_the_dashboard(browse, tmp_path, names):
    texts, labels, logits = predictions(3, 2, models=names)
    write_page(tmp_path / "p.html", "reviews", "test", ("no", "yes"), texts, labels.tolist(), logits)
    page = browse(tmp_path / "p.html")
    drawn = [a["style"].removeprefix("--c: ").rstrip(";") for tag, a in page.tags if a.get("class") == "dot"]
    assert drawn[: len(names)] == [looks(names)[name]["color"] for name in names]
    assert [color for name, color in zip(names, drawn) if name in ROLES] == [ROLES[n] for n in names if n in ROLES]
    cells = [a["style"] for tag, a in page.tags if tag == "td" and "style" in a]
    assert set(cells) == {f"--c: {looks(names)[name]['color']};" for name in names}


def test_on_a_phone_the_first_example_is_above_the_fold(browse, three, tmp_path):
    told = """const box = document.querySelector("article").getBoundingClientRect();
        parent.postMessage([innerWidth, box.top, box.bottom, document.documentElement.scrollWidth].join(" "), "*");"""
    inner = with_script(tmp_path / "inner.html", three[0], told)
    (tmp_path / "phone.html").write_text(
        f"""<main id="told"></main>
        <iframe src="{inner.as_uri()}" style="width: 360px; height: 640px; border: 0"></iframe>
        <script>addEventListener("message", event => {{
            document.getElementById("told").textContent = event.data;
            document.getElementById("told").setAttribute("aria-busy", "false");
        }})</script>"""
    )
    width, top, bottom, content = map(float, browse(tmp_path / "phone.html").texts["told"].split())
    assert width == 360 and content <= 360  # nothing is wider than the screen
    assert top < 340 and bottom < 640


def test_the_page_counts_what_its_filters_keep(browse, three):
    path, _, labels, logits, _ = three
    page = browse(path)
    assert page.texts["status"] == "60 examples"
    predicted = [logits[name].argmax(dim=-1) for name in NAMES]
    top = logits["teacher"].softmax(dim=-1).max(dim=-1).values
    unsure = {f"largest probability below {p} ({int((top < p).sum())})" for p in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)}
    assert all(option in page.texts["unsure"] for option in unsure)
    disputed = (predicted[0] != predicted[1]) | (predicted[0] != predicted[2])
    assert f"any two ({int(disputed.sum())})" in page.texts["disagree"]
    assert f"distilled and baseline ({int((predicted[1] != predicted[2]).sum())})" in page.texts["disagree"]
    wrong = torch.stack([p != labels for p in predicted])
    assert f"all of them ({int(wrong.all(dim=0).sum())})" in page.texts["wrong"]
    assert f"baseline ({int(wrong[2].sum())})" in page.texts["wrong"]


def test_filters_search_order_and_pages_list_exactly_the_right_examples(browse, three):
    path, _, labels, logits, _ = three
    predicted = {name: logits[name].argmax(dim=-1) for name in NAMES}
    probs = logits["teacher"].softmax(dim=-1)
    kept = (probs.max(dim=-1).values < 0.9) & (predicted["distilled"] != predicted["baseline"])
    kept &= predicted["baseline"] != labels
    entropy = -(probs * probs.log()).sum(dim=-1)
    expected = sorted(kept.nonzero().flatten().tolist(), key=lambda i: -entropy[i])
    assert 3 < len(expected) < 25
    page = browse(path, "unsure=0.9&disagree=1-2&wrong=2&sort=entropy")
    assert page.indices == expected and page.texts["status"] == f"{len(expected)} of 60 examples"
    assert f"teacher {probs.amax(dim=-1)[kept].mean():.3f}" in page.texts["means"]
    assert browse(path, "q=NUMBER+5&sort=corpus").indices == [5, *range(50, 60)]

    page = browse(path, "sort=corpus&page=3")
    assert page.indices == list(range(50, 60)) and page.texts["page"] == "page 3 of 3"


def test_a_click_on_a_cell_of_the_confusion_matrix_lists_its_examples(browse, three, tmp_path):
    path, _, labels, logits, _ = three
    of_cell = ((labels == 2) & (logits["distilled"].argmax(dim=-1) == 1)).nonzero().flatten().tolist()
    assert of_cell
    by_address = browse(path, "model=1&cell=2-1&sort=corpus")
    assert by_address.indices == of_cell
    assert f"{len(of_cell)} of 60 examples: true label good, distilled says so-so" == by_address.texts["status"]

    # The same with a hand on the page.
    clicks = """document.getElementById("sort").value = "corpus";
        document.querySelector("input[name=model][value='1']").click();
        document.querySelector("[data-cell='2-1']").click();
        document.querySelectorAll("#presets button")[3].click();"""
    page = browse(with_script(tmp_path / "clicked.html", path, clicks))
    assert page.indices == of_cell and page.texts["T-value"] == "8.0"
    softened = (logits["teacher"][of_cell[0]] / 8).softmax(dim=-1)
    assert torch.allclose(page.probabilities(0)[0], softened, atol=5.01e-4)


def test_a_choice_can_be_undone_keys_move_in_the_matrix_and_the_address_keeps_the_view(browse, three, tmp_path):
    path, _, labels, logits, _ = three
    hand = """const seen = [], press = cell => document.querySelector(`[data-cell='${cell}']`).click();
        const look = () => seen.push(document.getElementById("status").textContent.split(":")[0]);
        for (const cell of ["2-1", "2-1", "0-0"]) { press(cell); look(); }
        document.getElementById("unsure").value = "0.9";
        document.getElementById("clear").click();
        look();
        document.getElementById("side").open = true;
        document.querySelector("[data-cell='0-0']").focus();
        for (const key of ["ArrowDown", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowUp"])
            document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
        seen.push(document.activeElement.dataset.cell);
        document.querySelectorAll("#presets button")[3].click();
        document.querySelector("input[name=model][value='2']").click();
        press("1-1");
        setTimeout(() => { document.title = [...seen, location.hash].join("|"); }, 1000);"""
    page = browse(with_script(tmp_path / "hand.html", path, hand))
    chosen, undone, other, cleared, focus, address = page.titles[0].split("|")
    says = logits["teacher"].argmax(dim=-1)
    assert chosen == f"{int(((labels == 2) & (says == 1)).sum())} of 60 examples" and undone == "60 examples"
    assert other == f"{int(((labels == 0) & (says == 0)).sum())} of 60 examples" and cleared == "60 examples"
    assert focus == "0-2" and address == "#T=8&model=2&cell=1-1"


def test_a_search_finds_its_words_literally_and_shows_them_wherever_they_are(browse, tmp_path):
    _, labels, logits = predictions(3, 2)
    texts = ["dull " * 300 + "A (Fine) film " + "dull " * 300, "a fine film", "(fine"]
    write_page(tmp_path / "p.html", "reviews", "test", ("no", "yes"), texts, labels.tolist(), logits)
    page = browse(tmp_path / "p.html", "q=a+(FINE)&sort=corpus")
    assert page.indices == [0] and [tag for tag, _ in page.tags].count("mark") == 1
    assert "A (Fine) film" in "".join(page.items[0][1])


def test_hostile_texts_and_names_stay_text(browse, tmp_path):
    path = tmp_path / "hostile <b> #1.html"
    texts = list(HOSTILE)
    _, _, logits = predictions(len(texts), 3, models=(HOSTILE[0], HOSTILE[2], HOSTILE[5]))
    write_page(path, HOSTILE[0], HOSTILE[3], HOSTILE[:3], texts, [0] * len(texts), logits)
    page = browse(path, "sort=corpus")
    expected = [text.replace("\ud800", "\ufffd").replace("\udfff", "\ufffd") for text in texts]
    assert ["".join(text) for _, text, _ in page.items] == expected
    assert page.titles == [f"Dark knowledge: {HOSTILE[0]}, {HOSTILE[3]}"]
    assert all(name in page.texts["matrix"] for name in HOSTILE[:3]) and HOSTILE[0] in page.texts["means"]
    assert [tag for tag, _ in page.tags].count("script") == 2  # the names' JSON and the program: nobody else's
    assert not {tag for tag, _ in page.tags} & {"img", "iframe", "link", "object"}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_the_page_can_ask_for_nothing_outside_itself(three):
    html = three[0].read_text(encoding="utf-8")
    policy = re.search('http-equiv="Content-Security-Policy" content="([^"]*)"', html)[1]
    own = "default-src 'none'; script-src 'sha256-[^']+'; style-src 'sha256-[^']+'; "
    assert re.fullmatch(own + "base-uri 'none'; form-action 'none'", policy)
    program = re.sub(r'<script type="[^"]*"[^>]*>.*?</script>', "", html, flags=re.DOTALL)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|\bsrc=|fetch\(|<link", program)
    assert re.findall(r'href="([^"]*)"', program) == ["#"]


def long_reviews(examples, words_each, seed=0):
    words = [f"word{i}" for i in range(5000)]
    picks = torch.randint(5000, (examples, words_each), generator=torch.Generator().manual_seed(seed)).tolist()
    return [" ".join([words[p] for p in row]) for row in picks]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A page of 25,000 reviews of some 1,400 characters: its path, the note on its size and what it was made of."""
    path = tmp_path_factory.mktemp("large") / "large.html"
    texts = long_reviews(25_000, 160)
    texts[24_999] = f"needle {texts[24_999]}"
    _, labels, logits = predictions(25_000, 2)
    assert sum(map(len, texts)) > 1300 * 25_000
    note = write_page(path, "imdb", "test", ("negative", "positive"), texts, labels.tolist(), logits)
    return path, note, texts, labels, logits


def test_25000_long_reviews_take_less_than_5_mb_and_the_page_says_what_is_truncated(browse, large):
    path, note, texts, labels, logits = large
    assert 0.9 * LIMIT < path.stat().st_size <= LIMIT == 5_000_000
    truncated, length = re.match(r"([\d,]+) of 25,000 texts are truncated to (\d+) characters", note).groups()
    assert SHORTEST < int(length) < 1000
    page = browse(path)
    assert note in page.texts["note"] and not page.hides("note")
    first = page.indices[0]
    shown = "".join(page.items[0][1])  # where the models differ most, the text is whole
    assert shown.rstrip(" …") == texts[first][: len(shown.rstrip(" …"))] and "Truncated" not in page.texts["cards"]
    whole = 25_000 - int(truncated.replace(",", ""))
    assert 100 < whole < 25_000
    page = browse(path, "q=needle")
    assert page.texts["status"] == "1 of 25,000 examples" and page.indices == [24_999]
    assert f"Truncated here: {length} of {len(texts[24_999]):,} characters." in page.texts["cards"]
    assert texts[24_999].startswith("".join(page.items[0][1]).rstrip(" …"))


def test_texts_are_truncated_to_one_length_but_for_those_where_the_models_differ_most(large):
    path, note, texts, _, logits = large
    count, length = (int(number.replace(",", "")) for number in re.findall(r"([\d,]+) (?:of|characters)", note))
    shown = json.loads(unpacked(path, "texts"))
    cut = np.array([isinstance(text, list) for text in shown])
    assert cut.sum() == count
    for text, given, short in zip(texts, shown, cut):
        assert given == ([text[:length], len(text)] if short else text)
    apart = disagreement({name: table.numpy() for name, table in logits.items()})
    assert apart[cut].max() <= apart[~cut].min()
    whole = sum(len(text) for text, short in zip(texts, cut) if not short)
    assert 0.1 * LIMIT < whole <= LIMIT / 8  # as many characters as an eighth of the room has bytes


@pytest.mark.parametrize("models", [1, 2, 3])
def test_disagreement_is_the_distance_of_the_two_models_that_differ_most_or_how_unsure_one_alone_is(models):
    logits = predictions(40, 3)[2]
    tables = {name: logits[name].numpy() for name in NAMES[:models]}
    probs = [logits[name].double().softmax(dim=-1) for name in tables]
    for i, found in enumerate(disagreement(tables)):
        pairs = [float(sum(abs(p[i] - q[i])) / 2) for p in probs for q in probs]
        assert found == pytest.approx(max(pairs) if models > 1 else 1 - float(max(probs[0][i])), abs=1e-12)


def test_truncating_texts_changes_no_number(browse, large):
    path, _, _, labels, logits = large
    page = browse(path, "model=1")
    counts = torch.bincount(labels * 2 + logits["distilled"].argmax(dim=-1), minlength=4).tolist()
    buttons = [int(a["aria-label"].split()[-2]) for tag, a in page.tags if a.get("data-cell")]
    assert buttons == counts
    shades = [float(re.search("--share: ([^;]*)", a["style"])[1]) for _, a in page.tags if a.get("data-cell")]
    assert shades == pytest.approx([0.08 + 0.92 * n / sum(counts[i - i % 2 :][:2]) for i, n in enumerate(counts)])
    last = browse(path, "sort=corpus&page=1000")
    probs = torch.stack([logits[name][24_999].softmax(dim=-1) for name in NAMES])
    assert torch.allclose(last.probabilities(24), probs, atol=5.01e-4)


def test_short_texts_stay_whole_and_numbers_that_are_too_many_are_named(tmp_path):
    texts, labels, logits = predictions(60, 2)
    assert write_page(tmp_path / "p.html", "reviews", "test", ("no", "yes"), texts, labels.tolist(), logits) == ""
    texts, labels, logits = predictions(20_000, 40)
    names = tuple(map(str, range(40)))
    note = write_page(tmp_path / "p.html", "topics", "test", names, texts, labels.tolist(), logits)
    assert re.fullmatch(r"\d+\.\d MB, which a browser may be slow to open: show fewer models", note)


def test_no_text_is_truncated_to_less_than_80_characters_even_where_the_page_is_then_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr("minikd.report.page.LIMIT", 1000)
    texts, (_, labels, logits) = long_reviews(60, 100), predictions(60, 2)
    texts[3] = texts[3][:79]
    note = write_page(tmp_path / "p.html", "long", "test", ("no", "yes"), texts, labels.tolist(), logits)
    assert re.match(r"59 of 60 texts are truncated to 80 characters .*; \d\.\d MB, which a browser", note)
    shown = json.loads(unpacked(tmp_path / "p.html", "texts"))
    assert shown[3] == texts[3] and all(text == [own[:80], len(own)] for text, own in zip(shown[4:], texts[4:]))


def test_a_text_is_truncated_between_characters(browse, tmp_path, monkeypatch):
    monkeypatch.setattr("minikd.report.page.LIMIT", 60_000 + TEMPLATE.stat().st_size)
    generator = torch.Generator().manual_seed(0)
    texts = ["".join(chr(0x1F300 + n) for n in torch.randint(500, (400,), generator=generator)) for _ in range(60)]
    _, labels, logits = predictions(60, 2)
    assert write_page(tmp_path / "p.html", "emoji", "test", ("no", "yes"), texts, labels.tolist(), logits)
    page = browse(tmp_path / "p.html", "sort=corpus")
    assert "Truncated here" in page.texts["cards"]
    for i, words, _ in page.items:
        assert texts[i].startswith("".join(words).removesuffix(" …"))


def test_twenty_labels_show_the_teachers_likeliest_first_the_true_one_always_and_the_rest_on_demand(browse, tmp_path):
    texts, labels, logits = predictions(10, 20, seed=3)
    names = tuple(f"topic {c}" for c in range(20))
    write_page(tmp_path / "p.html", "topics", "test", names, texts, labels.tolist(), logits, T=1)
    click = 'document.querySelectorAll("article")[1].querySelector("button.link").click();'  # Show all 20 labels
    page = browse(with_script(tmp_path / "clicked.html", tmp_path / "p.html", click), "sort=corpus")
    for i in range(10):
        order = logits["teacher"][i].argsort(descending=True)
        expected = torch.stack([logits[name][i].softmax(dim=-1)[order] for name in NAMES], dim=1)
        assert torch.allclose(page.probabilities(i), expected, atol=5.01e-4)
    hidden = [("hidden" in a) for tag, a in page.tags if tag == "tr"][22:]  # after the confusion matrix
    first = hidden[1:21]
    order = logits["teacher"][0].argsort(descending=True).tolist()
    needed = {*order[:6], int(labels[0]), *(int(logits[name][0].argmax()) for name in NAMES)}
    assert [c for c, gone in zip(order, first) if not gone] == [c for c in order if c in needed]
    assert not any(hidden[22:42]) and any(hidden[43:63])  # the second example, and the third


def test_one_model_alone_has_nobody_to_disagree_with(browse, tmp_path):
    texts, labels, logits = predictions(30, 2, models=("model",))
    write_page(tmp_path / "p.html", "reviews", "test", ("no", "yes"), texts, labels.tolist(), logits)
    page = browse(tmp_path / "p.html", "disagree=any&wrong=0&sort=corpus")
    wrong = (logits["model"].argmax(dim=-1) != labels).nonzero().flatten().tolist()
    assert page.indices == wrong[:25]  # the filter that this page does not have is not obeyed
    assert page.hides("disagree-box")


def test_a_page_that_cannot_be_right_is_refused_and_nothing_is_written(tmp_path):
    texts, _, logits = predictions(4, 2)
    broken = logits | {"distilled": logits["distilled"].clone()}
    broken["distilled"][2, 1] = float("nan")

    def write(ids=(0, 1, 0, 1), models=logits, **other):
        write_page(tmp_path / "p.html", "reviews", "test", ("no", "yes"), texts, list(ids), models, **other)

    with pytest.raises(MinikdError, match="distilled: its logits of example 2 are not finite"):
        write(models=broken)
    with pytest.raises(ValueError, match=r"teacher: needs one row per text .* \(4, 2\), not \(3, 2\)"):
        write(models={"teacher": torch.zeros(3, 2)})
    for ids in ([0, 1, 2, 0], [0, 1, -1, 0], [0, 1, 1], [[0, 1, 1, 0]]):
        with pytest.raises(ValueError, match="4 ids from 0 to 1"):
            write(ids=ids)
    for T in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"temperature T must be above 0, not {T}"):
            write(T=T)
    with pytest.raises(ValueError, match="true_probabilities: needs one row per text"):
        write(true_probabilities=torch.ones(4, 3))
    with pytest.raises(ValueError, match="at least one"):
        write(models={})
    assert not list(tmp_path.iterdir())


def test_a_page_that_cannot_be_written_whole_leaves_the_old_one(tmp_path, monkeypatch):
    texts, labels, logits = predictions(4, 2)
    (tmp_path / "p.html").write_text("old")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_page(tmp_path / "p.html", "reviews", "test", ("no", "yes"), texts, labels.tolist(), logits)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("p.html", "old")]
