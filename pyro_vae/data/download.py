"""Find or download the files of a dataset."""

import http.client
import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from pyro_vae.data.prefetch import DataError

DOWNLOAD_TIMEOUT = 5.0  # seconds without an answer


class DataNotFoundError(DataError, FileNotFoundError):
    """Data that are neither on disk nor to be downloaded."""


def _folder(root: str | os.PathLike[str] | None) -> Path:
    root = root or os.environ.get("PYRO_VAE_DATA")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return (Path(root) if root else cache / "pyro_vae").expanduser()


def _provide(
    names: Sequence[str], folder: Path, download: bool, url: str, get: Callable[[str], object]
) -> None:
    """Have files in a folder; `get` downloads them into another one, from where they are moved.

    So an interrupted download leaves no half file behind.
    """
    missing = [name for name in names if not (folder / name).is_file()]
    if not missing:
        return
    reason = "download=False"
    if download:
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)  # torchvision sets none and would wait for ever
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as partial:
                get(partial)
                for name in missing:
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (Path(partial) / name).replace(folder / name)
            return
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            reason = (str(error).strip() or repr(error)).splitlines()[-1]
        finally:
            socket.setdefaulttimeout(before)
    raise DataNotFoundError(
        f"{', '.join(missing)}: neither in {folder} nor to be downloaded ({reason}). Put them "
        f"there, uncompressed (from {url}), or name their folder by root= or PYRO_VAE_DATA"
    )


def _provide_files(names: Sequence[str], folder: Path, download: bool, url: str) -> None:
    def get(partial: str) -> None:
        from torchvision.datasets.utils import download_url

        for name in names:
            download_url(url + name, partial)

    _provide(names, folder, download, url, get)
