"""Where results lie, and files that are written whole or not at all."""

import json
import os
from pathlib import Path

LIBRARY = Path(__file__).resolve().parents[1]


def _repository() -> Path | None:
    """The folder of the repository that this library is run from, or None for an ordinary install."""
    folder = LIBRARY.parent
    is_repository = (folder / "pyproject.toml").is_file() and (folder / "notebooks").is_dir()
    return folder if is_repository else None


REPOSITORY = _repository()
ROOT = REPOSITORY or Path.cwd()
RESULTS = ROOT / "results"
MODELS = RESULTS / "models" if REPOSITORY else LIBRARY / "models"  # the shipped ones; an install carries them
OWN = "results/own"  # the default folder of a user's runs: nothing of ours ever empties it


def resolve(results: str | Path) -> Path:
    """A results folder as an absolute path.

    A relative one lies in the repository, whatever the working directory is; where the library is installed without
    its repository, in the working directory.
    """
    path = Path(results).expanduser()
    if path.is_absolute():
        return path
    return (REPOSITORY or Path.cwd()) / path


def make_folder(folder: Path) -> None:
    """Make the folder and those above it; raises OSError with one sentence."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"folder {folder} cannot be made ({error.strerror}); choose another results folder") from None


def write_whole(path: Path, data: bytes) -> None:
    """Write the file whole or not at all, whatever happens meanwhile; raises OSError with one sentence."""
    make_folder(path.parent)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")

    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(
            f"{path.name} could not be written to {path.parent.name}/ ({error.strerror}); make room or choose another "
            "results folder, then start again: finished epochs are kept"
        ) from None


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON, whole or not at all; ValueError for a number that is none."""
    text = json.dumps(value, indent=1, allow_nan=False)
    write_whole(path, f"{text}\n".encode())
