"""Where recordings lie: paths of this machine, or addresses of other storage, as s3://bucket/a.wav.

Sound is always read and written here: what lies elsewhere is fetched before and sent afterwards.
fsspec, which torch brings along, knows many kinds of storage, each with a package of its own.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from ..audio import AudioError, replacing
from ..audio.output import check_place
from ..optional import import_optional

__all__ = [
    "Address", "Place", "Stage", "exists", "fetch", "files_below", "forget", "is_folder",
    "names_in", "place", "read_bytes", "real", "remove_folder", "send", "write_bytes",
]  # fmt: skip

_WITH_FOLDERS = ("ftp", "hdfs", "local", "sftp", "smb", "ssh", "webdav", "webhdfs")
_EXTRAS = {"s3": "harmonic-lowering[s3]", "s3a": "harmonic-lowering[s3]"}


class Address(PurePosixPath):
    """A file or folder in other storage, with the names and parents of a path.

    A path knows single slashes only, so its first part is ``s3:``, and ``hdfs:|`` of hdfs:///a.
    """

    @classmethod
    def of(cls, text: str) -> Address:
        """Return the address that is written like this."""
        return cls(re.sub(r":///", ":|/", text, count=1))

    def __str__(self) -> str:
        return re.sub(
            r":(\|?)/", lambda bar: ":///" if bar[1] else "://", super().__str__(), count=1
        )

    @property
    def protocol(self) -> str:
        """What comes before the colon."""
        return self.parts[0].rstrip(":|")


Place: TypeAlias = Path | Address


def place(text: str) -> Place:
    """Return what a name of the command line means: an address if it begins with a protocol.

    Raises
    ------
    ValueError
        If fsspec does not know the protocol.
    ImportError
        If the package for it is not installed.
    """
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) or os.path.lexists(text):
        return Path(text)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    address = Address.of(text)
    _storage(address.protocol)
    return address


def is_folder(place: Place) -> bool:
    """Whether it is a folder, or files lie below such a name."""
    if isinstance(place, Path):
        return os.path.isdir(place)
    with _sentences(place):
        return bool(_of(place).isdir(str(place)))


def files_below(folder: Address) -> Iterator[Address]:
    """Give all files in and below a folder, but for hidden ones."""
    storage = _of(folder)
    with _sentences(folder):
        names = sorted(storage.find(str(folder)))
    top = PurePosixPath(storage._strip_protocol(str(folder)))
    for name in names:
        below = PurePosixPath(name).relative_to(top)
        if not any(part.startswith(".") for part in below.parts):
            yield folder / below


def exists(place: Place) -> bool:
    """Whether a file is there that may be replaced."""
    if isinstance(place, Path):
        return check_place(place)
    with _sentences(place):
        return place.name in _listed(place.parent)


@functools.lru_cache(1024)
def _listed(folder: Address) -> set[str]:
    """List a folder once; asking for one file after the other would take as many requests."""
    return names_in(folder)


def names_in(folder: Place) -> set[str]:
    """Return what a folder holds, nothing if there is none."""
    with suppress(FileNotFoundError):
        if isinstance(folder, Path):
            return set(os.listdir(folder))
        with _sentences(folder), suppress(FileNotFoundError):
            found = _of(folder).ls(str(folder), detail=False)
            return {PurePosixPath(name).name for name in found}
    return set()


def forget() -> None:
    """Look again at what is there."""
    _listed.cache_clear()
    _storage.cache_clear()


def real(place: Place) -> str:
    """Return what tells it from all other files."""
    return os.path.realpath(place) if isinstance(place, Path) else str(place)


def fetch(source: Address, file: Path) -> None:
    """Copy a file from other storage to this machine, with its date."""
    storage = _of(source)
    with _sentences(source):
        storage.get_file(str(source), str(file))
    if not file.exists():
        raise AudioError(f"{source}: is a folder, expected a sound file")
    with suppress(Exception):  # not every storage knows it
        changed = storage.modified(str(source)).timestamp()
        os.utime(file, (changed, changed))


def send(file: Path, target: Address, *, overwrite: bool) -> None:
    """Copy a complete file to other storage."""
    storage = _of(target)
    with _sentences(target):
        storage.invalidate_cache()
        if not overwrite and storage.exists(str(target)):
            raise AudioError(f"{target}: exists already; allow replacing it with --force")
        _make_folder(target.parent)
        storage.put_file(str(file), str(target))
        size = storage.size(str(target))
        if size != file.stat().st_size:
            raise AudioError(f"{target}: {size} of {file.stat().st_size} bytes arrived there")


def read_bytes(place: Place) -> bytes | None:
    """Return what a file holds, None if there is none."""
    with suppress(FileNotFoundError):
        if isinstance(place, Path):
            return place.read_bytes()
        with _sentences(place), suppress(FileNotFoundError):
            data: bytes = _of(place).cat_file(str(place))
            return data
    return None


def write_bytes(place: Place, data: bytes) -> None:
    """Write a file that appears whole or not at all; its folder is made, for its owner only."""
    if isinstance(place, Path):
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(place) as part:
            part.write_bytes(data)
        return
    with _sentences(place):
        _make_folder(place.parent)
        _of(place).pipe_file(str(place), data)


def remove_folder(place: Place) -> None:
    """Remove a folder of ours with all that it holds, if it is there."""
    if isinstance(place, Path):
        shutil.rmtree(place, ignore_errors=True)
        return
    with _sentences(place), suppress(FileNotFoundError):
        storage = _of(place)
        storage.invalidate_cache(str(place))
        if storage.exists(str(place)):
            storage.rm(str(place), recursive=True)


class Stage:
    """A private temporary folder with files that lie, or will lie, in other storage."""

    def __init__(self) -> None:
        self._folder: Any = None
        self._places: list[tuple[str, str]] = []

    def local(self, place: Place) -> Path:
        """Return a path of this machine for a file; it is the file itself if that lies here."""
        if isinstance(place, Path):
            return place
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="harmonic-lowering-")
        folder = Path(self._folder.name, str(len(self._places)))
        folder.mkdir()
        self._places.append((str(folder), str(place.parent)))
        return folder / place.name

    def translated(self, text: str) -> str:
        """Name files in a message as the user knows them."""
        for here, there in self._places:
            text = text.replace(here, there)
        return text

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()


def _make_folder(folder: Address) -> None:
    """Make a folder where there are folders; an object store would make a bucket."""
    if folder.protocol in _WITH_FOLDERS:
        _of(folder).makedirs(str(folder), exist_ok=True)


def _of(address: Address) -> Any:
    return _storage(address.protocol)


@functools.lru_cache(16)
def _storage(protocol: str) -> Any:
    fsspec = import_optional("fsspec", f"{protocol}://", "fsspec")
    try:
        storage = fsspec.filesystem(protocol)
        storage.invalidate_cache()
        return storage
    except ImportError as error:
        install = _EXTRAS.get(protocol)
        how = f"pip install '{install}'" if install else str(error)
        raise ImportError(f"{protocol}:// needs a package that is not installed: {how}") from error
    except ValueError as error:
        raise ValueError(f"{protocol}:// is no storage that is known here ({error})") from error


@contextmanager
def _sentences(address: Address) -> Iterator[None]:
    """Turn what storage says into one sentence; its packages raise errors of any type."""
    try:
        yield
    except (AudioError, ImportError):
        raise
    except FileNotFoundError as error:
        raise AudioError(f"{address}: no such file, or no such bucket") from error
    except PermissionError as error:
        raise AudioError(f"{address}: the storage denies access ({_first(error)})") from error
    except Exception as error:
        raise AudioError(f"{address}: the storage does not answer ({_first(error)})") from error


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
