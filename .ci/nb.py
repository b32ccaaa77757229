"""Execute the notebooks, write README.md from one of them, and check that notebooks, modules and
README belong together."""

import argparse, ast, base64, configparser, filecmp, hashlib, io, json, os, platform, posixpath
import re, shutil, subprocess, sys, tempfile, time, tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_BYTES = 1_500_000
SECONDS_PER_NOTEBOOK = 180  # the promise of every notebook on a CPU; `execute` warns above it
CELL_TIMEOUT = 300  # seconds after which a cell counts as hanging
HANDWRITTEN = {"__init__.py", "__main__.py"}
LOCAL_PATH = re.compile(
    r"(?:file://|(?<![\w.~/:$}>*-]))/(?:work|farm|root|home|tmp|opt|Users)/[\w./-]*\w"
)

# ---- reading notebooks


def find_notebooks(root: Path) -> list:
    "List the notebooks of a project in layer order: by file name, whatever the folder."
    found = [
        p
        for p in (root / "nbs").rglob("*.ipynb")
        if not any(o[0] in "._" for o in p.relative_to(root).parts)
    ]
    return sorted(found, key=lambda p: (p.name, p.as_posix()))


def load(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise SystemExit(f"{path} is no notebook: {e}")


def text(o) -> str:
    return o if isinstance(o, str) else "".join(o or [])


def source(cell: dict) -> str:
    return text(cell["source"])


def code_cells(nb: dict) -> list:
    return [c for c in nb["cells"] if c["cell_type"] == "code"]


def split_directives(src: str) -> tuple:
    "Part a cell's source into its `#| name: value` directives (a dict) and the rest."
    lines, found = src.splitlines(keepends=True), {}
    while lines and (not lines[0].strip() or re.match(r"\s*#\s*\|", lines[0])):
        m = re.match(r"\s*#\s*\|\s*([^\s:]+)\s*:?\s*(.*?)\s*$", lines.pop(0))
        if m:
            found[m[1]] = m[2]
    return found, "".join(lines)


def stamp(nb: dict) -> str:
    "Hash the code that an execution ran: all code cells, in order."
    return hashlib.sha256(json.dumps([source(c) for c in code_cells(nb)]).encode()).hexdigest()


def run_tool(name: str, *args, cwd: Path, **env) -> subprocess.CompletedProcess:
    """Run a command of this environment, with no settings from the user's home and none inherited
    from a test run."""
    settings = (
        {k: v for k, v in os.environ.items() if k != "IN_TEST"}
        | {"XDG_CONFIG_HOME": str(cwd / ".config")}
        | env
    )
    cmd = (
        [sys.executable, *args] if name == "python" else [Path(sys.executable).parent / name, *args]
    )
    return subprocess.run(cmd, cwd=cwd, env=settings, capture_output=True, text=True)


def tail(done: subprocess.CompletedProcess, n: int = 30) -> str:
    return (
        "\n".join((done.stdout + done.stderr).strip().splitlines()[-n:])
        or f"exit code {done.returncode}"
    )


# ---- checks: each takes the project's folder and returns its problems, one text each


def copy_project(root: Path, dest: Path):
    "Copy what nbdev needs: its settings, the notebooks and the handwritten part of the package."
    shutil.copy(root / "pyproject.toml", dest)
    shutil.copytree(root / "nbs", dest / "nbs", ignore=shutil.ignore_patterns(".*"))
    for p in (root / "fastedit").rglob("*.py"):
        if p.name in HANDWRITTEN:
            (q := dest / p.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(p, q)


def check_clean(root: Path) -> list:
    "notebooks are as nbdev-clean leaves them"
    with tempfile.TemporaryDirectory() as tmp:
        copy_project(root, tmp := Path(tmp))
        done = run_tool("nbdev-clean", cwd=tmp)
        if done.returncode or "Failed to clean" in done.stderr:
            return [tail(done)]
        return [
            f"{p.relative_to(root)}: run `nbdev-clean --fname {p.relative_to(root)}`"
            for p in find_notebooks(root)
            if not filecmp.cmp(p, tmp / p.relative_to(root), shallow=False)
        ]


def check_executed(root: Path) -> list:
    "notebooks were executed as they stand, without an error"
    bad = []
    for p in find_notebooks(root):
        nb, name = load(p), p.relative_to(root)
        errors = [
            o.get("ename", "?")
            for c in code_cells(nb)
            for o in c.get("outputs", [])
            if o["output_type"] == "error"
        ]
        shown = [
            c
            for c in code_cells(nb)
            if not {"export", "exporti", "hide", "default_exp"}
            & set(split_directives(source(c))[0])
        ]
        if errors:
            bad.append(f"{name}: holds an error output ({', '.join(errors)})")
        if any(is_bar(o) for c in code_cells(nb) for o in c.get("outputs", [])):
            bad.append(f"{name}: holds a progress bar")
        elif "executed" not in nb["metadata"]:
            bad.append(f"{name}: was not executed by `.ci/nb.py execute`")
        elif nb["metadata"]["executed"] != stamp(nb):
            bad.append(f"{name}: its code changed after it was executed")
        elif shown and not any(c.get("outputs") for c in shown):
            bad.append(f"{name}: no cell has an output")
    return bad


def imported_modules(src: str) -> list:
    """List what a piece of code imports from fastedit (or reads from the package itself), as names
    within the package; its version counts for nothing."""
    names = []
    for node in ast.walk(ast.parse(src)):
        if isinstance(node, ast.Import):
            names += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, ["fastedit" if node.level else "", node.module]))
            names += [base, *(f"{base}.{a.name}" for a in node.names)]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names.append(f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.Call) and (
            getattr(node.func, "attr", None) or getattr(node.func, "id", None)
        ) in ("import_module", "__import__"):
            names += [
                a.value
                for a in node.args[:1]
                if isinstance(a, ast.Constant) and isinstance(a.value, str)
            ]
    return [
        n.partition(".")[2]
        for n in names
        if n.startswith("fastedit.") and n != "fastedit.__version__"
    ]


