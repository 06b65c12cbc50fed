"""A model's folder, here or fetched from Hugging Face's hub, and the weights in it."""

import hashlib
import re
from functools import partial
from pathlib import Path

import torch
from safetensors import torch as safetensors_torch
from torch import Tensor

from minikd.checkpoints.reading import check_pickle, read_json, reading
from minikd.errors import MinikdError
from minikd.files import regular_file

# Where transformers looks for weights, in its order; an index lists the files ("shards") of a model that is in several.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json",
                   "added_tokens.json")  # fmt: skip


def model_folder(name_or_dir) -> Path:
    """The folder itself, or the local copy of a model on Hugging Face's hub, fetched there on first use.

    Where the hub is out of reach, an earlier run's copy serves. Raises MinikdError that says which files to put where
    when neither can be had, and one that names the file where the hub answers, but a file cannot be fetched.
    """
    folder, name = Path(name_or_dir), str(name_or_dir)
    if folder.is_dir():
        return folder
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/"):
        raise MinikdError(f"{name}: no such model folder")

    unreached = _why_unreached(name)
    fetch = partial(_fetch, name, offline=unreached is not None)
    config = fetch("config.json")
    for file in TOKENIZER_FILES:
        fetch(file)  # tokenizer_files.py refuses a folder that lacks what it needs
    weights = next(filter(None, map(fetch, WEIGHTS)), None)
    needed = [config, weights]
    if weights and weights.name.endswith(".index.json"):
        needed += map(fetch, sorted(set(_read_index(weights).values())))
    if all(needed):
        return config.parent
    raise MinikdError(
        f"{name}: neither a folder here nor to be fetched from the hub ({unreached or 'it lacks files there'}). Put "
        f"its config.json, model.safetensors (or pytorch_model.bin) and vocab.txt (or tokenizer.json) into a folder "
        f"and give its path"
    )


def _why_unreached(name: str) -> str | None:
    """In words, or as an error's name, why the hub cannot be reached or does not have this model; None: it has."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url  # imported here: slow, and most runs use a folder

    try:
        answer = get_hf_file_metadata(hf_hub_url(name, "config.json"))
        return None if answer.commit_hash else "another page is in its place"  # of a hotel's or a company's network
    except Exception as error:  # of kinds that differ between the library's versions
        return type(error).__name__


def _fetch(name: str, file: str, offline: bool) -> Path | None:
    """The local copy of a model's file, fetched, or if `offline` an earlier one; None where it does not exist.

    Raises MinikdError for a file that may exist, but cannot be fetched: without its tokenizer_config.json, say, a model
    would get other ids.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        before = try_to_load_from_cache(name, file)
        path = Path(hf_hub_download(name, file, local_files_only=offline))
    except Exception as error:  # of kinds that differ between the library's versions
        absent = isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)
        if offline or absent:
            return None
        reason = type(error.__cause__ or error).__name__
        raise MinikdError(f"{name}: {file} cannot be fetched from the hub ({reason}); run the command again") from None
    if not offline and str(path) != before:
        _check_hash(path, name)
    return path


def _check_hash(path: Path, name: str) -> None:
    """Raises MinikdError where a large file from the hub is not what its SHA-256 says, and deletes it. The hub's cache
    names each large file by its hash, but the library compares sizes alone."""
    content = path.resolve()
    if not re.fullmatch("[0-9a-f]{64}", content.name):
        return
    with content.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != content.name:
        content.unlink()
        path.unlink()
        raise MinikdError(
            f"{name}: {path.name} came from the hub with the wrong SHA-256 ({found[:16]}…, not {content.name[:16]}…), "
            f"deleted; run the command again"
        )


def is_fine_tuned(name_or_dir) -> bool:
    """Whether the checkpoint has a classifier of its own, as opposed to a bare pre-trained encoder."""
    return "classifier.weight" in read_tensors(model_folder(name_or_dir))[1]


def read_tensors(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """The weights file of a model folder, or the index of its shards, and all tensors.

    Names have no `module.` (of DataParallel) or `_orig_mod.` (of torch.compile) in front, where all of the file's do.
    Raises MinikdError for files that are missing, incomplete, damaged or no checkpoint.
    """
    path = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
    if path is None and ((folder / ".partial").exists() or (folder / ".finished").exists()):
        raise MinikdError(
            f"{folder}: has no model.safetensors or pytorch_model.bin, only what a killed run left; run the same "
            f"command with `resume`"
        )
    if path is None:
        raise MinikdError(f"{folder}: has no model.safetensors or pytorch_model.bin; a model folder needs one of them")
    tensors = _read_shards(path) if path.name.endswith(".index.json") else read_weights(path)
    for prefix in ("module.", "_orig_mod.") * 2:  # either may be in the other
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return path, tensors


def _read_index(path: Path) -> dict[str, str]:
    """The weight_map of an index: tensor -> name of the shard that holds it, a file in the index's own folder.

    Raises MinikdError for a damaged index and for a shard that is elsewhere.
    """
    fault = "is not an index of shards ({}); fetch it again"
    shard_of = read_json(path, fault).get("weight_map")
    with reading(path, fault):
        if not isinstance(shard_of, dict) or not shard_of or not all(isinstance(one, str) for one in shard_of.values()):
            raise ValueError("weight_map must name a file for each tensor")
        for shard in shard_of.values():
            if shard in ("", ".", "..") or "/" in shard or "\\" in shard:
                raise MinikdError(f"names the shard {shard!r}, which is not a file beside it; the file is not trusted")
    return shard_of


def _read_shards(path: Path) -> dict[str, Tensor]:
    """The tensors of all shards that an index names. Raises MinikdError where index and shards do not agree."""
    shard_of, tensors = _read_index(path), {}
    for shard in sorted(set(shard_of.values())):
        part = read_weights(path.parent / shard)
        missing = [name for name, place in shard_of.items() if place == shard and name not in part]
        twice = sorted(part.keys() & tensors.keys())
        with reading(path.parent / shard):
            if missing:
                raise MinikdError(f"lacks {missing[0]}, which {path.name} says it holds; fetch both again")
            if twice:
                raise MinikdError(f"holds {twice[0]}, as another shard does; fetch both again")
        tensors |= part
    return tensors


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .bin file. Raises MinikdError if it is incomplete, damaged or no checkpoint."""
    with reading(path, "cannot be loaded as weights ({}); fetch it again"):
        if regular_file(path).stat().st_size < 1000 and b"git-lfs" in path.read_bytes():
            raise MinikdError("is a pointer of git-lfs, not the weights themselves; run git lfs pull there")
        return safetensors_torch.load_file(path) if path.suffix == ".safetensors" else _read_pickle(path)


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a .bin file; a pickle from elsewhere must not run code. Raises ValueError for anything but plain
    tensors, and for those that take more memory than the file has: names may share a storage, and strides repeat it."""
    size = path.stat().st_size
    check_pickle(path)
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    ):
        raise ValueError("not a dictionary of tensors")
    if odd := [name for name, tensor in tensors.items() if not _is_plain(tensor)]:
        raise ValueError(f"{odd[0]} is no plain, dense tensor")
    if sum(tensor.nbytes for tensor in tensors.values()) > 2 * size:  # tied weights are in it once
        raise ValueError(f"its tensors are far larger than its {size:,} bytes")
    return tensors


def _is_plain(tensor: Tensor) -> bool:
    """Whether this is a dense tensor of numbers on the CPU: not sparse, nested, quantised or without memory."""
    dense = tensor.device.type == "cpu" and tensor.layout == torch.strided
    return dense and not (tensor.is_nested or tensor.is_quantized or tensor.is_complex())
