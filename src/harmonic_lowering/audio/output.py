"""Files that appear complete or not at all.

A result is written to a hidden file beside its place, ``.harmonic-lowering-HASH-RANDOM.part``,
that is locked while its writer lives. HASH stands for the name of the result, so two runs that
write one result find each other; a part that nobody locks was left by a run that was killed, and
the next writer in that folder removes it. Nothing follows a symbolic link: parts are created
exclusively, everything happens relative to the folder as it was opened first, and a result
replaces regular files only.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from .formats import AudioError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows locks no folders: there is one run at a time
    fcntl = None

__all__ = ["Part", "check_place", "replacing"]

_PREFIX, _SUFFIX = ".harmonic-lowering-", ".part"
_DIR_FDS = os.open in os.supports_dir_fd and os.link in os.supports_dir_fd


@contextmanager
def replacing(path: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[Path]:
    """Give a place beside `path` to write to, which becomes `path` if all goes well.

    On any error or interruption what was written is removed.
    """
    with Part(Path(path)) as part:
        yield part.path
        part.publish(overwrite=overwrite)


class Part:
    """A file that will be `target`: open as `fd`, and known as `path` until it is published."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target
        self.fd = -1
        self._folder = -1

    def __enter__(self) -> Part:
        digest = hashlib.sha256(os.fsencode(self.target.name)).hexdigest()[:12]
        try:
            self._open_folder()
            with self._folder_locked():
                self._clear(digest)
                self._create(f"{_PREFIX}{digest}-{secrets.token_hex(4)}{_SUFFIX}")
        except OSError as error:
            self._close()
            raise _refusal(self.target, error) from error
        except AudioError:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.fd >= 0:
            with suppress(OSError):
                os.unlink(self._at(self.path.name), **self._where())
        self._close()

    def publish(self, *, overwrite: bool = True) -> None:
        """Flush it to the disk and give it its name."""
        try:
            os.fsync(self.fd)
            part, name = self._at(self.path.name), self._at(self.target.name)
            old = check_place(self.target)
            if old and not overwrite:
                raise FileExistsError
            if overwrite:
                os.replace(part, name, **self._both())
            else:
                self._link(part, name)
            self._sync_folder()
        except FileExistsError as error:
            raise AudioError(
                f"{self.target}: exists already; allow replacing it with --force"
            ) from error
        except OSError as error:
            raise AudioError(
                f"{self.target}: cannot be written ({error.strerror or error})"
            ) from error

    def _link(self, part: str, name: str) -> None:
        """Rename, but never over a file that appeared in the meantime."""
        try:
            os.link(part, name, follow_symlinks=False, **self._both())
        except FileExistsError:
            raise
        except (OSError, NotImplementedError):  # a file system without hard links
            if os.path.lexists(self.target):
                raise FileExistsError from None
            os.replace(part, name, **self._both())
        else:
            os.unlink(part, **self._where())

    def _open_folder(self) -> None:
        if _DIR_FDS:
            self._folder = os.open(self.target.parent, os.O_RDONLY | os.O_DIRECTORY)

    @contextmanager
    def _folder_locked(self) -> Iterator[None]:
        if fcntl is None or self._folder < 0:
            yield
            return
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(self._folder, fcntl.LOCK_EX)
        try:
            yield
        finally:
            with suppress(OSError):
                fcntl.flock(self._folder, fcntl.LOCK_UN)

    def _clear(self, digest: str) -> None:
        """Remove what killed runs left; refuse if a run that lives writes the same result."""
        if fcntl is None or self._folder < 0:
            return
        for name in os.listdir(self._folder):
            if not (name.startswith(_PREFIX) and name.endswith(_SUFFIX)):
                continue
            try:
                fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self._folder)
            except OSError:  # gone, or not ours
                continue
            try:
                status = os.fstat(fd)
                if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(name, dir_fd=self._folder)
            except OSError:
                if digest in name:
                    raise AudioError(f"{self.target}: another run is writing it now") from None
            finally:
                os.close(fd)

    def _create(self, name: str) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        self.path = self.target.with_name(name)
        flags |= getattr(os, "O_BINARY", 0)
        self.fd = os.open(self._at(name), flags, 0o666, **self._where())
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _sync_folder(self) -> None:
        if self._folder >= 0:
            with suppress(OSError):
                os.fsync(self._folder)

    def _at(self, name: str) -> str:
        return name if self._folder >= 0 else str(self.target.with_name(name))

    def _where(self) -> dict[str, Any]:
        return {"dir_fd": self._folder} if self._folder >= 0 else {}

    def _both(self) -> dict[str, Any]:
        folder = self._folder
        return {"src_dir_fd": folder, "dst_dir_fd": folder} if folder >= 0 else {}

    def _close(self) -> None:
        for fd in (self.fd, self._folder):
            if fd >= 0:
                with suppress(OSError):
                    os.close(fd)
        self.fd = self._folder = -1


def check_place(path: Path) -> bool:
    """Say whether a file is there that may be replaced; refuse links, pipes and devices."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _refusal(path, error) from error
    if not stat.S_ISREG(mode):
        kind = {stat.S_IFDIR: "a folder", stat.S_IFLNK: "a symbolic link", stat.S_IFIFO: "a pipe"}
        raise AudioError(
            f"{path}: is {kind.get(stat.S_IFMT(mode), 'a device')}, expected a name for a file"
        )
    return True


def _refusal(path: Path, error: OSError) -> AudioError:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return AudioError(f"{path}: there is no folder {path.parent}; make it first (mkdir -p)")
    return AudioError(f"{path}: may not be written there ({error.strerror or error})")