def facades(root: Path) -> dict:
    """List what each package's `__init__.py` passes on, as names within fastedit: {package:
    [modules]}."""
    found = {}
    for p in sorted((root / "fastedit").rglob("*/__init__.py")):
        parts = p.parent.relative_to(root / "fastedit").parts
        nodes = [
            n
            for n in ast.walk(ast.parse(p.read_text(encoding="utf-8")))
            if isinstance(n, ast.ImportFrom) and n.level
        ]
        found[".".join(parts)] = [
            ".".join(filter(None, [*parts[: len(parts) + 1 - n.level], n.module])) for n in nodes
        ]
    return found


def owner_of(name: str, home: dict, packages: dict) -> tuple:
    """Find who exports a name: (module or package, rank, notebook), of a package the latest
    notebook that it passes on; (None, 0, None) if nobody does."""

    def latest(n):
        if n in home:
            return home[n]
        inside = packages.get(n) or [m for m in home if n and m.startswith(n + ".")]
        return max(filter(None, map(latest, inside)), key=lambda v: v[0], default=None)

    for n in (name, name.rpartition(".")[0]):
        if found := latest(n):
            return n, *found
    return None, 0, None


def check_layers(root: Path) -> list:
    "exported cells import from earlier notebooks only, one module a notebook"
    bad, home, exported, packages = [], {}, [], facades(root)
    for rank, p in enumerate(find_notebooks(root)):
        cells = [split_directives(source(c)) for c in code_cells(load(p))]
        mods = [d["default_exp"] for d, _ in cells if "default_exp" in d]
        exports = [(d, s) for d, s in cells if {"export", "exporti", "exports"} & set(d)]
        if exports and len(mods) != 1:
            bad.append(
                (f"{p.relative_to(root)}: exports and has {len(mods)} `default_exp`, not one")
            )
        if any(d.get(k) for d, _ in exports for k in ("export", "exporti", "exports")):
            bad.append(f"{p.relative_to(root)}: exports a second module")
        for m in mods:
            if m in home:
                bad.append(f"{p.relative_to(root)}: exports {m}, as {home[m][1].name} does")
            home.setdefault(m, (rank, p))
        exported.append((rank, p, [s for _, s in exports]))
    for rank, p, cells in exported:
        for src in cells:
            try:
                names = imported_modules(src)
            except SyntaxError as e:
                bad.append(
                    (
                        f"{p.relative_to(root)}: an exported cell is no plain Python ({e.msg}, "
                        f"line {e.lineno})"
                    )
                )
                continue
            for n in names:
                owner, at, where = owner_of(n, home, packages)
                if owner is None:
                    bad.append(
                        (
                            f"{p.relative_to(root)}: imports fastedit.{n}, which no notebook "
                            f"exports: import from the module that defines it"
                        )
                    )
                elif at >= rank:
                    bad.append(
                        (
                            f"{p.relative_to(root)}: imports fastedit.{owner} of {where.name}, "
                            f"which is not an earlier notebook"
                        )
                    )
    return list(dict.fromkeys(bad))


