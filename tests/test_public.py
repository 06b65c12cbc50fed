"""The public names, as a reader of the README uses them: without a network, on a part of the sample."""

import ast
import json
import os
import re
import shutil
import site
import subprocess
import sys
import threading
import tomllib
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from exercises import CHANGES, changed

import minikd.datasets.sample
from minikd import Dataset, LoRA, MinikdError, Run, Split, TextClassifier, TrainConfig, distill, evaluate, train
from minikd.datasets.splits import make_dataset
from minikd.experiment.readme import READMES, readme_with_tables
from minikd.model import count_parameters
from minikd.techniques.quantize import quantize

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "minikd"
CONFIG = TrainConfig(epochs=1, batch_size=16, lr=1e-3)
QUIET = Run(progress=False)


def part(split, count):
    return Split(split.texts[:count], split.labels[:count], split.probabilities[:count])


SAMPLE = minikd.datasets.sample.load()
SMALL = Dataset("sample", SAMPLE.labels, part(SAMPLE.train, 64), part(SAMPLE.validation, 32), part(SAMPLE.test, 32))


@pytest.fixture
def small_sample(monkeypatch, tmp_path):
    """load_dataset("sample") is a part of it, in an empty folder."""
    monkeypatch.setattr(minikd.datasets.sample, "load", lambda: SMALL)
    monkeypatch.chdir(tmp_path)
    return SMALL


def new_teacher(**changes):
    shape = {"layers": 2, "hidden": 32, "max_length": 32, "vocab_size": 300, "device": "cpu", "precision": "fp32"}
    return TextClassifier.from_scratch(SMALL.train.texts, SMALL.labels, **shape | changes)


def readme_example():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return code


def smaller(code):
    """The README's or the notebook's code with small models, trained for an epoch."""
    for setting, value in {"epochs": 1, "hidden": 32, "layers": 2}.items():
        code = re.sub(rf"\b{setting}=\d+", f"{setting}={value}", code)
    return code


def weights(classifier):
    return torch.cat([tensor.flatten() for tensor in classifier.model.state_dict().values()])


