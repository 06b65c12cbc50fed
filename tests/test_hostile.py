"""Files of others: each works or is refused in one line, without much memory, without waiting, without any code run."""

import gzip
import io
import json
import os
import shutil
import signal
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from fuzzing.readers import LOG, READERS, attempt
from safetensors.torch import load_file, save_file

import minikd.checkpoints.pretrained
from minikd.checkpoints.adapters import load_merged, save_adapters
from minikd.checkpoints.hub import read_weights
from minikd.checkpoints.load import load_classifier
from minikd.classifier import TextClassifier
from minikd.cli.students import checkpoint_of
from minikd.datasets import archive, load_dataset
from minikd.errors import MinikdError
from minikd.experiment.folds import finished_fold
from minikd.experiment.journal import read_log
from minikd.experiment.readme import readme_with_tables
from minikd.experiment.recorded import loss_curves, training_costs
from minikd.experiment.results import read_results
from minikd.experiment.runs import read_run
from minikd.experiment.state import load_state, origin_of
from minikd.files import parse_json, write_rows
from minikd.techniques.lora import add_lora


@pytest.fixture
def folder(fine_tuned, tmp_path):
    return shutil.copytree(fine_tuned, tmp_path / "model")


@pytest.fixture
def no_waiting():
    """A reader that waits for a pipe is interrupted."""

    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("still reading after a minute"))
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refusal(function, *arguments):
    """The one line with which it refuses."""
    with pytest.raises(MinikdError) as caught:
        function(*arguments)
    return str(caught.value)


@pytest.mark.parametrize("claim", [
    {"vocab_size": 10_000_000}, {"max_position_embeddings": 10_000_000}, {"hidden_size": 10_000_000},
    {"intermediate_size": 10_000_000}, {"num_hidden_layers": 10_000_000}, {"vocab_size": 10**12, "hidden_size": 10**12},
    {"vocab_size": 10_000_000, "quantization_config": {"quant_method": "minikd", "format": "int8"}},
    {"id2label": None, "num_labels": 10_000_000},
])  # fmt: skip
def test_a_size_that_config_json_claims_takes_no_memory(folder, claim, monkeypatch):
    change(folder / "config.json", **claim)
    new_model, devices = minikd.checkpoints.pretrained.new_model, []

    def spy(config):
        devices.append(torch.get_default_device().type)
        return new_model(config)

    monkeypatch.setattr(minikd.checkpoints.pretrained, "new_model", spy)
    assert str(folder) in refusal(load_classifier, folder) and "cpu" not in devices


@pytest.mark.parametrize("fields, reason", [
    ({"id2label": ["GOOD", "BAD"]}, "id2label must be an object"),
    ({"id2label": {"0": {}, "1": []}}, "id2label must be an object"),
    ({"id2label": None, "num_labels": "2"}, "num_labels must be a whole number from 1 to 100,000"),
    ({"layer_norm_eps": float("nan")}, "NaN is too large, or no number"),
    ({"layer_norm_eps": float("inf")}, "Infinity is too large, or no number"),
])  # fmt: skip
def test_a_field_of_config_json_of_another_kind_is_named(folder, fields, reason):
    change(folder / "config.json", **fields)
    message = refusal(load_classifier, folder)
    assert message.startswith(str(folder / "config.json")) and reason in message


@pytest.mark.parametrize("text", [
    "9" * 5000, "9" * 400, "1e999", "-Infinity", "NaN", "[" * 100_000, '{"a":' * 100_000, '["\\ud800"]',
])  # fmt: skip
def test_json_that_python_stumbles_over_is_a_value_error(text):
    with pytest.raises(ValueError, match="."):
        parse_json(text)


def test_json_is_read_as_python_reads_it():
    text = '{"a": [1, -2, 0.5, 1e-5, 1000000000000000019884624838656, "\\ud83d\\ude00", null, true, "\\u00e9"]}'
    assert parse_json(text) == json.loads(text)


