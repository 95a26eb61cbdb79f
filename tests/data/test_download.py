"""Downloads are complete and have the right hash, or leave no file."""

import dataclasses
import gzip
import hashlib
import http.server
import io
import socket
import threading
import urllib.parse

import numpy as np
import pytest
import requests
import scipy.io

import pyro_vae as pv
from pyro_vae.data import catalogue, download
from pyro_vae.data.download import DOWNLOAD_TIMEOUT, DataNotFoundError, Source, provide

CONTENT = b"some rows of data" * 100
PACKED = gzip.compress(CONTENT)
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


@pytest.fixture
def served(monkeypatch):
    """Serve the files of a dict; a file named `cut*` ends early, and `slow*` never starts."""
    files = {}
    finished = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = urllib.parse.urlparse(self.path).path.rpartition("/")[-1]
            if name.startswith("slow"):
                finished.wait(60)
                return
            if name not in files:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(files[name])))
            self.end_headers()
            self.wfile.write(files[name][: 100 if name.startswith("cut") else None])

        def log_message(self, *args):
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/", files
        finished.set()
        server.shutdown()
        thread.join()


def test_an_interrupted_download_leaves_no_half_file(tmp_path, monkeypatch):
    limits = []

    def get(url, timeout, stream):
        limits.append(timeout)
        raise requests.Timeout("timed out")

    monkeypatch.setattr("requests.get", get)
    with pytest.raises(DataNotFoundError, match="timed out"):
        pv.data.frey_face(root=tmp_path)
    assert not list(tmp_path.iterdir())
    assert limits == [DOWNLOAD_TIMEOUT]
    assert socket.getdefaulttimeout() is None


def test_a_download_is_kept(tmp_path, monkeypatch, served):
    url, files = served
    frames = np.arange(1965 * 560).astype(np.uint8).reshape(1965, 560)
    matlab = io.BytesIO()
    scipy.io.savemat(matlab, {"ff": frames.T})
    files["frey_rawface.mat"] = matlab.getvalue()
    monkeypatch.setattr(catalogue, "FREY_FACE", dataclasses.replace(catalogue.FREY_FACE, url=url))
    monkeypatch.setattr(catalogue, "CONTENT", {})  # the frames are not those of the real file
    root = tmp_path / "new"
    train, _ = pv.data.frey_face(root=root)
    assert [path.name for path in root.iterdir()] == ["frey_rawface.mat"]
    first = np.random.default_rng(0).permutation(1965)[0]
    np.testing.assert_array_equal(train.values[0].flatten().numpy(), frames[first])


def test_files_are_decompressed_into_the_subfolder_and_present_ones_are_kept(tmp_path, served):
    url, files = served
    files |= {"rows.gz": PACKED, "plain": CONTENT}
    packed = f"sha256:{hashlib.sha256(PACKED).hexdigest()}"
    source = Source(url, {"rows.gz": packed, "plain": MD5}, "set/raw")
    (tmp_path / "set/raw").mkdir(parents=True)
    (tmp_path / "set/raw/plain").write_bytes(b"of the user")
    paths = provide(source, tmp_path, download=True)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == source.local_names()
    assert [path.read_bytes() for path in paths] == [CONTENT, b"of the user"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["plain", "raw", "rows", "set"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("damaged", "does not match the known hash"),
        ("cut", "IncompleteRead"),
        ("missing", "404"),
        ("slow", "timed out"),
    ],
)
def test_a_failed_download_leaves_no_file(tmp_path, monkeypatch, served, name, reason):
    monkeypatch.setattr(download, "DOWNLOAD_TIMEOUT", 0.5)
    url, files = served
    files |= {"good": CONTENT, "damaged": CONTENT[:-1] + b"?", "cut": CONTENT}
    with pytest.raises(DataNotFoundError, match=rf"good, {name}: not in .*{reason}"):
        provide(Source(url, {"good": MD5, name: MD5}), tmp_path, download=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("source", ["MNIST", "FASHION_MNIST", "STATIC_MNIST", "FREY_FACE"])
def test_sources_use_https_and_hashes(source):
    source = getattr(catalogue, source)
    assert source.url.startswith("https://")
    assert source is catalogue.FREY_FACE or all(source.hashes.values())
