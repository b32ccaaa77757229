"Pictures and masks from anywhere: read upright in sRGB with bounded memory, or refused in words."

import io, os
from pathlib import Path
import numpy as np
from PIL import Image
from tests.fuzz import Case
from tests.fuzz.pictures import bomb, encoded, spoilt
from tests.fuzz.values import any_value

N, SMALL = 10_000, 400
ROOM = 256 * 2**20  # bytes that reading may take beside three times the picture's own


def warm():
    from fastedit.pictures import load_image, load_mask

    load_image(picture_bytes()), load_mask(picture_bytes())


def picture_bytes():
    import random

    return encoded(random.Random(0), "PNG")[1]


# ---- sources that are no files of pictures


class Failing(io.RawIOBase):
    "An open file on a disk that breaks."

    def __init__(self, data, after):
        self.data, self.after = data, after

    def read(self, n=-1):
        if self.after <= 0:
            raise OSError(5, "Input/output error")
        self.after -= 1
        return self.data


class Odd:
    "What reads as anything else."

    name = "\ud800\n" * 500

    def __init__(self, found):
        self.found = found

    def read(self, *a):
        if isinstance(self.found, BaseException):
            raise self.found
        return self.found


def closed(data):
    file = io.BytesIO(data)
    file.close()
    return file


