"""Writes the pages of the documentation site: ``python docs/pages.py FOLDER``.

A page is a Markdown file of the repository, a notebook, a room of the package as its docstrings
have it, or any other file that a page links to. Every link is turned to where the site has its
target; one that leads nowhere ends the build. So a link is written once, relative to its file, and
leads to the same place on the code host and in the site.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from inspect import cleandoc
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(!?\[[^\]]*\]\()(?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")
"""A Markdown link to a file: what is before the path, the path, the anchor."""
FENCE = re.compile(r"^```.*?^```$", re.M | re.S)
SECTION = re.compile(r"(Args|Returns|Raises)( \(.*\))?:")
LANGUAGES = {".py": "python", ".cff": "yaml"}
PACKAGE = "fedprune"


class BrokenLink(Exception):
    """A link whose target is not in the repository; the message is one line."""


def main(folder: Path) -> None:
    """Writes all pages below ``folder``/pages, and the site's configuration beside them."""
    pages = folder / "pages"
    shutil.rmtree(pages, ignore_errors=True)
    found = sorted(rooms())
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    waiting = [*documents(), *notebooks]
    done: set[Path] = set()
    while waiting:
        file = waiting.pop()
        if file in done:
            continue
        done.add(file)
        text, linked = page(file)
        waiting += linked
        _write(pages / place(file)[0], text)
    for room in found:
        _write(pages / "api" / f"{room}.md", reference(room))
    lines = [f"- [{PACKAGE}.{room}]({room}.md): {_first_line(room)}" for room in found]
    _write(pages / "api" / "index.md", "\n".join(["# API reference", "", *lines, ""]))
    for file in [*(ROOT / "docs").rglob("*.png"), *(ROOT / "docs").glob("*.css"), *notebooks]:
        target = pages / file.relative_to(ROOT if file in notebooks else ROOT / "docs")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    config = yaml.safe_load((ROOT / "docs" / "site.yml").read_text(encoding="utf-8"))
    config["nav"] = _navigation(found)
    _write(folder / "mkdocs.yml", yaml.safe_dump(config, sort_keys=False))


# Pages -----


def page(file: Path) -> tuple[str, list[Path]]:
    """A file's page, and the files without a page of their own that it links to."""
    if file.suffix == ".md":
        return turned(file, file.read_text(encoding="utf-8"))
    if file.suffix == ".ipynb":
        text, linked = turned(file, _notebook(file))
        return f"{text}\n[The notebook itself]({file.name}), to run it.\n", linked
    language = LANGUAGES.get(file.suffix, "text")
    title = file.relative_to(ROOT).as_posix()
    return f"# {title}\n\n````{language}\n{file.read_text(encoding='utf-8').rstrip()}\n````\n", []


def turned(file: Path, text: str) -> tuple[str, list[Path]]:
    """A page's text with links into the site, and the files that they ask for.

    Raises:
      BrokenLink: there is no such file.
    """
    here = os.path.dirname(place(file)[0])
    linked = []

    def turn(match: re.Match) -> str:
        before, path, anchor = match.groups()
        target = (file.parent / path).resolve()
        if not target.is_file():
            raise BrokenLink(f"{file.relative_to(ROOT)}: {path} does not exist")
        there, own_anchor = place(target)
        if target.suffix != ".png" and not there.startswith("api/"):
            linked.append(target)
        return f"{before}{os.path.relpath(there, here or '.')}{anchor or own_anchor})"

    parts, end = [], 0
    for fence in FENCE.finditer(text):  # code is no place for links
        parts += [LINK.sub(turn, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, LINK.sub(turn, text[end:])]), linked


def place(file: Path) -> tuple[str, str]:
    """Where the site has a file: the page's path, and an anchor in it or ""."""
    path = file.relative_to(ROOT)
    if path.parts[0] == "docs":
        inside = path.relative_to("docs")
        return (inside.with_name("index.md") if path.name == "README.md" else inside).as_posix(), ""
    if path.as_posix() == "README.md":
        return "index.md", ""
    if path.suffix == ".ipynb":
        return path.with_suffix(".md").as_posix(), ""
    if path.suffix == ".md":
        return path.name.lower(), ""
    if path.parts[0] == PACKAGE and path.suffix == ".py":
        room, *rest = path.with_suffix("").parts[1:]
        return f"api/{room}.md", f"#{rest[0]}" if rest and rest[0] != "__init__" else ""
    return f"files/{path.as_posix()}.md", ""


def _notebook(file: Path) -> str:
    """A notebook's cells and their outputs as Markdown."""
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join(part for cell in cells for part in _cell(cell)) + "\n"


