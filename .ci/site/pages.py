"Turn the committed, executed notebooks into the pages of the site, copies that Sphinx reads."

import ast
import configparser
import copy
import json
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import api

SECTIONS = dict(  # folder of nbs/ -> what it is called, in reading order; others follow by number
    tutorials="Tutorials",
    experiments="Experiments",
)
NAMES = {"": "Foundations", "cli": "Command line"}  # where the folder's own name will not do
FIRST = {  # sections whose pages are read in another order than that of their names
    "tutorials": (
        "quickstart",
        "your_photo",
        "low_vram",
        "piebench",
        "add_a_method",
        "add_a_model",
        "diagnose_any_editor",
        "train_your_own",
        "benchmark_colab",
    ),
    "experiments": ("published_claims", "methods", "adaptive", "peers", "failures", "memory"),
}
DIRECTIVE = re.compile(r"\s*#\s*\|\s*([^\s:]+)\s*:?\s*(.*?)\s*$")


def text(x) -> str:
    return x if isinstance(x, str) else "".join(x or [])


def split(cell: dict) -> tuple:
    "Part a code cell into its `#| name: value` directives and the rest of its source."
    lines, found = text(cell["source"]).splitlines(keepends=True), {}
    while lines and (not lines[0].strip() or DIRECTIVE.match(lines[0])):
        if m := DIRECTIVE.match(lines.pop(0)):
            found[m[1]] = m[2]
    return found, "".join(lines)


@dataclass
class Page:
    "A notebook and what is known of it."

    path: Path
    rel: str  # relative to nbs/, without suffix
    nb: dict
    title: str = ""
    subtitle: str = ""
    entries: list = field(default_factory=list)
    thumbnail: tuple = ()  # (suffix, bytes) of its first picture
    ran: dict = field(default_factory=dict)  # version, date, machine and seconds of its last run

    @property
    def section(self) -> str:
        return self.rel.rpartition("/")[0]


@dataclass
class Site:
    "All that the pages need to know of each other."

    root: Path
    pages: dict  # rel -> Page, in reading order
    sections: dict  # folder -> (title, sentence, [Page])
    settings: dict

    @property
    def url(self) -> str:
        return self.settings["git_url"].rstrip("/")


def read_settings(root: Path) -> dict:
    "Read the project's own settings."
    found = configparser.ConfigParser(delimiters=["="])
    found.read(root / "settings.ini", encoding="utf-8")
    return dict(found["DEFAULT"])


def _open(path: Path, rel: str) -> Page:
    page = Page(path, rel, json.loads(path.read_text(encoding="utf-8")))
    page.ran = page.nb["metadata"].get("ran", {})
    first = next((c for c in page.nb["cells"] if c["cell_type"] == "markdown"), None)
    lines = text(first["source"]).splitlines() if first else []
    page.title = next((x[2:].strip() for x in lines if x.startswith("# ")), path.stem)
    page.subtitle = next((x[2:].strip() for x in lines if x.startswith("> ")), "")
    for c in page.nb["cells"]:
        for o in c.get("outputs", []):
            for kind in ("image/png", "image/jpeg"):
                if not page.thumbnail and kind in o.get("data", {}):
                    page.thumbnail = (kind[6:], text(o["data"][kind]))
    return page


