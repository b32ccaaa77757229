"""Check a built site: links, anchors, foreign assets, alternative texts, the order of headings."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Reader(HTMLParser):
    "Collect what a page refers to, what it can be referred to by, its pictures and its headings."

    def __init__(self):
        super().__init__()
        self.links, self.assets, self.ids, self.headings, self.bare = [], [], set(), [], []
        self.pictures = 0
        self.figures = 0  # open ones; a picture in a figure may leave its words to the caption

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if "id" in a:
            self.ids.add(a["id"])
        if tag == "a" and "name" in a:
            self.ids.add(a["name"])
        if tag == "a" and a.get("href"):
            self.links.append(a["href"])
        if tag == "link" and "canonical" not in (a.get("rel") or "") and a.get("href"):
            self.assets.append(a["href"])
        if tag in ("img", "script", "iframe", "source", "video", "audio") and a.get("src"):
            self.assets.append(a["src"])
        self.figures += tag == "figure"
        self.pictures += tag == "img"
        captioned = self.figures and a.get("alt") == ""
        if tag == "img" and not (a.get("alt") or "").strip() and not captioned:
            self.bare.append((a.get("src") or "?")[:60])
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_endtag(self, tag):
        self.figures -= tag == "figure"


def _target(page: Path, address: str, root: Path) -> Path:
    path = unquote(urlsplit(address).path)
    if not path:
        return page
    found = (page.parent / path).resolve()
    return found / "index.html" if found.is_dir() else found


def _read(root: Path) -> dict:
    "Read all pages of a site, {path: what it refers to}."
    found = {}
    for p in sorted(root.rglob("*.html")):
        found[p] = reader = _Reader()
        reader.feed(p.read_text(encoding="utf-8"))
    return found


def counts(read: dict) -> str:
    "Say how much was checked."
    links = [urlsplit(a) for r in read.values() for a in r.links]
    inside = sum(not a.scheme and not a.netloc for a in links)
    outside = {(a.netloc, a.path) for a in links if a.scheme in ("http", "https")}
    assets = sum(len(r.assets) for r in read.values())
    pictures = sum(r.pictures for r in read.values())
    return (
        f"{len(read)} pages, {inside:,} links inside, {assets:,} assets, {pictures:,} pictures; "
        f"{len(outside):,} addresses outside, which are not visited"
    )


def check(root: Path) -> tuple:
    "Check a site: (its problems, one text each; how much was checked)."
    root = root.resolve()
    read, bad = _read(root), []
    for p, r in read.items():
        here = p.relative_to(root)
        foreign = [
            a for a in r.assets if urlsplit(a).scheme in ("http", "https") or a.startswith("//")
        ]
        bad += [f"{here}: loads {a[:80]} from another host" for a in foreign]
        bad += [f"{here}: a picture without alternative text ({src})" for src in r.bare]
        jumps = [(a, b) for a, b in zip(r.headings, r.headings[1:]) if b > a + 1]
        bad += [f"{here}: a heading of level {b} below one of level {a}" for a, b in jumps[:1]]
        for address in [*r.links, *r.assets]:
            parts = urlsplit(address)
            if parts.scheme or address.startswith("//"):
                continue
            to = _target(p, address, root)
            if not to.is_file():
                bad.append(f"{here}: links to {address}, which is not there")
            elif parts.fragment and to in read and unquote(parts.fragment) not in read[to].ids:
                bad.append(f"{here}: links to {address}, where nothing has that name")
    return list(dict.fromkeys(bad)), counts(read)
