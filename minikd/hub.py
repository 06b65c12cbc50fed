"""A model's folder, here or fetched from Hugging Face's hub, and the weights in it."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors_torch
from torch import Tensor

from minikd.files import UserError


def model_folder(name_or_dir) -> Path:
    """The folder itself, or the local copy of a model on Hugging Face's hub, fetched there on first use.

    Raises UserError that says which files to put where when neither can be had.
    """
    folder = Path(name_or_dir)
    if folder.is_dir():
        return folder
    name = str(name_or_dir)
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/"):
        raise UserError(f"{name}: no such model folder")

    from huggingface_hub import hf_hub_download  # imported here: slow, and most runs use a local folder
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    try:
        path = Path(hf_hub_download(name, "config.json"))
        for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
            try:
                hf_hub_download(name, file)
            except (EntryNotFoundError, OSError):
                pass  # not on the hub; or offline, and no earlier run fetched it: tokenizer.py complains if it must
        try:
            hf_hub_download(name, "model.safetensors")
        except EntryNotFoundError:  # not on the hub or, offline, not among what an earlier run fetched
            hf_hub_download(name, "pytorch_model.bin")
        return path.parent
    except (OSError, HFValidationError) as error:
        raise UserError(
            f"{name}: neither a folder here nor to be fetched from the hub ({type(error).__name__}). Put its "
            f"config.json, model.safetensors (or pytorch_model.bin) and vocab.txt (or tokenizer.json) into a folder "
            f"and give its path"
        ) from None


def is_fine_tuned(name_or_dir) -> bool:
    """Whether the checkpoint has a classifier of its own, as opposed to a bare pre-trained encoder."""
    folder = model_folder(name_or_dir)
    try:
        with safe_open(folder / "model.safetensors", "pt") as file:  # reads the names only
            return "classifier.weight" in file.keys()
    except (OSError, SafetensorError):
        return "classifier.weight" in read_tensors(folder)[1]  # older layout; or a complaint


def read_tensors(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """The weights file of a model folder and its tensors. Raises UserError if missing, cut or no checkpoint."""
    path = folder / "model.safetensors"
    for file in (path, folder / "pytorch_model.bin"):
        if file.is_file() and file.stat().st_size < 1000 and b"git-lfs" in file.read_bytes():
            raise UserError(f"{file}: is a pointer of git-lfs, not the weights themselves; run git lfs pull there")
    try:
        if path.exists():
            return path, safetensors_torch.load_file(path)
        path = folder / "pytorch_model.bin"
        if path.exists():  # weights_only: a pickle from elsewhere must not run code
            tensors = torch.load(path, map_location="cpu", weights_only=True)
            if isinstance(tensors, dict) and all(isinstance(tensor, Tensor) for tensor in tensors.values()):
                return path, tensors
            raise ValueError("not a dictionary of tensors")
    except SafetensorError as error:
        raise UserError(f"{path}: is cut short or damaged ({error}); fetch it again") from None
    except Exception as error:  # torch.load raises half a dozen kinds for a broken file
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{path}: cannot be loaded as weights ({reason[0]}); fetch it again") from None
    raise UserError(f"{folder}: has no model.safetensors or pytorch_model.bin; a model folder needs one of them")
