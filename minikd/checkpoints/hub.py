"""A model's folder, here or fetched from Hugging Face's hub, and the weights in it."""

import json
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors_torch
from torch import Tensor

from minikd.errors import MinikdError

# Where transformers looks for weights, in its order; an index lists the files ("shards") of a model that is in several.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)


def model_folder(name_or_dir) -> Path:
    """The folder itself, or the local copy of a model on Hugging Face's hub, fetched there on first use.

    Where the hub is out of reach, an earlier run's copy serves. Raises MinikdError that says which files to put where
    when neither can be had, and one that names the file where the hub answers, but a file cannot be fetched.
    """
    folder = Path(name_or_dir)
    if folder.is_dir():
        return folder
    name = str(name_or_dir)
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/"):
        raise MinikdError(f"{name}: no such model folder")

    try:
        return _fetch(name)
    except NotFetched as error:
        failure = error
    if failure.may_exist and _hub_answers(name):
        raise MinikdError(f"{name}: {failure} cannot be fetched from the hub ({failure.reason}); run the command again")
    with suppress(NotFetched):
        return _fetch(name, from_cache=True)
    raise MinikdError(
        f"{name}: neither a folder here nor to be fetched from the hub ({failure.reason}). Put its "
        f"config.json, model.safetensors (or pytorch_model.bin) and vocab.txt (or tokenizer.json) into a folder "
        f"and give its path"
    )


class NotFetched(Exception):
    """A file of a model could not be had: its name, the reason, and whether the hub may have it all the same."""

    def __init__(self, file: str, reason: str, may_exist: bool):
        super().__init__(file)
        self.reason, self.may_exist = reason, may_exist


def _fetch(name: str, from_cache: bool = False) -> Path:
    """The folder of the hub's cache with the files of a model, fetched, or with `from_cache` those fetched earlier.

    Files that do not exist are left out where the model needs none of them, but never one that cannot be fetched:
    without its tokenizer_config.json, say, the model would get other ids. Raises NotFetched.
    """
    from huggingface_hub import hf_hub_download  # imported here: slow, and most runs use a local folder
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def get(file: str, needed: bool = True) -> Path | None:
        try:
            return Path(hf_hub_download(name, file, local_files_only=from_cache))
        except Exception as error:  # of kinds that differ between the library's versions
            unreached = isinstance(error, LocalEntryNotFoundError) and not from_cache
            absent = isinstance(error, EntryNotFoundError) and not unreached
            if needed or not absent:
                reason = error.__cause__ if unreached and error.__cause__ else error
                raise NotFetched(file, type(reason).__name__, not absent) from None
            return None

    folder = get("config.json").parent
    for file in TOKENIZER_FILES:
        get(file, needed=False)  # tokenizer_files.py refuses a folder that lacks what it needs
    weights = next(filter(None, (get(file, needed=file == WEIGHTS[-1]) for file in WEIGHTS)))
    if weights.name.endswith(".index.json"):
        for shard in sorted(set(_read_index(weights).values())):
            get(shard)
    return folder


