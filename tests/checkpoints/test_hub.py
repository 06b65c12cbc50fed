"""Weights in one file or in many, under wrapped names, here or fetched by name: the same model, or one clear line."""

import hashlib
import http.server
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import transformers
from equality import CONFIGS, load_quietly, randomised
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from minikd.checkpoints.adapters import load_merged, save_adapters
from minikd.checkpoints.config_json import config_from_json, config_to_json
from minikd.checkpoints.hub import is_fine_tuned, model_folder, read_tensors
from minikd.checkpoints.pretrained import from_pretrained, save_pretrained
from minikd.checkpoints.tokenizer_files import save_tokenizer
from minikd.errors import MinikdError
from minikd.techniques.lora import add_lora, merge_lora
from minikd.tokenizer import train_wordpiece

KINDS = {"model.safetensors": (save_file, "safetensors"), "pytorch_model.bin": (torch.save, "bin")}
TOKENIZER_FILES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                   "added_tokens.json")  # fmt: skip
ORDER = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
both_kinds = pytest.mark.parametrize("kind", KINDS)


def refusal(load, *arguments, **options) -> str:
    """The one line with which `load` refuses."""
    with pytest.raises(MinikdError) as caught:
        load(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(folder, kind="model.safetensors", shards=1, change=lambda tensors: tensors):
    """Saves the weights of a folder anew: as one file of this kind, or as so many shards with an index."""
    tensors = change(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    save, ending = KINDS[kind]
    if shards == 1:
        save(tensors, folder / kind)
        return
    names = [f"{kind.split('.')[0]}-{i + 1:05d}-of-{shards:05d}.{ending}" for i in range(shards)]
    shard_of = {name: names[i % shards] for i, name in enumerate(tensors)}
    for shard in names:
        save({name: tensor for name, tensor in tensors.items() if shard_of[name] == shard}, folder / shard)
    index = {"metadata": {"total_size": 1}, "weight_map": shard_of}
    (folder / f"{kind}.index.json").write_text(json.dumps(index))


@pytest.fixture
def saved(tmp_path):
    """A classifier and the folder it was saved in."""
    model = randomised(CONFIGS["bert"].with_labels(("bad", "good")), seed=3)
    save_pretrained(model, tmp_path / "model")
    return model, tmp_path / "model"


def assert_same_weights(model, other):
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_shards_that_transformers_saves_are_read(saved, tmp_path, capsys):
    model, folder = saved
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="5KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 3
    assert_same_weights(model, from_pretrained(tmp_path / "theirs", ("bad", "good")))
    assert "model.safetensors.index.json: 41 tensors" in capsys.readouterr().out
    assert is_fine_tuned(tmp_path / "theirs")


@both_kinds
@pytest.mark.parametrize("shards", [1, 2, 5])
def test_shards_of_either_kind_are_read(saved, kind, shards):
    model, folder = saved
    rewrite(folder, kind, shards)
    assert_same_weights(model, load_quietly(folder))
    assert is_fine_tuned(folder)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    assert torch.equal(theirs.classifier.weight, model.classifier.weight)


@both_kinds
def test_shards_without_a_classifier_are_not_fine_tuned(saved, kind):
    folder = saved[1]
    rewrite(folder, kind, 3, lambda tensors: {n: t for n, t in tensors.items() if "classifier" not in n})
    assert not is_fine_tuned(folder)
    assert from_pretrained(folder, ("a", "b", "c")).config.labels == ("a", "b", "c")


def test_one_file_is_taken_before_shards_and_safetensors_before_bin(saved):
    model, folder = saved
    other = randomised(CONFIGS["bert"].with_labels(("bad", "good")), seed=4)
    content = {}
    for kind in KINDS:
        for shards in (1, 2):
            save_pretrained(other, folder)
            rewrite(folder, kind, shards)
            content |= {path.name: path.read_bytes() for path in folder.iterdir()}
            for path in folder.glob("*model*"):
                path.unlink()
    for name, data in content.items():
        (folder / name).write_bytes(data)
    for name in ORDER:
        assert read_tensors(folder)[0].name == name
        (folder / name).unlink()
    assert "has no model.safetensors or pytorch_model.bin" in refusal(is_fine_tuned, folder)


@pytest.mark.parametrize("left", [".partial", ".finished"])
def test_the_folder_of_a_run_that_was_killed_is_answered_with_resume(left, tmp_path):
    assert "--resume" not in refusal(is_fine_tuned, tmp_path)
    (tmp_path / left).mkdir()
    assert refusal(is_fine_tuned, tmp_path) == (
        f"{tmp_path}: has no model.safetensors or pytorch_model.bin, only what a killed run left; run the same command "
        f"with `resume`"
    )


FIRST = {
    "model.safetensors": "model-00001-of-00002.safetensors",
    "pytorch_model.bin": "pytorch_model-00001-of-00002.bin",
}


def edit_map(change):
    def damage(folder, kind):
        path = folder / f"{kind}.index.json"
        index = json.loads(path.read_text())
        change(index["weight_map"])
        path.write_text(json.dumps(index))

    return damage


def edit_first_shard(change):
    def damage(folder, kind):
        path = folder / FIRST[kind]
        tensors = load_file(path) if kind == "model.safetensors" else torch.load(path, weights_only=True)
        change(tensors)
        KINDS[kind][0](tensors, path)

    return damage


def write_index(content):
    return lambda folder, kind: (folder / f"{kind}.index.json").write_bytes(content)


SECOND_SHARD = "00002-of-00002"
DAMAGES = {
    "no JSON": (write_index(b"{"), "index.json: is not an index of shards"),
    "no text": (write_index(b"\xff\xfe"), "index.json: is not an index of shards"),
    "a list": (write_index(b"[]"), "index.json: is not an index of shards"),
    "no weight_map": (write_index(b"{}"), "index.json: is not an index of shards"),
    "an empty weight_map": (write_index(b'{"weight_map": {}}'), "index.json: is not an index of shards"),
    "a weight_map of numbers": (write_index(b'{"weight_map": {"a": 1}}'), "index.json: is not an index of shards"),
    "a weight_map that is a list": (write_index(b'{"weight_map": ["a"]}'), "index.json: is not an index of shards"),
    "no shard": (lambda folder, kind: (folder / FIRST[kind]).unlink(), "00001-of-00002.{ending}: cannot be read"),
    "half a shard": (
        lambda folder, kind: (folder / FIRST[kind]).write_bytes((folder / FIRST[kind]).read_bytes()[:-700]),
        "00001-of-00002.{ending}: ",
    ),
    "a pointer": (
        lambda folder, kind: (folder / FIRST[kind]).write_text("version https://git-lfs.github.com/spec/v1\n"),
        "00001-of-00002.{ending}: is a pointer of git-lfs",
    ),
    "a tensor listed that no shard has": (
        edit_map(lambda shard_of: shard_of.update({"bert.more": shard_of["classifier.bias"]})),
        "lacks bert.more, which",
    ),
    "a tensor gone from its shard": (
        edit_first_shard(lambda tensors: tensors.pop(min(tensors))), "00001-of-00002.{ending}: lacks ",
    ),
    "a tensor in two shards": (
        edit_first_shard(lambda tensors: tensors.update({"bert.pooler.dense.bias": torch.ones(24),
                                                         "bert.pooler.dense.weight": torch.ones(24, 24)})),
        "00002-of-00002.{ending}: holds bert.pooler.dense.",
    ),
    "a tensor that the model has not": (
        edit_first_shard(lambda tensors: tensors.update({"bert.more": torch.ones(2)})),
        "index.json: the configuration does not know 1 tensor(s): bert.more",
    ),
}  # fmt: skip


@both_kinds
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_shards_are_refused_with_one_line_that_names_the_file(saved, kind, damage):
    folder = saved[1]
    rewrite(folder, kind, 2)
    change, expected = DAMAGES[damage]
    change(folder, kind)
    assert expected.format(ending=KINDS[kind][1]) in refusal(from_pretrained, folder)


@both_kinds
@pytest.mark.parametrize("shard", ["../outside", "/outside", "sub/inside", "..\\outside", "..", ".", ""])
def test_a_shard_outside_the_folder_is_not_read(saved, kind, shard, tmp_path):
    folder = saved[1]
    rewrite(folder, kind, 2)
    for place in ("outside", "model/sub/inside"):  # it is there and would fit
        (tmp_path / place).parent.mkdir(exist_ok=True)
        shutil.copy(folder / FIRST[kind], tmp_path / place)
    shard = str(tmp_path / "outside") if shard == "/outside" else shard
    edit_map(lambda shard_of: shard_of.update({n: shard for n, s in shard_of.items() if s == FIRST[kind]}))(
        folder, kind
    )
    for load in (from_pretrained, is_fine_tuned):
        assert f"index.json: names the shard {shard!r}, which is not a file beside it" in refusal(load, folder)


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_shard_that_would_run_code_is_refused_and_does_not_run(saved, tmp_path):
    folder = saved[1]
    rewrite(folder, "pytorch_model.bin", 2)
    torch.save({"classifier.weight": Trap(tmp_path / "ran")}, folder / FIRST["pytorch_model.bin"])
    assert "00001-of-00002.bin: cannot be loaded as weights" in refusal(from_pretrained, folder)
    assert not (tmp_path / "ran").exists()


@both_kinds
@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_names_of_wrapped_models_are_read(saved, kind, shards, prefix):
    model, folder = saved
    rewrite(folder, kind, shards, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})
    assert is_fine_tuned(folder)
    assert_same_weights(model, load_quietly(folder))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_of_a_wrapped_encoder_saved_alone_are_read(saved, prefix):
    model, folder = saved
    encoder = {"bert.": prefix}
    rewrite(folder, change=lambda tensors: {
        name.replace(old, new): tensor for name, tensor in tensors.items() for old, new in encoder.items()
        if name.startswith(old)
    })  # fmt: skip
    assert not is_fine_tuned(folder)
    assert_same_weights(model.encoder, from_pretrained(folder, ("x", "y")).encoder)


def test_a_prefix_on_some_names_only_is_refused(saved):
    rewrite(saved[1], change=lambda tensors: {
        ("module." if "pooler" in name else "") + name: tensor for name, tensor in tensors.items()
    })  # fmt: skip
    assert "does not know 2 tensor(s): module.bert.pooler.dense.bias" in refusal(from_pretrained, saved[1])


ONE_LABEL = [{"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}, {"num_labels": 1}]


def with_labels(folder, fields):
    config = json.loads((folder / "config.json").read_text())
    kept = {name: value for name, value in config.items() if name not in ("id2label", "label2id")}
    (folder / "config.json").write_text(json.dumps(kept | fields))


@pytest.mark.parametrize("fields", ONE_LABEL, ids=["id2label", "num_labels"])
def test_a_bare_encoder_whose_config_lists_one_label_gets_the_labels_of_the_data(saved, fields):
    model, folder = saved
    with_labels(folder, fields)
    rewrite(folder, change=lambda tensors: {n: t for n, t in tensors.items() if "classifier" not in n})
    loaded = from_pretrained(folder, ("a", "b", "c"))
    assert loaded.config.labels == ("a", "b", "c") and loaded.classifier.weight.shape == (3, 24)
    assert_same_weights(model.encoder, loaded.encoder)
    assert "config.json: a classifier needs two or more different labels" in refusal(from_pretrained, folder)


@pytest.mark.parametrize("fields", ONE_LABEL, ids=["id2label", "num_labels"])
def test_a_classifier_of_one_label_is_refused(saved, fields):
    folder = saved[1]
    with_labels(folder, fields)
    rewrite(folder, change=lambda t: t | {"classifier.weight": torch.ones(1, 24), "classifier.bias": torch.ones(1)})
    for labels in (None, ("bad", "good")):
        message = refusal(from_pretrained, folder, labels=labels)
        assert "config.json: a classifier needs two or more different labels, not ['LABEL_0']" in message


def test_adapters_load_onto_a_base_in_shards_under_wrapped_names(saved, tmp_path, capsys):
    model, folder = saved
    rewrite(folder, "pytorch_model.bin", 3, lambda tensors: {f"module.{n}": t for n, t in tensors.items()})
    add_lora(model, 2, 4.0, 0.0, ["query", "value"])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3)
    save_adapters(model, tmp_path / "adapter", str(folder))
    merge_lora(model)
    assert_same_weights(model, load_merged(tmp_path / "adapter"))


def test_a_run_starts_from_a_bare_encoder_in_shards_with_one_label(script, corpus, bare, tmp_path):
    folder = shutil.copytree(bare, tmp_path / "published")
    with_labels(folder, {"num_labels": 1})
    rewrite(folder, "pytorch_model.bin", 2, lambda tensors: {f"module.{n}": t for n, t in tensors.items()})
    status, _, err = script("train.py", "--dataset", corpus, "--model", folder, "--epochs", 1, "--batch-size", 64,
                            "--max-length", 16, "--precision", "fp32", "--device", "cpu")  # fmt: skip
    assert (status, err) == (0, "")
    assert load_quietly("runs/films-model").config.labels == ("bad", "good")


class Hub:
    """A repository, and a cache: `hf_hub_download` as the scripts call it, with what it was asked for."""

    def __init__(self, repository: Path, cache: Path, offline=False):
        self.repository, self.cache, self.offline, self.fetched = repository, cache, offline, []

    def __call__(self, name, file, local_files_only=False):
        assert name == "someone/some-model" and "/" not in file
        offline = self.offline or local_files_only
        source = self.cache if offline else self.repository
        if not (source / file).exists():
            raise LocalEntryNotFoundError(file) if offline else EntryNotFoundError(file)
        self.cache.mkdir(exist_ok=True)
        if not offline:
            shutil.copy(source / file, self.cache / file)
        self.fetched.append(file)
        return str(self.cache / file)

    def take_the_place_of_the_real(self, monkeypatch):
        def metadata(url):
            if self.offline:
                raise ConnectionError
            return SimpleNamespace(commit_hash=COMMIT)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self)
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)


