"""Build the published site from the committed, executed notebooks: `python .ci/site/build.py
[OUT]`; nothing is run or fetched."""

import argparse
import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from html import escape
from pathlib import Path

import checks
import pages

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent


def known(site: pages.Site) -> dict:
    "Gather what the templates need: the sidebar, and where the entry of each name stands."
    names, public = {}, pages.public_names(site)
    count = {}
    for p in site.pages.values():
        for e in p.entries:
            count[e.name] = count.get(e.name, 0) + 1
            names[e.name] = names[public[id(e)]] = (p.rel, public[id(e)])
    for name, n in count.items():
        if n > 1 or len(name) < 4:
            del names[name]
    sections = [
        dict(folder=s, title=title, open=s == "tutorials", pages=[(p.rel, p.title) for p in inside])
        for s, (title, _, inside) in site.sections.items()
    ]
    told = {k: site.settings[k] for k in ("author", "version", "license")}
    return dict(told, url=site.url, names=names, sections=sections)


def block(html: str, start: str) -> str:
    "Cut the first element that begins with `start` out of a piece of HTML, up to its own end."
    at = html.find(start)
    if at < 0:
        return ""
    tag, depth = re.match(r"<(\w+)", start)[1], 0
    for m in re.finditer(rf"<(/?){tag}\b", html[at:]):
        depth += -1 if m[1] else 1
        if not depth:
            return html[at : html.index(">", at + m.start()) + 1]
    return ""


def slider(site: pages.Site) -> tuple:
    """Find the landing page's picture, (slider, words): the first before|after of the front page,
    the quickstart, the divider's page."""
    for rel in ("index", "tutorials/quickstart", "show/021_divider"):
        for c in site.pages[rel].nb["cells"] if rel in site.pages else ():
            for o in c.get("outputs", []):
                html = pages.text(o.get("data", {}).get("text/html"))
                if found := block(html, '<div class="fe-ba"'):
                    said = re.search(r'<figure class="fe-over"><figcaption>(.*?)<', found)
                    return found, said[1] if said else ""
    return "", ""


def landing(site: pages.Site) -> str:
    "Write the landing page: what it is, a picture, three doors, then the front notebook."
    doors = [
        (
            "tutorials/quickstart",
            "Try it",
            "From a picture and a sentence to an edit, in a notebook, in seconds.",
        ),
        (
            "methods/section",
            "Understand it",
            "Each method is its formula, run and shown on a page of its own.",
        ),
        (
            "experiments/section",
            "Measure it",
            "Speed, memory and quality, with intervals, each by one command.",
        ),
    ]
    cards = "".join(f'<a href="{to}.html"><strong>{t}</strong>{said}</a>' for to, t, said in doors)
    picture, said = slider(site)
    lines = [
        "# fastedit",
        "",
        '<div class="fe-hero"><div>',
        f"<p>{escape(site.settings['description'])}.</p>",
        "<p>Notebooks are the source: they export the package, and executed they are these",
        "pages. Everything here ran on a CPU, with trained miniature models that are part of the",
        "package.</p>",
        f"<p><code>pip install git+{site.url}</code></p>",
        '<p><a href="tutorials/quickstart.html">Quickstart</a> ·',
        '<a href="tutorials/your_photo.html">your own photograph</a> ·',
        f'<a href="gallery.html">gallery</a> · <a href="{site.url}">source</a></p>',
        "</div>",
        f'<div class="fe-pic">{picture}<p class="fe-cap">{said}: move the line</p></div></div>',
        f'<div class="fe-doors">{cards}</div>',
        "",
    ]
    front = site.pages["index"]
    body = pages.convert(site, front, {})["cells"]
    first = body[0]["source"].split("\n")
    body[0]["source"] = "\n".join(
        x for x in first if not x.startswith(("# ", "> ")) and "fe-bar" not in x
    )
    start = dict(cell_type="markdown", id="top", metadata={}, source="\n".join(lines))
    tree = [
        "```{toctree}",
        ":hidden:",
        "",
        "gallery",
        *(f"{s}/section" if s else "section" for s in site.sections if "/" not in s),
    ]
    tree += [
        f"{s}/section"
        for s in site.sections
        if "/" in s and s.rpartition("/")[0] not in site.sections
    ]
    end = dict(cell_type="markdown", id="tree", metadata={}, source="\n".join([*tree, "```"]))
    for c in body:
        if c["cell_type"] == "markdown":
            outside = rf"]({site.url}/blob/main/\1)"
            c["source"] = re.sub(r"\]\(\.\./([^)]+)\)", outside, c["source"])
    nb = pages.convert(site, front, {})
    return json.dumps(dict(nb, cells=[start, *body, end]))