def _cell(cell: dict) -> Iterator[str]:
    source = "".join(cell["source"])
    yield f"```python\n{source}\n```" if cell["cell_type"] == "code" else source
    for output in cell.get("outputs", ()):
        data = output.get("data", {})
        text = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
        if "image/png" in data:
            picture = "".join(data["image/png"].split())
            yield f'<img src="data:image/png;base64,{picture}" alt="what the cell draws">'
        elif text:
            yield f"```text\n{text}\n```"


def documents() -> Iterator[Path]:
    """The Markdown files that are pages."""
    yield from (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))
    yield from sorted((ROOT / "docs").rglob("*.md"))


def _navigation(rooms: list[str]) -> list[dict]:
    """The order of pages; that of how-to pages and notebooks is the one in which their index has
    them."""
    index = ROOT / "docs" / "howto" / "README.md"
    linked = [
        place((index.parent / m[1]).resolve())[0]
        for m in LINK.findall(index.read_text(encoding="utf-8"))
    ]
    howto = ["howto/index.md", *(path for path in linked if path.startswith("howto/"))]
    notebooks = [path for path in linked if path.startswith("notebooks/")]
    results = [place(file)[0] for file in sorted((ROOT / "docs" / "results").glob("*.md"))]
    return [
        {"Home": "index.md"},
        {"How to": list(dict.fromkeys(howto))},
        {"Notebooks": list(dict.fromkeys(notebooks))},
        {"Reference": ["api/index.md", *(f"api/{room}.md" for room in rooms)]},
        {"Results": results},
        {
            "Background": [
                *("experiments.md", "parts.md", "datasets.md", "papers.md"),
                *("promises.md", "stability.md", "performance.md", "design.md"),
            ]
        },
        {"Project": ["contributing.md", "changelog.md"]},
    ]


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


# Reference -----


def reference(room: str) -> str:
    """The page of a room: its docstring and those of its public names, file by file.

    A module that is imported by itself is there as a whole if the room's docstring names it.
    """
    file = ROOT / PACKAGE / room
    if not file.is_dir():
        tree = _parsed(file.with_suffix(".py"))
        parts = [*_head(f"{PACKAGE}.{room}", tree, 1), *_members(room, tree, None, 2)]
        return "\n\n".join(parts) + "\n"
    tree = _parsed(file / "__init__.py")
    exported: dict[str, set[str] | None] = {}
    for node in ast.walk(tree):  # imports that only a type checker does, too
        if isinstance(node, ast.ImportFrom) and node.module.startswith(f"{PACKAGE}.{room}"):
            for alias in node.names:
                if node.module == f"{PACKAGE}.{room}":  # a module of the room, as a whole
                    exported[alias.name] = None
                else:
                    names = exported.setdefault(node.module.rpartition(".")[2], set())
                    if names is not None:
                        names.add(alias.name)
    for module in re.findall(rf"``{room}\.(\w+)``", ast.get_docstring(tree) or ""):
        if (file / f"{module}.py").exists():
            exported[module] = None
    parts = _head(f"{PACKAGE}.{room}", tree, 1)
    for module, names in exported.items():
        inner = _parsed(file / f"{module}.py")
        parts += _head(module, inner, 2)
        parts += _members(f"{room}.{module}" if names is None else room, inner, names, 3)
    return "\n\n".join(parts) + "\n"


def rooms() -> Iterator[str]:
    """The modules and folders of the package."""
    for path in (ROOT / PACKAGE).iterdir():
        if path.suffix == ".py" and not path.stem.startswith("_"):
            yield path.stem
        elif (path / "__init__.py").exists():
            yield path.name


def _first_line(room: str) -> str:
    path = ROOT / PACKAGE / room
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return prose((ast.get_docstring(_parsed(file)) or "").partition("\n\n")[0])


@cache
def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _head(title: str, tree: ast.Module, level: int) -> list[str]:
    return [f"{'#' * level} {title}", *described(ast.get_docstring(tree) or "")]


def _members(prefix: str, tree: ast.Module, names: set[str] | None, level: int) -> list[str]:
    """Headings, signatures and docstrings of a module's public names; None: all of them."""
    parts: list[str] = []
    for name, node, doc in _public(tree.body):
        if name not in names if names is not None else not doc:
            continue
        parts.append(f"{'#' * level} {prefix}.{name}")
        parts.append(f"```python\n{_signature(name, node)}\n```")
        parts += described(doc)
        if isinstance(node, ast.ClassDef):
            parts += _fields(node)
    return parts


def _public(body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt, str]]:
    """(name, definition, docstring) of every name that does not begin with _."""
    for node, after in zip(body, [*body[1:], ast.Pass()], strict=True):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name, doc = node.name, ast.get_docstring(node) or ""
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            name, doc = ast.unparse(target), ""
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                doc = cleandoc(str(after.value.value))
        else:
            continue
        if not name.startswith("_"):
            yield name, node, doc