@both_kinds
@pytest.mark.parametrize("shards", [1, 3])
def test_a_model_is_fetched_by_name_with_all_its_files_and_then_found_offline(
    saved, kind, shards, tmp_path, monkeypatch
):
    model, folder = saved
    rewrite(folder, kind, shards)
    for file in ("vocab.txt", *(f"{name}.json" for name in ("tokenizer", "tokenizer_config", "special_tokens_map",
                                                             "added_tokens"))):  # fmt: skip
        (folder / file).write_text("{}")
    (folder / "README.md").write_text("not needed")
    wanted = {path.name for path in folder.iterdir()} - {"README.md"}
    hub = Hub(folder, tmp_path / "cache")
    hub.take_the_place_of_the_real(monkeypatch)
    assert model_folder("someone/some-model") == tmp_path / "cache"
    assert sorted(hub.fetched) == sorted(wanted)  # nothing else, and nothing twice
    assert {path.name for path in (tmp_path / "cache").iterdir()} == wanted
    hub.offline = True
    assert_same_weights(model, load_quietly("someone/some-model"))
    assert is_fine_tuned("someone/some-model")
    (tmp_path / "cache" / max(name for name in wanted if "model" in name and "index" not in name)).unlink()
    assert "neither a folder here nor to be fetched" in refusal(model_folder, "someone/some-model")


