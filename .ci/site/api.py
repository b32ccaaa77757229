"""Read what the notebooks export, without importing anything: names, parameters with their
comments, lines, users."""

import ast
import io
import re
import tokenize
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Parameter:
    "One parameter of a function or field of a class."

    name: str
    kind: str  # its annotation, as it is written
    default: str
    comment: str


@dataclass
class Entry:
    "A public name: what it is, where it stands and who uses it."

    name: str  # `FastEditor` or `FastEditor.edit`
    what: str  # "function", "class", "method" or "data"
    module: str  # full name of the module that defines it
    page: str  # the notebook that exports it, relative to nbs/, without suffix
    signature: str
    doc: str
    parameters: list
    returns: str
    lines: tuple  # first and last line in the module
    users: list = field(default_factory=list)  # pages whose shown code uses it

    @property
    def anchor(self) -> str:
        return "api-" + self.name.replace(".", "-").lower()


def _comments(source: str) -> dict:
    "Map a line of the source to the comment at its end, with those on the lines below it alone."
    found = {}
    alone = re.compile(r"\s*#")
    lines = source.splitlines()
    for t in tokenize.generate_tokens(io.StringIO(source).readline):
        if t.type != tokenize.COMMENT:
            continue
        row = t.start[0]
        while row > 1 and alone.match(lines[row - 1]):
            row -= 1
        said = t.string.lstrip("# ").strip()
        found[row] = f"{found[row]} {said}" if row in found else said
    return found


def _parameters(node, comments: dict) -> list:
    "List the parameters of a function with their comments."
    a = node.args
    plain = a.posonlyargs + a.args
    defaults = [None] * (len(plain) - len(a.defaults)) + a.defaults
    rows = list(zip(plain, defaults))
    if a.vararg:
        rows.append((a.vararg, None))
    rows += list(zip(a.kwonlyargs, a.kw_defaults))
    if a.kwarg:
        rows.append((a.kwarg, None))
    found = []
    for p, default in rows:
        if p.arg in ("self", "cls"):
            continue
        stars = "*" if p is a.vararg else "**" if p is a.kwarg else ""
        last = default if default is not None else p
        found.append(
            Parameter(
                stars + p.arg,
                ast.unparse(p.annotation) if p.annotation else "",
                ast.unparse(default) if default is not None else "",
                comments.get(last.end_lineno, ""),
            )
        )
    return found


def _returned(node, comments: dict) -> str:
    "Say what a function gives back: its annotation, and the comment beside it."
    said = comments.get(node.body[0].lineno - 1, "")
    if node.returns is None:
        closing = said if node.args.args or node.args.kwonlyargs else ""
        last = max(
            (x.end_lineno for x in ast.walk(node.args) if hasattr(x, "end_lineno")), default=0
        )
        return "" if last == node.body[0].lineno - 1 and ")" not in closing else closing
    kind = ast.unparse(node.returns)
    beside = comments.get(node.returns.end_lineno, "")
    return f"{kind}: {beside}" if beside else kind


def _signature(name: str, node) -> str:
    "Write a signature that fits a line, or one parameter a line."
    a = node.args
    bare = ast.arguments(
        posonlyargs=[ast.arg(p.arg) for p in a.posonlyargs],
        args=[ast.arg(p.arg) for p in a.args if p.arg not in ("self", "cls")],
        vararg=ast.arg(a.vararg.arg) if a.vararg else None,
        kwonlyargs=[ast.arg(p.arg) for p in a.kwonlyargs],
        kw_defaults=a.kw_defaults,
        kwarg=ast.arg(a.kwarg.arg) if a.kwarg else None,
        defaults=a.defaults,
    )
    return f"{name}({ast.unparse(bare)})"


def _fields(node, comments: dict) -> list:
    "List the annotated fields of a class with their comments."
    found = []
    for x in node.body:
        if isinstance(x, ast.AnnAssign) and isinstance(x.target, ast.Name):
            default = ast.unparse(x.value) if x.value else ""
            if not x.target.id.startswith("_"):
                said = comments.get(x.end_lineno, "")
                found.append(Parameter(x.target.id, ast.unparse(x.annotation), default, said))
    return found


def _patched(node) -> str | None:
    "Name the class that a function decorated with `@patch` belongs to."
    for d in node.decorator_list:
        f = d.func if isinstance(d, ast.Call) else d
        if getattr(f, "id", "") == "patch" and node.args.args:
            return ast.unparse(node.args.args[0].annotation)
    return None


def _public(name: str) -> bool:
    return not name.startswith("_")


def _entry(node, name, what, module, page, comments) -> Entry:
    doc = ast.get_docstring(node) or ""
    lines = (node.decorator_list[0].lineno if node.decorator_list else node.lineno, node.end_lineno)
    if isinstance(node, ast.ClassDef):
        init = next((f for f in node.body if getattr(f, "name", "") == "__init__"), None)
        rows = _parameters(init, comments) if init else _fields(node, comments)
        signature = _signature(name, init) if init else name
        return Entry(name, "class", module, page, signature, doc, rows, "", lines)
    rows = _parameters(node, comments)
    returns = _returned(node, comments)
    return Entry(name, what, module, page, _signature(name, node), doc, rows, returns, lines)


def _inside(node, module, page, comments) -> list:
    "List the public methods that a class defines itself."
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [
        _entry(f, f"{node.name}.{f.name}", "method", module, page, comments)
        for f in node.body
        if isinstance(f, functions) and _public(f.name) and ast.get_docstring(f)
    ]


def read_module(path: Path, package: Path) -> list:
    "List the public entries of an exported module, in the order of its lines."
    source = path.read_text(encoding="utf-8")
    tree, comments = ast.parse(source), _comments(source)
    made = re.search(r"# AUTOGENERATED! .* File to edit: (?:\.\./)*nbs/(\S+)\.ipynb", source)
    if not made:
        return []
    module = ".".join(path.relative_to(package.parent).with_suffix("").parts)
    found = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and _public(node.name):
            found.append(_entry(node, node.name, "class", module, made[1], comments))
            found += _inside(node, module, made[1], comments)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            owner = _patched(node)
            name = f"{owner}.{node.name}" if owner else node.name
            known = _public(node.name) or node.name == "__call__"
            if known and _public(name):
                what = "method" if owner else "function"
                found.append(_entry(node, name, what, module, made[1], comments))
    return found


def read_package(package: Path) -> list:
    "List the public entries of all exported modules."
    return [e for p in sorted(package.rglob("*.py")) for e in read_module(p, package)]


def used_names(source: str) -> set:
    "List the names and attributes that a piece of code uses."
    source = "\n".join("" if re.match(r"\s*[%!]", x) else x for x in source.splitlines())
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return set()
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    return names | {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
