"Pictures of every format, as files: whole ones, and ones that a program or a person spoilt."

import io, struct, zlib
from functools import lru_cache
from PIL import Image, ImageCms, PngImagePlugin
from tests.fuzz.spoil import LONG, overwritten

# numbers that a header should not hold
SIZES = (0, 1, 7, 8, 64, 100, 8192, 8193, 16_384, 65_535, 2**31 - 1, 2**31, 2**32 - 1)


def picture(rng, mode="RGB", size=None):
    w, h = size or (rng.choice((8, 31, 64, 100, 200)), rng.choice((8, 64, 97)))
    im = Image.linear_gradient("L").resize((w, h))
    colours = Image.merge("RGB", (im, im.transpose(0), im.transpose(1)))
    if mode in ("I;16", "I", "F"):
        return im.convert("I").point(lambda v: v * 257).convert(mode)
    if mode in ("LA", "RGBA", "PA", "La", "RGBa"):
        return colours.convert("RGBA").convert("RGBA" if mode == "PA" else mode).convert(mode)
    return colours.convert(mode)


# ---- whole ones


@lru_cache(4)
def profile(kind):
    "The bytes of a colour profile."
    from fastedit.pictures.colours import adobe_rgb

    if kind == "adobe":
        return adobe_rgb()
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(kind)).tobytes()


def exif(rng):
    "EXIF data that a camera writes, or a rotation that no camera knows."
    data = Image.Exif()
    data[0x0112] = rng.choice((1, 2, 3, 5, 6, 8, 0, 9, 65_535))
    if rng.random() < 0.5:
        data.get_ifd(0x8769)[0xA001] = rng.choice((1, 2, 65_535))
    data[0x010F] = "a camera" * rng.choice((1, 1, 100))
    return data.tobytes()


WAYS = {
    "PNG": (("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I"), (dict(), dict(optimize=True))),
    "JPEG": (
        ("L", "RGB", "CMYK"),
        (
            dict(),
            dict(progressive=True),
            dict(quality=5, subsampling=2),
            dict(restart_marker_rows=1),
            dict(comment=b"a comment"),
        ),
    ),
    "WEBP": (("RGB", "RGBA"), (dict(), dict(lossless=True), dict(quality=1))),
    "TIFF": (
        ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"),
        (
            dict(),
            dict(compression="tiff_lzw"),
            dict(compression="tiff_adobe_deflate"),
            dict(compression="packbits"),
            dict(compression="jpeg"),
            dict(compression="group4"),
            dict(big_tiff=True),
            dict(tiffinfo={317: 2}, compression="tiff_lzw"),
        ),
    ),
    "GIF": (("L", "P", "RGB", "RGBA"), (dict(), dict(interlace=1), dict(comment=b"a" * 300))),
    "BMP": (("1", "L", "P", "RGB", "RGBA"), (dict(),)),
    "AVIF": (("RGB", "RGBA"), (dict(speed=10),)),
    # what is no picture here
    "PPM": (("L", "RGB"), (dict(),)),
    "TGA": (("L", "RGB"), (dict(compression="tga_rle"),)),
    "ICO": (("RGBA",), (dict(),)),
    "EPS": (("RGB",), (dict(),)),
    "PDF": (("RGB",), (dict(),)),
    "JPEG2000": (("RGB",), (dict(),)),
    "PCX": (("RGB",), (dict(),)),
    "MPO": (("RGB",), (dict(),)),
}
LIKELY = ("PNG", "PNG", "JPEG", "JPEG", "WEBP", "TIFF", "TIFF", "GIF", "BMP")


