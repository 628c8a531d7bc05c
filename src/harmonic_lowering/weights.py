"""Weights that come with the package: safetensors files that say what builds their network."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from .optional import import_optional

__all__ = ["WeightsError", "read_weights", "write_weights"]

_INSTALL = "harmonic-lowering[audio]"


class WeightsError(RuntimeError):
    """Weights are missing, damaged or of another version."""


def read_weights(
    file: Path, purpose: str, how_to_train: str = ""
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a file that `write_weights` wrote.

    Raises
    ------
    WeightsError
        If it is missing or damaged.
    ImportError
        If safetensors is not installed.
    """
    safetensors = import_optional("safetensors", purpose, _INSTALL)
    try:
        with safetensors.safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        or_train = f", or train them with '{how_to_train}'" if how_to_train else ""
        raise WeightsError(
            f"the weights of {purpose} are not at {file}: reinstall harmonic-lowering{or_train}"
        ) from error
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(
            f"the weights of {purpose} in {file} cannot be read ({error}): "
            "reinstall harmonic-lowering"
        ) from error
    if metadata.get("sha256") != _digest(state):
        raise WeightsError(
            f"the weights of {purpose} in {file} are damaged (their SHA-256 is not the "
            "one that was written with them): reinstall harmonic-lowering"
        )
    return state, metadata


def write_weights(
    path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write tensors, with what is needed to build the network and to trust the file."""
    save_file = import_optional("safetensors.torch", "saving weights", _INSTALL).save_file
    state = {name: value.contiguous() for name, value in state.items()}
    beside = Path(path).with_suffix(".part")
    save_file(state, beside, {**metadata, "sha256": _digest(state)})
    beside.chmod(0o644)  # it is made for its owner alone
    beside.replace(path)


def _digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of all numbers, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