def test_an_index_on_the_hub_that_names_files_elsewhere_fetches_none_of_them(saved, tmp_path, monkeypatch):
    folder = saved[1]
    rewrite(folder, "model.safetensors", 2)
    edit_map(lambda shard_of: shard_of.update({"classifier.bias": "../outside"}))(folder, "model.safetensors")
    hub = Hub(folder, tmp_path / "cache")
    hub.take_the_place_of_the_real(monkeypatch)
    assert "names the shard '../outside'" in refusal(model_folder, "someone/some-model")
    assert hub.fetched == ["config.json", "model.safetensors.index.json"]


def test_a_repository_without_weights_is_answered_with_what_to_put_where(saved, tmp_path, monkeypatch):
    (saved[1] / "model.safetensors").unlink()
    Hub(saved[1], tmp_path / "cache").take_the_place_of_the_real(monkeypatch)
    assert "neither a folder here nor to be fetched" in refusal(model_folder, "someone/some-model")


COMMIT = "0123456789" * 4
CUT_AT = 20_000  # bytes


class Answers(http.server.BaseHTTPRequestHandler):
    """Files of a folder as the hub serves them. Those in `broken` get a status instead, by all or some methods; those
    in `faults` arrive otherwise than whole. With `page`, every answer is a page of the network that we are in."""

    def do_HEAD(self):
        if self.server.page:
            return self.answer(b"<html>Welcome to our hotel! Please log in.</html>", 200, {})
        self.server.asked.append((self.command, name := self.path.rpartition("/")[2]))
        status, methods = self.server.broken.get(name, (200, ()))
        if self.command not in methods:
            status = 200 if (self.server.folder / name).is_file() else 404
        content = (self.server.folder / name).read_bytes() if status == 200 else b""
        tag = hashlib.sha256(content).hexdigest() if name in self.server.faults else name
        error = {"X-Error-Code": "EntryNotFound"} if status == 404 else {}
        self.answer(content, status, {"X-Repo-Commit": COMMIT, "ETag": f'"{tag}"'} | error)

    def do_GET(self):
        fault = self.server.faults.get(name := self.path.rpartition("/")[2])
        if fault is None:
            return self.do_HEAD()
        content, asked = (self.server.folder / name).read_bytes(), self.headers.get("Range")
        self.server.ranges.append(asked)
        if fault == "wrong bytes":
            self.answer(content[::-1], 200, {})
        elif fault == "wrong length":
            self.answer(content[:-7], 200, {})
        elif not asked:  # cut
            self.answer(content[:CUT_AT], 200, {"Content-Length": str(len(content))})
        elif fault == "cut":
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            place = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.answer(content[start:], 206, {"Content-Range": place})
        else:  # and afterwards ranges are ignored
            self.answer(content, 200, {})

    def answer(self, content, status, headers):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(saved, tmp_path, monkeypatch):
    """A server in place of the hub, which has a whole model, and an empty cache."""
    from huggingface_hub import constants

    save_tokenizer(train_wordpiece(["a film"] * 3, 53), saved[1], "bert", 16)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.folder, server.broken, server.asked = saved[1], {}, []
        server.faults, server.ranges, server.page = {}, [], False
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("file", ["tokenizer_config.json", "added_tokens.json", "model.safetensors"])
@pytest.mark.parametrize("broken", [(520, ("HEAD", "GET")), (520, ("GET",)), (403, ("HEAD", "GET"))], ids=str)
def test_a_file_that_the_hub_may_have_but_does_not_give_is_one_line_and_not_ignored(hub, broken, file):
    """The ids would be others without tokenizer_config.json, the weights perhaps those of pytorch_model.bin."""
    (hub.folder / "added_tokens.json").write_text("{}")
    shutil.copy(hub.folder / "model.safetensors", hub.folder / "pytorch_model.bin")
    hub.broken = {file: broken}
    message = refusal(model_folder, "someone/some-model")
    assert message.startswith(f"someone/some-model: {file} cannot be fetched from the hub (")
    hub.broken = {}
    assert {path.name for path in model_folder("someone/some-model").iterdir()} == {
        "config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "added_tokens.json", "model.safetensors"
    }  # fmt: skip