def test_the_example_of_the_readme(small_sample, capsys):
    names = {}
    exec(smaller(readme_example()), names)
    out = capsys.readouterr().out
    assert re.search(r"\| accuracy +\| +0\.\d{4} \| +0\.\d{4} \| +0\.\d{4} \|", out) and "KL to truth" in out
    assert "distilled − baseline: " in out and re.search(r"^\['(nega|posi)tive'\]$", out, re.MULTILINE)

    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    theirs = AutoModelForSequenceClassification.from_pretrained("my-student").eval()
    texts = small_sample.test.texts
    batch = AutoTokenizer.from_pretrained("my-student")(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = theirs(**batch).logits
    ours = TextClassifier.load("my-student", precision="fp32", device="cpu").logits(texts)
    assert torch.allclose(ours, logits, atol=1e-4)


def test_the_notebook(small_sample, capsys):
    cells = json.loads((PACKAGE / "examples" / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    names = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert not cell["outputs"]  # the numbers are those of the reader's machine
            exec(smaller("".join(cell["source"])), names)
    assert "distilled − baseline: " in capsys.readouterr().out and not list(Path().iterdir())
    assert len(names["student"].predict(names["texts"])) == 3


def three_steps():
    """A teacher, its student and their table; returns the student's weights and the figures."""
    teacher = new_teacher()
    train(teacher, SMALL, CONFIG, run=QUIET)
    student = teacher.make_student(layers=1)
    distill(student, teacher, SMALL, CONFIG, alpha=0.5, T=2.0, run=QUIET)
    results = evaluate({"teacher": teacher, "distilled": student}, SMALL.test)
    return weights(student), str(results)


def test_it_works_in_a_thread_and_twice_in_a_process_with_the_same_bits():
    found = []
    worker = threading.Thread(target=lambda: found.append(three_steps()))  # where no signal handler can be set
    worker.start()
    worker.join()
    for _ in range(2):
        found.append(three_steps())
    first, *others = found
    assert all(torch.equal(bits, first[0]) and table == first[1] for bits, table in others)


def test_a_thread_leaves_a_run_in_a_folder(tmp_path):
    teacher = new_teacher()
    options = {"target": train, "args": (teacher, SMALL, CONFIG), "kwargs": {"run_dir": str(tmp_path / "run")}}
    worker = threading.Thread(**options)
    worker.start()
    worker.join()
    assert torch.equal(weights(TextClassifier.load(tmp_path / "run")), weights(teacher))


def test_a_student_is_left_in_its_folder_and_used_again_when_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr("minikd.experiment.training.training_memory_mb", lambda *_: 2.0)  # a process of its own
    teacher = new_teacher()
    options = {"alpha": 0.3, "T": 3.0, "run_dir": tmp_path / "student"}
    student, again = teacher.make_student(layers=1), teacher.make_student(layers=1)
    assert len(distill(student, teacher, SMALL, CONFIG, **options)) == 1
    run = json.loads((tmp_path / "student/run.json").read_text())
    assert run["name"] == "student" and (run["made_from"]["settings"]["alpha"], student.source) == (
        0.3, str(tmp_path / "student"))  # fmt: skip
    assert distill(again, teacher, SMALL, CONFIG, resume=True, **options) == []  # nothing to train
    assert torch.equal(weights(again), weights(student))


def test_what_is_trained_is_said_before(capsys):
    teacher = new_teacher()
    train(teacher, SMALL, CONFIG)
    plain = capsys.readouterr().out
    assert (
        "64 examples, 4 steps (1 epochs)" in plain
        and "of them trained" not in plain
        and "all weights trained" not in plain
    )
    train(teacher, SMALL, CONFIG, lora=LoRA(rank=2))
    assert re.search(r"\([\d,]+ of them trained, .*MiB \(.* MiB with all weights trained\)", capsys.readouterr().out)


def test_without_a_folder_nothing_is_written_and_random_numbers_continue_as_before(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = torch.get_rng_state()
    three_steps()
    assert torch.equal(torch.get_rng_state(), before) and not list(tmp_path.iterdir())


def test_progress_can_be_switched_off(capsys):
    teacher = new_teacher()
    train(teacher, SMALL, CONFIG, run=QUIET)
    distill(teacher.make_student(layers=1), teacher, SMALL, CONFIG, run=QUIET)
    assert capsys.readouterr() == ("", "")


def test_the_logits_of_any_model_are_a_teacher():
    teacher, students = new_teacher(), []
    for given in (teacher, [teacher], teacher.logits(SMALL.train.texts)):
        student = teacher.make_student(layers=1)
        distill(student, given, SMALL, CONFIG, run=QUIET)
        students.append(weights(student))
    assert torch.equal(students[0], students[1]) and torch.equal(students[0], students[2])
    distill(other := teacher.make_student(layers=1), torch.randn(64, 2), SMALL, CONFIG, run=QUIET)
    assert not torch.equal(weights(other), students[0])
    for wrong in (torch.randn(63, 2), torch.randn(64, 3), torch.full((64, 2), torch.nan)):
        with pytest.raises(MinikdError, match="64 training, unlabelled and augmented texts.*2 labels"):
            distill(student, wrong, SMALL, CONFIG, run=QUIET)


def test_several_teachers_are_averaged_at_the_temperature_in_use_and_evaluated_as_one():
    members = [new_teacher(seed=seed, initializer_range=0.5) for seed in (1, 2, 3)]
    together = TextClassifier.ensemble(members)
    texts = SMALL.train.texts
    probs = np.mean([one.predict_proba(texts) for one in members], axis=0)
    np.testing.assert_allclose(together.predict_proba(texts), probs, atol=1e-6)
    assert evaluate({"teacher": together}, SMALL.test, progress=False).values["models"][0]["parameters"] == sum(
        count_parameters(one.model) for one in members
    )
    T, trained = 3.0, []
    at_T = torch.stack([(one.logits(texts) / T).softmax(dim=-1) for one in members]).mean(dim=0)
    stacked = torch.stack([one.logits(texts) for one in members])
    for given in (members, together, stacked, T * at_T.log(), stacked.mean(dim=0)):
        student = members[0].make_student(layers=1)
        distill(student, given, SMALL, CONFIG, T=T, run=QUIET)
        trained.append(weights(student))
    assert torch.equal(trained[0], trained[1]) and torch.equal(trained[0], trained[2])
    same, geometric = ((trained[0] - other).abs().mean() for other in trained[3:])
    assert same < 0.01 * geometric


def test_a_classifier_has_the_defaults_that_its_docstring_names():
    texts, labels = SMALL.train.texts, SMALL.labels
    new = TextClassifier.from_scratch(texts, labels, vocab_size=300, max_length=3, device="cpu", precision="fp32")
    assert new.model.config.vocab_size == new.tokenizer.vocab_size <= 300 and new.precision == "fp32"
    config = new.model.config
    assert (config.hidden_size, config.num_hidden_layers, config.max_position_embeddings) == (256, 4, 3)
    long = TextClassifier.from_scratch(texts, labels, layers=1, hidden=32, vocab_size=300, max_length=300, device="cpu")
    assert TextClassifier(long.model, long.tokenizer, device="cpu").max_length == 256
    assert TextClassifier(new.model, new.tokenizer, device="cpu").max_length == 3
    with pytest.raises(MinikdError, match="^`max_length` 4: the model has 3 positions"):
        TextClassifier(new.model, new.tokenizer, max_length=4, device="cpu")


def test_a_student_of_random_weights_has_the_shape_asked_for_and_follows_from_its_seed():
    teacher = new_teacher()
    one, two, again = (teacher.make_student(3, hidden=64, init="random", seed=seed) for seed in (1, 2, 1))
    assert (one.model.config.num_hidden_layers, one.model.config.hidden_size) == (3, 64)
    assert torch.equal(weights(one), weights(again)) and not torch.equal(weights(one), weights(two))


def test_the_bar_of_logits_has_the_description_given(capsys):
    teacher = new_teacher()
    teacher.logits(SMALL.train.texts, desc="my texts")
    assert "my texts" in capsys.readouterr().err
    teacher.logits(SMALL.train.texts)
    assert capsys.readouterr().err == ""


def test_nothing_to_evaluate_is_refused():
    for models in ({}, {"a": []}):
        with pytest.raises(MinikdError, match="give at least one model"):
            evaluate(models, SMALL.test)


def test_an_ensemble_is_neither_trained_nor_saved_nor_taken_apart(tmp_path):
    members = [new_teacher(seed=seed) for seed in (1, 2)]
    together = TextClassifier.ensemble(members)
    for attempt in (
        lambda: train(together, SMALL, CONFIG),
        lambda: together.save(tmp_path / "x"),
        lambda: together.make_student(layers=1),
    ):
        with pytest.raises(MinikdError, match="an ensemble"):
            attempt()
    other = new_teacher(vocab_size=250)
    for wrong in ([], [members[0], 3], [members[0], other], [members[0], new_teacher(max_length=16)]):
        with pytest.raises(MinikdError, match="ensemble"):
            TextClassifier.ensemble(wrong)


def test_the_soft_loss_is_the_one_that_was_asked_for_and_the_run_records_it(tmp_path, monkeypatch):
    monkeypatch.setattr("minikd.experiment.training.training_memory_mb", lambda *_: None)  # a process of its own
    seen, teacher = [], new_teacher()
    monkeypatch.setattr(
        "minikd.training.kd_loss", lambda *given, soft: seen.append(soft) or minikd.kd_loss(*given, soft=soft)
    )
    for soft in ("kl", "mse"):
        distill(teacher.make_student(layers=1), teacher, SMALL, CONFIG, soft=soft, run_dir=tmp_path / soft)
        assert set(seen) == {soft}
        seen.clear()
    settings = [
        json.loads((tmp_path / soft / "run.json").read_text())["made_from"]["settings"] for soft in ("kl", "mse")
    ]
    assert settings[1] == settings[0] | {"soft_loss": "mse"} and "soft_loss" not in settings[0]  # as of older runs
    for soft, reason in (
        ("dkd", "two labels"),
        ("dist", "probabilities that add up to 1"),
        ("l2", "must be one of kl,"),
    ):
        with pytest.raises(MinikdError, match=reason):
            distill(teacher.make_student(layers=1), teacher, SMALL, CONFIG, soft=soft, run=QUIET)
    assert not seen


# Dataset.from_examples

TEXTS = [f"text number {i}" for i in range(40)]
NAMES = ["good" if i % 2 else "bad" for i in range(40)]


def test_a_model_of_another_order_of_labels_is_not_evaluated():
    teacher = new_teacher()
    turned = TextClassifier.from_scratch(SMALL.train.texts, SMALL.labels[::-1], layers=1, hidden=32, max_length=32)
    assert SMALL.test.label_names == SMALL.labels
    with pytest.raises(MinikdError, match="are not the split's .*, in this order: give labels=data.labels"):
        evaluate({"turned": turned}, SMALL.test)
    with pytest.raises(MinikdError, match="2 distilled and 1 baseline models; give one of each for each seed"):
        evaluate({"distilled": [teacher, teacher], "baseline": teacher}, SMALL.test)
    with pytest.raises(MinikdError, match="1 distilled and 2 control models; give one of each for each seed"):
        evaluate({"distilled": teacher, "control": [teacher, teacher]}, SMALL.test)
    for split in (SMALL, "test"):
        with pytest.raises(MinikdError, match="give a Split, such as data.test"):
            evaluate({"teacher": teacher}, split)
    with pytest.raises(MinikdError, match="other labels than 0 to 1"):
        evaluate({"teacher": teacher}, Split(["a"], [-1]))


def test_numbers_and_logits_of_numpy_are_taken(tmp_path, monkeypatch):
    monkeypatch.setattr("minikd.experiment.training.training_memory_mb", lambda *_: None)  # a process of its own
    teacher, found = new_teacher(), []
    logits = teacher.logits(SMALL.train.texts)
    for given, T in ((logits, 2.0), (logits.numpy(), np.int64(2)), (logits.T.contiguous().T.requires_grad_(), 2)):
        student = teacher.make_student(layers=1)
        distill(student, given, SMALL, CONFIG, alpha=np.float32(0.5), T=T, run_dir=tmp_path / str(len(found)))
        found.append(weights(student))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    for nothing in ([], None, [logits]):
        with pytest.raises(MinikdError, match="give a TextClassifier, a list of them, or logits"):
            distill(teacher.make_student(layers=1), nothing, SMALL, CONFIG)


def test_a_stopped_training_of_adapters_leaves_none(monkeypatch):
    model = new_teacher()
    names = list(model.model.state_dict())
    monkeypatch.setattr("minikd.experiment.training.run_training", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(model, SMALL, CONFIG, lora=LoRA(rank=2))
    assert list(model.model.state_dict()) == names
    assert all(parameter.requires_grad for parameter in model.model.parameters())


def test_where_a_run_goes_is_said_once_and_can_be_written_to(tmp_path):
    model = new_teacher()
    (tmp_path / "file").write_text("")
    for options, words in (({"run_dir": tmp_path, "run": QUIET}, "leave out run_dir and resume, or run"),
                           ({"resume": True}, "give run_dir too"),
                           ({"run_dir": tmp_path / "file"}, "`run_dir` .*file: cannot be written to"),
                           ({"run_dir": tmp_path / "file/below"}, "cannot be written to")):  # fmt: skip
        with pytest.raises(MinikdError, match=words):
            train(model, SMALL, CONFIG, **options)
    with pytest.raises(MinikdError, match="data: give a Dataset"):
        train(model, SMALL.train, CONFIG)


def test_the_names_of_outputs_must_be_the_labels(tmp_path):
    new_teacher().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for order in (["negativ", "positive"], ["negative"]):
        with pytest.raises(MinikdError, match="must name the labels negative, positive"):
            TextClassifier.load(tmp_path, labels=SMALL.labels, label_order=order)
    assert TextClassifier.load(tmp_path, labels=SMALL.labels, label_order=SMALL.labels[::-1]).labels == SMALL.labels


def test_a_quantised_teacher_has_no_layers_to_take():
    teacher = new_teacher()
    teacher.model = quantize(teacher.model, "int8")
    with pytest.raises(MinikdError, match="is quantised and has no layers to take"):
        teacher.make_student(layers=1)


def test_the_public_names_are_listed():
    assert set(minikd.__all__) <= set(dir(minikd))


def test_examples_are_split_as_a_file_is():
    data = Dataset.from_examples(TEXTS, NAMES)
    whole = Split(TEXTS, [0 if name == "bad" else 1 for name in NAMES])
    assert data == make_dataset("examples", ("bad", "good"), whole) and data.labels == ("bad", "good")
    assert sorted(data.all.texts) == sorted(TEXTS) and len(data.test.texts) == len(data.validation.texts) == 4


def test_labels_are_names_or_ids():
    ids = [NAMES.index(name) for name in NAMES]  # bad 0, good 1
    for labels in (ids, NAMES, torch.tensor(ids).numpy()):
        assert Dataset.from_examples(TEXTS, labels, label_names=["bad", "good"]) == Dataset.from_examples(TEXTS, NAMES)
    assert Dataset.from_examples(TEXTS, [10 - 8 * i for i in ids]).labels == ("2", "10")


def test_splits_of_ones_own_are_kept():
    test, validation = (["t one", "t two"], ["bad", "good"]), (["v one", "v two"], ["good", "bad"])
    data = Dataset.from_examples(TEXTS, NAMES, test=test, validation=validation)
    assert (data.train.texts, data.test.texts, data.validation.labels) == (TEXTS, test[0], [1, 0])
    data = Dataset.from_examples(TEXTS, NAMES, test=test)
    assert data.test.texts == test[0] and len(data.validation.texts) == 4


@pytest.mark.parametrize(
    ("texts", "labels", "more", "words"),
    [
        (TEXTS, NAMES[:-1], {}, "40 texts but 39 labels"),
        (TEXTS, ["bad"] * 40, {}, "two or more different labels"),
        (TEXTS[1:] + [" "], NAMES, {}, "not empty"),
        (TEXTS[1:] + [None], NAMES, {}, "must be a str"),
        (TEXTS, NAMES, {"label_names": ["bad", "fine"]}, "'good' is none of bad, fine"),
        (TEXTS, NAMES, {"test": (["t"], ["mixed"])}, "test: the label 'mixed' is none of"),
        (TEXTS, NAMES, {"validation": (["v"], ["bad"])}, "`validation` without `test`"),
    ],
)
def test_examples_that_are_no_data_set_are_refused(texts, labels, more, words):
    with pytest.raises(MinikdError, match=re.escape(words)):
        Dataset.from_examples(texts, labels, **more)


# The READMEs

DOCUMENTS = ("README.md", "minikd/README.md", "data/README.md", "data/results/README.md", "tests/README.md",
             ".github/CONTRIBUTING.md", ".github/CHANGELOG.md")  # fmt: skip


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files_and_flags_exist(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (ROOT / document).parent.joinpath(target).exists(), target
    sources = [*PACKAGE.glob("cli/*.py"), *(ROOT / "tests").glob("**/*.py"), PACKAGE / "experiment" / "readme.py"]
    known = set(re.findall(r"--[a-zA-Z][\w-]*", "".join(path.read_text(encoding="utf-8") for path in sources)))
    known |= {f"--{field.name.replace('_', '-')}" for field in (*fields(TrainConfig), *fields(minikd.LayerLosses))}
    known |= {"--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-endpoint", "--max-restarts"}  # of torchrun
    known |= {"--index-url", "--logdir", "--check", "--config-file"}  # of pip, tensorboard, ruff and mypy
    assert not set(re.findall(r"(?<![\w<!-])--[a-zA-Z][\w-]*", text)) - known


@pytest.mark.parametrize("document", READMES)
def test_tables_are_those_of_the_results_files(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    made = readme_with_tables(text, ROOT / "data" / "results")
    assert "<!-- results sample" in text and made == text, "run: python -m minikd.experiment.readme"


def test_the_five_changes_apply_to_the_code():
    for file, old, new in CHANGES.values():
        source = (PACKAGE / file).read_text(encoding="utf-8")
        compile(changed(source, old, new), file, "exec")
        assert not old or changed(source, old, new) != source
    with pytest.raises(ValueError, match="is there 0 times"):
        changed("a line", "another line", "")


# Messages


def test_messages_of_the_library_name_no_flag():
    """Settings stand in backticks; the scripts print the flag instead (`minikd.cli.start`)."""
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] in ("cli", "report", "experiment", "build"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        texts = [
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        assert not [text for text in texts if re.search(r"--[a-zA-Z]", text)], path


def test_errors_say_what_to_change():
    teacher = new_teacher()
    wrong = {
        "`lr`": lambda: TrainConfig(lr=-1),
        "`alpha`": lambda: distill(teacher, teacher, SMALL, alpha=2),
        "`T`": lambda: distill(teacher, teacher, SMALL, T=0),
        "give a list": lambda: teacher.predict("one text"),
        "labels=data.labels": lambda: train(teacher, Dataset("other", ("no", "yes"), *[SMALL.test] * 3)),
        "the teacher's layers": lambda: teacher.make_student(layers=[7]),
    }
    for words, call in wrong.items():
        with pytest.raises(MinikdError) as caught:
            call()
        message = str(caught.value)
        assert words in message and "--" not in message and "\n" not in message


# The package


def test_the_package_lists_all_folders_and_the_runtime_requirements():
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {path.parent for path in PACKAGE.glob("*/*.*") if path.suffix in (".py", ".ipynb")}
    names = {f"minikd.{folder.name}" for folder in folders if folder.name not in ("build", "minikd.egg-info")}
    assert set(project["tool"]["setuptools"]["packages"]) == names | {"minikd", "minikd.sample"}
    wanted = re.findall(r"^\w+", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert [re.match(r"\w+", line)[0] for line in project["project"]["dependencies"]] == wanted


def test_pip_installs_it_and_the_readmes_example_runs_there(tmp_path):
    setuptools = pytest.importorskip("setuptools", reason="setuptools, which builds the package, is not installed")
    pytest.importorskip("pip", reason="pip is not installed")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip(f"setuptools {setuptools.__version__} is too old to build the package")
    source = tmp_path / "source"  # a copy: pip leaves its build folder beside the code
    shutil.copytree(PACKAGE, source / "minikd", ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    shutil.copytree(ROOT / "data" / "sample", source / "data" / "sample")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    (own,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (own / "of-the-tests.pth").write_text("".join(f"{folder}\n" for folder in site.getsitepackages()))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--force-reinstall"]
    subprocess.run([python, "-m", "pip", "install", *options, source / "minikd"], check=True, cwd=tmp_path)
    shutil.rmtree(source)
    small = (
        "import minikd.datasets.sample as s\nfrom minikd import Dataset, Split\n"
        "def part(x): return Split(x.texts[:64], x.labels[:64], x.probabilities[:64])\n"
        "d = s.load()\ns.load = lambda: Dataset(d.name, d.labels, part(d.train), part(d.validation), part(d.test))\n"
    )
    script = tmp_path / "example.py"
    script.write_text(small + smaller(readme_example()) + "\nprint(s.FOLDER)\n", encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([python, script], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "distilled − baseline: " in done.stdout and str(own / "minikd" / "sample") in done.stdout
    for file in ("py.typed", "report/page.html", "examples/quickstart.ipynb"):
        assert (own / "minikd" / file).exists()


def test_the_head_of_a_loaded_encoder_follows_from_the_seed(bare):
    heads = []
    for state, seed in ((1, 5), (2, 5), (1, 6)):
        torch.manual_seed(state)
        one = TextClassifier.load(bare, labels=("bad", "good"), seed=seed, device="cpu")
        heads.append(one.model.classifier.weight)
        assert one.source == str(bare)  # whose layers a student or an adapter is of
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
