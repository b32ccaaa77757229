"models.toml and the files of `fastedit bench --config`: used, or refused by file, field and value."

import json, os
from tests.fuzz import Case
from tests.fuzz.spoil import spoil_bytes
from tests.fuzz.values import plain_value

N, SMALL = 3000, 150

MODEL = dict(
    like=("mini", "sdxl", "ssd-1b", "sd15", "mini-s", "magicbrush"),
    family=("sdxl", "sd15", "flow"),
    path=("here", ".", "a.safetensors"),
    base=("a/b", "here", {"repo": "a/b", "revision": "v1"}),
    unet=("a/b", {"repo": "a/b", "folder": "unet"}),
    lora=("a/b", {"repo": "a/b", "file": "c.safetensors", "bytes": 5}),
    controlnet=("canny-sdxl-small", "own", False, "a/b"),
    vae=("sdxl-fp16-fix", False, "a/b"),
    preview=("taesd", False),
    arch=("", "sdxl", "sd15"),
    vae_arch=("", "vae-sd15"),
    text_archs=([], ["clip-l"], ["clip-l", "clip-bigg"]),
    resolution=(64, 512, 1024),
    multiple=(8, 64),
    vae_factor=(4, 8),
    scheduler=("LCMScheduler", "DDIMScheduler"),
    guidance=("cfg", "none"),
    guidance_range=([1, 2.5], [1.0, 1.0]),
    guidance_default=(1.5, 8),
    default_steps=(1, 4, 50),
    prediction=("epsilon", "v_prediction", "flow"),
    precisions=(["fp32"], ["fp16", "bf16"]),
    variants=([], ["fp16"]),
    licence=("mit", ""),
    pipeline=("", "Flux2KleinPipeline"),
    notes=("a note",),
    confirmed=([], ["licence"]),
    disk_gb=(1, 2.5),
)
METHOD = dict(
    method=("ddcm", "img2img", "turbo", "ddcm", "none such"),
    label=("mine", "a b"),
    model=("mini", "here"),
    steps=(1, 4, [1, 2]),
    strength=(0.5, [0.3, 0.5]),
    guidance=(1.5, "linear:3:1"),
    mask=("given",),
    jpeg=(75,),
    threshold=(0.3,),
    control=("canny", "none"),
)
BENCH = dict(
    dataset=("picturebook", "here", "a.csv"),
    methods=("all", "ddcm,img2img", ["turbo"], "published-as-run"),
    models=("mini", ["mini", "mini-s"]),
    settings=({"steps": 1}, {"ddcm": {"threshold": 0.3}}, {"strength": [0.3, 0.5]}),
    seeds=(0, [0, 1]),
    out=("out",),
    profile=("drawn", "corrected"),
    per_type=(1, 10),
    seed=(0, 3),
    size=(64, 512),
    types=(["1", "6"], "1"),
    ids=(["a"],),
    sample=(1, 10),
    limit=(1,),
    skip_bad=(True, False),
    curves=(True, False),
    precision=("fp32", "fp16"),
    device=("cpu",),
    shard=("1/1", "2/3"),
    workers=(0, 1),
    retry=(True,),
    loras=([], ["a.safetensors"], ["a.safetensors:0.5"]),
    run=([METHOD], {"method": "ddcm"}),
)
RAW = (
    "1979-05-27",
    "1979-05-27T07:32:00Z",
    "07:32:00",
    "0x" + "f" * 900,
    "+inf",
    "-nan",
    "1e999",
    "00",
    ".5",
    "null",
    "[" * 300 + "]" * 300,
    "[" * 5000,
    "{" * 20,
    "'''a\nb'''",
    '"\\ud800"',
    '"\\u0000"',
    "''",
    "{}",
    "[[]]",
    "[1, 'a', []]",
    "{a = 1, a = 2}",
    "{a.b = {c = []}}",
)