def encoded(rng, fmt=None):
    "(format, bytes) of a whole picture."
    from fastedit.pictures import FORMATS

    if fmt is None:
        fmt = rng.choice(LIKELY) if rng.random() < 0.92 else rng.choice(sorted(WAYS))
    if fmt == "AVIF" and fmt not in FORMATS:
        fmt = "PNG"
    modes, ways = WAYS[fmt]
    mode, how = rng.choice(modes), dict(rng.choice(ways))
    if how.get("compression") == "group4":
        mode = "1"
    if how.get("compression") == "jpeg":
        mode = rng.choice(("L", "RGB"))
    if mode in ("F", "I", "1", "I;16") and "tiffinfo" in how:
        how = {}
    if rng.random() < 0.25 and fmt in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF"):
        how["exif"] = exif(rng)
    if rng.random() < 0.25 and fmt in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF"):
        how["icc_profile"] = profile(rng.choice(("sRGB", "adobe", "LAB", "XYZ")))
    if fmt == "PNG" and rng.random() < 0.3:
        info = how["pnginfo"] = PngImagePlugin.PngInfo()
        info.add_text("fastedit", "{}", zip=rng.random() < 0.5)
        info.add(b"gAMA", struct.pack(">I", rng.choice((45_455, 100_000, 0, 2**32 - 1))))
    if fmt in ("GIF", "WEBP", "TIFF", "PNG", "MPO") and rng.random() < 0.15:
        how |= dict(save_all=True, append_images=[picture(rng, mode, (64, 64))] * 2)
    if mode == "P" and rng.random() < 0.5 and fmt in ("PNG", "GIF"):
        how["transparency"] = rng.choice((0, 255))
    out = io.BytesIO()
    try:
        picture(rng, mode, (64, 64) if "save_all" in how else None).save(out, fmt, **how)
    except (
        OSError,
        ValueError,
        RuntimeError,
        SystemError,
    ):  # what this format and this way do not go with
        picture(rng).save(out := io.BytesIO(), fmt)
    return fmt, out.getvalue()


# ---- spoilt in their own grammar


def chunk(name, data, crc=None):
    return (
        struct.pack(">I", len(data))
        + name
        + data
        + (crc or struct.pack(">I", zlib.crc32(name + data)))
    )


def png_chunks(data):
    at, found = 8, []
    while at + 8 <= len(data):
        n = int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + n]))
        at += 12 + n
    return found


def header(rng, data):
    "IHDR with other numbers."
    numbers = list(struct.unpack(">IIBBBBB", data[:13]))
    for _ in range(rng.choice((1, 1, 2))):
        i = rng.randrange(7)
        numbers[i] = rng.choice(SIZES if i < 2 else (0, 1, 2, 3, 4, 6, 8, 16, 255))
    return struct.pack(">IIBBBBB", *numbers)


def extra_chunk(rng):
    "A chunk that says much in few bytes, or nothing that makes sense."
    n = rng.choice((10, 10**6, 3 * 10**7))
    packed = zlib.compress(bytes(n), 9)
    return rng.choice(
        (
            (b"zTXt", b"a\0\0" + packed),
            (b"iTXt", b"a\0\1\0\0\0" + packed),
            (b"iCCP", b"a\0\0" + packed),
            (b"iCCP", b"a\0\0" + zlib.compress(overwritten(rng, profile("adobe")))),
            (b"iCCP", b""),
            (b"eXIf", overwritten(rng, exif(rng))),
            (b"tRNS", rng.randbytes(rng.choice((0, 1, 2, 6, 300)))),
            (b"PLTE", rng.randbytes(rng.choice((0, 1, 3, 768, 771)))),
            (b"cHRM", rng.randbytes(rng.choice((0, 31, 32)))),
            (b"gAMA", b""),
            (b"pHYs", rng.randbytes(rng.choice((0, 9)))),
            (b"sRGB", rng.randbytes(rng.choice((0, 1)))),
            (b"acTL", struct.pack(">II", rng.choice(SIZES), 0)),
            (b"fcTL", rng.randbytes(26)),
            (b"fdAT", rng.randbytes(30)),
            (b"IDAT", b""),
            (b"IDAT", packed),
            (b"IEND", b""),
            (b"IHDR", rng.randbytes(13)),
            (rng.randbytes(4), rng.randbytes(rng.choice(LONG))),
        )
    )


def spoil_png(rng, data):
    parts = png_chunks(data)
    if not parts:
        return data
    crc, kind = (None if rng.random() < 0.9 else b"abcd"), rng.randrange(6)
    i = rng.randrange(len(parts))
    if kind == 0:
        parts[0] = (parts[0][0], header(rng, parts[0][1].ljust(13, b"\0")))
    elif kind == 1:
        parts.insert(rng.randrange(len(parts) + 1), extra_chunk(rng))
    elif kind == 2:
        parts.pop(i)
    elif kind == 3:
        rng.shuffle(parts)
    elif kind == 4:
        parts[i] = (parts[i][0], overwritten(rng, parts[i][1]))
    else:
        parts[i:i] = [parts[i]] * rng.choice((1, 3, 1000))
    return data[:8] + b"".join(chunk(k, v, crc) for k, v in parts)