@pytest.mark.parametrize("fields, reason", [
    ({"truncation": {"direction": "Up", "max_length": 9, "strategy": "LongestFirst", "stride": 0}}, "direction 'up'"),
    ({"post_processor": {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}}, "[CLS] text"),
    ({"post_processor": {"type": "BertProcessing", "sep": [], "cls": 3}}, "tokenizer.json"),
])  # fmt: skip
def test_what_the_tokenizers_library_would_panic_at_is_refused(folder, fields, reason):
    change(folder / "tokenizer.json", **fields)
    assert reason in refusal(load_classifier, folder)


@pytest.mark.parametrize("token_id", [2**31, 2**63, -1, 1.5, True, "3"])
def test_an_id_that_no_batch_can_hold_is_refused(folder, token_id):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["odd"] = token_id
    (folder / "tokenizer.json").write_text(json.dumps(content))
    message = refusal(load_classifier, folder)
    assert message.startswith(str(folder / "tokenizer.json")) and f"'odd' has the id {token_id!r}" in message


@pytest.mark.parametrize("token", ["\0", "\u0301", "\x1b\x07"])
def test_an_added_token_of_which_nothing_is_left_is_refused(folder, token):
    """The library would panic at any text."""
    change(folder / "tokenizer_config.json", added_tokens_decoder={"7": {"content": token, "normalized": True}})
    assert "is empty once it is normalized" in refusal(load_classifier, folder)


