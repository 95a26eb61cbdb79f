"""The application: its commands, and how errors and warnings are printed."""

import functools
import inspect
import sys
import typing
import warnings
from collections.abc import Callable
from typing import Annotated

import typer
from typer import Option

import pyro_vae as pv
from pyro_vae.arguments import checks_of, settings_written_by
from pyro_vae.cli import training, using
from pyro_vae.cli.reading import as_option


def _checked(command: Callable[..., None]) -> Callable[..., None]:
    """Check the options of a command as its signature states, before anything is read or moved."""
    checks = checks_of(command)

    @functools.wraps(command)
    def call(**options: object) -> None:
        for name, check in checks.items():
            options[name] = check(f"--{name.replace('_', '-')}", options[name])
        command(**options)

    call.__signature__ = _plain(command)  # type: ignore[attr-defined]
    return call


def _plain(command: Callable[..., None]) -> inspect.Signature:
    """Return the signature without the checks of members of unions, which help would show."""
    signature, kinds = inspect.signature(command), typing.get_type_hints(command)
    parameters = [
        parameter.replace(annotation=Annotated[kinds[name], parameter.annotation.__metadata__[-1]])
        for name, parameter in signature.parameters.items()
    ]
    return signature.replace(parameters=parameters)


app = typer.Typer(
    help="Variational autoencoders on Pyro: describe data, train, evaluate, inspect, use.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (
    training.describe,
    training.train,
    using.evaluate,
    using.inspect,
    using.explore,
    using.compare,
    using.encode,
    using.score,
    using.impute,
    using.sample,
):
    app.command()(_checked(command))


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(pv.__version__)
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool,
        Option("--version", help="Print the version and exit", callback=_print_version,
               is_eager=True),
    ] = False,
) -> None:  # fmt: skip
    command = context.command.commands.get(context.invoked_subcommand)  # type: ignore[attr-defined]
    flags = None if command is None else {flag for item in command.params for flag in item.opts}
    context.with_resource(settings_written_by(functools.partial(as_option, flags=flags)))


def main() -> None:
    """Run the command; print expected errors and warnings as sentences, without a traceback.

    Raises:
        SystemExit: When the command ends. If it fails with an expected error, the exit status is 1.

    Example:
        >>> from unittest.mock import patch
        >>> from pyro_vae.cli import main
        >>> with patch("sys.argv", ["pyro-vae", "describe", "missing.csv"]):
        ...     main()
        Traceback (most recent call last):
        ...
        SystemExit: error: missing.csv: no such file or directory, and no dataset of this name; ...

    See also: `pyro_vae.fit`, `pyro_vae.report`.
    """
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            app()
        except Exception as error:
            if not isinstance(error, ValueError | OSError | MemoryError | pv.TrainingError):
                raise
            sys.exit(f"error: {error}")


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {message}", file=sys.stderr)