def jpeg_segments(data):
    "[marker and content], what follows the first scan's header in the last one."
    at, found = 2, []
    while at + 4 <= len(data) and data[at] == 0xFF:
        n = int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xDA:
            break
        found.append(data[at : at + 2 + n])
        at += 2 + n
    return found, data[at:]


def segment(marker, content):
    return bytes((0xFF, marker)) + struct.pack(">H", min(len(content) + 2, 65_535)) + content


def extra_segment(rng):
    icc = profile(rng.choice(("sRGB", "adobe")))
    part = rng.choice((b"\1\1", b"\0\0", b"\2\1", b"\1\xff", b"\1\2"))
    return rng.choice(
        (
            segment(0xE2, b"ICC_PROFILE\0" + part + overwritten(rng, icc)),
            segment(0xE2, b"ICC_PROFILE\0" + part),
            segment(0xE2, b"MPF\0" + rng.randbytes(60)),
            segment(0xE1, b"Exif\0\0" + overwritten(rng, exif(rng))),
            segment(0xE1, b"Exif\0\0" + rng.randbytes(60)),
            segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b"<" * rng.choice((3, 60_000))),
            segment(0xE0, b"JFIF\0" + rng.randbytes(9)),
            segment(0xED, b"Photoshop 3.0\0" + b"8BIM" + rng.randbytes(40)),
            segment(0xEE, b"Adobe" + rng.randbytes(7)),
            segment(0xFE, b"a" * rng.choice((0, 60_000))),
            segment(0xDD, struct.pack(">H", rng.choice((0, 1, 65_535)))),
            segment(0xDC, struct.pack(">H", rng.choice((0, 1, 65_535)))),
            segment(0xC4, rng.randbytes(rng.choice((1, 17, 60)))),
            segment(0xDB, rng.randbytes(rng.choice((1, 65, 129)))),
            segment(rng.randrange(256), rng.randbytes(rng.choice(LONG))),
        )
    )


