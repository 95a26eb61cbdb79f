"""Find the files of a dataset in a folder, or download them."""

import dataclasses
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pyro_vae.data.errors import DataError

DOWNLOAD_TIMEOUT = 5.0  # seconds without an answer of the server


class DataNotFoundError(DataError, FileNotFoundError):
    """Files of a dataset that are not in the folder and cannot be downloaded.

    See also: `DataError`, `load`.

    Example:
        >>> import pyro_vae as pv
        >>> try:
        ...     pv.data.frey_face(root="no_such_folder", download=False)
        ... except pv.data.DataNotFoundError as error:
        ...     print(error)
        frey_rawface.mat: not in no_such_folder and not downloaded (download=False). ...
    """


@dataclasses.dataclass(frozen=True)
class Source:
    """Files on a server.

    Attributes:
        url: URL of their folder, with a slash at the end.
        hashes: Hash of each file, `"md5:..."` or `"sha256:..."`, or None if it is not known. Files
            `*.gz` are decompressed after the download.
        subfolder: Subfolder of the data folder in which the files are kept.
    """

    url: str
    hashes: Mapping[str, str | None]
    subfolder: str = ""

    def local_names(self) -> list[str]:
        """Return the names of the files in the data folder."""
        names = (name.removesuffix(".gz") for name in self.hashes)
        return [f"{self.subfolder}/{name}" if self.subfolder else name for name in names]


def data_folder(root: str | os.PathLike[str] | None) -> Path:
    """Return the folder of the data: `root`, or else `PYRO_VAE_DATA`, or else the user's cache."""
    root = root or os.environ.get("PYRO_VAE_DATA")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return (Path(root) if root else cache / "pyro_vae").expanduser()


def provide(source: Source, folder: Path, download: bool) -> list[Path]:
    """Return the paths of a source's files, after downloading the missing ones.

    Files are moved into the folder when all of them are complete and have the right hash. An
    interrupted download leaves no partial files.

    Raises:
        DataNotFoundError: If a file is missing and cannot be downloaded.
    """
    paths = dict(zip(source.hashes, (folder / name for name in source.local_names()), strict=True))
    missing = {name: path for name, path in paths.items() if not path.is_file()}
    if not missing:
        return list(paths.values())
    reason = "download=False"
    if download:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as partial:
                fetched = [(_fetch(source, name, partial), path) for name, path in missing.items()]
                for file, path in fetched:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    file.replace(path)
            return list(paths.values())
        except (OSError, ValueError) as error:  # ValueError: a hash that differs
            reason = str(error).strip() or repr(error)
    names = ", ".join(str(path.relative_to(folder)) for path in missing.values())
    raise DataNotFoundError(
        f"{names}: not in {folder} and not downloaded ({reason}). Put them there, uncompressed "
        f"(from {source.url}), or pass their folder as root= or PYRO_VAE_DATA"
    )


def _fetch(source: Source, name: str, folder: str) -> Path:
    """Download a file into a folder, check its hash, decompress it, and return its path."""
    import pooch

    path = pooch.retrieve(
        source.url + name,
        source.hashes[name],
        fname=name,
        path=folder,
        processor=pooch.Decompress() if name.endswith(".gz") else None,
        downloader=pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=DOWNLOAD_TIMEOUT),
    )
    return Path(path)
