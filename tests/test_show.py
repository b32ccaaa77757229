"What is shown: pages parse, carry everything inside, hold their words, and have a PNG beside them."

import base64, re
from html.parser import HTMLParser
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageOps
from fastedit import OptionError
from fastedit.pictures.sources import landscape
from fastedit.show import (
    before_after,
    contrast,
    divider,
    embed,
    ink,
    label_lines,
    label_points,
    new_figure,
    page,
    PALETTE,
    spread,
)

SCENE = landscape(40, 24)
VOID = {"img", "input", "meta", "br", "hr", "link"}


class Reader(HTMLParser):
    "Reads a page; fails where tags do not close in order."

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.words, self.raw = [], [], [], 0

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.words.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert not reader.open
    return reader


def nothing_from_elsewhere(html: str) -> bool:
    addresses = [
        v
        for tag, a in read(html).tags
        for k, v in a.items()
        if k in ("src", "href", "srcset", "action")
    ]
    return all(v.startswith(("data:", "#")) for v in addresses) and not re.search(
        r"@import|url\((?!#)|https?://(?!www\.w3\.org)", html
    )


def ids_are_unique(html: str) -> bool:
    ids = [a["id"] for _, a in read(html).tags if "id" in a]
    return len(ids) == len(set(ids))


# --- packing


def test_small_pictures_keep_every_pixel():
    found = embed([SCENE])
    data = base64.b64decode(found.addresses[0].partition("base64,")[2])
    import io

    assert (
        Image.open(io.BytesIO(data)).convert("RGB").tobytes() == SCENE.tobytes()
        and found.note == ""
    )


def test_large_pictures_stay_within_the_limit_and_say_so():
    found = embed([landscape(1200, 800)] * 2, 40_000)
    assert (
        sum(map(len, found.addresses)) <= 40_000
        and "of 1200x800" in found.note
        and found.sizes[0] == found.sizes[1]
    )


def test_pictures_of_one_view_are_packed_alike():
    found = embed([landscape(1200, 800), Image.new("RGB", (1200, 800))], 40_000)
    assert found.sizes[0] == found.sizes[1]


def test_an_impossible_limit_is_refused():
    with pytest.raises(OptionError, match="most=0"):
        embed([SCENE], 0)


# --- before and after


@settings(max_examples=20, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_a_divider_holds_any_words(a, b):
    html = before_after(SCENE, SCENE, (a, b))
    reader = read(html)
    assert [t for t, _ in reader.tags if t == "img"] == ["img", "img"] and not any(
        t == "script" for t, _ in reader.tags
    )
    assert [d["alt"] for t, d in reader.tags if t == "img"] == [a, b]


def test_a_divider_needs_nothing_from_elsewhere_and_several_share_a_page():
    html = page("two", before_after(SCENE, ImageOps.mirror(SCENE)) * 2)
    assert nothing_from_elsewhere(html) and ids_are_unique(html)


def test_a_divider_without_style_is_two_labelled_pictures():
    reader = read(before_after(SCENE, SCENE, ("left", "right")))
    assert [w for w in reader.words if w.strip()][:2] == ["left", "right"]
    assert all("hidden" in a for t, a in reader.tags if t == "input" or t == "label")


def test_a_divider_moves_by_keyboard():
    (slider,) = [a for t, a in read(before_after(SCENE, SCENE)).tags if t == "input"]
    assert slider["type"] == "range" and slider["aria-label"]


def test_a_divider_brings_the_second_picture_to_the_size_of_the_first():
    sizes = {
        (a["width"], a["height"])
        for t, a in read(before_after(SCENE, SCENE.resize((80, 48)))).tags
        if t == "img"
    }
    assert sizes == {("40", "24")}


def test_a_divider_wants_two_labels():
    with pytest.raises(OptionError, match="1 labels"):
        before_after(SCENE, SCENE, ("a",))


# --- the object


def test_a_shown_has_three_forms_and_saves_two(tmp_path):
    s = divider(SCENE, SCENE, ("<b>", "y"))
    b = s._repr_mimebundle_()
    assert (
        set(b) == {"text/html", "image/png", "text/plain"}
        and base64.b64decode(b["image/png"])[:4] == b"\x89PNG"
    )
    text = s.save(tmp_path / "x.html").read_text("utf-8")
    assert nothing_from_elsewhere(text) and "<title>&lt;b&gt; | y</title>" in text
    assert Image.open(s.save(tmp_path / "x.png")).size == s.picture.size


def test_a_page_carries_title_and_body():
    html = page("<title> BODY", "y")
    assert "&lt;title&gt; BODY</title>" in html and html.endswith("y</body></html>\n")


# --- charts


@given(st.lists(st.floats(-100, 100), max_size=12), st.floats(0.1, 10))
def test_spread_keeps_order_and_distance(places, gap):
    import numpy as np

    out = spread(places, gap)
    order = np.argsort(places, kind="stable")
    assert len(out) == len(places) and (np.diff(out[order]) >= gap - 1e-6).all()


def test_spread_moves_nothing_that_is_far_enough():
    assert list(spread([5.0, 1.0, 9.0], 2)) == [5.0, 1.0, 9.0]


def test_every_colour_can_be_read_as_text():
    assert all(contrast(ink(c)) >= 4.5 for c in PALETTE)


def test_each_line_is_named_once_and_names_keep_apart():
    fig, ax = new_figure()
    for k in range(5):
        ax.plot([0, 1], [0, 0.01 * k], label=f"line {k}")
    label_lines(ax)
    fig.draw_without_rendering()
    boxes = sorted((t.get_window_extent() for t in ax.texts), key=lambda b: b.y0)
    assert len(boxes) == 5 and all(a.y1 <= b.y1 and a.y0 < b.y0 for a, b in zip(boxes, boxes[1:]))


def test_names_beside_points_do_not_overlap():
    fig, ax = new_figure()
    ax.scatter([0, 0.02, 1], [0, 0.02, 1])
    label_points(ax, [(f"name {k}", [(x, x)], PALETTE[k]) for k, x in enumerate((0, 0.02, 1))])
    fig.draw_without_rendering()
    a, b, c = (t.get_window_extent() for t in ax.texts)
    assert not a.overlaps(b) and not b.overlaps(c)