def run_dates(root: Path) -> dict:
    """Find when notebooks were last executed, {path from the root: date}, in the project's history;
    empty without one."""
    cmd = ["git", "log", "--format=%x00%cs", "--name-only", '-G^  "executed":', "--", "*.ipynb"]
    try:
        told = subprocess.run(cmd, cwd=root, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    found = {}
    for commit in told.split("\0")[1:]:
        date, *paths = commit.split("\n")
        for path in filter(None, paths):
            found.setdefault(path, date)
    return found


def _sentence(root: Path, section: str) -> str:
    "Read what a package says of itself in its first line."
    init = root / "fastedit" / section / "__init__.py"
    if not init.is_file():
        return ""
    return ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or ""


def in_order(section: str, inside: list) -> list:
    "Put a section's pages into the order in which they are read: that of `FIRST`, then by name."
    first = FIRST.get(section, ())
    stem = [p.rel.rpartition("/")[2] for p in inside]
    place = {n: first.index(n) if n in first else len(first) for n in stem}
    return [p for _, p in sorted(zip(stem, inside), key=lambda x: place[x[0]])]


def collect(root: Path, package: Path) -> Site:
    "Read all notebooks and what they export, in reading order."
    found = [
        p
        for p in (root / "nbs").rglob("*.ipynb")
        if not any(x[0] in "._" for x in p.relative_to(root).parts)
    ]
    found.sort(key=lambda p: (p.name, p.as_posix()))
    pages = [_open(p, p.relative_to(root / "nbs").with_suffix("").as_posix()) for p in found]
    dates = run_dates(root)
    for p in pages:  # those executed before a run left its own note
        if not p.ran and (date := dates.get(p.path.relative_to(root).as_posix())):
            p.ran = dict(date=date)
    first = {}
    for i, p in enumerate(pages):
        first.setdefault(p.section, i)
    names = list(SECTIONS) + sorted((s for s in first if s not in SECTIONS), key=first.get)
    sections = {}
    for s in names:
        inside = in_order(s, [p for p in pages if p.section == s and p.rel != "index"])
        title = SECTIONS.get(s) or NAMES.get(s) or s.replace("/", " · ").capitalize()
        if inside:
            sections[s] = (title, _sentence(root, s), inside)
    ordered = {p.rel: p for s in sections for p in sections[s][2]}
    ordered["index"] = next(p for p in pages if p.rel == "index")
    site = Site(root, ordered, sections, read_settings(root))
    told = {p.rel: _told(p) for p in ordered.values()}
    for e in api.read_package(package):
        if e.name in told.get(e.page, ()):
            ordered[e.page].entries.append(e)
    _find_users(site)
    return site


def _told(page: Page) -> set:
    "List the names that a page exports for its users: those of `#| export`, not of `#| exporti`."
    code = [split(c) for c in page.nb["cells"] if c["cell_type"] == "code"]
    return set().union(*(_defined(s) for d, s in code if "export" in d))


def public_names(site: Site) -> dict:
    "Map each entry's id to the name by which a program reaches it."
    entries = [e for p in site.pages.values() for e in p.entries]
    many = {}
    for e in entries:
        package = e.module.rpartition(".")[0]
        many.setdefault((package, e.name), []).append(e)
    found = {}
    for (package, name), same in many.items():
        for e in same:
            whole = len(same) > 1 or package == "fastedit" or package.startswith("fastedit.cli")
            found[id(e)] = f"{e.module if whole else package}.{name}"
    return found


def _find_users(site: Site):
    "Note on each entry the pages whose shown code uses it."
    by_name = {}
    for p in site.pages.values():
        for e in p.entries:
            by_name.setdefault(e.name.rpartition(".")[2], []).append(e)
    for p in site.pages.values():
        code = [split(c) for c in p.nb["cells"] if c["cell_type"] == "code"]
        shown = [s for d, s in code if not {"export", "exporti", "hide"} & set(d)]
        used = set().union(*map(api.used_names, shown)) if shown else set()
        for name in used & set(by_name):
            same = by_name[name]
            if len(same) == 1 and same[0].page != p.rel:
                same[0].users.append(p.rel)


# ---- one page


def _link(page: Page, to: str) -> str:
    "Write the way from a page to another notebook."
    up = "../" * page.rel.count("/")
    return f"{up}{to}.ipynb"


def _table(entry: api.Entry) -> str:
    "Write an entry's parameters as a table."
    if not any(p.comment or p.kind or p.default for p in entry.parameters):
        return ""
    rows = ["| parameter | default | what |", "|---|---|---|"]
    for p in entry.parameters:
        kind = f"*{escape(p.kind)}*" if p.kind and p.kind != "object" else ""
        said = " ".join(filter(None, [kind, p.comment])).replace("|", "\\|")
        default = f"`{p.default}`".replace("|", "\\|") if p.default else ""
        rows.append(f"| `{p.name}` | {default} | {said} |")
    return "\n".join(rows)


def _api(site: Site, page: Page, entry: api.Entry, name: str) -> str:
    "Write the entry of a public name, as a directive of Sphinx's Python domain."
    kind = {"class": "class", "method": "method"}.get(entry.what, "function")
    signature = name + entry.signature[len(entry.name) :]
    a, b = entry.lines
    module = entry.module.replace(".", "/") + ".py"
    source = f"[source]({site.url}/blob/main/{module}#L{a}-L{b})"
    users = [f"[{site.pages[u].title}]({_link(page, u)})" for u in entry.users[:8]]
    more = f" and {len(entry.users) - 8} more" if len(entry.users) > 8 else ""
    used = f" · used on {', '.join(users)}{more}" if users else ""
    parts = [entry.doc, _table(entry)]
    if entry.returns:
        parts.append(f"Gives {_as_code(entry.returns)}.")
    parts.append(f"{{.api-foot}}\n{source}{used}")
    body = "\n\n".join(filter(None, parts))
    return f"::::{{py:{kind}}} {signature}\n\n{body}\n::::\n"


def _as_code(returns: str) -> str:
    kind, colon, said = returns.partition(": ")
    return (
        f"`{kind}`{': ' + said if colon else ''}"
        if re.fullmatch(r"[\w.\[\], |\"']+", kind)
        else returns
    )


def _defined(source: str) -> set:
    "List the names that a cell defines at its top level, methods that it patches in included."
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return set()
    names = set()
    for n in tree.body:
        if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)):
            owner = api._patched(n)
            names.add(f"{owner}.{n.name}" if owner else n.name)
        elif isinstance(n, ast.ClassDef):
            names |= {n.name} | {f"{n.name}.{f.name}" for f in n.body if hasattr(f, "name")}
    return names


