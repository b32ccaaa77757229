"Every kind of picture that comes in, every way back out, and what must be refused on the way."

import io, math, os, struct, subprocess, sys, warnings, zlib
from pathlib import Path
import cv2, numpy as np, pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from fastedit.core import (
    DataError,
    FastEditError,
    ImageError,
    MaskError,
    NumericalError,
    OptionError,
)
from fastedit.pictures import (
    Fit,
    buckets,
    choose_size,
    composite,
    feather,
    fit,
    fit_mask,
    image_grid,
    load_image,
    load_mask,
    plan_fit,
    read_metadata,
    save_image,
    to_image,
    to_tensor,
    unfit,
)

quick = settings(deadline=None, max_examples=60, derandomize=True, database=None)
sides, seeds = st.integers(8, 8192), st.integers(0, 2**32 - 1)


def picture(w=40, h=24, seed=0, channels=3):
    "Smooth colours plus a little noise: compressible, and different at every pixel that matters."
    y, x = np.mgrid[:h, :w]
    base = np.stack([x * 255 / w, y * 255 / h, (x + y) * 255 / (w + h), 255 - x * 200 / w], -1)[
        ..., :channels
    ]
    return (base * 0.9 + np.random.default_rng(seed).uniform(0, 25, base.shape)).astype(np.uint8)


def stored(im, fmt="PNG", **kw):
    b = io.BytesIO()
    (im if isinstance(im, Image.Image) else Image.fromarray(im)).save(b, fmt, **kw)
    return b.getvalue()


def same(a, b):
    return np.array_equal(np.asarray(a), np.asarray(b))


def fresh(code, data=b""):
    "What `code` prints in a new interpreter that is given `data` on its standard input."
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-c", code], input=data, capture_output=True, check=True, env=env
    ).stdout


# ---- reading


@pytest.mark.parametrize(
    "fmt, kw",
    [
        ("PNG", {}),
        ("TIFF", {}),
        ("TIFF", dict(compression="tiff_lzw")),
        ("WEBP", dict(lossless=True)),
        ("BMP", {}),
    ],
)
def test_lossless_formats_give_back_the_stored_pixels(fmt, kw):
    a = picture()
    assert same(load_image(stored(a, fmt, **kw)), a)


@pytest.mark.parametrize("fmt", ["JPEG", "WEBP"])
def test_lossy_formats_are_close(fmt):
    a = cv2.blur(picture(), (5, 5))
    assert np.abs(np.asarray(load_image(stored(a, fmt, quality=95))).astype(int) - a).mean() < 4


def test_every_kind_of_source(tmp_path):
    a = picture()
    data = stored(a)
    p = tmp_path / "ünï code.png"
    p.write_bytes(data)
    with open(p, "rb") as f:
        for source in (
            p,
            str(p),
            data,
            bytearray(data),
            memoryview(data),
            io.BytesIO(data),
            f,
            Image.fromarray(a),
            a,
            a / 255.0,
            (a / 255.0).astype(np.float32),
            a.astype(np.uint16) * 257,
            a.astype(np.int64),
        ):
            im = load_image(source)
            assert im.mode == "RGB" and im.info == {} and same(im, a), type(source)
        assert not f.closed


def test_the_result_is_a_copy():
    im = Image.fromarray(picture())
    out = load_image(im)
    out.putpixel((0, 0), (1, 2, 3))
    assert im.getpixel((0, 0)) != (1, 2, 3)


def test_modes():
    a = picture()
    im = Image.fromarray(a)
    grey = np.asarray(im.convert("L"))
    assert same(load_image(stored(im.convert("L"))), np.stack([grey] * 3, -1))
    assert same(load_image(grey), load_image(im.convert("L"))) and same(
        load_image(grey[..., None]), load_image(grey)
    )
    p = im.quantize(16)
    assert same(load_image(stored(p)), p.convert("RGB"))
    assert same(load_image(stored(im.convert("1"))), im.convert("1").convert("RGB"))
    assert same(np.asarray(load_image(grey > 99))[..., 0], 255 * (grey > 99))
    cmyk = im.convert("CMYK")
    assert same(load_image(stored(cmyk, "TIFF")), a)
    assert (
        np.abs(np.asarray(load_image(stored(cmyk, "JPEG", quality=98))).astype(int) - a).mean() < 12
    )
    for mode in ("YCbCr", "HSV"):
        assert load_image(im.convert(mode)).mode == "RGB"


def test_alpha_is_laid_over_white():
    a = picture(channels=4)
    a[:8, :, 3], a[8:16, :, 3] = 255, 0
    want = a[..., :3] * (a[..., 3:] / 255.0) + 255 * (1 - a[..., 3:] / 255.0)
    for source in (stored(a), stored(a, "WEBP", lossless=True, exact=True), a, a / 255.0):
        got = np.asarray(load_image(source)).astype(float)
        assert (
            np.abs(got - want).max() <= 1
            and same(got[:8], a[:8, :, :3])
            and (got[8:16] == 255).all()
        )
    la = Image.fromarray(a).convert("LA")
    assert (np.asarray(load_image(stored(la)))[8:16] == 255).all()


def test_transparent_palette_and_colour_key():
    p = Image.fromarray(picture()).quantize(4)
    got, index = np.asarray(load_image(stored(p, transparency=0))), np.asarray(p)
    assert (got[index == 0] == 255).all() and same(
        got[index == 1], np.asarray(p.convert("RGB"))[index == 1]
    )
    a = picture()
    a[3, 5] = 10, 20, 30
    assert load_image(stored(a, transparency=(10, 20, 30))).getpixel((5, 3)) == (255, 255, 255)


