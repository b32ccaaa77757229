"What disks, programs and people do to bytes and to plain data."

import json
from tests.fuzz.values import TEXTS, plain_value

LONG = (1, 2, 5, 40, 300)


def spoil_bytes(rng, data):
    "Cut, insert, overwrite, repeat."
    kind, i = rng.randrange(10), rng.randrange(len(data) + 1)
    if kind == 0:
        return data[:i]
    if kind == 1:
        return data[:i] + rng.randbytes(rng.choice(LONG)) + data[i:]
    if kind == 2:
        return data[:i] + rng.choice(TEXTS).encode("utf-8", "surrogatepass") + data[i:]
    if kind == 3:
        return data[:i] + b"[" * rng.choice((5, 1000, 100_000)) + data[i:]
    if kind == 4:
        return data[:i] + b"9" * rng.choice((5, 400, 5000)) + data[i:]
    if kind == 5:
        return data[:i] + b"\0" * rng.choice((1, 4096)) + data[i:]
    if kind == 6:
        old = rng.choice((b"\n", b'"', b"1", b"{", b","))
        new = rng.choice((b"", b"\r", b"\n", b'"', b"NaN", b"\xff", "\u2028".encode()))
        return data.replace(old, new)
    if kind == 7:
        n = rng.choice((2, 30_000))
        return data + b'{"a": 1,' + b",".join([b'"k": 1'] * n) + b"}\n"
    if kind == 8:
        return overwritten(rng, data)
    return rng.choice((b"", b"null", b"[]", b"{}", b"\xff\xfe", b"\xef\xbb\xbf" + data, data * 2))


def overwritten(rng, data, first=0):
    "Change a few bytes in place."
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        if len(out) > first:
            out[rng.randrange(first, len(out))] = rng.choice(
                (0, 1, 127, 128, 255, rng.getrandbits(8))
            )
    return bytes(out)


def spoil_value(rng, v):
    "Change one thing somewhere in plain data."
    if isinstance(v, dict) and v and rng.random() < 0.85:
        k = rng.choice(sorted(v))
        d = dict(v)
        if rng.random() < 0.15:
            d.pop(k)
        elif rng.random() < 0.05:
            d[rng.choice(TEXTS)] = d.pop(k)
        else:
            d[k] = spoil_value(rng, d[k])
        return d
    if isinstance(v, list) and v and rng.random() < 0.7:
        i = rng.randrange(len(v))
        return [*v[:i], spoil_value(rng, v[i]), *v[i + 1 :]]
    return plain_value(rng)


def as_json(v):
    "JSON of plain data, also of what Python does not write."
    try:
        return json.dumps(v)
    except (ValueError, RecursionError):
        return '{"id": ' + "9" * 5000 + "}"