COLUMNS, CELL_LINES, MODULE_LINES = 100, 60, 400


def crowded(src: str):
    """Yield what makes an exported cell hard to read: long lines, several statements in one, too
    many lines."""
    lines = src.splitlines()
    if len(lines) > CELL_LINES:
        yield f"has {len(lines)} lines, more than {CELL_LINES}"
    for i, line in enumerate(lines, 1):
        if len(line) > COLUMNS:
            yield f"line {i} has {len(line)} columns, more than {COLUMNS}"
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(src).readline))
    except (tokenize.TokenError, SyntaxError):
        return
    for t in tokens:
        if t.type == tokenize.OP and t.string == ";":
            yield f"line {t.start[0]} holds several statements"


def check_lines(root: Path) -> list:
    "exported cells can be read: 100 columns, one statement a line, 60 lines a cell, 400 a module"
    bad = []
    for p in find_notebooks(root):
        total = 0
        for c in code_cells(load(p)):
            found, src = split_directives(source(c))
            if not {"export", "exporti"} & set(found):
                continue
            total += len(src.splitlines()) + 2
            bad += [
                f"{p.relative_to(root)}: cell {c.get('id')} {why}"
                for why in crowded(src.strip("\n"))
            ]
        if total > MODULE_LINES:
            bad.append(f"{p.relative_to(root)}: exports {total} lines, more than {MODULE_LINES}")
    return bad