@pytest.mark.parametrize("fmt", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(fmt):
    v = np.linspace(0, 65535, 40 * 24).astype(np.uint16).reshape(24, 40)
    got = np.asarray(load_image(stored(v, fmt)))[..., 0]
    assert (
        same(got, np.round(v / 257.0))
        and got.min() == 0
        and got.max() == 255
        and same(got, np.asarray(load_image(v))[..., 0])
    )


_PACKED = ((".png", 0), (".tiff", 1), (".tiff", 5), (".tiff", 8))  # TIFF: plain, LZW, deflate


def _sixteen(v, suffix, packed):
    "A file with 16 bits a colour; OpenCV has blue first."
    order = [2, 1, 0, 3][: v.shape[2]]
    how = [cv2.IMWRITE_TIFF_COMPRESSION, packed] if packed else []
    return cv2.imencode(suffix, np.ascontiguousarray(v[..., order]), how)[1].tobytes()


@pytest.mark.parametrize("suffix,packed", _PACKED)
def test_sixteen_bits_per_colour_channel_are_rounded_not_cut(suffix, packed):
    v = np.random.default_rng(0).integers(0, 65536, (24, 40, 4), np.uint16)
    want = ((v.astype(int) * 2 + 257) // 514).astype(np.uint8)
    assert same(load_image(_sixteen(v[..., :3], suffix, packed)), want[..., :3])
    assert same(read_image(_sixteen(v, suffix, packed)).rgba, want)


@pytest.mark.parametrize("suffix,packed", _PACKED)
def test_sixteen_bits_that_end_at_255_are_said_to_be_dark(suffix, packed):
    v = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint16)
    v[0, 0] = 255
    found = read_image(_sixteen(v, suffix, packed))
    assert [n for n in found.notes if "its values end at 255 of 65535" in n]
    assert np.asarray(found.image).max() == 1


def test_sixteen_bits_are_turned_as_the_file_says():
    v = np.random.default_rng(0).integers(0, 65536, (24, 40, 3), np.uint16)
    im = Image.open(io.BytesIO(_sixteen(v, ".png", 0)))
    data, exif = _sixteen(v, ".png", 0), im.getexif()
    exif[0x0112] = 6
    body = exif.tobytes()[6:]
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body
    chunk += struct.pack(">I", zlib.crc32(b"eXIf" + body))
    want = np.rot90(((v.astype(int) * 2 + 257) // 514).astype(np.uint8), -1)
    assert same(load_image(data[:33] + chunk + data[33:]), want)


def test_signed_numbers_have_no_white():
    a = np.arange(16 * 16, dtype=np.int16).reshape(16, 16) * 100
    data = cv2.imencode(".tiff", a)[1].tobytes()
    for source in (data, Image.open(io.BytesIO(data))):
        with pytest.raises(ImageError, match="signed numbers of 16 bits"):
            read_image(source)


def test_wide_integers_and_float_files():
    v = np.linspace(0, 65535, 24 * 40).reshape(24, 40)
    assert same(
        np.asarray(load_image(Image.fromarray(v.astype(np.int32))))[..., 0],
        np.asarray(load_image(v.astype(np.uint16)))[..., 0],
    )
    assert same(
        load_image(stored(Image.fromarray((v / 65535).astype(np.float32)), "TIFF")),
        load_image((v / 65535).astype(np.float32)),
    )
    with pytest.raises(ImageError, match="-5"):
        load_image(Image.fromarray((v - 5).astype(np.int32)))
    with pytest.raises(ImageError, match="0..1"):
        load_image(Image.fromarray(v.astype(np.float32)))


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(fmt):
    a = np.full((24, 40, 3), 60, np.uint8)
    a[:8, :12] = 250, 20, 20
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    for o in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = o
        sensor = np.ascontiguousarray(undo[o](a))
        for source in (data := stored(sensor, fmt, exif=exif), Image.open(io.BytesIO(data))):
            got = np.asarray(load_image(source)).astype(int)
            assert got.shape == a.shape and np.abs(got - a).mean() < 4, o
    im = load_image(data)
    assert not im.getexif() and same(load_image(im), im)


@pytest.mark.parametrize("fmt", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations_give_their_first_frame_and_say_so(fmt):
    frames = [Image.fromarray(np.full((16, 20, 3), v, np.uint8)) for v in (200, 100, 0)]
    data = stored(frames[0], fmt, save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match="first one is used"):
        im = load_image(data)
    assert np.abs(np.asarray(im).astype(int) - 200).max() < 3


def test_a_still_picture_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for fmt in ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"):
            load_image(stored(picture(), fmt))
        load_image(stored(Image.fromarray(picture()).quantize(4), transparency=b"\x00\x80\xff\xff"))


# ---- refusing


def test_what_is_not_there_or_no_picture(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "secret.png").write_bytes(stored(picture()))
    os.mkfifo(tmp_path / "pipe")
    for source, words in [
        (tmp_path / "no.png", "does not exist"),
        (tmp_path, "folder"),
        (tmp_path / "text.png", "not a picture"),
        (tmp_path / "empty.png", "empty"),
        (tmp_path / "pipe", "regular file"),
        (b"", "empty"),
        (b"GIF89a", ""),
        (io.StringIO("x"), "'rb'"),
        ("a\0b", ""),
        ("x" * 5000, ""),
        ("", ""),
        ("https://a.b/c.png", "address"),
        (None, "NoneType"),
        (7, "int"),
        ([1, 2], "list"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50", "not a picture"),
    ]:
        with pytest.raises(ImageError, match=words or None):
            load_image(source)


@pytest.mark.parametrize(
    "fmt, kw",
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("WEBP", {}),
        ("WEBP", dict(lossless=True)),
        ("TIFF", {}),
        ("TIFF", dict(compression="tiff_lzw")),
        ("GIF", {}),
        ("BMP", {}),
    ],
)
@pytest.mark.filterwarnings("ignore:Truncated File Read", "ignore:Corrupt EXIF")
def test_cut_short_is_an_error_or_loses_nothing(fmt, kw):
    data = stored(picture(), fmt, **kw)
    whole = load_image(data)
    refused = 0
    for n in range(0, len(data), max(1, len(data) // 40)):
        try:
            assert same(load_image(data[:n]), whole), n
        except ImageError:
            refused += 1
    assert refused >= 30


@quick
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"]), st.data())
def test_damaged_bytes_never_raise_anything_else(fmt, data):
    raw = bytearray(stored(picture(), fmt))
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            im = load_image(bytes(raw))
            assert im.mode == "RGB"
        except ImageError as e:
            assert len(str(e)) > 20


def _png(w, h):
    chunk = lambda kind, body: (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    )
    header = struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def _bombs():
    webp = lambda body: b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
    return {
        "png": _png(30000, 30000),
        "png just too wide": _png(8193, 8),
        "gif": b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\0\0\0,",
        "bmp": b"BM"
        + bytes(8)
        + struct.pack("<IIiiHHIIiiII", 54, 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0),
        "webp extended": webp(b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\x3f\0\xff\x3f\0"),
        "webp lossless": webp(
            b"VP8L" + struct.pack("<I", 20) + b"\x2f\xff\xff\xff\x0f" + bytes(15)
        ),
        "webp lossy": webp(
            b"VP8 " + struct.pack("<I", 20) + b"\0\0\0\x9d\x01\x2a\xff\x3f\xff\x3f" + bytes(10)
        ),
        "tiff": stored(np.zeros((16, 16), np.uint8), "TIFF").replace(
            struct.pack("<HHII", 256, 4, 1, 16), struct.pack("<HHII", 256, 4, 1, 40000)
        ),
    }


@pytest.mark.parametrize("kind", _bombs())
def test_bombs_are_refused_before_they_are_decoded(kind, monkeypatch):
    from PIL import ImageFile

    def decoded(*a, **k):
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded)
    with pytest.raises(ImageError, match="8192x8192|40000"):
        load_image(_bombs()[kind])


def test_a_bomb_costs_no_memory():
    code = (
        "import resource, sys; from fastedit.pictures import load_image\n"
        "from fastedit.core import ImageError; data = sys.stdin.buffer.read()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: load_image(data)\nexcept ImageError: "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    assert int(fresh(code, _png(30000, 30000))) < 20_000  # KB; the pixels would take 2.7 GB


@pytest.mark.parametrize(
    "w, h, words",
    [
        (7, 40, "less than 8"),
        (40, 7, "less than 8"),
        (8193, 8, "8192x8192"),
        (8, 8193, "8192x8192"),
        (0, 8, "0x8"),
    ],
)
def test_sizes_at_the_limits(w, h, words):
    with pytest.raises(ImageError, match=words):
        load_image(np.zeros((h, w, 3), np.uint8))
    if w:
        with pytest.raises(ImageError, match=words):
            load_image(stored(np.zeros((h, w), np.uint8)))


def test_the_limits_themselves_are_accepted():
    for w, h in ((8, 8), (8192, 8), (8, 8192)):
        assert load_image(np.zeros((h, w), np.uint8)).size == (w, h)
    with pytest.raises(ImageError, match="8192"):
        # 30 GB if it were looked at
        load_image(np.broadcast_to(np.uint8(0), (100_000, 100_000, 3)))


every = lambda v: np.full((24, 40), v)


@pytest.mark.parametrize(
    "a, words",
    [
        (np.zeros((3, 16, 16)), "channels last"),
        (np.zeros((1, 16, 16, 3)), "batch"),
        (np.zeros((16, 16, 5)), "shape"),
        (np.zeros(16), "shape"),
        (every(np.nan), "960 values"),
        (every(np.inf), "infinite"),
        (every(200.0), "0..1"),
        (every(-1.0), "0..1"),
        (every(300), "0..255"),
        (every(-1), "0..255"),
        (every(1j), "dtype"),
        (every("a"), "dtype"),
        (every(None), "dtype"),
    ],
)
def test_arrays_that_are_no_picture(a, words):
    with pytest.raises(ImageError, match=words):
        load_image(a)


# ---- masks


def disc(w=40, h=24):
    v, u = np.mgrid[:h, :w]
    return (u - w / 2) ** 2 + (v - h / 2) ** 2 < (min(w, h) / 3) ** 2


def test_mask_sources_agree(tmp_path):
    d = disc()
    byte = d.astype(np.uint8) * 255
    p = tmp_path / "m.png"
    Image.fromarray(byte).save(p)
    red = np.zeros((24, 40, 3), np.uint8)
    red[d] = 255, 0, 0
    clear = np.zeros((24, 40, 4), np.uint8)
    clear[d] = 255
    clear[~d, :3] = 255
    wide = d.astype(np.uint16) * 65535
    for source in (
        d,
        byte,
        d.astype(float),
        d.astype(np.float32),
        d.astype(int),
        wide,
        byte[..., None],
        p,
        str(p),
        stored(byte),
        stored(wide),
        Image.fromarray(d),
        Image.fromarray(byte),
        Image.fromarray(d.astype(np.uint8)),
        Image.fromarray(d.astype(np.float32)),
        Image.fromarray(byte).convert("P"),
        stored(red),
        stored(clear),
    ):
        m = load_mask(source, (40, 24))
        assert m.dtype == np.float32 and m.shape == (24, 40) and same(m, d)


def test_soft_masks_keep_their_values():
    soft = np.linspace(0, 1, 24 * 40, dtype=np.float32).reshape(24, 40)
    assert same(load_mask(soft), soft)
    assert np.allclose(load_mask((soft * 255).round().astype(np.uint8)), soft, atol=0.003)


def test_mask_of_the_same_aspect_is_resized():
    m = load_mask(disc(80, 48), (40, 24))
    assert (
        m.shape == (24, 40)
        and ((m > 0.5) == disc()).mean() > 0.98
        and m.min() >= 0
        and m.max() <= 1
    )
    # a preview, rounded to whole pixels
    assert load_mask(disc(64, 43), (3000, 2000)).shape == (
        2000,
        3000,
    )


@pytest.mark.parametrize(
    "source, words",
    [
        (every(0.0), "empty"),
        (every(False), "empty"),
        (stored(every(0).astype(np.uint8)), "empty"),
        (disc(24, 24), "24x24.*40x24"),
        (disc(24, 40), "24x40.*40x24"),
        (every(2.0), "2.0"),
        (every(-1.0), "-1"),
        (every(np.nan), "NaN"),
        (every(999), "999"),
        (every("a"), "dtype"),
        (np.ones((24, 40, 3)), "one value per pixel"),
        (np.ones((4, 4)), "4x4"),
        ("no.png", "does not exist"),
        (b"text", "not a picture"),
        (None, "NoneType"),
    ],
)
def test_masks_that_are_refused(source, words):
    with pytest.raises(MaskError, match=words):
        load_mask(source, (40, 24))


# ---- sizes


def test_sdxl_sizes():
    b = buckets(1024 * 1024, 64)
    assert len(b) == 41 and {(h, w) for w, h in b} == set(b)
    assert {
        (1024, 1024),
        (1152, 896),
        (1216, 832),
        (1344, 768),
        (1536, 640),
        (512, 2048),
        (704, 1344),
    } <= set(b)


@quick
@given(
    st.sampled_from([(64, 8), (64, 16), (512, 8), (512, 64), (1024, 64), (1024, 8)]),
    st.floats(1, 6),
)
def test_buckets_keep_their_rules(model, aspect):
    n, m = model
    b = buckets(n * n, m, aspect)
    assert (n, n) in b and len(set(b)) == len(b)
    for w, h in b:
        assert (
            w % m == h % m == 0
            and n * n * (1 - 1.6 * m / n) - 1e-6 <= w * h <= n * n
            and max(w, h) <= aspect * min(w, h)
        )


@pytest.mark.parametrize("args", [(0, 8, 4), (4096, 0, 4), (4096, 128, 4), (4096, 8, 0.5)])
def test_impossible_buckets(args):
    with pytest.raises(OptionError):
        buckets(*args)


@quick
@given(st.sampled_from([(64, 8), (512, 64), (1024, 64), (1024, 8)]), st.data())
def test_a_bucket_is_its_own_choice_and_the_nearest(model, data):
    n, m = model
    b = buckets(n * n, m)
    own = data.draw(st.sampled_from(b))
    assert choose_size(own, n, m) == own
    w, h = data.draw(st.tuples(sides, sides))
    W, H = choose_size((w, h), n, m)
    far = abs(math.log(w * H / (h * W)))
    assert all(far <= abs(math.log(w * y / (h * x))) + 1e-8 for x, y in b) and choose_size(
        (h, w), n, m
    ) in {(H, W), (W, H)}


@settings(deadline=None, max_examples=400, derandomize=True, database=None)
@given(sides, sides, st.sampled_from([(64, 8), (512, 64), (1024, 64), (1024, 8)]))
def test_fit_arithmetic_holds_for_every_size(w, h, model):
    n, m = model
    f = plan_fit((w, h), n, m)
    (W, H), (l, t, r, b), (cw, ch) = f.model, f.box, f.content
    assert f.original == (w, h) and W % m == H % m == 0
    # inside, centred
    assert 0 <= l < r <= W and 0 <= t < b <= H and abs((W - r) - l) <= 1 and abs((H - b) - t) <= 1
    assert cw == W or ch == H  # as large as fits
    s = min(W / w, H / h)
    assert abs(cw - w * s) <= 0.5 + 1e-9 or cw == 1
    assert abs(ch - h * s) <= 0.5 + 1e-9 or ch == 1  # aspect kept to the pixel
    if max(w, h) <= 4 * min(w, h):
        assert (
            f.padding < {(64, 8): 0.16, (512, 64): 0.15, (1024, 64): 0.08, (1024, 8): 0.02}[model]
        )
    assert f.exact == ((w, h) == (W, H))


@settings(deadline=None, max_examples=40, derandomize=True, database=None)
@given(st.integers(8, 300), st.integers(8, 300), seeds, st.sampled_from([(64, 8), (128, 64)]))
def test_round_trip_returns_the_original_size_and_place(w, h, seed, model):
    a = cv2.blur(picture(w, h, seed), (3, 3))
    im, f = fit(a, *model)
    back = unfit(im, f)
    assert im.size == f.model and back.size == (w, h) and back.mode == im.mode == "RGB"
    assert same(
        im.crop(f.box),
        Image.fromarray(a).resize(f.content, Image.LANCZOS) if f.content != (w, h) else a,
    )
    edge = np.asarray(im)
    l, t, r, b = f.box
    assert (edge[:t] == edge[t]).all() and (edge[b:] == edge[b - 1]).all()
    assert (edge[:, :l] == edge[:, l : l + 1]).all() and (edge[:, r:] == edge[:, r - 1 : r]).all()


def test_round_trip_keeps_smooth_content_in_its_place():
    y, x = np.mgrid[:150, :201]
    a = np.stack([x * 255 / 201, y * 255 / 150, 128 + 60 * np.sin(x / 25)], -1).astype(np.uint8)
    assert np.abs(np.asarray(unfit(*fit(a))).astype(int) - a)[4:-4, 4:-4].mean() < 1.5


def test_exact_size_passes_bit_for_bit():
    for w, h in buckets(64 * 64, 8):
        a = picture(w, h)
        im, f = fit(a)
        assert f.exact and f.padding == 0 and same(im, a) and same(unfit(im, f), a)


def test_fit_to_a_given_size():
    im, f = fit(picture(150, 40), size=(64, 64))
    assert im.size == (64, 64) and f.content == (64, 17) and unfit(im, f).size == (150, 40)
    for bad in ((60, 64), (0, 64), (-8, 8)):
        with pytest.raises(OptionError, match="multiples of 8"):
            fit(picture(), size=bad)
    for size in ((7, 100), (100, 9000)):
        with pytest.raises(ImageError):
            plan_fit(size)
    with pytest.raises(ImageError, match="same edit"):
        unfit(load_image(picture(64, 64)), Fit((9, 9), (72, 56), (0, 0, 72, 56)))


@quick
@given(st.integers(8, 300), st.integers(8, 300), st.data())
def test_masks_travel_with_their_picture(w, h, data):
    x, y = data.draw(st.integers(0, w - 1)), data.draw(st.integers(0, h - 1))
    m = np.zeros((h, w), np.float32)
    m[y, x] = 1  # one pixel
    f = plan_fit((w, h))
    got = fit_mask(m, f)
    # it survives
    assert (
        got.dtype == np.float32
        and got.shape == f.model[::-1]
        and got.min() >= 0
        and got.max() == pytest.approx(1)
    )
    l, t, r, b = f.box
    v, u = np.unravel_index(got[t:b, l:r].argmax(), (b - t, r - l))
    assert abs((u + 0.5) / (r - l) - (x + 0.5) / w) <= max(1 / (r - l), 0.5 / w) and abs(
        (v + 0.5) / (b - t) - (y + 0.5) / h
    ) <= max(1 / (b - t), 0.5 / h)  # where it was
    assert same(fit_mask(np.ones((h, w), np.float32), f), np.ones(f.model[::-1], np.float32))


def test_mask_of_another_size_is_refused():
    with pytest.raises(MaskError, match="load_mask"):
        fit_mask(np.ones((9, 9), np.float32), plan_fit((64, 64)))


# ---- compositing


@quick
@given(st.integers(8, 48), st.integers(8, 48), seeds, st.floats(0, 30), st.booleans())
def test_composite_touches_nothing_outside_the_mask(w, h, seed, radius, soft):
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(0, 256, (h, w, 3), np.uint8) for _ in range(2))
    m = (cv2.GaussianBlur(rng.random((h, w)), (0, 0), 3) > 0.5).astype(np.float32)
    if soft:
        m *= rng.random((h, w), np.float32)
    weight = feather(m, radius)
    out = np.asarray(composite(a, b, m, feather=radius))
    assert (
        weight.dtype == np.float32
        and (weight <= m).all()
        and (weight >= 0).all()
        and (weight[m == 0] == 0).all()
    )
    assert same(out[m == 0], a[m == 0]) and same(out[weight == 1], b[weight == 1])
    assert (np.minimum(a, b) <= out).all() and (out <= np.maximum(a, b)).all()


def test_feather_is_a_ramp_inwards():
    m = np.zeros((40, 40), np.float32)
    m[5:35, 5:35] = 1
    row = feather(m, 4)[20]
    assert (
        (np.diff(row[4:10]) > 0).all()
        and row[4] == 0
        and row[9] == 1
        and row[5] == pytest.approx(3 * 0.04 - 2 * 0.008)
    )
    assert same(row, row[::-1]) and same(feather(m, 0), m)
    m[:] = 0
    m[:, 20:] = 1
    w = feather(m, 4)
    # the frame is no seam
    assert (w[:, 39] == 1).all() and (w[:, 20] < 0.2).all() and same(w[0], w[20])
    full = np.ones((9, 9), np.float32)
    assert same(feather(full, 5), full) and not feather(full * 0, 5).any()
    line = np.zeros((20, 20), np.float32)
    line[10] = 1
    assert feather(line, 8).max() == 1  # a thin mask still edits
    for bad in (-1, math.nan, math.inf):
        with pytest.raises(OptionError, match="feather="):
            feather(full, bad)


def test_composite_wants_one_size():
    with pytest.raises(ImageError, match="unfit"):
        composite(picture(), picture(41), np.ones((24, 40), np.float32))
    with pytest.raises(MaskError, match="load_mask"):
        composite(picture(), picture(), np.ones((24, 41), np.float32))


def test_outside_stays_identical_through_a_png(tmp_path):
    a, b, m = picture(seed=1), picture(seed=2), load_mask(disc())
    p = save_image(composite(a, b, m), tmp_path / "o.png")
    assert same(np.asarray(load_image(p))[m == 0], a[m == 0]) and not same(load_image(p), a)


# ---- tensors


def test_tensors_agree_with_diffusers_to_the_bit():
    import torch
    from diffusers.image_processor import VaeImageProcessor

    proc = VaeImageProcessor(vae_scale_factor=8)
    im = load_image(picture(64, 40))
    x = to_tensor(im)
    assert (
        x.shape == (1, 3, 40, 64)
        and x.dtype == torch.float32
        and torch.equal(x, proc.preprocess(im))
    )
    assert same(to_image(x), im) and same(to_image(x[0]), im)
    levels = torch.linspace(-1.3, 1.3, 3 * 64 * 512).reshape(1, 3, 64, 512)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        y = levels.to(dtype)
        assert same(to_image(y), proc.postprocess(y, output_type="pil")[0])
    assert same(to_image(x.requires_grad_()), im)


def test_never_a_black_picture():
    import torch

    x = torch.zeros(1, 3, 8, 8)
    for bad in (math.nan, math.inf, -math.inf):
        y = x.clone()
        y[0, 1, 2, 3] = bad
        with pytest.raises(NumericalError, match="1 of 192"):
            to_image(y)
    for shape in ((2, 3, 8, 8), (1, 4, 8, 8), (8, 8, 3), (8, 8)):
        with pytest.raises(ImageError, match="shape"):
            to_image(torch.zeros(shape))


# ---- writing


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg", ".JPEG"])
def test_settings_come_back(tmp_path, suffix):
    meta = {
        "prompt": 'größer, 大きい 🟢 "quoted" \\ \n',
        "steps": 4,
        "s": 0.5,
        "none": None,
        "deep": {"list": [1, [2.5, "x"]]},
    }
    p = save_image(picture(), tmp_path / "sub" / f"a{suffix}", meta)
    assert (
        p.is_file()
        and read_metadata(p)
        == read_metadata(p.read_bytes())
        == read_metadata(io.BytesIO(p.read_bytes()))
        == meta
    )
    if suffix in (".png", ".webp"):
        assert same(load_image(p), picture())
    assert read_metadata(save_image(picture(), p)) == {} and [
        x.name for x in p.parent.iterdir()
    ] == [p.name]


def test_the_png_chunk_is_plain_to_other_programs(tmp_path):
    p = save_image(picture(), tmp_path / "a.png", {"b": 1, "a": "é"})
    assert Image.open(p).text["fastedit"] == '{"a":"é","b":1}'
    assert (
        p.read_bytes() == save_image(picture(), tmp_path / "b.png", {"a": "é", "b": 1}).read_bytes()
    )


def test_writing_is_refused_in_words(tmp_path):
    for name in ("a.docx", "a", "a.gif", ".png"):
        with pytest.raises(OptionError, match=".webp"):
            save_image(picture(), tmp_path / name)
    with pytest.raises(OptionError, match="65000"):
        save_image(picture(), tmp_path / "a.jpg", {"long": "x" * 70000})
    assert (
        len(
            read_metadata(save_image(picture(), tmp_path / "a.png", {"long": "x" * 3_000_000}))[
                "long"
            ]
        )
        == 3_000_000
    )
    with pytest.raises(OptionError):
        save_image(picture(), tmp_path / "c.png", {"nan": math.nan})
    (tmp_path / "d.png").mkdir()
    with pytest.raises(FastEditError):
        save_image(picture(), tmp_path / "d.png")
    assert sorted(x.name for x in tmp_path.iterdir()) == ["a.png", "d.png"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    p = save_image(picture(seed=1), tmp_path / "a.png")
    before = p.read_bytes()

    def full(*a):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(FastEditError, match="No space left"):
        save_image(picture(seed=2), p)
    assert p.read_bytes() == before and [x.name for x in tmp_path.iterdir()] == ["a.png"]


def test_foreign_and_damaged_settings(tmp_path):
    from PIL.PngImagePlugin import PngInfo

    assert read_metadata(stored(picture())) == {} and read_metadata(stored(picture(), "JPEG")) == {}
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0a holiday"
    assert read_metadata(stored(picture(), "JPEG", exif=exif)) == {}
    for text in ("{", "[1]", "3"):
        info = PngInfo()
        info.add_text("fastedit", text)
        with pytest.raises(DataError, match="cannot be read"):
            read_metadata(stored(picture(), pnginfo=info))
    with pytest.raises(ImageError):
        read_metadata(tmp_path / "no.png")
    with pytest.raises(ImageError):
        read_metadata(_png(30000, 30000))


def test_long_galleries_can_be_written(tmp_path):
    assert save_image(Image.new("RGB", (16, 9000)), tmp_path / "long.png").is_file()


# ---- grids


def test_grid_shows_every_picture_in_its_place():
    pics = [np.full((20, 30, 3), v, np.uint8) for v in (10, 60, 110, 160, 210)]
    g = np.asarray(image_grid(pics, cols=3, gap=5))
    assert g.shape == (2 * 25 + 5, 3 * 35 + 5, 3)
    for k, p in enumerate(pics):
        y, x = 5 + 25 * (k // 3), 5 + 35 * (k % 3)
        assert same(g[y : y + 20, x : x + 30], p)
    assert (g[30:50, 75:105] == 255).all()
    assert (
        image_grid([pics[0], None, np.ones((20, 30))], scale=3, labels=["a", "b", "c " * 60]).width
        == 3 * 94 + 4
    )
    assert image_grid(pics, cols=9).width == 5 * 34 + 4
    for bad in (
        dict(images=[]),
        dict(images=pics, cols=0),
        dict(images=pics, labels=["x"]),
        dict(images=pics, scale=0),
    ):
        with pytest.raises(OptionError):
            image_grid(**bad)


def test_import_stays_light():
    code = (
        "import sys, fastedit.pictures, fastedit.pictures.conditions; "
        "print([m for m in ('torch', 'cv2', 'diffusers', 'matplotlib') if m in sys.modules])"
    )
    assert fresh(code).strip() == b"[]"


# ---- colours, transparency, what a file holds beside

from PIL import ImageCms
from fastedit.pictures import Mask, read_image, read_mask
from fastedit.pictures.colours import adobe_rgb, matrix_profile

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
P3 = matrix_profile(
    "P3", ((0.5151, 0.2412, -0.0011), (0.2919, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)), 2.2
)


def managed(im, icc, mode="RGB"):
    "What a colour-managed program shows of numbers with a profile, in sRGB."
    return np.asarray(
        ImageCms.profileToProfile(
            im,
            ImageCms.ImageCmsProfile(io.BytesIO(icc)),
            ImageCms.createProfile("sRGB"),
            outputMode=mode,
        )
    ).astype(int)


@pytest.mark.parametrize(
    "fmt, kw",
    [("PNG", {}), ("JPEG", dict(quality=100)), ("WEBP", dict(lossless=True)), ("TIFF", {})],
)
@pytest.mark.parametrize("icc", [adobe_rgb(), P3])
def test_colours_with_a_profile_become_srgb(fmt, kw, icc):
    data = stored(picture(), fmt, icc_profile=icc, **kw)
    plain = Image.open(io.BytesIO(data))
    got = read_image(data)
    assert np.abs(np.asarray(got.image).astype(int) - managed(plain, icc)).max() <= 1 and not same(
        got.image, plain.convert("RGB")
    )
    assert any("converted to sRGB from its profile" in n for n in got.notes) and not got.image.info
    opened = Image.open(io.BytesIO(data))
    assert same(read_image(opened).image, got.image)
    with pytest.warns(UserWarning, match="converted"):
        assert same(load_image(data), got.image)


def test_adobe_rgb_has_its_published_colours():
    "By the matrices of the two standards, without any profile."
    data = stored(np.full((8, 8, 3), (200, 100, 100), np.uint8), icc_profile=adobe_rgb())
    v = (np.array([200, 100, 100]) / 255) ** (563 / 256)
    adobe = np.array(
        [[0.57667, 0.18556, 0.18823], [0.29734, 0.62736, 0.07529], [0.02703, 0.07069, 0.99134]]
    )
    back = (
        np.array([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]])
        @ adobe
        @ v
    )
    want = np.where(back <= 0.0031308, 12.92 * back, 1.055 * back ** (1 / 2.4) - 0.055) * 255
    assert np.abs(np.asarray(load_image(Image.open(io.BytesIO(data))))[0, 0] - want).max() < 1.5


def test_srgb_and_untagged_numbers_stay():
    a = picture()
    every = np.stack(np.meshgrid(*[np.arange(0, 256, 5, np.uint8)] * 3), -1).reshape(-1, 52, 3)
    for pixels in (a, every):
        for kw in ({}, dict(icc_profile=SRGB)):
            p = read_image(stored(pixels, **kw))
            assert same(p.image, pixels) and not p.notes and not p.aside


def test_grey_cmyk_lab_and_palette_profiles():
    a = picture()
    im = Image.fromarray(a)
    grey = im.convert("L")
    g = read_image(stored(grey, icc_profile=P3)).image
    # a grey picture that kept its RGB profile
    assert np.abs(np.asarray(g).astype(int) - managed(grey.convert("RGB"), P3)).max() <= 1
    pal = im.quantize(16)
    got = read_image(stored(pal, icc_profile=adobe_rgb())).image
    assert np.abs(np.asarray(got).astype(int) - managed(pal.convert("RGB"), adobe_rgb())).max() <= 1
    lab = ImageCms.profileToProfile(
        im, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    p = read_image(stored(lab, "TIFF"))
    assert np.abs(np.asarray(p.image).astype(int) - a).mean() < 3 and "Lab" in p.notes[0]
    p = read_image(stored(im.convert("CMYK"), "TIFF"))
    assert same(p.image, a) and "without a profile" in p.notes[0]
    clear = im.convert("RGBA")
    clear.putalpha(90)
    p = read_image(stored(clear, icc_profile=P3))
    assert (
        np.abs(np.asarray(p.rgba)[..., :3].astype(int) - managed(im, P3)).max() <= 1
        and (np.asarray(p.rgba)[..., 3] == 90).all()
    )
    p = read_image(stored(im.convert("1"), icc_profile=P3))
    assert same(p.image, im.convert("1").convert("RGB"))


@pytest.mark.parametrize(
    "icc",
    [b"nonsense", b"\0" * 200, SRGB[:60], SRGB[:200] + b"\xff" * 200],
    ids=["nonsense", "zeros", "cut", "overwritten"],
)
def test_a_broken_profile_is_a_note(icc):
    a = picture()
    p = read_image(stored(a, icc_profile=icc))
    assert same(p.image, a) and "cannot be used" in p.notes[0]
    p = read_image(stored(Image.fromarray(a).convert("CMYK"), "TIFF", icc_profile=P3))
    assert same(p.image, a) and "cannot be used" in p.notes[0]  # an RGB profile on CMYK


def test_masks_are_not_converted():
    m = np.linspace(0, 255, 24 * 40).astype(np.uint8).reshape(24, 40)
    assert same(load_mask(stored(m, icc_profile=P3)), load_mask(m))


@pytest.mark.parametrize(
    "space, index, adobe",
    [
        (2, None, True),
        (65535, "R03", True),
        (1, "R98", False),
        (65535, None, None),
        (1, None, False),
    ],
)
def test_adobe_rgb_by_exif_alone(space, index, adobe):
    exif = Image.Exif()
    ifd = exif.get_ifd(0x8769)
    ifd[0xA001] = space
    if index:
        ifd[0xA005] = {1: index}
    a = cv2.blur(picture(), (5, 5))
    data = stored(a, "JPEG", quality=100, exif=exif)
    plain = Image.open(io.BytesIO(data)).convert("RGB")
    p = read_image(data)
    if adobe:
        assert (
            np.abs(np.asarray(p.image).astype(int) - managed(plain, adobe_rgb())).max() <= 1
            and "Adobe RGB" in p.notes[0]
        )
    else:
        assert same(p.image, plain) and not p.notes and bool(p.aside) == (adobe is None)
    # a profile counts more
    assert same(
        read_image(stored(a, "JPEG", quality=100, exif=exif, icc_profile=SRGB)).image, plain
    )


def test_what_a_file_holds_beside_its_picture_is_said():
    from PIL.PngImagePlugin import PngInfo

    frames = [Image.fromarray(picture(seed=i)) for i in (0, 1)]
    p = read_image(stored(frames[0], "MPO", save_all=True, append_images=frames[1:]))
    assert "further pictures" in p.aside[0] and not p.notes
    data = stored(picture(), "JPEG")
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x hdrgm:Version="1.0"/>'
    assert (
        "gain map"
        in read_image(
            data[:2] + b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp + data[2:]
        ).aside[0]
    )
    info = PngInfo()
    info.add(b"gAMA", struct.pack(">I", 100000))
    p = read_image(stored(picture(), pnginfo=info))
    assert "gAMA" in p.aside[0]
    info = PngInfo()
    info.add(b"gAMA", struct.pack(">I", 45455))
    assert not read_image(stored(picture(), pnginfo=info)).aside


def test_transparency_is_kept_beside_and_written_again(tmp_path):
    a = picture(channels=4)
    a[:8, :, 3], a[8:16, :, 3] = 255, 0
    a[16:, :, 3] = 77
    for source in (stored(a), a, stored(a, "WEBP", lossless=True, exact=True), Image.fromarray(a)):
        p = read_image(source)
        assert (
            same(p.rgba, a) and p.image.mode == "RGB" and (np.asarray(p.image)[8:16] == 255).all()
        )
        for name in ("a.png", "a.webp"):
            assert same(Image.open(save_image(source, tmp_path / name)), a)
        with pytest.warns(UserWarning, match="transparency"):
            assert Image.open(save_image(source, tmp_path / "a.jpg")).mode == "RGB"
    opaque = a.copy()
    opaque[..., 3] = 255
    assert (
        read_image(opaque).rgba is None
        and Image.open(save_image(opaque, tmp_path / "b.png")).mode == "RGB"
    )
    pal = Image.fromarray(a[..., :3]).quantize(4)
    p = read_image(stored(pal, transparency=0))
    assert same(np.asarray(p.rgba)[..., 3], 255 * (np.asarray(pal) != 0))
    la = Image.fromarray(a).convert("LA")
    assert same(read_image(stored(la)).rgba, la.convert("RGBA"))
    wide = np.asarray(la)[..., 0].astype(np.uint16) * 257
    key = int(wide[3, 5])
    p = read_image(stored(wide, transparency=key))
    assert same(np.asarray(p.rgba)[..., 3], 255 * (wide != key))


@pytest.mark.parametrize(
    "head, words",
    [
        (b"\0\0\0\x18ftypheic" + bytes(40), "HEIC.*pillow-heif"),
        (b"\0\0\0\x18ftypmif1" + bytes(40), "HEIC"),
        (b"\xff\x0a" + bytes(40), "JPEG XL"),
        (b"%PDF-1.7" + bytes(40), "PDF"),
    ],
)
def test_foreign_formats_are_named(head, words):
    with pytest.raises(ImageError, match=words):
        load_image(head)


@pytest.mark.skipif(
    "AVIF" not in __import__("fastedit.pictures").pictures.FORMATS,
    reason="this Pillow reads no AVIF",
)
def test_avif_is_read():
    a = cv2.blur(picture(), (5, 5))
    assert np.abs(np.asarray(load_image(stored(a, "AVIF", quality=95))).astype(int) - a).mean() < 4


# ---- masks, by type


def selection(dtype, v):
    return (disc() * v).astype(dtype)


@pytest.mark.parametrize(
    "dtype, v",
    [
        (np.uint8, 1),
        (np.uint8, 255),
        (np.uint16, 1),
        (np.uint16, 255),
        (np.uint16, 65535),
        (">u2", 255),
        (">u2", 65535),
        (np.int32, 1),
        (np.int32, 255),
        (np.int32, 65535),
        (np.int16, 255),
        (np.int64, 255),
        (np.uint32, 65535),
        (np.int8, 1),
        (np.float16, 1),
        (np.float64, 1),
        (np.float32, 1.0005),
    ],
)
def test_a_selection_selects_whatever_type_holds_it(dtype, v):
    assert same(load_mask(selection(dtype, v)), disc())
    if np.dtype(dtype) in (np.uint16, np.int32, np.uint8):
        assert same(load_mask(Image.fromarray(selection(dtype, v))), disc())
        if np.dtype(dtype) != np.int32:
            assert same(load_mask(stored(selection(dtype, v))), disc())
        else:
            assert same(load_mask(stored(Image.fromarray(selection(dtype, v)), "TIFF")), disc())


def test_shades_go_by_the_type():
    shade = np.linspace(0, 1, 24 * 40).reshape(24, 40)
    by = lambda dtype, top: (shade * top).round().astype(dtype)
    for a in (
        by(np.uint8, 255),
        by(np.uint16, 65535),
        by(">u2", 65535),
        by(np.int32, 255),
        stored(by(np.uint16, 65535)),
        Image.fromarray(by(np.int32, 65535)),
    ):
        assert np.abs(load_mask(a) - shade).max() < 0.003
    assert np.abs(load_mask(by(np.uint16, 30000)) - shade * 30000 / 65535).max() < 1e-4
    for a in (
        by(np.uint16, 255),
        by(">u2", 255),
        by(np.uint16, 200),
        stored(by(np.uint16, 255)),
        Image.fromarray(by(np.int32, 255)),
    ):
        with pytest.raises(MaskError, match="16 bits"):
            load_mask(a)
    for a in (by(np.int32, 30000), by(np.int32, 65535), shade * 255, shade * 1.01, shade - 0.01):
        with pytest.raises(MaskError, match="values from"):
            load_mask(a)


def test_pictures_of_16_bits_go_by_the_type():
    v = np.linspace(0, 65535, 24 * 40).astype(np.uint16).reshape(24, 40)
    assert same(load_image(v.astype(">u2")), load_image(v))
    dark = (v // 257).astype(np.uint16)
    for a in (dark, stored(dark)):
        p = read_image(a)
        assert np.asarray(p.image).max() == 1 and "nearly black" in p.notes[0]
    with pytest.raises(ImageError, match="32 bits"):
        load_image(Image.fromarray(dark.astype(np.int32)))
    assert not read_image(v).notes and not read_image(np.zeros((9, 9), np.uint16)).notes


def test_odd_masks_get_a_note():
    photo = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    assert "colour picture" in read_mask(stored(photo), (40, 24)).notes[0]
    red = np.zeros((240, 400, 3), np.uint8)
    red[disc(400, 240)] = 190, 30, 30
    for plain in (
        stored(red),
        stored(red, "JPEG", quality=80),
        disc(400, 240),
        stored(np.tile(np.linspace(0, 255, 400).astype(np.uint8), (240, 1))),
    ):
        assert not read_mask(plain, (400, 240)).notes
    m = read_mask(disc(80, 48), (40, 24))
    assert "80x48" in m.notes[0] and "40x24" in m.notes[0] and m.values.shape == (24, 40)
    assert "hardly" in read_mask(disc().astype(np.uint8) * 2, (40, 24)).notes[0]
    assert read_mask(m, (40, 24)) == Mask(m.values, m.notes) and same(load_mask(m), m.values)


# --- captions of a grid


def _ink(grid, y0, y1):
    return (np.asarray(grid.convert("L"))[y0:y1] < 200).any(0)


@pytest.mark.parametrize(
    "labels",
    [
        ["a red bicycle on a meadow with a tree", "the same picture in another style"],
        ["x" * 60, "y" * 60],
        ["W W W W W W W W", "W W W W W W W W"],
        ["a" * 9, "b" * 9],
    ],
)
@pytest.mark.parametrize("width,gap", [(64, 4), (40, 0), (128, 4), (64, 20)])
def test_captions_of_neighbours_keep_apart(labels, width, gap):
    "Between the ink of one caption and the column of the next there is a gutter."
    g = image_grid(
        [Image.new("RGB", (width, 50), "white")] * 3, labels=[*labels, labels[0]], gap=gap
    )
    dark = np.flatnonzero(_ink(g, 0, g.height - 50 - gap))
    assert dark.size
    for c in (1, 2):
        start = gap + c * (width + gap)
        before = dark[dark < start - 1]
        assert before.size and start - before.max() >= 9, (start, before.max())


def test_a_long_caption_ends_in_dots():
    from PIL import ImageFont
    from fastedit.pictures import wrap_text

    font = ImageFont.load_default(11)
    for text in ("a very long story " * 40, "z" * 900):
        lines = wrap_text(text, font, 90)
        assert (
            len(lines) == 6
            and lines[-1].endswith("...")
            and all(font.getlength(t) <= 90 for t in lines)
        )
    assert (
        wrap_text("short", font, 90) == ["short"]
        and "".join(wrap_text("q" * 30, font, 60)) == "q" * 30
    )


# --- what a file says in places where Pillow does not look


def _tiff(a, photometric):
    tags = {256: a.shape[1], 257: a.shape[0], 258: 16, 259: 1, 262: photometric, 273: 134}
    tags |= {277: 1, 278: a.shape[0], 279: a.nbytes, 284: 1}
    table = b"".join(struct.pack("<HHII", k, 4, 1, v) for k, v in sorted(tags.items()))
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + table + bytes(4)
    assert len(head) == 134
    return head + a.astype("<u2").tobytes()


def test_a_tiff_of_16_bits_may_count_from_white_to_black():
    a = np.full((24, 40), 65535, np.uint16)
    a[8:16, 8:16] = 0
    for photometric, inside, outside in ((0, 255, 0), (1, 0, 255)):
        data = _tiff(a, photometric)
        got = np.asarray(load_image(data))
        assert (got[10, 10] == inside).all() and (got[0, 0] == outside).all()
        mask = load_mask(data)
        assert mask[10, 10] == inside / 255 and mask[0, 0] == outside / 255


@pytest.mark.parametrize(
    "numbers, word", [((1, 13), None), ((12, 13), "other than sRGB"), ((9, 16), "HDR")]
)
def test_colours_named_by_numbers_are_said(numbers, word):
    data = stored(picture())
    body = b"cICP" + bytes((*numbers, 0, 1))
    chunk = struct.pack(">I", 4) + body + struct.pack(">I", zlib.crc32(body))
    p = read_image(data[:33] + chunk + data[33:])
    assert same(p.image, picture())
    assert (word in p.aside[0]) if word else not p.aside


@pytest.mark.parametrize(
    "dark, darker",
    [
        (np.uint8(1), None),
        (np.int64(1), None),
        (np.float32(1 / 255), None),
        (np.uint16(4095), None),
        (np.uint8(2), "not"),
        (np.uint16(4096), "not"),
        (np.bool_(True), "not"),
    ],
)
def test_a_picture_on_another_scale_is_said_to_be_nearly_black(dark, darker):
    a = np.zeros((24, 40), dark.dtype)
    a[4:8] = dark
    sources = [a, stored(a)] if dark.dtype in (np.uint8, np.uint16) else [a]
    for source in sources:
        assert sum("nearly black" in n for n in read_image(source).notes) == (not darker)


def test_masked_arrays_are_refused():
    a = np.ma.masked_array(np.full((24, 40), 255, np.uint8), mask=disc())
    for read, error in ((read_image, ImageError), (read_mask, MaskError)):
        with pytest.raises(error, match=r"filled\("):
            read(a)


def test_a_selection_in_a_dark_paint_is_said():
    labels = Image.fromarray(disc().astype(np.uint8), "P")
    labels.putpalette([0, 0, 0, 128, 0, 0])
    m = read_mask(stored(labels), (40, 24))
    assert "mixed with the picture" in m.notes[0] and m.values.max() == np.float32(128 / 255)
    soft = np.linspace(0, 0.5, 24 * 40).reshape(24, 40)
    assert not read_mask(soft, (40, 24)).notes
