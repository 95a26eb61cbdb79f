"""Links from names in prose and docstrings to the reference, and to other projects.

The inventories of other projects (Python, torch, Pyro, NumPy, ArviZ) are the names that these pages
use, listed in `inventories.txt`. The build writes them in the format of intersphinx and reads them
from there, so that it needs no network.
"""

import re
import zlib
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

HERE = Path(__file__).parent
NAME = re.compile(r"(?:pv|pyro_vae|torch|pyro|numpy|arviz_stats|arviz_plots)(?:\.\w+)+(?:\(.*\))?")


def inventories(folder: Path) -> dict[str, tuple[str, str]]:
    """Write the inventory of each project; return the value of `intersphinx_mapping`.

    A line without indentation is a project and its URL. An indented line is a name, its type and
    its location below the URL.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, tuple[str, list[str]]] = {}
    project = ""
    for line in (HERE / "inventories.txt").read_text().splitlines():
        if line.startswith("  "):
            name, kind, location = line.split()
            found[project][1].append(f"{name} py:{kind} 1 {location} -\n")
        elif line and not line.startswith("#"):
            project, url = line.split()
            found[project] = (url, [])
    mapping = {}
    for project, (url, lines) in found.items():
        head = f"# Sphinx inventory version 2\n# Project: {project}\n# Version: \n"
        head += "# The remainder of this file is compressed using zlib.\n"
        path = folder / f"{project}.inv"
        path.write_bytes(head.encode() + zlib.compress("".join(lines).encode()))
        mapping[project] = (url, str(path))
    return mapping


class LinkNames(SphinxTransform):
    """Make inline code that is the name of a public object a reference to it."""

    default_priority = 400

    def apply(self, **kwargs: Any) -> None:
        """Replace literals by pending references."""
        for node in list(self.document.findall(nodes.literal)):
            if NAME.fullmatch(node.astext()) and not isinstance(
                node.parent, nodes.reference | addnodes.pending_xref | nodes.title
            ):
                target = node.astext().partition("(")[0]
                reference = addnodes.pending_xref(
                    "", refdomain="py", reftype="obj", reftarget=target, refwarn=False
                )
                reference["refdoc"] = self.env.docname
                node.replace_self(reference)
                reference += node


def public_name(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Resolve `pv.fit`, `fit`, `priors.Flow` and `Flow()` to the public name."""
    if node.get("refdomain") != "py":
        return None
    name = node["reftarget"].removesuffix("()").removeprefix("pv.").removeprefix("pyro_vae.")
    domain = env.domains["py"]
    if f"pyro_vae.{name}" not in domain.objects:
        return None
    return domain.resolve_xref(
        env, node["refdoc"], app.builder, "obj", f"pyro_vae.{name}", node, content
    )


def setup(app: Any) -> dict[str, bool]:
    """Register the transform and the resolver, which runs before intersphinx."""
    app.add_transform(LinkNames)
    app.connect("missing-reference", public_name, priority=400)
    return {"parallel_read_safe": True}