def check_links(root: Path) -> list:
    "what a page links to inside the project is there"
    pages = {
        p: "\n".join(source(c) for c in load(p)["cells"] if c["cell_type"] == "markdown")
        for p in find_notebooks(root)
    }
    pages |= {p: p.read_text(encoding="utf-8") for p in root.glob("*.md")}
    links = [
        (p, m[1]) for p, t in pages.items() for m in re.finditer(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", t)
    ]
    return [
        f"{p.relative_to(root)}: links to {to}, which is not there"
        for p, to in links
        if not re.match(r"[a-z]+:", to) and not (p.parent / to).exists()
    ]


def check_size(root: Path) -> list:
    "notebooks are under 1.5 MB"
    return [
        f"{p.relative_to(root)}: {p.stat().st_size / 1e6:.1f} MB"
        for p in find_notebooks(root)
        if p.stat().st_size > MAX_BYTES
    ]


def notebook_texts(nb: dict):
    """Yield all that a reader can see as text: sources, streams, text outputs, error messages, and
    the values of widgets."""
    for kept in nb.get("metadata", {}).get("widgets", {}).values():
        yield json.dumps(kept.get("state", {}))
    for c in nb["cells"]:
        yield source(c)
        for o in c.get("outputs", []):
            yield text(o.get("text"))
            yield "\n".join(o.get("traceback", []))
            yield from (
                text(v)
                for k, v in o.get("data", {}).items()
                if k.startswith("text/") or k == "image/svg+xml"
            )


def check_paths(root: Path) -> list:
    "no folder of somebody's machine is named"
    files = [p for d in ("fastedit", "tests") for p in (root / d).rglob("*.py")] + list(
        root.glob("*.md")
    )
    texts = [(p, t) for p in find_notebooks(root) for t in notebook_texts(load(p))] + [
        (p, p.read_text(encoding="utf-8")) for p in files
    ]
    return list(
        dict.fromkeys(
            f"{p.relative_to(root)}: names {m[0]}" for p, t in texts if (m := LOCAL_PATH.search(t))
        )
    )


def check_readme(root: Path) -> list:
    "README.md is what nbs/index.ipynb says"
    want, pictures = readme(load(root / "nbs" / "index.ipynb"), root)
    have = root / "README.md"
    stale = [] if have.exists() and have.read_text(encoding="utf-8") == want else [have]
    stale += [
        root / p
        for p, data in pictures.items()
        if not (root / p).exists() or (root / p).read_bytes() != data
    ]
    return [f"{p.relative_to(root)} is not up to date: run `make readme`" for p in stale]


def check_export(root: Path) -> list:
    "modules are what nbdev-export writes"
    with tempfile.TemporaryDirectory() as tmp:
        copy_project(root, tmp := Path(tmp))
        done = run_tool("nbdev-export", cwd=tmp)
        if done.returncode:
            return [tail(done)]
        want, have = (
            {p.relative_to(d).as_posix() for p in (d / "fastedit").rglob("*.py")}
            for d in (tmp, root)
        )
        return (
            [f"{p}: missing, run `make export`" for p in sorted(want - have)]
            + [f"{p}: comes from no notebook" for p in sorted(have - want)]
            + [
                f"{p}: differs, run `make export`"
                for p in sorted(want & have)
                if not filecmp.cmp(tmp / p, root / p, shallow=False)
            ]
        )


def check_ruff(root: Path) -> list:
    "ruff finds no undefined, unused or redefined name; tests and tools are as it formats them"
    places = [p for p in ("fastedit", "tests", ".ci", "setup.py") if (root / p).exists()]
    said = []
    for args in (("check", "--output-format", "concise"), ("format", "--check")):
        done = run_tool("python", "-m", "ruff", *args, "--quiet", "--no-cache", *places, cwd=root)
        said += tail(done).splitlines() if done.returncode else []
    return said


IMPORT_EACH = """
import importlib, os, sys, traceback
for k in ("torch", "diffusers", "transformers", "matplotlib.pyplot", "cv2"):
    importlib.import_module(k)
for name in sys.argv[1:]:
    if not os.fork():   # a child knows the libraries and no module of ours
        try: importlib.import_module(name)
        except BaseException as e: print(f"{name}: {type(e).__name__}: {e}", flush=True)
        os._exit(0)
    _, status = os.wait()
    if status: print(f"{name}: the process ended with status {status}", flush=True)
"""


def check_imports(root: Path) -> list:
    "every module imports by itself, before any other of the package"
    files = sorted((root / "fastedit").rglob("*.py"))
    names = [
        ".".join(p.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for p in files
    ]
    with tempfile.TemporaryDirectory() as tmp:
        done = run_tool(
            "python",
            "-c",
            IMPORT_EACH,
            *names,
            cwd=Path(tmp),
            PYTHONPATH=str(root),
            OMP_NUM_THREADS="1",
        )
    return tail(done).splitlines() if done.returncode else done.stdout.splitlines()


def check_notebooks(root: Path) -> list:
    "notebook tests pass"
    with tempfile.TemporaryDirectory() as tmp:
        done = run_tool(
            "nbdev-test",
            "--n-workers",
            str(min(2, os.cpu_count() or 1)),
            "--cell-timeout",
            str(CELL_TIMEOUT),
            cwd=root,
            OMP_NUM_THREADS="1",
            TQDM_DISABLE="1",
            XDG_CONFIG_HOME=tmp,
        )
    return [tail(done, 60)] if done.returncode else []


CHECKS = {
    f.__name__.removeprefix("check_"): f
    for f in (
        check_clean,
        check_executed,
        check_layers,
        check_lines,
        check_links,
        check_size,
        check_paths,
        check_readme,
        check_export,
        check_ruff,
        check_imports,
        check_notebooks,
    )
}


def check(root: Path, names: list) -> int:
    "Run the checks, print a line for each, and return how many failed."
    failed = 0
    for name in names:
        start = time.time()
        problems = CHECKS[name](root)
        took = f"{time.time() - start:.1f} s"
        failed += bool(problems)
        if not problems:
            print(f"ok      {name}: {CHECKS[name].__doc__} ({took})", flush=True)
        else:
            print(
                f"FAILED  {name}: "
                + "\n        ".join(line for p in problems for line in p.splitlines())
                + f" ({took})",
                flush=True,
            )
    return failed


# ---- execution


def skipped(cell: dict, cuda: bool) -> bool:
    """Tell whether a cell keeps the outputs that it has: it is never evaluated, or needs a GPU and
    `cuda` is off."""
    found, _ = split_directives(source(cell))
    return found.get("eval", "").lower() == "false" or ("cuda" in found and not cuda)


def ran(seconds: float, cuda: bool = False) -> dict:
    "Say by which version, when, on what kind of machine and for how long a notebook ran."
    settings = configparser.ConfigParser(delimiters="=", interpolation=None)
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    machine = f"{platform.machine()} CPU"
    if cuda:
        import torch

        machine = torch.cuda.get_device_name() if torch.cuda.is_available() else machine
    return dict(
        version=f"fastedit {settings['DEFAULT']['version']}",
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        machine=machine,
        seconds=f"{max(1, round(seconds))} s",
    )


BAR = re.compile(r"\d+%\|")  # in the text of a progress bar, which stays where it was drawn first
STATE = "application/vnd.jupyter.widget-state+json"


def is_bar(output: dict) -> bool:
    "Whether an output is a progress bar: what it counted is over when the page is read."
    return bool(BAR.search("".join(output.get("data", {}).get("text/plain", ""))))


def without_bars(nb: dict):
    "Take progress bars out of a notebook's outputs, and what they are made of out of its widgets."
    state, gone = nb["metadata"].get("widgets", {}).get(STATE, {}).get("state", {}), []
    for c in code_cells(nb):
        bars = [o for o in c.get("outputs", []) if is_bar(o)]
        views = [o["data"].get("application/vnd.jupyter.widget-view+json", {}) for o in bars]
        gone += [v["model_id"] for v in views if v]
        c["outputs"] = [o for o in c.get("outputs", []) if o not in bars]
    while gone:
        model = json.dumps(state.pop(gone.pop(), {}))
        gone += re.findall(r"IPY_MODEL_(\w+)", model)
    if "widgets" in nb["metadata"] and not state:
        del nb["metadata"]["widgets"]


def execute(path: Path, cuda: bool = False, timeout: int = CELL_TIMEOUT) -> float:
    """Run a notebook in a fresh kernel in its own folder, save outputs and stamp, clean it, and
    return the seconds; on an error nothing is saved."""
    import nbformat
    from nbclient import NotebookClient

    start, nb = time.time(), nbformat.read(path, as_version=4)
    client = NotebookClient(
        nb,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
    )
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "TQDM_DISABLE": "1",
    }
    with client.setup_kernel(env=env):
        for i, cell in enumerate(nb.cells):
            if cell.cell_type == "code" and not skipped(cell, cuda):
                client.execute_cell(cell, i)
        client.set_widgets_metadata()
    without_bars(nb)
    seconds = time.time() - start
    nb.metadata["executed"], nb.metadata["ran"] = stamp(nb), ran(seconds, cuda)
    tmp = path.with_name(f".{path.name}.tmp")
    nbformat.write(nb, tmp)
    os.replace(tmp, path)
    done = run_tool(
        "nbdev-clean", "--fname", str(path), cwd=ROOT, XDG_CONFIG_HOME=tempfile.gettempdir()
    )
    if done.returncode:
        raise RuntimeError(tail(done))
    return seconds


def execute_all(paths: list, **kwargs) -> int:
    "Execute notebooks, print a line for each, and return how many failed."
    failed = 0
    for p in paths:
        try:
            seconds = execute(p, **kwargs)
        except Exception as e:
            failed += 1
            print(f"FAILED  {p}: {type(e).__name__}: {e}", flush=True)
        else:
            print(
                (
                    f"ok      {p} ({seconds:.0f} "
                    f"s{', OVER THE LIMIT' if seconds > SECONDS_PER_NOTEBOOK else ''})"
                ),
                flush=True,
            )
    return failed


# ---- README


def relink(md: str, root: Path) -> str:
    "Point relative links, which start in nbs/, to the same files from the top of the project."

    def swap(m):
        return (
            m[1] + posixpath.normpath(f"nbs/{m[2]}")
            if (root / "nbs" / m[2].partition("#")[0]).is_file()
            else m[0]
        )

    return re.sub(r"(\]\(|(?:src|href)=\")(?!\w+:|#|/)([^)\"\s]+)", swap, md)


def readme(nb: dict, root: Path) -> tuple:
    """Turn the index notebook into README.md: its text and its pictures, a dict of path and PNG
    bytes."""
    parts, pictures = [], {}
    for c in nb["cells"]:
        found, code = split_directives(source(c))
        if c["cell_type"] == "markdown":
            parts.append(relink(source(c), root))
        if c["cell_type"] != "code" or {"hide", "export", "exporti", "default_exp"} & set(found):
            continue
        if code.strip() and found.get("echo", "").lower() != "false":
            parts.append(f"```python\n{code.strip()}\n```")
        for o in c.get("outputs", []):
            data = o.get("data", {})
            if "image/png" in data:
                name = f"nbs/images/index-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(text(data["image/png"]))
                parts.append(f"![{found.get('fig-alt', '')}]({name})")
            elif "text/markdown" in data:
                parts.append(relink(text(data["text/markdown"]), root))
            elif shown := text(o.get("text")) or text(data.get("text/plain")):
                parts.append(f"```\n{shown.rstrip()}\n```")
    return "\n\n".join(
        [
            (
                "<!-- Written from nbs/index.ipynb by `make readme`: change the "
                "notebook, not this file. -->"
            ),
            *(p.strip() for p in parts),
        ]
    ) + "\n", pictures


def write_readme(root: Path):
    body, pictures = readme(load(root / "nbs" / "index.ipynb"), root)
    for old in (root / "nbs" / "images").glob("index-*.png"):
        old.unlink()
    for p, data in pictures.items():
        (root / p).parent.mkdir(exist_ok=True)
        (root / p).write_bytes(data)
    (root / "README.md").write_text(body, encoding="utf-8")


# ---- command line


def main() -> int | None:
    parser = argparse.ArgumentParser(description=__doc__)
    sub = parser.add_subparsers(dest="command", required=True)
    p = sub.add_parser(
        "execute", help="run notebooks top to bottom in a fresh kernel and save their outputs"
    )
    p.add_argument("notebooks", nargs="*", type=Path, help="default: all")
    p.add_argument("--cuda", action="store_true", help="run the cells marked `#| cuda` too")
    p.add_argument("--timeout", type=int, default=CELL_TIMEOUT, help="seconds for one cell")
    p = sub.add_parser(
        "check", help="check notebooks, modules and README; exit code 1 if a check fails"
    )
    p.add_argument("checks", nargs="*", metavar="NAME", help=f"default: all of {' '.join(CHECKS)}")
    p.add_argument("--list", action="store_true", help="name the checks and stop")
    sub.add_parser("readme", help="write README.md from nbs/index.ipynb")
    args = parser.parse_args()
    if args.command == "execute":
        return bool(
            execute_all(
                [o.resolve() for o in args.notebooks] or find_notebooks(ROOT),
                cuda=args.cuda,
                timeout=args.timeout,
            )
        )
    if args.command == "readme":
        return write_readme(ROOT)
    if unknown := set(args.checks) - set(CHECKS):
        parser.error(f"no check {', '.join(sorted(unknown))}: choose from {' '.join(CHECKS)}")
    if args.list:
        return print("\n".join(f"{k:10} {f.__doc__}" for k, f in CHECKS.items()))
    return bool(check(ROOT, args.checks or list(CHECKS)))


if __name__ == "__main__":
    sys.exit(main())