def test_an_id_that_two_tokens_have_is_refused(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["odd"] = content["model"]["vocab"]["great"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert "'great' and 'odd' have the same id" in refusal(load_classifier, folder)
    (folder / "tokenizer.json").unlink()  # a line twice: there is an id fewer than lines
    lines = ["great" if line == "[MASK]" else line for line in (folder / "vocab.txt").read_text().splitlines()]
    (folder / "vocab.txt").write_text("\n".join(lines))
    message = refusal(load_classifier, folder)
    assert message.startswith(f"{folder / 'vocab.txt'}: '[MASK]' and ") and "have the same id" in message


def test_an_id_beyond_the_models_rows_is_refused_before_the_model_reads_it(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["great"] = 10_000_000
    (folder / "tokenizer.json").write_text(json.dumps(content))
    asked = []
    with pytest.raises(MinikdError, match="10000001 tokens but the model embeds"):
        load_classifier(folder, ("GOOD", "BAD"), None, lambda *_: asked.append(1))
    assert not asked


def test_padding_and_truncation_in_a_tokenizer_json_change_no_length(folder):
    fixed = {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": 10**9, "pad_id": 0,
             "pad_type_id": 0, "pad_token": "[PAD]"}  # fmt: skip
    change(folder / "tokenizer.json", padding=fixed, truncation={"max_length": 10**18, "stride": 10**18})
    _, offsets = TextClassifier.load(folder).tokenizer.encode(["a film " * 100, ""], 32)
    assert (offsets[1:] - offsets[:-1]).tolist() == [32, 2]


def test_a_vocabulary_without_unk_is_refused_where_another_file_names_it(folder):
    (folder / "tokenizer.json").unlink()
    lines = (folder / "vocab.txt").read_text().splitlines()
    (folder / "vocab.txt").write_text("\n".join(["[unused]" if line == "[UNK]" else line for line in lines]))
    assert "vocab.txt: the vocabulary has no [UNK]" in refusal(load_classifier, folder)


ODD_TENSORS = {
    "sparse": lambda: torch.eye(16).to_sparse(),
    "meta": lambda: torch.empty(10**10, device="meta"),
    "complex": lambda: torch.ones(16, dtype=torch.complex64),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(16), 0.1, 0, torch.qint8),
    "repeated": lambda: torch.ones(1).expand(750_000_000),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ODD_TENSORS)
def test_a_pickle_holds_plain_tensors_or_is_refused(folder, kind):
    path = folder / "pytorch_model.bin"
    torch.save(load_file(folder / "model.safetensors") | {"bert.pooler.dense.bias": ODD_TENSORS[kind]()}, path)
    message = refusal(read_weights, path)
    assert message.startswith(f"{path}: cannot be loaded as weights (")
    assert kind != "repeated" or "far larger than its" in message


def test_tied_weights_are_no_reason_to_refuse_a_pickle(folder):
    tensors, path = load_file(folder / "model.safetensors"), folder / "pytorch_model.bin"
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    torch.save(tensors, path)
    assert read_weights(path).keys() == tensors.keys()


def test_a_compressed_pickle_is_refused_before_it_is_unpacked(folder, monkeypatch):
    path, plain = folder / "pytorch_model.bin", io.BytesIO()
    torch.save({"weight": torch.zeros(1_000_000)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was unpacked"))
    assert "it is compressed" in refusal(read_weights, path)


@pytest.mark.usefixtures("no_waiting")
def test_a_pickle_with_an_endless_name_is_refused_before_torch_searches_it(folder):
    path = folder / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02c" + b"[" * 10_000_000 + b"\nx\n.")
        file.writestr("archive/version", "3")
    assert "a name in it is too long" in refusal(read_weights, path)
    assert "cannot be resumed from (ValueError)" in refusal(load_state, path, {}) and origin_of(path) == ("", None)


def test_a_state_whose_history_json_cannot_hold_is_refused(tmp_path):
    path = READERS["state.pt"].make(tmp_path)
    state = torch.load(path, weights_only=True)
    state["history"][0]["confusion"] = torch.ones(2)
    torch.save(state, path)
    assert "cannot be resumed from (TypeError)" in refusal(load_state, path, state["made_from"])


def test_eight_bit_floats_are_refused_by_name(folder):
    tensors = load_file(folder / "model.safetensors")
    name = "bert.pooler.dense.weight"
    save_file(tensors | {name: tensors[name].to(torch.float8_e4m3fn)}, folder / "model.safetensors")
    assert f"tensor {name} holds torch.float8_e4m3fn" in refusal(load_classifier, folder)


@pytest.fixture
def adapter(folder, tmp_path):
    model, _ = load_classifier(folder)
    add_lora(model, 2, 4.0, 0.0, ["query", "value"])
    save_adapters(model, tmp_path / "adapter", str(folder))
    return tmp_path / "adapter"


@pytest.mark.parametrize("field, value", [("r", 10**9), ("r", True), ("lora_dropout", 7), ("lora_alpha", "4")])
def test_a_field_of_adapter_config_json_that_makes_no_sense_is_named_with_its_file(adapter, field, value):
    change(adapter / "adapter_config.json", **{field: value})
    message = refusal(load_merged, adapter)
    assert message.startswith(f"{adapter / 'adapter_config.json'}: ") and str(value) in message


@pytest.mark.parametrize("labels", [{"a": 1, "b": 2}, [1, 2], "ab", 3])
def test_labels_of_adapters_that_are_no_names_are_refused(adapter, labels):
    path = adapter / "adapter_model.safetensors"
    save_file(load_file(path), path, metadata={"labels": json.dumps(labels)})
    assert refusal(load_merged, adapter) == f"{path}: its labels are no list of names"


def test_adapters_that_name_other_labels_than_the_model_has_outputs_are_refused(adapter):
    path = adapter / "adapter_model.safetensors"
    save_file(load_file(path), path, metadata={"labels": '["only one"]'})
    assert f"{path}: names 1 labels for the 2 of" in refusal(load_merged, adapter)


NO_REGULAR_FILE = {
    "model/config.json": load_classifier, "model/tokenizer.json": load_classifier, "model/vocab.txt": load_classifier,
    "model/tokenizer_config.json": load_classifier, "model/model.safetensors": load_classifier,
    "model/pytorch_model.bin": load_classifier, "adapter/adapter_config.json": load_classifier,
    "adapter/adapter_model.safetensors": load_classifier, "model/log.jsonl": read_log,
    "model/results.json": lambda at: read_results(at / "results.json"),
    "model/state.pt": lambda at: load_state(at / "state.pt", {}),
    "model/data.csv": lambda at: load_dataset(at / "data.csv"),
    "imdb/aclImdb_v1.tar.gz": lambda at: load_dataset("imdb", at.parent),
    "sst2/SST-2.zip": lambda at: load_dataset("sst2", at.parent),
    "SST-2/dev.tsv": lambda at: load_dataset("sst2", at.parent),
}  # fmt: skip


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
@pytest.mark.parametrize("file", NO_REGULAR_FILE)
def test_what_is_no_regular_file_is_refused_and_not_waited_for(file, kind, folder, adapter, tmp_path):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name in ("vocab.txt", "pytorch_model.bin"):
        (folder / {"vocab.txt": "tokenizer.json", "pytorch_model.bin": "model.safetensors"}[path.name]).unlink()
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises((MinikdError, OSError)) as caught:
        NO_REGULAR_FILE[file](path.parent)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_waiting")
def test_a_pipe_in_place_of_a_record_is_no_record(tmp_path):
    for name in ("run.json", "state.pt"):
        os.mkfifo(tmp_path / name)
    assert read_run(tmp_path) == {} and origin_of(tmp_path / "state.pt")[0] == ""


def tar_gz(path, *members):
    with tarfile.open(path, "w:gz") as file:
        for name, content, kind in members:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, len(content), "/etc/passwd"
            file.addfile(member, io.BytesIO(content))


def test_an_archive_that_unpacks_to_far_more_than_a_corpus_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MOST", 1 << 20)
    tar_gz(tmp_path / "a.tar.gz", ("pos/1.txt", b"fine", tarfile.REGTYPE), ("more", b"0" * (2 << 20), tarfile.REGTYPE))
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(bytes(3 << 20)))
    with zipfile.ZipFile(tmp_path / "c.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("pos/1.txt", bytes(2 << 20))
    for name in ("a.tar.gz", "b.tar.gz", "c.zip"):
        message = refusal(list, archive.members(tmp_path / name, r"pos/1\.txt"))
        assert message.startswith(str(tmp_path / name)) and "unpacks to far more" in message


@pytest.mark.usefixtures("no_waiting")
def test_a_member_that_claims_to_be_endless_is_not_looked_behind(tmp_path):
    member = tarfile.TarInfo("other")
    for member.size, member.type in ((2**62, tarfile.REGTYPE), (2**62, tarfile.GNUTYPE_SPARSE)):
        (tmp_path / "a.tar.gz").write_bytes(gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + bytes(512)))
        assert "unpacks to far more" in refusal(list, archive.members(tmp_path / "a.tar.gz", r"pos/1\.txt"))


def test_a_damaged_zip_of_any_packing_is_refused(tmp_path):
    for packing in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(tmp_path / "a.zip", "w", packing) as file:
            file.writestr("pos/1.txt", "a film " * 99)
        whole = (tmp_path / "a.zip").read_bytes()
        for damaged in (range(39, 49), range(48, 55)):  # behind the member's header of 30 bytes and its name
            content = bytearray(whole)
            for at in damaged:
                content[at] ^= 0xFF
            (tmp_path / "a.zip").write_bytes(content)
            message = refusal(list, archive.members(tmp_path / "a.zip", r"pos/1\.txt"))
            assert message.startswith(f"{tmp_path / 'a.zip'} ")


def test_links_and_devices_in_an_archive_are_not_read(tmp_path):
    members = [("pos/1.txt", b"fine", tarfile.REGTYPE), ("../pos/1.txt", b"also", tarfile.REGTYPE)]
    members += [
        ("pos/1.txt", b"", kind) for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)
    ]
    tar_gz(tmp_path / "a.tar.gz", *members)
    assert [content for _, content in archive.members(tmp_path / "a.tar.gz", r"pos/1\.txt")] == [b"fine", b"also"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar.gz"]


def test_a_text_is_no_formula_in_a_csv_file_and_a_number_stays_one(tmp_path):
    texts = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\tx", "\rx", "＝1", "-1", "+1.5", "a = b", "-", ""]
    write_rows(tmp_path / "rows.csv", [{"text": text, "label": "-1", "prob": -0.5} for text in texts])
    lines = (tmp_path / "rows.csv").read_bytes().decode().removeprefix('"text","label","prob"\n').split('","-1",-0.5\n')
    assert lines[:-1] == [f'"{text if text in texts[7:10] + [""] else chr(39) + text}' for text in texts]
    write_rows(tmp_path / "rows.jsonl", [{"text": "=1+1"}])
    assert json.loads((tmp_path / "rows.jsonl").read_text()) == {"text": "=1+1"}


def test_no_control_character_of_a_text_or_label_reaches_the_terminal(folder, script):
    change(folder / "config.json", id2label={"0": "GO\x1b[2JOD", "1": "B\x07AD"})
    text = "a \x1b]0;title\x07 film\r\x9b1m \u202egnirob\u2066"
    status, out, err = script("evaluate.py", folder, "--text", text, "--device", "cpu")
    assert (status, err) == (0, "") and "GO\\x1b[2JOD" in out
    assert "film\\x0d\\x9b1m \\u202egnirob\\u2066" in out
    change(folder / "config.json", model_type="\x1b[2J" + "x" * 10_000)
    status, _, err = script("evaluate.py", folder, "--text", "a film")
    assert status == 2 and len(err) < 3000
    assert not set(map(chr, (*range(10), *range(11, 32), *range(127, 160)))) & set(out.replace("\t", "") + err)


def test_lines_of_a_log_that_no_training_writes_are_left_out(tmp_path):
    odd = ["3", "[]", '{"step": "1", "epoch": 1}', '{"epoch": 1}', '{"step": 1, "epoch": 1, "loss": NaN}', "[" * 9999]
    (tmp_path / "log.jsonl").write_text("\n".join([*odd, *map(json.dumps, LOG)]))
    assert read_log(tmp_path) == LOG


def test_records_are_read_as_they_are(tmp_path):
    READERS["run.json"].make(tmp_path)
    assert training_costs(str(tmp_path))["optimizer_steps"] == 3 and loss_curves(tmp_path)["settings"]["T"] == 2.0


def test_a_copy_of_itself_has_no_checkpoint(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"arguments": {}, "copied_from": str(tmp_path)}))
    assert checkpoint_of(str(tmp_path)) is None


def test_a_text_in_place_of_a_figure_is_not_repeated_as_often_as_a_count_says(tmp_path):
    path = READERS["results.json"].make(tmp_path)
    results = json.loads(path.read_text())
    results["models"][0]["reliability"][9] = [2**33, "0", 0.5]
    path.write_text(json.dumps(results))
    assert "holds figures that cannot be pooled" in refusal(finished_fold, tmp_path)


def test_a_results_file_with_figures_of_another_kind_is_refused_by_its_name(tmp_path):
    results = json.loads((minikd.experiment.readme.ROOT / "data/results/imdb-best.json").read_text())
    results["models"][0]["accuracy"] = {"x": 1}
    (tmp_path / "results.json").write_text(json.dumps(results))
    for kind in ("results", "summary"):
        message = refusal(readme_with_tables, f"<!-- {kind} results -->\n\n<!-- end -->", tmp_path)
        assert message.startswith(f"{tmp_path / 'results.json'}: holds figures that no table can show")
    assert "holds figures that cannot be pooled" in refusal(finished_fold, tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_mutated_files_are_read_or_refused_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    reader = READERS[name]
    path = reader.make(tmp_path)
    content, refused = path.read_bytes(), 0
    assert attempt(reader, path) is None
    for seed in range(60):
        path.write_bytes(reader.mutate(content, np.random.default_rng(seed)))
        try:
            refused += attempt(reader, path) is not None
        except BaseException as error:
            error.add_note(f"{name}, mutated from seed {seed}")
            raise
    assert refused or name.startswith("cached") or name in ("run.json", "log.jsonl")  # ignored, not refused