def test_files_that_do_not_exist_on_the_hub_are_ignored_and_a_copy_serves_while_it_is_out_of_reach(hub, monkeypatch):
    folder = model_folder("someone/some-model")
    assert ("HEAD", "special_tokens_map.json") in hub.asked and not (folder / "special_tokens_map.json").exists()
    hub.broken = {path: (520, ("HEAD", "GET")) for path in ("config.json", *TOKENIZER_FILES, *ORDER)}
    assert model_folder("someone/some-model") == folder  # the hub is down
    (folder / "vocab.txt").unlink()
    assert model_folder("someone/some-model") == folder  # some copies were never whole
    url = "http://127.0.0.1:9/{repo_id}/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
    assert model_folder("someone/some-model") == folder  # no network
    (folder / "model.safetensors").unlink()
    assert "neither a folder here nor to be fetched from the hub" in refusal(model_folder, "someone/some-model")


@pytest.mark.parametrize("fault, ranges, words", [
    ("cut", [None, f"bytes={CUT_AT}-"], None),
    ("cut and without ranges", [None, f"bytes={CUT_AT}-"], None),
    ("wrong length", [None], "model.safetensors cannot be fetched from the hub (OSError); run the command again"),
    ("wrong bytes", [None], "model.safetensors came from the hub with the wrong SHA-256 ("),
])  # fmt: skip
def test_weights_that_come_otherwise_than_whole_are_continued_or_refused_and_never_used(
    hub, fault, ranges, words, monkeypatch
):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what is written at a time
    whole = (hub.folder / "model.safetensors").read_bytes()
    hub.faults = {"model.safetensors": fault}
    if words:
        assert f"someone/some-model: {words}" in refusal(model_folder, "someone/some-model")
        hub.faults = {}
    assert (model_folder("someone/some-model") / "model.safetensors").read_bytes() == whole
    assert hub.ranges == ranges


def test_a_page_in_the_place_of_the_hub_is_no_model_and_an_earlier_copy_serves(hub, tmp_path):
    hub.page = True
    assert "nor to be fetched from the hub (another page is in its place)" in refusal(
        model_folder, "someone/some-model"
    )
    assert not list(tmp_path.glob("cache/**/config.json"))
    hub.page = False
    folder = model_folder("someone/some-model")
    hub.page = True
    assert model_folder("someone/some-model") == folder


def test_what_the_hub_does_not_have_is_answered_with_what_to_put_where(hub):
    (hub.folder / "model.safetensors").unlink()
    assert "neither a folder here nor to be fetched from the hub (it lacks files there). Put its" in refusal(
        model_folder, "someone/some-model"
    )
    (hub.folder / "config.json").unlink()
    assert "neither a folder here nor to be fetched" in refusal(model_folder, "someone/some-model")


def test_config_with_one_label_survives_reading_and_writing():
    one = replace(CONFIGS["bert"], labels=("only",))
    assert config_from_json(config_to_json(one)) == one