def gallery(site: pages.Site, out: Path) -> str:
    "Write the gallery: a picture and a line for each page of the sections that show results."
    from PIL import Image

    lines = [
        "# Gallery",
        "",
        ("Experiments, tutorials and methods, by the first picture of their pages."),
        "",
    ]
    (out / "thumbs").mkdir(parents=True)
    for s in (
        "tutorials",
        "experiments",
        "methods",
        "widgets",
        "views",
        "failures",
        "drift",
        "world",
    ):
        inside = [p for p in site.sections.get(s, ("", "", []))[2] if p.thumbnail]
        if not inside:
            continue
        cards = []
        for p in inside:
            im = Image.open(io.BytesIO(base64.b64decode(p.thumbnail[1]))).convert("RGB")
            im = im.crop((0, 0, min(im.width, 2 * im.height), im.height))
            times = min(4, 240 // min(im.size))
            if times > 1:
                im = im.resize((im.width * times, im.height * times), Image.NEAREST)
            im.thumbnail((480, 480))
            name = f"{p.rel.replace('/', '-')}.png"
            im.save(out / "thumbs" / name)
            said = escape(p.subtitle.replace("`", ""), quote=True)
            alt = f"first picture of {escape(p.title, quote=True)}: {said}"
            cards.append(
                f'<a href="{p.rel}.html"><img src="thumbs/{name}" alt="{alt}" loading="lazy">'
                f"<strong>{escape(p.title)}</strong>{said}</a>"
            )
        lines += [
            f"## {site.sections[s][0]}",
            "",
            f'<div class="fe-gallery">{"".join(cards)}</div>',
            "",
        ]
    return "\n".join(lines)


def write_plain(site: pages.Site, out: Path):
    "Write `llms.txt`, each page as Markdown and a copy of each notebook for Colab."
    lines = ["# fastedit", "", f"> {site.settings['description']}", ""]
    for s, (title, sentence, inside) in site.sections.items():
        lines += (
            [f"## {title}", ""]
            + [f"- [{p.title}]({p.rel}.md): {p.subtitle}" for p in inside]
            + [""]
        )
    (out / "llms.txt").write_text("\n".join(lines), encoding="utf-8")
    for p in site.pages.values():
        to = out / f"{p.rel}.md"
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(pages.as_markdown(p), encoding="utf-8")
        to = out / "colab" / f"{p.rel}.ipynb"
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(json.dumps(pages.for_colab(site, p), indent=1), encoding="utf-8")


def sphinx(source: Path, out: Path, work: Path) -> subprocess.CompletedProcess:
    "Run Sphinx; its warnings are errors."
    args = [
        "-b",
        "html",
        "-j",
        "auto",
        "-W",
        "--keep-going",
        "-q",
        "-c",
        str(HERE),
        "-d",
        str(work / "doctrees"),
    ]
    env = dict(os.environ, FASTEDIT_SITE=str(source))
    cmd = [sys.executable, "-m", "sphinx", *args, str(source), str(out)]
    return subprocess.run(cmd, env=env, capture_output=True, text=True)


def build(out: Path) -> list:
    "Build the site into a folder and give its problems, one text each."
    started = time.time()
    site = pages.collect(ROOT, ROOT / "fastedit")
    with tempfile.TemporaryDirectory() as tmp:
        source, work = Path(tmp) / "source", Path(tmp)
        pages.write(site, source)
        (source / "known.json").write_text(json.dumps(known(site)), encoding="utf-8")
        (source / "index.ipynb").write_text(landing(site), encoding="utf-8")
        (source / "gallery.md").write_text(gallery(site, source), encoding="utf-8")
        fresh = work / "html"
        print(f"{len(site.pages)} pages gathered in {time.time() - started:.0f} s", flush=True)
        done = sphinx(source, fresh, work)
        problems = [x.replace(str(source), "nbs") for x in done.stderr.splitlines() if x.strip()]
        if done.returncode and not problems:
            problems = [done.stdout[-2000:] or f"sphinx ended with {done.returncode}"]
        if not (fresh / "index.html").is_file():
            return problems
        shutil.copytree(source / "thumbs", fresh / "thumbs", dirs_exist_ok=True)
        write_plain(site, fresh)
        bad, checked = checks.check(fresh)
        problems += bad
        print(f"checked: {checked}", flush=True)
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(fresh, out)
    (out / ".nojekyll").touch()
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file()) / 1e6
    print(
        f"{out}: {size:.0f} MB in {time.time() - started:.0f} s, {len(problems)} problems",
        flush=True,
    )
    return problems


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", type=Path, default=ROOT / "_docs")
    found = build(parser.parse_args().out.resolve())
    print("\n".join(found[:60]))
    sys.exit(bool(found))