def odd_source(rng, folder, data):
    "A source that is no picture's path, bytes or open file, or only just."
    (folder / "a.png").write_bytes(data)
    os.symlink("ring.png", folder / "ring.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "shut.png").write_bytes(data)
    (folder / "shut.png").chmod(0)
    return rng.choice(
        (
            lambda: folder,
            lambda: folder / "no.png",
            lambda: folder / "ring.png",
            lambda: folder / "pipe.png",
            lambda: folder / "shut.png",
            lambda: folder / ("x" * 5000),
            lambda: folder / "a\0.png",
            lambda: str(folder / "a.png") + "/a.png",
            lambda: os.fsencode(folder / "a.png"),
            lambda: "file://" + str(folder / "a.png"),
            lambda: Path("/dev/null"),
            lambda: "/dev/zero",
            lambda: "~nosuchuser/a.png",
            lambda: "\ud800.png",
            lambda: "",
            lambda: io.StringIO("text"),
            lambda: io.BytesIO(data),
            lambda: closed(data),
            lambda: Failing(data, 0),
            lambda: Failing(data, 1),
            lambda: Odd("text"),
            lambda: Odd(None),
            lambda: Odd(bytearray(data)),
            lambda: Odd(memoryview(data)),
            lambda: Odd(ValueError("\x1b[31m")),
            lambda: Odd(MemoryError()),
            lambda: Odd(RecursionError()),
            lambda: bytearray(data),
            lambda: memoryview(data)[::2],
            lambda: memoryview(data).cast("B"),
            lambda: any_value(rng),
            lambda: any_value(rng),
        )
    )()


DTYPES = "? u1 u2 u4 u8 i1 i2 i4 i8 f2 f4 f8 c8 S3 U3 O M8[s] >u2 >f4".split()


def odd_array(rng):
    "An array of any kind, shape and content."
    shape = rng.choice(
        (
            (),
            (0,),
            (64,),
            (64, 64),
            (64, 64, 1),
            (64, 64, 2),
            (64, 64, 3),
            (64, 64, 4),
            (3, 64, 64),
            (1, 64, 64, 3),
            (7, 64, 3),
            (0, 64, 3),
            (9000, 8, 3),
            (64, 64, 0),
        )
    )
    if rng.random() < 0.05:  # far larger than memory, but for its strides
        return np.broadcast_to(
            np.uint8(0), rng.choice(((10**6, 10**6, 3), (9000, 9000), (8, 10**9)))
        )
    kind = rng.choice(DTYPES)
    a = np.linspace(0, rng.choice((1, 255, 65_535)), int(np.prod(shape))).reshape(shape)
    with np.errstate(all="ignore"):
        a = a.astype(kind) if np.dtype(kind).kind != "M" else a.astype("i8").astype(kind)
    if a.dtype.kind == "f" and a.size and rng.random() < 0.3:
        a = np.array(a)
        a.flat[rng.randrange(a.size)] = rng.choice((np.nan, np.inf, -1, 2, 1e30))
    if a.dtype.names is None and a.ndim and rng.random() < 0.1:
        a = a[::-1]
    if rng.random() < 0.05:
        a = np.ma.masked_array(a)
    return a


MODES = "1 L P RGB RGBA CMYK YCbCr LAB HSV I F LA PA RGBX RGBa La I;16 I;16L I;16B I;16N".split()


def odd_image(rng, data):
    "A PIL image in any mode and state."
    size = rng.choice(((64, 64), (8, 8), (7, 7), (0, 64), (1, 9000), (100, 64)))
    im = Image.new(rng.choice(MODES), size)
    kind = rng.randrange(8)
    if kind == 0:
        im.close()
    if kind == 1:
        im.info["icc_profile"] = rng.choice((b"", b"x", "text", 5, data))
    if kind == 2:
        im.info["transparency"] = rng.choice((0, 300, -1, b"", b"\0" * 300, (0, 0, 0), "x", None))
    if kind == 3:
        im.info["exif"] = rng.choice((b"", b"Exif\0\0", "text", 5, data))
    if kind in (4, 5):
        try:
            return Image.open(io.BytesIO(data))  # not yet decoded
        except Exception:
            return im
    if kind == 6 and min(size) and im.mode in ("L", "RGB", "F", "I"):
        im = im.resize((64, 64)).transpose(0)
    return im


def source(rng, folder):
    "(What it is, the source)."
    fmt, data = bomb(rng) if rng.random() < 0.05 else encoded(rng)
    data = spoilt(rng, fmt, data)
    kind = rng.random()
    if kind < 0.08:
        found = odd_source(rng, folder, data)
        return f"a {type(found).__name__}", found
    if kind < 0.13:
        a = odd_array(rng)
        return f"an array {a.dtype} {a.shape}", a
    if kind < 0.18:
        im = odd_image(rng, data)
        return f"an image {im.mode} {im.size}", im
    if kind < 0.6:
        return f"{len(data)} bytes of {fmt}", data
    path = folder / rng.choice(("a.png", "a.jpg", "a", "é\u202e.png"))
    path.write_bytes(data)
    return f"a file of {len(data)} bytes of {fmt}", path


# ---- what is done with them


def check(found):
    "What was read is what was promised."
    assert found.image.mode == "RGB" and min(found.image.size) >= 8, found.image
    assert max(found.image.size) <= 8192, found.image.size
    assert found.rgba is None or found.rgba.mode == "RGBA" and found.rgba.size == found.image.size
    found.image.load()
    for words in (*found.notes, *found.aside):
        assert isinstance(words, str) and len(words) < 1000, words
    return 3 * found.image.size[0] * found.image.size[1]


def mask(given, size):
    from fastedit.pictures import read_mask

    whole = read_mask(given)
    v = read_mask(whole, size).values
    assert v.dtype == np.float32 and v.ndim == 2 and v.min() >= 0 and v.max() <= 1
    assert size is None or v.shape == size[::-1]
    return whole.values.nbytes


def request(given, size):
    from fastedit.editor import EditRequest

    EditRequest.from_png(given)
    return 0


def read(given, size):
    from fastedit.pictures import read_image

    return check(read_image(given))


def case(rng, folder, index):
    words, given = source(rng, folder)
    use = rng.choices((read, mask, request), (7, 2, 1))[0]
    size = rng.choice((None, (64, 64), (100, 64), (1000, 750)))
    one = Case(f"{use.__name__} {words}", None, memory=ROOM)

    def run():
        one.memory += 3 * use(given, size)

    one.run = run
    return one
