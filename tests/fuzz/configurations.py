"""Model folders from elsewhere: JSON files, headers of weights, indices, links and pickles that a
program or a person changed. They load and edit, or are refused in words, and no code of theirs
runs."""

import atexit, json, os, pickle, shutil, struct, tempfile
from functools import lru_cache
from pathlib import Path
from tests.fuzz import Case
from tests.fuzz.requests import picture
from tests.fuzz.spoil import as_json, spoil_bytes, spoil_value
from tests.fuzz.values import NUMBERS, plain_value

N, SMALL = 1000, 20
SECONDS = 10  # a load and an edit take one
ROOM = 512 * 2**20  # bytes that a tiny model may take


@lru_cache(1)
def whole():
    "A folder of a tiny model, made once."
    from fastedit.models import random_model

    root = Path(tempfile.mkdtemp(prefix="fuzz-models-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return random_model(root / "tiny", channels=(16, 32, 32), width=16)


def warm():
    use(whole(), "edit")


# ---- what happens to a folder


def spoil_json(rng, path):
    "Another value somewhere, other bytes, or a number that is far too large."
    data, how = path.read_bytes(), rng.random()
    path.unlink()  # it is shared with the whole folder
    if how < 0.3:
        return path.write_bytes(spoil_bytes(rng, data))
    v = json.loads(data)
    if how < 0.5 and isinstance(v, dict):
        numbers = [k for k, x in v.items() if isinstance(x, (int, float, list))]
        if numbers:
            v[rng.choice(numbers)] = rng.choice((*NUMBERS, [], [0], [2**40], [1] * 50, None))
            return path.write_text(as_json(v))
    if how < 0.6 and isinstance(v, dict):
        v[rng.choice(("auto_map", "_class_name", "quantization_config", "torch_dtype", "x"))] = (
            rng.choice(({"AutoModel": "evil.Evil"}, "Evil", ["os", "system"], plain_value(rng)))
        )
        return path.write_text(as_json(v))
    path.write_text(as_json(spoil_value(rng, v)))


def spoil_weights(rng, path):
    "A safetensors file whose header says something else, or is not one."
    data, how = path.read_bytes(), rng.randrange(7)
    path.unlink()
    (n,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + n]), data[8 + n :]
    if how == 0:
        return path.write_bytes(data[: rng.choice((0, 4, 8, 8 + n, len(data) // 2, len(data) - 1))])
    if how == 1:
        n = rng.choice((0, 1, 2**31, 2**63, 2**64 - 1, n - 1, n + 1))
        return path.write_bytes(struct.pack("<Q", n) + data[8:])
    if how == 2:
        return path.write_bytes(data[:8] + spoil_bytes(rng, data[8 : 8 + n])[:n].ljust(n) + body)
    if how == 3:
        return path.write_bytes(data + b"more")
    name = rng.choice([k for k in header if k != "__metadata__"])
    if how == 4:
        header[name] = spoil_value(rng, header[name])
    elif how == 5:
        header[rng.choice(("x", name + ".x", ""))] = header.pop(name)
    else:
        at = 8 + n + header[name]["data_offsets"][0]
        bad = rng.choice((b"\xff\xff\xff\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f"))
        return path.write_bytes(data[:at] + bad + data[at + 4 :])  # NaN, infinity, the largest
    text = as_json(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


class Evil:
    "What a pickle runs when it is read."

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


def change_place(rng, path, marker):
    "A file that is gone, a folder, a pipe, a link to elsewhere or to itself, or a pickle."
    how = rng.choice(("gone", "folder", "pipe", "link", "zero", "ring", "pickle", "index"))
    if how == "index":
        shards = rng.choice(("a", "../a", "/etc/passwd", "a\0", path.name, "\ud800"))
        maps = {"weight_map": {"a": shards}, "metadata": {"total_size": 10**400}}
        for name in ("diffusion_pytorch_model", "model"):
            index = path.parent / f"{name}.safetensors.index.json"
            index.write_text(as_json(spoil_value(rng, maps)))
        return how
    data = path.read_bytes()
    path.unlink()
    if how == "folder":
        path.mkdir()
    if how == "pipe":
        os.mkfifo(path)
    if how == "link":
        (marker.parent / "elsewhere").write_bytes(data)
        path.symlink_to(marker.parent / "elsewhere")
    if how == "zero":
        path.symlink_to("/dev/zero")
    if how == "ring":
        path.symlink_to(path.name)
    if how == "pickle":
        path.with_suffix(".bin").write_bytes(pickle.dumps(Evil(marker)))
        if rng.random() < 0.5:
            path.write_bytes(pickle.dumps(Evil(marker)))
    return how


# ---- what is done with it


def use(folder, how):
    from fastedit import FastEditor
    from fastedit.core import Cancelled
    from fastedit.models import diagnose, find_spec, load_model

    def stop(said):
        raise Cancelled("enough")

    if how == "look":
        spec = find_spec(folder)
        repr(spec), spec.size_gb(), repr(diagnose(folder))
    elif how == "load":
        load_model(folder)
    else:
        try:
            FastEditor(folder, device="cpu")(
                picture(), "a cup", method="img2img", steps=2, seed=0, on_step=stop
            )
        except Cancelled:
            pass


def case(rng, folder, index):
    copy, marker = folder / "tiny", folder / "ran"
    shutil.copytree(whole(), copy, copy_function=os.link)
    (copy / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    files = sorted(p for p in copy.rglob("*") if p.is_file() and p.suffix != ".py")
    said = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        path = files.pop(rng.randrange(len(files)))
        if path.suffix in (".json", ".safetensors") and rng.random() < 0.8:
            (spoil_json if path.suffix == ".json" else spoil_weights)(rng, path)
            said.append(f"{path.relative_to(copy)} changed")
        else:
            said.append(f"{path.relative_to(copy)}: {change_place(rng, path, marker)}")
    how = rng.choice(("look", "load", "edit", "edit"))

    def run():
        try:
            use(copy, how)
        finally:
            assert not marker.exists(), "code of the folder ran"

    return Case(f"{how}: {', '.join(said)}", run, memory=ROOM, seconds=SECONDS)
