"""Flags: what each help text promises is what happens, and every value arrives where it is used."""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch
from conftest import save_model

from minikd.cli import flags
from minikd.cli import start as cli
from minikd.cli.defaults import DEFAULTS, SAMPLE_VOCABULARY
from minikd.cli.recipes import BEST, EXPERIMENTS
from minikd.datasets import load_dataset
from minikd.errors import MinikdError

ROOT = Path(__file__).parents[2]
SCRIPTS = ("train.py", "distill.py", "evaluate.py")
BY_CORPUS = "by corpus, see below"
ORDER = (
    "by name, LABEL_0 being the label 0; else, for up to 8 labels, the order that clearly fits the validation split; "
    "else an error"
)
OWN_DATA = {"--text-column": "text or sentence", "--label-column": "label", "--encoding": "utf-8",
            "--label-order": ORDER}  # fmt: skip
# Defaults that are no value of the flag itself. What they promise is tested further down or beside the code they name.
DESCRIBED = {
    "train.py": {
        "--model": "bert-base-uncased; for the sample, or with --layers or --hidden, a new model",
        "--layers": "4, of a new model", "--hidden": "256, of a new model",
        "--max-length": BY_CORPUS, "--epochs": BY_CORPUS, "--lr": f"{BY_CORPUS}; adapters 5e-4",
        "--track": "neither", "--data-dir": "the folder data beside the scripts",
        "--output-dir": "runs/<dataset>-model", **OWN_DATA,
    },
    "distill.py": {
        "--recipe": "none", "--folds": "none", "--teacher": "bert-base-uncased; for the sample a new 4-layer model",
        "--teacher-epochs": BY_CORPUS, "--teacher-lr": f"{BY_CORPUS}; adapters 5e-4",
        "--teacher-base": "what its run.json or adapter_config.json says; for a model of BERT-base's shape and "
        "vocabulary, that", "--unlabelled": "none",
        "--student": "none: its shape follows from --student-layers", "--take-layers": "evenly spaced ones",
        "--student-layers": "4", "--student-hidden": "the teacher's, but for the shapes named at --student-layers",
        "--max-length": BY_CORPUS, "--epochs": BY_CORPUS, "--lr": f"{BY_CORPUS}; adapters 5e-4",
        "--layer-lr": "that of --lr",
        "--track": "neither", "--data-dir": "the folder data beside the scripts",
        "--output-dir": "runs/<recipe or dataset>", **OWN_DATA,
    },
    "evaluate.py": {
        **dict.fromkeys(("--dataset", "--data-dir", "--fpb-agreement", "--max-length"),
                        "as the first model was trained"),
        "--text-column": "as the first model was trained, else text or sentence",
        "--label-column": "as the first model was trained, else label",
        "--encoding": "as recorded, for the data of the first model; else utf-8", "--label-order": ORDER,
        **dict.fromkeys(("--quantize", "--html", "--output-dir", "--plot", "--text", "--input", "--output"), "none"),
    },
}  # fmt: skip


