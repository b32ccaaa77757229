"""What a file declares, repeats or hides does not decide how much memory and time its picture
takes; what is no source is refused in words."""

import io, struct
from pathlib import Path
import pytest
from PIL import Image
from fastedit.core import DataError, FastEditError, ImageError, MaskError, OptionError, in_words
from fastedit.editor import EditRequest
from fastedit.pictures import load_image, load_mask, save_image


def entries(*rows):
    return (
        struct.pack("<H", len(rows)) + b"".join(struct.pack("<HHII", *r) for r in rows) + bytes(4)
    )


def tiff(tile, side=64, samples=1):
    return b"II*\0\x08\0\0\0" + entries(
        *[
            (t, 4, 1, v)
            for t, v in (
                (256, side),
                (257, side),
                (258, 8),
                (259, 8),
                (262, 1),
                (277, samples),
                (322, tile),
                (323, tile),
                (324, 8),
                (325, 1),
            )
        ]
    )


def jpeg(scans, side=64):
    b = io.BytesIO()
    Image.new("RGB", (side, side)).save(b, "JPEG", progressive=True)
    data = b.getvalue()
    last = data.rfind(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + b"\xff\xd9"


EXIF = b"Exif\0\0II*\0\x08\0\0\0" + entries(*[(t, 1, 50_000, 8) for t in range(5000)])


@pytest.mark.parametrize(
    "data, word",
    [
        (tiff(16_384), "one tile"),
        (tiff(64, samples=60_000), "samples"),
        (jpeg(3000), "scans"),
        (jpeg(1) + bytes(80 << 20), "bytes for 64x64"),
        (b"\x89PNG\r\n\x1a\n" + b"\0\0\0\0tEXt\0\0\0\0" * 200_001, "chunks"),
        (b"GIF89a\x40\0\x40\0\0\0\0!\xfe" + (b"\xff" + b"a" * 255) * 5000, "comment"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_would_take_far_more_than_its_pixels(data, word):
    with pytest.raises(ImageError, match=word):
        load_image(data)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_has_a_bit_for_each_block(progressive):
    b = io.BytesIO()
    Image.new("RGB", (1024, 1024)).save(b, "JPEG", progressive=progressive, optimize=True)
    data = bytearray(b.getvalue())
    assert load_image(bytes(data)).size == (1024, 1024)
    at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    data[at + 5 : at + 9] = struct.pack(">HH", 8192, 8192)
    with pytest.raises(ImageError, match="damaged or cut short"):
        load_image(bytes(data))


def test_a_mask_that_pillow_cannot_turn(tmp_path):
    mask = Image.new("L", (64, 64), 255)
    mask.info["transparency"] = b"\0" * 300
    with pytest.raises(MaskError, match="no mask"):
        load_mask(mask)


def test_exif_that_names_the_same_bytes_over_and_over():
    def with_exif(fmt):
        b = io.BytesIO()
        Image.new("RGB", (64, 64)).save(b, fmt, exif=EXIF[:60_000] if fmt == "JPEG" else EXIF)
        return b.getvalue()

    with pytest.raises(ImageError, match="EXIF"):
        load_image(with_exif("JPEG"))
    with pytest.warns(UserWarning, match="EXIF"):
        assert load_image(with_exif("PNG")).size == (64, 64)


def test_ordinary_pictures_pass():
    for kw in (
        dict(format="JPEG", progressive=True),
        dict(format="TIFF", compression="jpeg"),
        dict(format="PNG"),
        dict(format="GIF", comment=b"a" * 1000),
    ):
        b = io.BytesIO()
        Image.new("RGB", (100, 60)).save(b, **kw)
        assert load_image(b.getvalue()).size == (100, 60)
    assert load_image(jpeg(2)).size == (64, 64)


class Failing(io.RawIOBase):
    def read(self, *a):
        raise RuntimeError("no signal")


def closed():
    f = io.BytesIO(b"x")
    f.close()
    return f


@pytest.mark.parametrize(
    "source",
    [
        io.StringIO("text"),
        closed(),
        Failing(),
        "~nosuchuser/a.png",
        Path("~nosuchuser/a.png"),
        "a\0b.png",
        "x" * 5000,
        "a/" * 3000,
    ],
    ids=lambda s: type(s).__name__,
)
def test_what_is_no_source(source):
    with pytest.raises(ImageError):
        load_image(source)


class Named(io.BytesIO):
    name = "a\n" * 2000


class Nameless(io.BytesIO):
    @property
    def name(self):
        raise RuntimeError("no name")


@pytest.mark.parametrize("read", [load_image, EditRequest.from_png])
@pytest.mark.parametrize("kind", [bytes, bytearray, Named, Nameless])
def test_a_source_is_named_in_a_few_words(read, kind):
    data = b"GIF89a" + bytes(10_000)
    with pytest.raises(ImageError) as e:
        read(kind(data))
    assert len(str(e.value)) < 500 and "\\x00" not in str(e.value) and "\n" not in str(e.value)


def test_bytes_without_a_request_are_not_spelt_out():
    b = io.BytesIO()
    Image.new("RGB", (64, 64)).save(b, "PNG")
    with pytest.raises(DataError, match=r"^the picture \(\d+ bytes\) holds no fastedit request"):
        EditRequest.from_png(b.getvalue())


@pytest.mark.parametrize("suffix, side", [(".webp", 16_384), (".jpg", 65_501)])
def test_sides_that_a_format_has_no_room_for(tmp_path, suffix, side):
    with pytest.raises(OptionError, match="write a .png"):
        save_image(Image.new("RGB", (side, 1)), tmp_path / ("a" + suffix))
    assert not list(tmp_path.iterdir())


# ---- requests: the kinds that had no words


@pytest.mark.parametrize(
    "field, value",
    [
        ("control", []),
        ("control", {}),
        ("seed", 10**5000),
        ("seed", 2**63),
        ("model", "\ud800"),
        ("method", "a\ud800"),
        ("options", {"a": "\ud800"}),
        ("options", {"\ud800": 1}),
        ("options", {"a": float("nan")}),
        ("options", {3: 1}),
        ("options", {"a": object()}),
        ("size", [10**5000, 8]),
        ("feather", 10**400),
        ("guidance", float("nan")),
        ("stepz", 4),
    ],
    ids=lambda v: in_words(v),
)
def test_a_request_names_field_and_value(field, value):
    with pytest.raises(OptionError, match=field) as e:
        EditRequest("a cup", **{field: value})
    assert len(str(e.value)) < 500 and str(e.value).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"prompt":' * 100_000,
        '{"prompt":"a","seed":' + "9" * 5000 + "}",
        '{"prompt":"\\ud800"}',
        '{"prompt":"a","guidance":1e999}',
        '{"prompt":"a","options":{"a":' + "[" * 900 + "]" * 900 + "}}",
        "[]",
        "null",
        "\ufeff{}",
    ],
    ids=lambda t: t[:30],
)
def test_json_that_is_no_request(text):
    with pytest.raises(FastEditError, match="the request in a.png"):
        EditRequest.from_json(text, "the request in a.png")
