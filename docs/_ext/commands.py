"""Generated parts of pages: the commands of `pyro-vae`, and `llms.txt`."""

from pathlib import Path
from typing import Any

import typer.main
from docutils import nodes
from sphinx import addnodes

from pyro_vae.cli.app import app as commands


def _text(value: object) -> str:
    """Return text for a cell of a table in Markdown."""
    return " ".join(str(value).split()).replace("|", r"\|")


def _argument(parameter: Any) -> str:
    """Return the name of an argument as it is shown in the usage."""
    return parameter.metavar or parameter.name.upper()


def _rows(parameters: list[Any]) -> list[str]:
    """Return a table of arguments and options."""
    rows = ["| | default | |", "|---|---|---|"]
    for parameter in parameters:
        if parameter.hidden:
            continue
        flags = [*parameter.opts, *parameter.secondary_opts]
        names = flags if parameter.param_type_name == "option" else [_argument(parameter)]
        default, stated = parameter.default, parameter.show_default
        shown = "" if default in (None, [], ()) or callable(default) else f"`{_text(default)}`"
        shown = _text(stated) if isinstance(stated, str) else shown
        named = ", ".join(f"`{name}`" for name in names)
        rows.append(f"| {named} | {shown} | {_text(parameter.help or '')} |")
    return rows


def command_line() -> str:
    """Return a section in Markdown for each command of the application."""
    lines = []
    for name, command in typer.main.get_command(commands).commands.items():
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        usage = [_argument(p) if p.required else f"[{_argument(p)}]" for p in arguments]
        lines += [f"## {name}", "", _text(command.help or ""), ""]
        lines += ["```sh", " ".join(["pyro-vae", name, "[OPTIONS]", *usage]), "```", ""]
        lines += [*_rows(command.params), ""]
    return "\n".join(lines)


def add_command_line(app: Any, docname: str, source: list[str]) -> None:
    """Append the commands to the page `reference/cli`."""
    if docname == "reference/cli":
        source[0] += "\n" + command_line()


def _summary(doctree: nodes.document) -> str:
    paragraph = next(iter(doctree.findall(nodes.paragraph)), None)
    return "" if paragraph is None else _text(paragraph.astext()).split(". ")[0].rstrip(".:")


def _entries(env: Any, page: str) -> list[str]:
    """Return the pages below a page, in the order of its toctrees."""
    trees = env.get_doctree(page).findall(addnodes.toctree)
    return [entry for tree in trees for _, entry in tree["entries"] if entry in env.found_docs]


def write_llms(app: Any, exception: Exception | None) -> None:
    """Write `llms.txt`: the pages with their summaries, with links to their sources."""
    if exception is not None or app.builder.name != "html":
        return
    env = app.env
    root = env.config.root_doc
    lines = [f"# {env.config.project}", "", f"> {_summary(env.get_doctree(root))}.", ""]
    for part in _entries(env, root):
        lines += [f"## {env.titles[part].astext()}", ""]
        for page in _entries(env, part):
            suffix = Path(env.doc2path(page)).suffix
            url = (
                f"{page}.html" if page.startswith("reference/") else f"_sources/{page}{suffix}.txt"
            )
            summary = _summary(env.get_doctree(page))
            lines.append(f"- [{env.titles[page].astext()}]({url}): {summary}")
        lines.append("")
    (Path(app.outdir) / "llms.txt").write_text("\n".join(lines), encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    """Register the hooks."""
    app.connect("source-read", add_command_line)
    app.connect("build-finished", write_llms)
    return {"parallel_read_safe": True}