def _alt(page: Page, heading: str, source: str) -> str:
    "Say what a picture is, from where it stands and the code that made it."
    lines = [x for x in source.splitlines() if x.strip() and not x.lstrip().startswith("#")]
    made = re.sub(r"\s+", " ", lines[-1]).strip()[:80] if lines else "the code above"
    where = f"{page.title}, {heading}" if heading else page.title
    return f"{where}: picture made by {made}".replace('"', "'").replace("`", "")


def _prepared(o: dict) -> dict | None:
    "Bring an output into what a page shows of it."
    o = copy.deepcopy(o)
    data = o.get("data", {})
    if "application/vnd.jupyter.widget-view+json" in data:
        del data["application/vnd.jupyter.widget-view+json"]
    rich = {k for k in data if k != "text/plain"}
    if rich:
        data.pop("text/plain", None)
    if "text/html" in data:
        data["text/html"] = _whole(text(data["text/html"]))
    if o["output_type"] == "stream" and not text(o["text"]).strip():
        return None
    return o if o["output_type"] in ("stream", "error") or data else None


def _whole(html: str) -> str:
    "Take links to places that a shown piece of a page does not hold out of it."
    ids = set(re.findall(r'\bid="([^"]+)"', html))
    return re.sub(r'\shref="#([^"]*)"', lambda m: m[0] if m[1] in ids else "", html)


def _bar(site: Site, page: Page) -> str:
    "Write the line below a page's title: run it, read its source, when it was last run."
    stem = page.rel.rpartition("/")[2]
    colab = site.url.replace("https://github.com/", "https://colab.research.google.com/github/")
    ran = page.ran
    said = ", ".join(ran[k] for k in ("version", "date", "machine", "seconds") if k in ran)
    stamp = f'<span class="fe-ran">last run: {escape(said)}</span>' if said else ""
    return (
        '<p class="fe-bar">'
        f'<a class="fe-colab" href="{colab}/blob/colab/{page.rel}.ipynb">Open in Colab</a>'
        f'<a href="{site.url}/blob/main/nbs/{page.rel}.ipynb">notebook</a>'
        f'<a href="{stem}.md">Markdown</a>{stamp}</p>'
    )


def _markdown(cell: dict) -> str:
    "Bring a markdown cell's images with attachments into plain ones."
    return text(cell["source"])


def _md(source: str, **metadata) -> dict:
    return dict(cell_type="markdown", metadata=metadata, source=source)