def spoil_jpeg(rng, data):
    parts, scan = jpeg_segments(data)
    if not parts:
        return data
    kind, i = rng.randrange(7), rng.randrange(len(parts))
    if kind == 0:  # the frame's size, its precision or its components
        k = next((k for k, s in enumerate(parts) if s[1] in (0xC0, 0xC1, 0xC2)), i)
        sof = bytearray(parts[k])
        at = rng.choice((4, 5, 7, 9, 10, 11, 13))
        sof[at : at + 2] = struct.pack(">H", rng.choice(SIZES) & 0xFFFF)
        parts[k] = bytes(sof)
    elif kind == 1:
        parts.insert(i, extra_segment(rng))
    elif kind == 2:
        parts.pop(i)
    elif kind == 3:
        rng.shuffle(parts)
    elif kind == 4:
        parts[i] = parts[i][:2] + overwritten(rng, parts[i][2:])
    elif kind == 5:
        scan = scan[:2] + overwritten(rng, scan[2:])
    else:
        n = rng.choice((2, 60, 70, 3000))
        scan = scan[:-2] * min(n, 10**7 // (len(scan) + 1)) + scan[-2:]
    return data[:2] + b"".join(parts) + scan


TAGS = (256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325)
TAGS = (*TAGS, 338, 339, 347, 512, 530, 532, 34675, 34665, 33550, 700)


def spoil_tiff(rng, data):
    "Entries of the first list with other numbers."
    if len(data) < 8 or data[:4] not in (b"II*\0", b"MM\0*"):
        return overwritten(rng, data)
    order = "<" if data[:2] == b"II" else ">"
    out = bytearray(data)
    (at,) = struct.unpack(order + "I", data[4:8])
    if at + 2 > len(data):
        return data
    (n,) = struct.unpack(order + "H", data[at : at + 2])
    for _ in range(rng.choice((1, 1, 2, 4))):
        k = at + 2 + 12 * rng.randrange(max(1, n))
        if k + 12 > len(out):
            continue
        how = rng.randrange(5)
        if how == 0:
            out[k : k + 2] = struct.pack(order + "H", rng.choice(TAGS))
        elif how == 1:
            out[k + 2 : k + 4] = struct.pack(order + "H", rng.choice((0, 1, 2, 5, 7, 12, 13, 18)))
        elif how == 2:
            out[k + 4 : k + 8] = struct.pack(order + "I", rng.choice(SIZES))
        else:
            out[k + 8 : k + 12] = struct.pack(order + "I", rng.choice((*SIZES, at, len(data))))
    if rng.random() < 0.1:  # the list follows itself
        end = at + 2 + 12 * n
        out[end : end + 4] = struct.pack(order + "I", at)
    return bytes(out)


def spoil_head(rng, data):
    "Numbers of the first bytes, of which GIF, BMP and WebP have most."
    out = bytearray(data)
    at = rng.randrange(min(len(out), 60))
    number = rng.choice(SIZES)
    wide = rng.choice((1, 2, 4))
    out[at : at + wide] = (number % 256**wide).to_bytes(wide, rng.choice(("little", "big")))
    return bytes(out)


def riff_chunks(rng, data):
    "WebP chunks in another order, twice, or not there."
    at, parts = 12, []
    while at + 8 <= len(data):
        n = int.from_bytes(data[at + 4 : at + 8], "little")
        parts.append(data[at : at + 8 + n + n % 2])
        at += 8 + n + n % 2
    if parts:
        i = rng.randrange(len(parts))
        kind = rng.randrange(4)
        if kind == 0:
            parts.pop(i)
        elif kind == 1:
            parts.insert(i, parts[rng.randrange(len(parts))])
        elif kind == 2:
            rng.shuffle(parts)
        else:
            wide = (b"VP8X", bytes((0xFF,)) + bytes(3) + (2**24 - 1).to_bytes(3, "little") * 2)
            parts.insert(0, wide[0] + struct.pack("<I", 10) + wide[1])
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


GRAMMAR = {
    "PNG": (spoil_png,),
    "JPEG": (spoil_jpeg,),
    "MPO": (spoil_jpeg,),
    "TIFF": (spoil_tiff,),
    "WEBP": (riff_chunks, spoil_head),
}


def spoilt(rng, fmt, data):
    "Bytes that were a picture."
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        if not data:
            return data
        kind, i = rng.random(), rng.randrange(len(data))
        if kind < 0.5:
            data = rng.choice(GRAMMAR.get(fmt, (spoil_head,)))(rng, data)
        elif kind < 0.6:
            data = data[:i]
        elif kind < 0.75:
            data = overwritten(rng, data)
        elif kind < 0.8:
            data = overwritten(rng, data[:64]) + data[64:]
        elif kind < 0.85:
            data = data[:i] + rng.randbytes(rng.choice(LONG)) + data[i:]
        elif kind < 0.9:
            data = data[:i] + data[i + rng.choice(LONG) :]
        elif kind < 0.95:
            data = data[:i] + encoded(rng)[1][rng.choice((0, i)) :]
        else:
            data = data + bytes(rng.choice((1, 5000, 10**6)))
    return data


# ---- bombs


def bomb(rng):
    "(format, bytes) of a small file that asks for much."
    side = rng.choice((4000, 8192, 8193, 30_000))
    kind = rng.randrange(5)
    if kind == 0:  # far more packed pixels than it says, or far fewer
        said = rng.choice((64, side))
        head = struct.pack(">IIBBBBB", said, said, 8, rng.choice((0, 2, 6)), 0, 0, 0)
        body = zlib.compress(bytes(10**7 * rng.choice((1, 5))), 9)
        parts = chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
        return "PNG", b"\x89PNG\r\n\x1a\n" + parts
    if kind == 1:
        wide = struct.pack("<HHBBB", side, side, 0, 0, 0) + b","
        return "GIF", b"GIF89a" + wide + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x08\0;"
    if kind == 2:  # one huge tile or many strips, packed or not
        from tests.test_bounds import tiff

        return "TIFF", tiff(side, rng.choice((64, side)), rng.choice((1, 3, 64)))
    if kind == 3:
        bits = rng.choice((1, 4, 8, 24, 32))
        packing = rng.choice((0, 1, 2, 3))
        head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, bits, packing, 0, 0, 0, 0, 0)
        return "BMP", b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + head + bytes(1024)
    data = bytearray(encoded(rng, "JPEG")[1])
    at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    data[at + 5 : at + 9] = struct.pack(">HH", side, side)
    return "JPEG", bytes(data)