def toml_of(v):
    "A value as TOML, as far as there is one."
    if isinstance(v, bool):
        return str(v).lower()
    if isinstance(v, str):
        return json.dumps(v)
    if isinstance(v, dict):
        return "{" + ", ".join(f"{json.dumps(str(k))} = {toml_of(x)}" for k, x in v.items()) + "}"
    if isinstance(v, (list, tuple)):
        return "[" + ", ".join(map(toml_of, v)) + "]"
    try:
        return "null" if v is None else repr(v)
    except ValueError:
        return "9" * 5000


def odd(rng):
    return rng.choice(RAW) if rng.random() < 0.3 else toml_of(plain_value(rng))


def pick(rng, known, name):
    found = rng.choice(known[name])
    return filled(rng, found) if name == "run" and isinstance(found, list) else found


def filled(rng, tables):
    return [{k: rng.choice(v) for k, v in t.items() if rng.random() < 0.4} for t in tables]


def lines(rng, known, least=()):
    "Some of the keys, most as they should be, one or two of anything."
    names = {*least, *rng.sample(sorted(known), rng.randint(0, 4))}
    said = {k: toml_of(pick(rng, known, k)) for k in names}
    for k in rng.sample(sorted(known), rng.choice((0, 0, 1, 1, 2))):
        said[k] = odd(rng)
    if rng.random() < 0.05:
        said[rng.choice(("default_stpes", "'\\u202e'", '""', '"\\u0000"', "a.b"))] = odd(rng)
    return "".join(f"{k} = {v}\n" for k, v in said.items())


def models_text(rng):
    "Tables of models, as people write them."
    text = ""
    for _ in range(rng.choice((1, 1, 3))):
        name = rng.choice(("mine", "sdxl", "'a b'", '""', '"../x"', '"\\u202e"', '"a\\nb"', "a.b"))
        least = rng.choice((("like",), ("path",), ("family", "base"), ()))
        text += f"[{name}]\n{lines(rng, MODEL, least)}"
    return text if rng.random() < 0.95 else f"{rng.choice(('mine', 'a'))} = {odd(rng)}\n" + text


def bench_text(rng):
    text = lines(rng, BENCH)
    for _ in range(rng.choice((0, 0, 1, 2))):
        text += f"[[run]]\n{lines(rng, METHOD, ('method',))}"
    return text


def read_models(path):
    "All that is asked of rows before anything is loaded."
    from fastedit.models import diagnose, find_spec, read_models_toml

    found = read_models_toml(path)
    for key, spec in found.items():
        spec.parts(), spec.size_gb(), spec.sources(), spec.open_questions(), repr(spec)
        assert hash(spec) and spec.key == key
    os.environ["FASTEDIT_MODELS_TOML"] = str(path)
    try:
        for key in found:
            repr(diagnose(find_spec(key).key))
    finally:
        del os.environ["FASTEDIT_MODELS_TOML"]


def read_bench(path):
    "All that is asked of a run before a data set is opened."
    from fastedit.models import find_spec
    from fastedit.studies.bench import make_runs, read_config, read_shard

    c = read_config(path)
    runs = make_runs(c.get("methods", "all"), c.get("models"), c.get("settings"), "curves" in c)
    json.dumps([r.to_dict() for r in runs], allow_nan=False)
    read_shard(c.get("shard", "1/1"))
    for model in {r.model for r in runs}:
        find_spec(model)


def warm():
    from pathlib import Path
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.toml"
        path.write_text('[mine]\nlike = "sdxl"\n')
        read_models(path)
        path.write_text("seeds = [0, 1]\n")
        read_bench(path)


def case(rng, folder, index):
    make, use = rng.choice(((models_text, read_models), (bench_text, read_bench)))
    data = make(rng).encode("utf-8", "surrogatepass")
    if rng.random() < 0.2:
        data = spoil_bytes(rng, data)
    path = folder / rng.choice(("a.toml", "a.toml", "a", "\u202e.toml"))
    (folder / "here").mkdir()
    path.write_bytes(data)
    where, how = path, rng.random()
    if how < 0.03:
        where = rng.choice((folder, folder / "no", "~nosuchuser/a", "\ud800", "a\0b"))
    return Case(f"{use.__name__}({where!r}): {data[:300]!r}", lambda: use(where))