def convert(site: Site, page: Page, names: dict) -> dict:
    "Write a page as a notebook for Sphinx: exported cells as entries with their source folded."
    by_name = {e.name: e for e in page.entries}
    cells, heading, first = [], "", True
    for c in page.nb["cells"]:
        if c["cell_type"] == "markdown":
            found = re.findall(r"^#{2,}\s+(.*)$", _markdown(c), re.M)
            heading = found[-1] if found else heading
            new = dict(c, source=_markdown(c))
            if first:
                lines = new["source"].split("\n")
                at = next((i + 1 for i, x in enumerate(lines) if x.startswith("> ")), 1)
                while at < len(lines) and lines[at].startswith(">"):
                    at += 1
                lines.insert(at, "\n" + _bar(site, page) + "\n")
                new["source"], first = "\n".join(lines), False
            cells.append(new)
            continue
        found, source = split(c)
        if "default_exp" in found and not source.strip() or "hide" in found or not source.strip():
            continue
        tags = []
        if {"export", "exporti"} & set(found):
            tags = ["hide-input"]
            told = [by_name[n] for n in by_name if n in _defined(source)]
            if told and "export" in found:
                cells.append(_md("\n".join(_api(site, page, e, names[id(e)]) for e in told)))
        outputs = [o for o in map(_prepared, c.get("outputs", [])) if o]
        if found.get("echo") == "false":
            tags = ["remove-input"]
        elif "code-fold" in found:
            tags = ["hide-input"]
        alt = found.get("fig-alt") or _alt(page, heading, source)
        meta = dict(tags=tags, mystnb=dict(image=dict(alt=alt)))
        cells.append(dict(c, source=source.strip("\n"), outputs=outputs, metadata=meta))
    for i, c in enumerate(cells):
        c["id"] = f"c{i}"
    kept = {"kernelspec": page.nb["metadata"].get("kernelspec", {})}
    kept["language_info"] = dict(name="python", pygments_lexer="ipython3")
    return dict(cells=cells, metadata=kept, nbformat=4, nbformat_minor=5)


def as_markdown(page: Page) -> str:
    "Write a page as plain Markdown, with what its code printed."
    out = []
    for c in page.nb["cells"]:
        if c["cell_type"] == "markdown":
            out.append(text(c["source"]))
            continue
        found, source = split(c)
        if "hide" in found or not source.strip():
            continue
        out.append(f"```python\n{source.strip()}\n```")
        for o in c.get("outputs", []):
            data = o.get("data", {})
            said = (
                text(o.get("text"))
                or text(data.get("text/markdown"))
                or text(data.get("text/plain"))
            )
            if "text/markdown" in data:
                out.append(said)
            elif said.strip() and not said.startswith("<"):
                out.append(f"```\n{said.rstrip()}\n```")
    return "\n\n".join(out) + "\n"


COLAB = """# Run this page in Colab
This cell installs fastedit. Everything on this page runs on a CPU with the mini models, which are
inside the package; nothing else is downloaded. Where a cell needs a GPU, it says so and is skipped
without one."""
COLAB_GPU = """# Run this page in Colab
This cell installs fastedit. The page needs a GPU: choose one by *Runtime, Change runtime type*. It
downloads weights of full size, and its results go to your Google Drive."""


def for_colab(site: Site, page: Page) -> dict:
    "Copy a notebook with a first cell that installs the package; outputs stay."
    nb = copy.deepcopy(page.nb)
    install = f'%pip install -q "fastedit @ git+{site.url}"'
    code = dict(
        cell_type="code",
        id="colab-1",
        metadata={},
        source=install,
        outputs=[],
        execution_count=None,
    )
    said = COLAB_GPU if nb["metadata"].get("accelerator") == "GPU" else COLAB
    nb["cells"] = [dict(_md(said), id="colab-0"), code, *nb["cells"]]
    return nb


def write(site: Site, out: Path):
    "Write the pages and the indexes of sections into a folder that Sphinx reads."
    shutil.rmtree(out, ignore_errors=True)
    names = public_names(site)
    for page in site.pages.values():
        if page.rel == "index":
            continue
        to = out / f"{page.rel}.ipynb"
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(json.dumps(convert(site, page, names)), encoding="utf-8")
        for other in page.path.parent.iterdir():  # pictures that a page refers to
            if other.suffix in (".png", ".webp", ".jpg", ".svg", ".json", ".csv"):
                if not (to.parent / other.name).exists():
                    shutil.copy(other, to.parent / other.name)
    for s, (title, sentence, inside) in site.sections.items():
        lines = [f"# {title}", "", sentence, ""]
        for p in inside:
            here = p.rel.rpartition("/")[2]
            lines.append(f"- [{p.title}]({here}.ipynb): {p.subtitle}")
        below = [x for x in site.sections if s and x.startswith(s + "/")]
        inner = [p.rel.rpartition("/")[2] for p in inside]
        lines += [
            "",
            "```{toctree}",
            ":hidden:",
            "",
            *inner,
            *[f"{x[len(s) + 1 :]}/section" for x in below],
            "```",
        ]
        to = out / s / "section.md"
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text("\n".join(lines) + "\n", encoding="utf-8")