def _hub_answers(name: str) -> bool:
    """Whether the hub can be reached and has this model for us."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"))
        return True
    except Exception:  # of kinds that differ between the library's versions
        return False


def is_fine_tuned(name_or_dir) -> bool:
    """Whether the checkpoint has a classifier of its own, as opposed to a bare pre-trained encoder."""
    path = _weights_file(model_folder(name_or_dir))
    if path.name.endswith(".index.json"):
        names = list(_read_index(path))
    elif path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:  # reads the names only
                names = list(file.keys())
        except (OSError, SafetensorError):
            names = list(_read_file(path))  # for its error
    else:
        names = list(_read_file(path))
    return "classifier.weight" in _without_wrappers(names)


def read_tensors(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """The weights file of a model folder, or the index of its shards, and all tensors.

    Names have no `module.` (of DataParallel) or `_orig_mod.` (of torch.compile) in front, where all of the file's do.
    Raises MinikdError for files that are missing, incomplete, damaged or no checkpoint.
    """
    path = _weights_file(folder)
    tensors = _read_shards(path) if path.name.endswith(".index.json") else _read_file(path)
    return path, dict(zip(_without_wrappers(tensors), tensors.values()))


def _weights_file(folder: Path) -> Path:
    """The first of WEIGHTS that the folder has. Raises MinikdError for none."""
    for name in WEIGHTS:
        if (folder / name).exists():
            return folder / name
    if (folder / ".partial").exists() or (folder / ".finished").exists():
        raise MinikdError(
            f"{folder}: has no model.safetensors or pytorch_model.bin, only what a killed run left; run the same "
            f"command with `resume`"
        )
    raise MinikdError(f"{folder}: has no model.safetensors or pytorch_model.bin; a model folder needs one of them")


def _without_wrappers(names) -> list[str]:
    """The names without the prefixes of modules that wrap a whole model, which all of its tensors' names have."""
    names = list(names)
    for prefix in ("module.", "_orig_mod.") * 2:  # either may be in the other
        if names and all(name.startswith(prefix) for name in names):
            names = [name.removeprefix(prefix) for name in names]
    return names


def _read_index(path: Path) -> dict[str, str]:
    """The weight_map of an index: tensor -> name of the shard that holds it, a file in the index's own folder.

    Raises MinikdError for a damaged index and for a shard that is elsewhere.
    """
    try:
        shard_of = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if not shard_of or not all(isinstance(shard, str) for shard in shard_of.values()):
            raise ValueError("weight_map must name a file for each tensor")
    except OSError as error:
        raise MinikdError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MinikdError(f"{path}: is not an index of shards ({error}); fetch it again") from None
    for shard in shard_of.values():
        if shard in ("", ".", "..") or "/" in shard or "\\" in shard:
            raise MinikdError(
                f"{path}: names the shard {shard!r}, which is not a file beside it; the file is not trusted"
            )
    return shard_of


def _read_shards(path: Path) -> dict[str, Tensor]:
    """The tensors of all shards that an index names. Raises MinikdError where index and shards do not agree."""
    shard_of, tensors, found_in = _read_index(path), {}, {}
    for shard in sorted(set(shard_of.values())):
        if not (path.parent / shard).exists():
            raise MinikdError(f"{path}: names {shard}, which is not in the folder; fetch this file too")
        part = _read_file(path.parent / shard)
        missing = [name for name, place in shard_of.items() if place == shard and name not in part]
        if missing:
            raise MinikdError(
                f"{path.parent / shard}: lacks {missing[0]}, which {path.name} says it holds; fetch both again"
            )
        twice = sorted(part.keys() & tensors.keys())
        if twice:
            raise MinikdError(
                f"{path.parent / shard}: holds {twice[0]}, as {found_in[twice[0]]} does; fetch both again"
            )
        tensors |= part
        found_in |= dict.fromkeys(part, shard)
    return tensors


def _read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one file of weights. Raises MinikdError if it is incomplete, damaged or no checkpoint."""
    try:
        if path.stat().st_size < 1000 and b"git-lfs" in path.read_bytes():
            raise MinikdError(f"{path}: is a pointer of git-lfs, not the weights themselves; run git lfs pull there")
        if path.suffix == ".safetensors":
            return safetensors_torch.load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)  # a pickle from elsewhere must not run code
        if isinstance(tensors, dict) and all(isinstance(tensor, Tensor) for tensor in tensors.values()):
            return tensors
        raise ValueError("not a dictionary of tensors")
    except MinikdError:
        raise
    except SafetensorError as error:
        raise MinikdError(f"{path}: is incomplete or damaged ({error}); fetch it again") from None
    except Exception as error:  # torch.load raises half a dozen kinds for a broken file
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise MinikdError(f"{path}: cannot be loaded as weights ({reason[0]}); fetch it again") from None