def parsed(monkeypatch, script, *arguments):
    """The flags of a script as its main() gets them."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    names = runpy.run_path(str(ROOT / script), run_name="not main")
    return names[f"{Path(script).stem}_args"](names["__doc__"])


@pytest.fixture
def parser_of(monkeypatch):
    """The parser of a script, caught where it would parse."""

    def get(script):
        caught = []
        with monkeypatch.context() as patch:
            patch.setattr(flags.Parser, "parse_args", lambda parser: caught.append(parser) or sys.exit())
            with pytest.raises(SystemExit):
                parsed(patch, script)
        return caught[0]

    return get


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_help_text_names_its_default(script, parser_of, monkeypatch, tmp_path):
    """A flag that is given its named default changes nothing."""
    monkeypatch.chdir(tmp_path)
    described = {}
    for action in parser_of(script)._actions:
        if action.nargs == 0 or not action.option_strings:  # a switch is off, a MODEL has none
            continue
        flag, found = action.option_strings[-1], re.search(r"\(default: ([^)]+)\)", action.help or "")
        assert found, f"{script} {flag}: its help names no default"
        if flag in DESCRIBED[script]:
            described[flag] = found[1]
            continue
        base = ["some-model"] if script == "evaluate.py" else []
        base += ["--lora-rank", 8] if flag.startswith("--lora") and flag != "--lora-rank" else []
        without, given = (vars(parsed(monkeypatch, script, *base, *more)) for more in ([], [flag, found[1]]))
        for args in (without, given):
            if "lora_rank" in args:
                args["adapters"] = [cli.lora(type("Args", (), args), rank)
                                    for rank in (args["lora_rank"], args.get("student_lora_rank"))]  # fmt: skip
                for name in ("rank", "alpha", "dropout", "targets"):
                    del args[f"lora_{name}"]
                args.pop("student_lora_rank", None)
        assert given == without, f"{script} {flag} {found[1]}"
    assert described == DESCRIBED[script]


def test_help_texts_say_whose_epochs_and_which_precisions(parser_of):
    texts = {script: {action.option_strings[-1]: action.help for action in parser_of(script)._actions
                      if action.option_strings} for script in SCRIPTS}  # fmt: skip
    assert texts["distill.py"]["--epochs"].startswith("the students' passes over the training set")
    assert texts["train.py"]["--epochs"].startswith("passes over the training set")
    assert texts["distill.py"]["--lr"].startswith("the students' peak learning rate")
    assert all("fp16" in texts[script]["--precision"] for script in SCRIPTS)


@pytest.mark.parametrize(("script", "names"), [
    ("train.py", ["max_length", "batch_size", "epochs", "lr"]),
    ("distill.py", ["max_length", "batch_size", "teacher_epochs", "teacher_lr", "epochs", "lr"]),
])  # fmt: skip
def test_the_table_of_defaults_has_the_names_of_the_scripts_flags(script, names, parser_of):
    lines = parser_of(script).epilog.splitlines()
    assert lines[1].split() == names
    assert [line.split()[0] for line in lines[2:]] == list(DEFAULTS)
    assert [float(value) for value in lines[4].split()[1:]] == list(DEFAULTS["sst2"][: len(names)])


# What the flags hand on ----------------------------------------------------------------------------------------------

# fine-tuning a teacher, training a student: by corpus
TABLE = {
    #          max_length  batch_size  teacher_epochs  teacher_lr  epochs    lr
    "sample":     (64,         32,           3,           4e-4,       2,    6e-4),
    "imdb":      (256,         32,           2,           2e-5,       4,    5e-5),
    "sst2":      (128,         32,           3,           2e-5,       4,    5e-5),
    "fpb":       (128,         32,           4,           3e-5,       6,    5e-5),
    "films.csv": (256,         32,           3,           2e-5,       4,    5e-5),
}  # fmt: skip


@pytest.mark.parametrize("dataset", TABLE)
def test_flags_that_are_not_given_take_the_corpuss_values(dataset, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    Path("films.csv").write_text("text,label\n")
    length, batch_size, teacher_epochs, teacher_lr, epochs, lr = TABLE[dataset]
    args = parsed(monkeypatch, "distill.py", "--dataset", dataset)
    assert (args.batch_size, args.teacher_epochs, args.teacher_lr) == (batch_size, teacher_epochs, teacher_lr)
    assert (args.epochs, args.lr, args.alpha, args.T) == (epochs, lr, [0.5], [2.0])
    name = dataset.removesuffix(".csv")
    assert args.output_dir == Path("runs") / name
    assert args.dataset == (str(tmp_path / "films.csv") if dataset == "films.csv" else dataset)
    adapters = parsed(monkeypatch, "distill.py", "--dataset", dataset, "--lora-rank", 8)
    assert (adapters.teacher_lr, adapters.lr) == (5e-4, lr)
    adapters = parsed(monkeypatch, "distill.py", "--dataset", dataset, "--student-lora-rank", 8)
    assert (adapters.teacher_lr, adapters.lr) == (teacher_lr, 5e-4)

    args = parsed(monkeypatch, "train.py", "--dataset", dataset)  # a teacher is what it trains
    assert (args.batch_size, args.epochs, args.lr) == (batch_size, teacher_epochs, teacher_lr)
    assert args.output_dir == Path("runs") / f"{name}-model"
    assert parsed(monkeypatch, "train.py", "--dataset", dataset, "--layers", 2).lr == 4e-4  # random weights
    assert parsed(monkeypatch, "train.py", "--dataset", dataset, "--lora-rank", 2).lr == 5e-4
    given = parsed(monkeypatch, "train.py", "--dataset", dataset, "--lora-rank", 2, "--lr", 0.1, "--epochs", 9)
    assert (given.lr, given.epochs) == (0.1, 9)

    assert args.max_length is None  # until the model is known
    cli.resolve_max_length(args, 512)
    assert args.max_length == length and capsys.readouterr().out == f"max_length {length}\n"
    args.max_length = None
    cli.resolve_max_length(args, 10)
    assert args.max_length == 10
    cli.resolve_max_length(given := type("Args", (), {"max_length": 500})(), 10)
    assert given.max_length == 500  # check_tokenizer complains of it


RECIPE_VALUES = {
    "imdb-small": {"dataset": "imdb", "student": None, "student_layers": 4, "teacher_epochs": 2, "epochs": 4,
                   "teacher_lr": 2e-5, "lr": 5e-5, "lora_rank": None},
    "fpb-distilbert": {"dataset": "fpb", "student": "distilbert-base-uncased", "fpb_agreement": "50", "epochs": 6,
                       "teacher_epochs": 4},
    "sst2-lora": {"dataset": "sst2", "student": "distilbert-base-uncased", "lora_rank": 8, "student_lora_rank": None,
                  "teacher_lr": 5e-4, "lr": 5e-5, "teacher_epochs": 3, "epochs": 4},
    "imdb-cached": {"dataset": "imdb", "student": "distilbert-base-uncased", "teacher_epochs": 1, "epochs": 1,
                    "teacher_logits": "cache"},
    "imdb-online": {"dataset": "imdb", "student": "distilbert-base-uncased", "teacher_epochs": 1, "epochs": 1,
                    "batch_size": 16, "teacher_lr": 2e-5, "lr": 2e-5, "warmup_ratio": 0.0, "teacher_logits": "online"},
}  # fmt: skip


@pytest.mark.parametrize("recipe", EXPERIMENTS)
def test_a_recipe_is_its_settings_and_any_flag_beside_it_wins(recipe, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    args = vars(parsed(monkeypatch, "distill.py", "--recipe", recipe))
    common = {"recipe": recipe, "teacher": "bert-base-uncased", "alpha": [0.5], "T": [2.0], "seeds": 1, "seed": 42,
              "warmup_ratio": 0.1, "batch_size": 32, "output_dir": Path("runs") / recipe, "no_baseline": False,
              "choose": "accuracy", "take_layers": None, "student_init": "auto"}  # fmt: skip
    assert {name: args[name] for name in common | RECIPE_VALUES[recipe]} == common | RECIPE_VALUES[recipe]
    own = {"dataset": "sample", "teacher": "mine", "epochs": 9, "teacher_epochs": 8, "lr": 0.1, "teacher_lr": 0.2,
           "batch_size": 5, "warmup_ratio": 0.3, "alpha": [0.7], "T": [3.0], "teacher_logits": "cache", "lora_rank": 3,
           "fpb_agreement": "all", "output_dir": Path("mine"), "student": "theirs"}  # fmt: skip
    given = [part for name, value in own.items()
             for part in (f"--{name.replace('_', '-')}", *(value if isinstance(value, list) else [value]))]  # fmt: skip
    args = vars(parsed(monkeypatch, "distill.py", "--recipe", recipe, *given))
    assert {name: args[name] for name in own} == own and args["student_layers"] is None


@pytest.mark.parametrize("recipe", BEST)
def test_the_best_recipes_are_their_settings(recipe, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    args = vars(parsed(monkeypatch, "distill.py", "--recipe", recipe))
    assert {name: args[name] for name in BEST[recipe]} == BEST[recipe]
    more = vars(parsed(monkeypatch, "distill.py", "--recipe", "imdb-best", "--unlabelled", "mine.txt"))
    assert more["unlabelled"] == ["imdb", "mine.txt"] and BEST["imdb-best"]["unlabelled"] == ["imdb"]
    for teachers, seeds in ((["one"], 3), (["one", "two"], 1)):
        assert parsed(monkeypatch, "distill.py", "--recipe", "sst2-best", "--teacher", *teachers).teacher_seeds == seeds


@pytest.mark.parametrize("flag", [["--student-layers", 3], ["--take-layers", 0, 1], ["--student-hidden", 64],
                                  ["--student-init", "random"]])  # fmt: skip
def test_a_student_shaped_by_flags_replaces_the_recipes(flag, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert parsed(monkeypatch, "distill.py", "--recipe", "imdb-cached", *flag).student is None
    layers = parsed(monkeypatch, "distill.py", "--recipe", "imdb-small", *flag).student_layers
    assert layers == {"--student-layers": 3, "--take-layers": None}.get(flag[0], 4)


OWN = {"batch_size": 7, "weight_decay": 0.02, "warmup_ratio": 0.3, "grad_accum": 2, "clip": 0.7,
       "label_smoothing": 0.05, "patience": 5, "seed": 6}  # fmt: skip
OWN_FLAGS = [part for name, value in OWN.items() for part in (f"--{name.replace('_', '-')}", value)]


def test_every_training_flag_of_train_reaches_the_loop(script, corpus, bare, trainings):
    flags = [
        "--epochs",
        1,
        "--max-steps",
        5,
        "--lr",
        "3e-3",
        "--max-length",
        9,
        "--precision",
        "fp32",
        "--device",
        "cpu",
        *OWN_FLAGS,
    ]
    assert script("train.py", "--dataset", corpus, "--model", bare, *flags)[0] == 0
    (call,) = trainings
    settings = {"epochs": 1, "max_steps": 5, "lr": 3e-3, "alpha": 1.0, "T": 1.0, "precision": "fp32"}
    assert call["settings"] == settings | OWN
    assert (call["device"], call["run"].compile, call["run"].resume) == (torch.device("cpu"), False, False)
    assert call["teacher"] is None and call["data"].lengths.max() == 9


def test_every_training_flag_of_distill_reaches_the_loops(script, corpus, bare, trainings):
    flags = [
        "--epochs",
        1,
        "--max-steps",
        5,
        "--lr",
        "3e-3",
        "--teacher-epochs",
        2,
        "--teacher-lr",
        "4e-3",
        "--alpha",
        0.3,
        "--T",
        3,
    ]
    flags += ["--max-length", 9, "--precision", "fp32", "--device", "cpu", "--student-layers", 2, *OWN_FLAGS]
    assert script("distill.py", "--dataset", corpus, "--teacher", bare, *flags)[0] == 0
    calls = {call["desc"]: call for call in trainings}
    settings = {"epochs": 1, "max_steps": 5, "lr": 3e-3, "alpha": 1.0, "T": 1.0, "precision": "fp32", **OWN}
    assert {name: call["settings"] for name, call in calls.items()} == {
        "teacher": settings | {"epochs": 2, "max_steps": 0, "lr": 4e-3},
        "distilled": settings | {"alpha": 0.3, "T": 3.0},
        "baseline": settings,
    }
    assert [call["teacher"] is None for call in calls.values()] == [True, False, True]
    assert all(call["data"].lengths.max() == 9 for call in calls.values())


@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16"), (False, "fp32")])
def test_precision_auto_becomes_what_the_device_is_good_at(script, corpus, bare, stop, monkeypatch, fast, precision):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: fast)
    kept = []
    monkeypatch.setattr("minikd.cli.start.keep_freed_memory", lambda: kept.append(1))
    calls = stop("minikd.experiment.training.run_training")
    command = ["--dataset", corpus, "--epochs", 1, "--max-length", 9, "--device", "cpu"]
    status, out, _ = script("train.py", "--model", bare, *command)
    assert f"device cpu; precision {precision}: this" in out
    assert "batch_size 32; " in out and f"precision {precision}; " in out  # the flags, also those not given
    assert calls[0][0][7] == precision and kept  # freed memory stays in the process


@pytest.mark.parametrize("name", ["train.py", "distill.py"])
def test_data_and_device_flags_reach_what_they_name(name, script, stop, tmp_path):
    calls = stop("minikd.cli.start.load_dataset")
    own = {"text_column": "body", "label_column": "kind", "encoding": "latin-1"}
    flags = [word for flag, value in own.items() for word in (f"--{flag.replace('_', '-')}", value)]
    script(name, "--dataset", "fpb", "--data-dir", "archives", "--fpb-agreement", "75", "--device", "cpu", *flags)
    own |= {"unlabelled": None if name == "train.py" else []}
    assert calls == [(("fpb", tmp_path / "archives"), {"agreement": "75", "model_labels": None, **own})]
    script(name, "--dataset", "imdb", "--device", "cpu")
    usual = {"agreement": "50", "model_labels": None, **dict.fromkeys(own), "unlabelled": own["unlabelled"]}
    assert calls[1] == (("imdb", (ROOT / "data").resolve()), usual)
    devices = stop("minikd.cli.start.choose_device")
    script(name, "--device", "mps")
    script(name)
    assert [arguments for arguments, _ in devices] == [("mps",), ("auto",)]


@pytest.mark.parametrize(("flags", "tokens"), [([], SAMPLE_VOCABULARY), (["--layers", 2], SAMPLE_VOCABULARY)])
def test_a_new_model_of_the_sample_has_the_samples_vocabulary(flags, tokens, script, stop):
    calls = stop("minikd.cli.models.train_wordpiece")
    script("train.py", "--device", "cpu", *flags)
    ((texts, size),) = [arguments for arguments, _ in calls]
    assert size == tokens and texts == load_dataset("sample").train.texts


def test_a_new_model_of_other_texts_has_as_many_tokens_as_bert(corpus, script, stop):
    calls = stop("minikd.cli.models.train_wordpiece")
    script("train.py", "--dataset", corpus, "--layers", 2, "--device", "cpu")
    ((texts, size),) = [arguments for arguments, _ in calls]
    assert size == 30522 and texts == load_dataset(corpus).train.texts


@pytest.mark.parametrize("name", ["train.py", "distill.py"])
def test_compile_resume_and_tracking_reach_the_run(name, script, corpus, bare, stop):
    pytest.importorskip("tensorboard")
    model = "--model" if name == "train.py" else "--teacher"
    command = [name, "--dataset", corpus, model, bare, "--max-length", 9, "--device", "cpu", "--output-dir", "out"]
    calls = stop("minikd.experiment.running.Display")
    script(*command, "--compile", "--resume", "--save-minutes", 0.5, "--track", "tensorboard")
    script(*command)
    given, plain = (arguments[0] for arguments, _ in calls)
    assert (given.compile, given.resume, given.save_minutes) == (True, True, 0.5)
    assert (plain.compile, plain.resume, plain.save_minutes) == (False, False, 5.0)
    assert list(Path("out/tensorboard").rglob("events*"))


def test_adapter_flags_reach_the_adapters(script, corpus, bare, stop):
    flags = ["--dataset", corpus, "--max-length", 9, "--device", "cpu"]
    adapters = ["--lora-rank", 3, "--lora-alpha", 6, "--lora-dropout", 0.25, "--lora-targets", "value,key"]
    wanted = {"rank": 3, "alpha": 6.0, "dropout": 0.25, "targets": ("key", "value")}
    calls = stop("minikd.experiment.training.add_lora")
    script("train.py", "--model", bare, *flags, *adapters)
    script("distill.py", "--teacher", bare, *flags, *adapters, "--student-layers", 2)
    script("distill.py", "--teacher", save_model(Path.cwd() / "tuned", labels=("bad", "good")), *flags,
           "--no-baseline", "--student-layers", 2, "--student-lora-rank", 2)  # fmt: skip
    plain = {"rank": 2, "alpha": 16.0, "dropout": 0.0, "targets": ("query", "value")}
    assert [options for _, options in calls] == [wanted, wanted, plain]


def test_adapters_without_a_rank_are_refused(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for flag, value in (("--lora-alpha", 8), ("--lora-dropout", 0.1), ("--lora-targets", "key")):
        with pytest.raises(MinikdError, match=f"{flag}: says how to make adapters; give --lora-rank too"):
            parsed(monkeypatch, "train.py", flag, value)
        assert parsed(monkeypatch, "distill.py", "--student-lora-rank", 2, flag, value)


# How a mistake is reported -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "status", "words"), [
    (MinikdError("this is\nwrong"), 2, "x.py: error: this is wrong\n"),
    (torch.OutOfMemoryError("CUDA out of memory"), 2, "x.py: error: the GPU's memory is full: try a smaller --batch"),
    (MemoryError(), 2, "x.py: error: the memory is full: try a smaller model"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, "x.py: error: the memory is full"),
    (PermissionError(13, "Permission denied", "a.txt"), 2, "x.py: error: a.txt: Permission denied\n"),
    (KeyboardInterrupt(), 130, "\nx.py: stopped\n"),
    (KeyboardInterrupt("stopped at step 3"), 130, "\nx.py: stopped at step 3\n"),
    (None, 0, ""),
])  # fmt: skip
def test_a_mistake_ends_with_one_line_and_its_status(error, status, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["folder/x.py"])
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def main():
        if error is not None:
            raise error

    if status:
        with pytest.raises(SystemExit) as ended:
            cli.run(main)
        assert ended.value.code == status
    else:
        cli.run(main)
    err = capsys.readouterr().err
    assert err.startswith(words) and err.strip().count("\n") == 0


def test_a_mistake_of_ours_is_not_hidden(monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    for error in (RuntimeError("shapes differ"), ValueError("ours"), OSError("no number")):
        with pytest.raises(type(error), match=str(error)):
            cli.run(lambda error=error: (_ for _ in ()).throw(error))


def test_a_folder_that_cannot_be_written_is_named_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MinikdError, match=r"--html .*file/out: cannot be written to \(Not a directory\)"):
        cli.check_writable(tmp_path / "file" / "out", "--html")
    cli.check_writable(tmp_path / "new" / "out")
    assert list((tmp_path / "new" / "out").iterdir()) == []  # no probe stays


def test_the_flags_that_are_recorded_are_those_of_the_run_with_paths_as_text(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    args = parsed(monkeypatch, "train.py", "--output-dir", "out")
    printed = cli.flag_values(args)
    assert printed.keys() == vars(args).keys() and printed["output_dir"] == "out" and printed["weight_decay"] == 0.01


MIXED = [
    ("train.py", ["--model", "m", "--layers", 2], "--model brings its own shape"),
    ("train.py", ["--model", "m", "--hidden", 64], "--model brings its own shape"),
    ("train.py", ["--label-order", "a,b"], "--label-order: names the outputs of --model"),
    ("distill.py", ["--student", "m", "--student-layers", 2], "--student brings its own shape"),
    ("distill.py", ["--student", "m", "--student-hidden", 64], "--student brings its own shape"),
    ("distill.py", ["--student", "m", "--take-layers", 0], "--student brings its own shape"),
    ("distill.py", ["--student", "m", "--student-init", "random"], "--student brings its own shape"),
    ("distill.py", ["--label-order", "a,b", "--teacher", "oracle"], "--label-order: names the outputs of --teacher"),
    ("distill.py", ["--choose", "nll"], "--choose nll: chooses among the pairs of a sweep"),
    ("evaluate.py", [], "which MODEL?"),
    ("evaluate.py", ["--plot", "runs", "m"], "--plot draws from results alone: leave out the models"),
    *(("evaluate.py", ["--plot", "runs", *flag], f"--plot draws from results alone: leave out {flag[0]}") for flag in (
        ["--dataset", "sst2"], ["--output-dir", "o"], ["--html", "p.html"], ["--calibrate"], ["--quantize", "int8"],
        ["--split", "train"], ["--fpb-agreement", "75"], ["--label-column", "c"], ["--text", "t"], ["--input", "i.txt"],
        ["--label-order", "a,b"])),
    *(("evaluate.py", ["m", *texts, *flag], f"--text and --input label texts alone: leave out {flag[0]}")
      for texts in (["--text", "t"], ["--input", "i.txt", "--output", "o.csv"]) for flag in (
        ["--dataset", "sst2"], ["--output-dir", "o"], ["--html", "p.html"], ["--calibrate"], ["--quantize", "int8"],
        ["--split", "test"], ["--fpb-agreement", "75"], ["--label-column", "c"])),
    *(("evaluate.py", [*reader, *flag], f"{flag[0]}: no file is read here")
      for reader in (["m", "--text", "t"], ["--plot", "runs"])
      for flag in (["--text-column", "c"], ["--encoding", "cp1252"])),
    ("evaluate.py", ["m", "--text", "t", "--input", "i.txt", "--output", "o.csv"], "--text and --input: give one"),
    ("evaluate.py", ["m", "--input", "i.txt"], "--input FILE and --output FILE go together"),
    ("evaluate.py", ["m", "--output", "o.csv"], "--input FILE and --output FILE go together"),
    ("evaluate.py", ["m", "n", "--input", "i.txt", "--output", "o.csv"], "--input takes one model"),
    ("evaluate.py", ["m", "--input", "i.txt", "--output", "o.txt"], "--output o.txt: must end in .csv or .jsonl"),
    ("evaluate.py", ["m", "--input", "i.txt", "--output", "folder.csv"], "--output folder.csv: is a folder"),
    ("evaluate.py", ["m", "--html", "p.txt"], "--html p.txt: must end in .html"),
    *(("evaluate.py", ["m", "--calibrate", "--split", split], "--calibrate fits on the validation split")
      for split in ("validation", "all")),
]  # fmt: skip


def test_flags_of_different_uses_are_refused_together(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("folder.csv").mkdir()
    for script, arguments, words in MIXED:
        with pytest.raises(SystemExit) as ended:
            parsed(monkeypatch, script, *arguments)
        err = capsys.readouterr().err
        assert ended.value.code == 2 and err.count("\n") == 1, arguments
        assert err.startswith(f"{script}: error: {words}"), (arguments, err)


def test_folders_that_evaluate_cannot_write_to_are_named_before_any_model_is_run(script, fine_tuned, corpus, stop):
    calls = stop("minikd.inference.make_batches")
    for given, folder in (
        (["--dataset", corpus, "--output-dir", "file/out"], "--output-dir file/out"),
        (["--dataset", corpus, "--html", "file/page.html"], "--html file"),
        (["--input", "texts.txt", "--output", "file/labels.csv"], "--output file"),
    ):
        Path("file").write_text("")
        Path("texts.txt").write_text("a film\n")
        status, _, err = script("evaluate.py", fine_tuned, *given)
        assert status == 2 and f"{folder}: cannot be written to" in err and err.count("\n") == 1 and not calls
    Path("page.html").mkdir()
    status, _, err = script("evaluate.py", fine_tuned, "--dataset", corpus, "--html", "page.html")
    assert status == 2 and "--html page.html: is a folder; name a file" in err and not calls
    status, _, err = script("evaluate.py", fine_tuned, "--dataset", corpus)
    assert "seen enough" in err and calls


def test_a_name_with_a_comma_is_quoted_as_in_csv(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    order = parsed(
        monkeypatch, "train.py", "--model", "m", "--label-order", 'Films, TV, "Books, ""new"" ones"'
    ).label_order
    assert order == ["Films", "TV", 'Books, "new" ones']
    assert parsed(monkeypatch, "train.py", "--lora-rank", 2, "--lora-targets", "query, value").lora_targets == [
        "query",
        "value",
    ]


def test_flag_types_refuse_what_they_say(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for flag, value, words in (
        ("--alpha", "-0.1", "'-0.1' is not a number of at least 0 and at most 1"),
        ("--seeds", "101", "'101' is not a whole number of at least 1 and at most 100"),
        ("--lr", "0", "'0' is not a number above 0"),
        ("--grad-accum", "0", "'0' is not a whole number of at least 1"),
        ("--clip", "inf", "'inf' is not a number of at least 0"),
        ("--lora-dropout", "1", "'1' is not a number of at least 0 and at most 0.99"),
        ("--lora-targets", "query,nose", "'query,nose': choose one or more of"),
        ("--student-hidden", "31", "'31' is not a whole number of at least 32"),
        ("--max-length", "2", "'2' is not a whole number of at least 3"),
    ):
        with pytest.raises(SystemExit) as ended:
            parsed(monkeypatch, "distill.py", flag, value)
        assert ended.value.code == 2 and words in capsys.readouterr().err, flag
    for flag, value in (("--alpha", "0"), ("--alpha", "1"), ("--T", "0.01"), ("--T", "100"), ("--clip", "0"),
                        ("--lora-rank", "0"), ("--patience", "0"), ("--label-smoothing", "1")):  # fmt: skip
        assert parsed(monkeypatch, "distill.py", flag, value)


# The README -----------------------------------------------------------------------------------------------------------

PAGES = [ROOT / "README.md", *(ROOT / folder / "README.md" for folder in ("data", "data/results", "tests"))]
README = re.sub("(?m)^```.*$", "", "\n\n".join(path.read_text(encoding="utf-8") for path in PAGES))
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def commands_of(text):
    """The words of every command of a script that stands in a line of its own or between backticks."""
    pieces = (
        piece.strip("`").replace("\n", " ").replace("$M", MINILM).replace("NAME", "imdb-small")
        for piece in re.findall(r"`[^`]+`|^(?:    |python ).*$", text, re.M)
    )
    found = (re.search(r"python ((?:train|distill|evaluate)\.py.*)", piece) for piece in pieces)
    return [shlex.split(match[1], comments=True) for match in found if match]


def test_the_scripts_take_every_command_and_every_flag_that_the_readme_names(monkeypatch, tmp_path, parser_of):
    monkeypatch.chdir(tmp_path)
    commands = commands_of(README)
    assert len(commands) >= 30 and {name for name, *_ in commands} == set(SCRIPTS)
    for script in SCRIPTS:  # and the examples in their help texts
        examples = commands_of(parser_of(script).description)
        assert len(examples) >= 2 and {name for name, *_ in examples} == {script}
        commands += examples
    for command in commands:
        assert parsed(monkeypatch, *command)
    flags = {flag for script in SCRIPTS for action in parser_of(script)._actions for flag in action.option_strings}
    others = {"--index-url", "--logdir", "--sample", "--add", "--output", "--threads", "--show", "--readme", "--base"}
    others |= {"--folder", "--executions"}  # of tests/fuzzing
    others |= {"--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--max-restarts"}  # of torchrun
    named = set(re.findall(r"--[a-zA-Z][a-z-]*", re.sub("<!--.*?-->", "", README)))
    assert named - others <= flags


MADE_AGAIN = commands_of(README.partition("To make them again")[2])
RESOLVED = {
    "max_length",
    "precision",
    "teacher_base",
    "resume",
    "data_dir",
    "output_dir",
    "models",
    "html",
    "plot",
    "input",
    "output",
}


def test_the_readmes_commands_have_the_flags_that_its_results_were_made_with(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    made = set()
    for command in MADE_AGAIN:
        args = vars(parsed(monkeypatch, *command))
        results = ROOT / "data/results" / f"{args['output_dir'].name}.json"
        if not results.exists():  # of a run that another one compares
            continue
        recorded = json.loads(results.read_text(encoding="utf-8"))["arguments"]
        for name in args.keys() & recorded.keys() - RESOLVED - {"lora_alpha", "lora_dropout", "lora_targets"}:
            given = args[name]
            if name in ("teacher", "more_teachers", "model") and given not in (None, "oracle"):
                continue  # recorded without its folder
            if command[0] == "evaluate.py" and given is None:
                continue  # as the model was trained
            assert given == recorded[name], (command, name)
        made.add(results.stem)
    results = {path.stem for path in (ROOT / "data/results").glob("*.json")}
    assert made == results - {"benchmark", "exercises", "few-labels", "processes", "published"}
    for name in made:  # all figures of its run, flags, versions and machine
        whole = json.loads((ROOT / f"data/results/{name}.json").read_text(encoding="utf-8"))
        assert whole["arguments"] and whole["versions"]["torch"] and whole["device"] and whole["threads"]
        assert all(
            {"accuracy", "nll", "brier", "ece", "latency_1_ms", "parameters"} <= row.keys() for row in whole["models"]
        )


def test_the_tour_names_every_file_of_the_core_and_every_folder():
    tour = (ROOT / "minikd/README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([^`]+)`", tour))
    core = {path.name for path in (ROOT / "minikd").glob("*.py")}
    folders = {f"{path.name}/" for path in (ROOT / "minikd").iterdir() if path.is_dir() and path.name[0] not in "_."}
    assert core | folders <= named
