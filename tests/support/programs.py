"""Run scripts, commands and code as a user runs them, each in a process with the imports done.

A new interpreter needs several seconds for its imports. Here, the processes are forked from one
that has imported the package and the libraries of the examples; nothing else is shared.
"""

import gc
import io
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
LIBRARIES = [
    "pyro_vae", "pyro_vae.cli.app", "pyro_vae.models.vae", "pyro_vae.training.fit", "arviz",
    "arviz_plots", "matplotlib.pyplot", "pandas", "sklearn", "torchvision", "torch._dynamo",
    "torch._inductor.compile_fx",
]  # fmt: skip
# A proxy that nobody listens at: the program finds no network, whatever the machine has.
NO_NETWORK = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}


def environment(cwd, *, data=None):
    """Return the environment of a user with one core, an empty cache and no network."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(cwd / "cache")}
    env.pop("PYRO_VAE_DATA", None)
    env |= {"PYTHONPATH": str(ROOT)} | NO_NETWORK
    return env if data is None else env | {"PYRO_VAE_DATA": data}


def run(command, cwd, *, data=None, timeout=300):
    """Run `[script, *arguments]`, `["-m", module, *arguments]` or `["-c", code]` in a folder."""
    program = Program(command, cwd, environment(cwd, data=data))
    return program.result(timeout)


def run_group(command, cwd, num, timeout=300):
    """Run the same command as `torchrun` runs it in several processes; return what each gave."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num),
        "TORCHELASTIC_RUN_ID": "group", "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip
    programs = [
        Program(command, cwd, environment(cwd) | group | {"RANK": rank, "LOCAL_RANK": rank})
        for rank in map(str, range(num))
    ]
    return [program.result(timeout) for program in programs]


class Program:
    """A command that runs in a forked process."""

    def __init__(self, command, cwd, env):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(LIBRARIES)
        self.words = [str(word) for word in command]
        self.files = [cwd / f".{name}-{os.urandom(4).hex()}" for name in ("stdout", "stderr")]
        self.process = context.Process(target=_main, args=(self.words, cwd, env, self.files))
        self.process.start()

    def result(self, timeout):
        """Wait until it ends; return its exit status and what it printed."""
        self.process.join(timeout)
        if self.process.is_alive():
            self.process.kill()
            raise subprocess.TimeoutExpired(self.words, timeout)
        stdout, stderr = (path.read_text() for path in self.files)
        for path in self.files:
            path.unlink()
        return subprocess.CompletedProcess(self.words, self.process.exitcode, stdout, stderr)


def run_alone(command, cwd, timeout=300):
    """Run the same in a new interpreter, for programs that start processes of their own."""
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=environment(cwd), capture_output=True,
        text=True, timeout=timeout, check=False,
    )  # fmt: skip


def _main(words, cwd, env, files):
    gc.freeze()  # a collection would touch, and so copy, all the memory of the imports
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for number, path in enumerate(files, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.FileIO(number, "w", closefd=False), line_buffering=True)
        for number in (1, 2)
    )
    torch.set_num_threads(1)
    warnings.filterwarnings("error", category=DeprecationWarning, module="pyro_vae")
    first, *rest = words
    if first in ("-m", "-c"):
        sys.path.insert(0, str(cwd))
        name, *arguments = rest
        sys.argv = [name if first == "-m" else "-c", *arguments]
        if first == "-m":
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            exec(compile(name, "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path.insert(0, str(Path(first).parent))
        sys.argv = words
        runpy.run_path(first, run_name="__main__")