def _fields(node: ast.ClassDef) -> list[str]:
    """The fields of a NamedTuple or a configuration and the methods of a class, as a list."""
    lines = []
    for name, inner, doc in _public(node.body):
        code = ast.unparse(inner)
        if isinstance(inner, ast.FunctionDef):
            code = _signature(name, inner).replace("\n", " ")
        elif (
            code.startswith(f"{name}: ") and isinstance(inner.value, ast.Call) and inner.value.args
        ):
            made = ast.unparse(inner.value.func)
            code = f"{name}: {ast.unparse(inner.annotation)}"
            if made == "part":
                doc = f"fields of one kind of ``{ast.literal_eval(inner.value.args[0])}``"
            elif made in ("spec", "free"):
                default, meaning = inner.value.args
                limits = (f"{k.arg} {ast.unparse(k.value)}" for k in inner.value.keywords)
                code += f" = {ast.unparse(default)}"
                doc = ", ".join([ast.literal_eval(meaning), *limits])
        text = " ".join(line for line in described(doc) if not line.startswith("```"))
        lines.append(f"- `{code}`" + (f"<br>{text}" if text else ""))
    return ["\n".join(lines)] if lines else []


def _signature(name: str, node: ast.AST) -> str:
    """A definition's first line, with one parameter a line where it is long."""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, node.bases))
        return f"class {name}({bases})" if bases else f"class {name}"
    if not isinstance(node, ast.FunctionDef):
        code = ast.unparse(node)
        return code if len(code) < 400 else f"{name} = ..."
    args = node.args
    plain = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(plain) - len(args.defaults)) + list(args.defaults)
    parts = [_parameter(a, d) for a, d in zip(plain, defaults, strict=True)]
    if args.vararg:
        parts.append(f"*{ast.unparse(args.vararg)}")
    elif args.kwonlyargs:
        parts.append("*")
    parts += [_parameter(a, d) for a, d in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    if args.kwarg:
        parts.append(f"**{ast.unparse(args.kwarg)}")
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{name}({', '.join(parts)}){result}"
    if len(line) <= 80:
        return line
    return "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){result}"])


def _parameter(arg: ast.arg, default: ast.expr | None) -> str:
    if default is None:
        return ast.unparse(arg)
    return f"{ast.unparse(arg)} = {ast.unparse(default)}"


def described(doc: str) -> list[str]:
    """A docstring as blocks of Markdown: indented lines as they are, its sections as lists."""
    blocks, section = [], ""
    for indented, lines in _runs(doc):
        if SECTION.fullmatch(lines[-1]) and not indented:
            section = lines.pop()
        if lines and indented and section:
            blocks += [f"**{section}**", _items(lines, section)]
        elif lines and indented:
            body = "\n".join(lines)
            blocks.append(f"```text\n{body}\n```")
        elif lines:
            blocks.append(prose("\n".join(lines)))
        if indented:
            section = ""
    return blocks


def _runs(doc: str) -> list[tuple[bool, list[str]]]:
    """(whether indented, lines) of its paragraphs, its lists and what is indented in it."""
    runs: list[tuple[bool, list[str]]] = []
    apart = True
    for line in doc.splitlines():
        if not line:
            apart = True
            continue
        inside = line.startswith("  ")
        indented, lines = runs[-1] if runs else (False, [])
        if indented and inside:
            lines += [*[""] * apart, line]
        elif lines and not indented and not apart and (not inside or lines[0].startswith("- ")):
            lines.append(line)
        else:
            runs.append((inside, [line]))
        apart = False
    return runs


def _items(lines: list[str], section: str) -> str:
    """An indented section: "name: text" as a list, what is returned as a paragraph."""
    if section.startswith("Returns"):
        return prose("\n".join(line.strip() for line in lines))
    items: list[str] = []
    for line in lines:
        name, colon, text = line.strip().partition(": ")
        if line.startswith("   ") and items:
            items[-1] += " " + prose(line.strip())
        else:
            items.append(f"- `{name}`: {prose(text)}" if colon else f"- {prose(name)}")
    return "\n".join(items)


def prose(text: str) -> str:
    """Running text in which only code between backticks means anything to Markdown."""
    if not text.startswith("- "):
        text = " ".join(text.split())
    parts = re.split(r"(``.+?``|`.+?`)", text)
    special = re.compile(r"([\\*_\[\]<>#|])")
    return "".join(p if p.startswith("`") else special.sub(r"\\\1", p) for p in parts)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except BrokenLink as e:
        sys.exit(f"error: {e}")
