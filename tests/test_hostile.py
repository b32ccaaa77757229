"What people, files and disks put where a path, a table or a configuration belongs."

import datetime, io, json, os, shutil
from pathlib import Path
import numpy as np, pytest
from PIL import Image
from hypothesis import given, settings, strategies as st
from fastedit.core import DataError, FastEditError, ModelError, OptionError, as_path
from fastedit.models import (
    MODELS,
    Lora,
    cache_dir,
    find_spec,
    load_model,
    local_spec,
    random_lora,
    random_model,
    read_header,
    read_json,
    read_models_toml,
    user_models,
    weight_files,
)
from fastedit.pictures import save_image
from fastedit.schema import read_toml
from fastedit.studies.bench import make_runs, read_config

# --- paths ----------------------------------------------------------------------------------------

NO_PATHS = ["~nosuchuser/a", "a\0b", "\ud800", "x" * 300, "a/" * 3000]


def test_a_path_is_given_with_its_home_filled_in():
    assert as_path("~/a.png") == Path.home() / "a.png" and as_path(Path("a")) == Path("a")


@pytest.mark.parametrize("bad", [*NO_PATHS, 3, None])
def test_what_no_path_can_be_is_refused_in_words(bad):
    with pytest.raises(DataError, match="the table .* cannot be used: .*; correct it"):
        as_path(bad, "the table", DataError)


@pytest.mark.parametrize("bad", NO_PATHS)
def test_every_door_refuses_what_is_no_path(bad):
    from fastedit.editor import read_edits
    from fastedit.measure import load_reader, read_data
    from fastedit.methods import find_method
    from fastedit.models import load_model
    from fastedit.pictures import load_image

    for call in (
        lambda: load_image(bad),
        lambda: read_data(bad),
        lambda: read_edits(bad),
        lambda: load_reader(bad),
        lambda: find_spec(bad),
        lambda: find_method(f"{bad}.py:NAME"),
        lambda: Lora(bad),
        lambda: load_model("mini", controlnet=bad),
        lambda: load_model("mini", vae=bad),
        lambda: read_models_toml(bad),
        lambda: read_config(bad),
        lambda: save_image(np.zeros((8, 8, 3), np.uint8), bad),
    ):
        with pytest.raises(FastEditError):
            call()


@pytest.mark.parametrize("bad", [None, 3, io.BytesIO()])
def test_a_picture_is_saved_under_a_path(bad):
    with pytest.raises(OptionError, match="the path .* cannot be used"):
        save_image(np.zeros((8, 8, 3), np.uint8), bad)


def test_a_machine_without_homes_has_no_models_of_its_own(monkeypatch):
    for name in ("FASTEDIT_MODELS_TOML", "FASTEDIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def nobody(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", nobody)
    assert user_models() == {}
    with pytest.raises(ModelError, match="FASTEDIT_CACHE"):
        cache_dir()


# --- tables of values -----------------------------------------------------------------------------


@pytest.fixture
def toml(tmp_path):
    def write(text):
        file = tmp_path / "t.toml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    return write


@pytest.mark.parametrize(
    "text",
    [b"a = \xff", b"a = 1\0", "a = " + "[" * 5000, "a = " + "9" * 5000, "a = 1\na = 2", "[a"]
    + ["[a]\n[a]", "a.b = 1\na = 2", 'a = "\\ud800"', "a = 1979-13-45", "a = '" + "x" * (1 << 20)],
)
def test_a_file_that_is_no_toml_is_refused(toml, text):
    with pytest.raises(ModelError, match="t.toml (is not readable as TOML|has more than)"):
        read_models_toml(toml(text))
    with pytest.raises(OptionError, match="t.toml (is not readable as TOML|has more than)"):
        read_config(toml(text))


def test_toml_may_begin_with_the_mark_of_utf8(toml):
    assert read_toml(toml(b"\xef\xbb\xbfa = 1")) == {"a": 1}


@pytest.mark.parametrize(
    "line, says",
    [
        ("default_stpes = 4", r"default_stpes is unknown \(did you mean 'default_steps'\?\)"),
        ("default_steps = true", "default_steps=True: give a whole number from 1 to 1,000"),
        ("default_steps = 0x" + "f" * 900, "default_steps=a number of 1,084 digits"),
        ("guidance_default = nan", "guidance_default=nan: give a number"),
        ("guidance_range = [2, 1]", "smaller number first"),
        ("guidance_range = [1]", "list of two numbers"),
        ("base = 1979-05-27", "base=.*date.*: give the owner/name"),
        ("base = {repo = 3}", "base: repo=3: give the owner/name"),
        ("lora = {file = 'a'}", "lora: there is no repo"),
        ("lora = {repo = 'a/b', revision = '../x'}", "lora: revision='../x'"),
        ("unet = []", r"unet=\[\]: give"),
        ('controlnet = "~nosuchuser/x"', "controlnet .* cannot be used: there is no such home"),
        ("controlnet = true", "controlnet=True: give one of"),
        ("precisions = ['fp15']", r"precisions=\['fp15'\]: give a list of fp32"),
        ("scheduler = 'DDIMSchedular'", r"did you mean 'DDIMScheduler'\?"),
        ("pipeline = 'Flux2KleinPipeline'", "family='sdxl' with pipeline"),
        ("multiple = 12", "multiple=12: give a multiple of vae_factor, 8"),
        ("key = 'a'", "key is unknown"),
    ],
)
def test_a_models_table_names_file_table_key_value_and_what_is_allowed(toml, line, says):
    with pytest.raises(ModelError, match=r"t.toml \[mine\]: .*" + says):
        read_models_toml(toml(f'[mine]\nlike = "sdxl"\n{line}\n'))


def test_a_models_table_keeps_what_is_right(toml):
    text = """[mine]
        like = "sdxl"
        guidance_range = [1, 2.5]
        precisions = ["fp32"]
        vae = false
        lora = {repo = "a/b", revision = "v1.0"}
        """
    spec = read_models_toml(toml(text))["mine"]
    assert spec.guidance_range == (1, 2.5) and spec.precisions == ("fp32",) and spec.vae is None
    assert (spec.lora.file, spec.lora.revision) == ("pytorch_lora_weights.safetensors", "v1.0")
    assert spec.base == MODELS["sdxl"].base


def test_a_table_with_like_path_and_base_takes_the_path(toml, tmp_path):
    spec = read_models_toml(toml('[a]\nlike = "sdxl"\npath = "here"\nbase = "a/b"\n'))["a"]
    assert spec.path == spec.base.repo == str(tmp_path / "here")


@pytest.mark.parametrize(
    "text, says",
    [
        ("per_tpye = 1", r"per_tpye is unknown \(did you mean 'per_type'\?\)"),
        ("per_type = 1.5", "per_type=1.5: give a whole number"),
        ("seeds = 1979-05-27", "seeds=.*date"),
        ("seeds = ['a']", r"seeds=\['a'\]: give a whole number, or a list"),
        ("profile = 'drwan'", r"profile='drwan': .*did you mean 'drawn'\?"),
        ("skip_bad = 1", "skip_bad=1: give true or false"),
        ("dataset = '~nosuchuser/x'", "dataset .* no such home"),
        ("settings = []", r"settings=\[\]: give a table"),
        ("[settings]\nsteps = 1979-05-27", "settings.steps=.*date"),
        ("[settings]\nsteps = nan", "settings.steps=nan: give a finite number"),
        ("[run]\nmethod = 'ddcm'", "two brackets"),
    ],
)
def test_a_bench_file_names_file_keyword_value_and_what_is_allowed(toml, text, says):
    with pytest.raises(OptionError, match="(?s)t.toml: .*" + says):
        read_config(toml(text))


@pytest.mark.parametrize("steps", ["many", {"a": 1}, [["x"]], 1e400])
def test_a_bench_refuses_settings_of_another_type(steps):
    with pytest.raises(OptionError, match="steps="):
        make_runs("ddcm", settings=dict(ddcm=dict(steps=steps)))


def test_a_grid_has_a_bound():
    many = dict(strength=[k / 40 for k in range(1, 41)], steps=list(range(1, 41)))
    with pytest.raises(OptionError, match="makes 1,600 lines"):
        make_runs("ddcm", settings=many)


# what TOML can hold, in tables of known and unknown names
VALUES = st.recursive(
    st.one_of(
        st.text(max_size=8),
        st.integers(-(10**30), 10**30),
        st.floats(),
        st.booleans(),
        st.dates(),
        st.datetimes(),
        st.sampled_from(NO_PATHS[:2] + ["sdxl", "a/b", "own", "none", "1/2", datetime.time(1)]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_table_is_used_or_refused_in_words(data):
    from fastedit.models.user import ROW, _spec_from_table
    from fastedit.studies.bench.running import CONFIG

    for schema, read in (
        (ROW, lambda t: _spec_from_table("a", {"like": "sdxl", **t}, Path("m.toml"))),
        (CONFIG, lambda t: CONFIG.check(t, "b.toml: ")),
    ):
        names = st.sampled_from([*schema.fields])
        table = data.draw(st.dictionaries(names | st.text(max_size=4), VALUES, max_size=3))
        try:
            read(table)
        except FastEditError as e:
            assert ".toml" in str(e) and len(str(e)) < 3000


# --- the files of a model -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("model") / "sd15", family="sd15", max_shard=200_000)


@pytest.fixture
def model(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "model"))


def change(file, **entries):
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))
    return file


BAD_JSON = dict(
    cut='{"a": 1',
    deep="[" * 100_000,
    digits='{"a": ' + "9" * 5000 + "}",
    bytes=b"\xff{}",
    list="[]",
    null="null",
    surrogate='{"act_fn": "\\ud800"}',
    surrogate_name='{"\\ud800": 1}',
    huge='{"sample_size": 1' + "0" * 400 + "}",
    nest='{"a":' * 40 + "1" + "}" * 40,
)


@pytest.mark.parametrize("kind", BAD_JSON)
@pytest.mark.parametrize(
    "name",
    ["model_index.json", "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"],
)
def test_a_configuration_that_is_none_is_refused_and_named(model, name, kind):
    text = BAD_JSON[kind]
    (model / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ModelError, match=name):
        find_spec(model)


def test_numbers_without_end_are_allowed_where_real_models_have_them(model):
    "diffusers writes lambda_min_clipped as -Infinity."
    change(model / "scheduler/scheduler_config.json", lambda_min_clipped=-float("inf"))
    assert load_model(model, device="cpu").spec.scheduler == "LCMScheduler"


@pytest.mark.parametrize(
    "name, entries, says",
    [
        ("unet", dict(block_out_channels="many"), "block_out_channels='many': give a list of"),
        ("unet", dict(block_out_channels=7), "block_out_channels=7"),
        ("unet", dict(sample_size=[]), r"sample_size=\[\]"),
        ("unet", dict(sample_size={"a": 1}), "sample_size="),
        ("unet", dict(time_cond_proj_dim=float("nan")), "time_cond_proj_dim=nan"),
        ("unet", dict(sample_size=10**30), "sample_size="),
        ("vae", dict(block_out_channels=[None]), r"block_out_channels=\[None\]"),
        ("vae", dict(scaling_factor="big"), "scaling_factor='big'"),
        ("scheduler", dict(_class_name=["x"]), r"_class_name=\['x'\]: the scheduler must be one"),
        ("scheduler", dict(_class_name="DiffusionPipeline"), "_class_name='DiffusionPipeline'"),
        ("scheduler", dict(prediction_type=[1]), r"prediction_type=\[1\]"),
        ("tokenizer", dict(model_max_length="77"), "model_max_length='77'"),
        ("tokenizer", dict(pad_token=None), "no pad_token"),
        ("text_encoder", dict(num_attention_heads=3), "not a multiple of the number of attention"),
        ("text_encoder", dict(hidden_act="nope"), "it says 'nope', which is unknown"),
    ],
)
def test_an_entry_of_another_type_names_file_entry_and_value(model, name, entries, says):
    file = dict(scheduler="scheduler_config.json", tokenizer="tokenizer_config.json")
    change(model / name / file.get(name, "config.json"), **entries)
    with pytest.raises(ModelError, match=f"{name}.*({says})"):
        load_model(model, device="cpu")


def test_a_token_that_the_text_encoder_does_not_know_is_refused(model):
    from fastedit.editor import FastEditor

    change(model / "tokenizer/vocab.json", **{"a</w>": 9999})
    edit = FastEditor(str(model), device="cpu")
    with pytest.raises(ModelError, match="gives token 9999, and its text encoder knows 514"):
        edit(Image.new("RGB", (64, 64)), "a", source_prompt="a", steps=1)


def test_a_model_without_its_number_of_levels_has_four(model):
    said = json.loads((model / "unet/config.json").read_text())
    said.pop("block_out_channels")
    (model / "unet/config.json").write_text(json.dumps(said))
    assert local_spec(model).multiple == 4 * 2**3


def test_a_configuration_that_says_a_name_twice_is_refused_with_its_line(tmp_path):
    (tmp_path / "config.json").write_text('{\n "in_channels": 4,\n "in_channels": 8\n}')
    with pytest.raises(ModelError, match=r"config.json: .*'in_channels' .*\(again in line 3\)"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("name", ["pipe", "folder"])
def test_what_is_no_file_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for read in (read_json, read_header):
        with pytest.raises(ModelError, match="is no file"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    "entry",
    [
        3,
        [],
        {},
        dict(dtype="F32", shape="x", data_offsets=[0, 4]),
        dict(dtype="F32", shape=[-1], data_offsets=[0, 4]),
        dict(dtype="F32", shape=[1], data_offsets=[0, "4"]),
        dict(dtype="F32", shape=[1], data_offsets=[0, 4.0]),
        dict(dtype=None, shape=[1], data_offsets=[0, 4]),
        dict(dtype="F32", shape=[1], data_offsets=4),
    ],
)
def test_a_header_with_an_entry_that_is_no_tensor_is_refused(tmp_path, entry):
    text = json.dumps(dict(a=entry)).encode()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 4)
    with pytest.raises(ModelError, match="a.safetensors is not a safetensors file .'a' is"):
        read_header(tmp_path / "a.safetensors")


@pytest.mark.parametrize("text", [b"[" * 100_000, b"9" * 5000, b"\xff", b"[]", b"{"])
def test_a_header_that_is_no_table_is_refused(tmp_path, text):
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(ModelError, match="a.safetensors is no"):
        read_header(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "table", [3, ["a"], dict(a=3), dict(a="../b.safetensors"), dict(a="b.bin"), dict(a=["x"])]
)
def test_an_index_names_files_beside_it(model, table):
    index = next((model / "unet").glob("*.index.json"))
    change(index, weight_map=table)
    with pytest.raises(ModelError, match=f"{index.name}: weight_map"):
        weight_files(model / "unet")


def test_a_shard_that_lacks_a_weight_is_refused(model):
    from safetensors.torch import load_file, save_file

    shard = sorted((model / "unet").glob("*.safetensors"))[-1]
    held = load_file(shard)
    held.pop(sorted(held)[0])
    save_file(held, shard, {"format": "pt"})
    with pytest.raises(ModelError, match="1 weights, such as|cannot be loaded"):
        load_model(model, device="cpu")


def test_links_out_of_a_model_are_followed_in_the_hubs_cache_only(model, tmp_path):
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    file = model / "vae/diffusion_pytorch_model.safetensors"
    file = file if file.is_file() else sorted((model / "vae").glob("*.safetensors"))[0]
    file.rename(outside / "x.safetensors")
    file.symlink_to(outside / "x.safetensors")
    with pytest.raises(ModelError, match="a link to .*x.safetensors, outside the model's folder"):
        weight_files(model / "vae")
    # the folder as a link is no way around it
    file.unlink()
    (outside / "x.safetensors").rename(file)
    (model / "vae").rename(outside / "vae")
    (model / "vae").symlink_to(outside / "vae")
    with pytest.raises(ModelError, match="outside the model's folder"):
        weight_files(model / "vae")
    # inside a model links are its own affair, and a model as a whole may be one
    (model / "vae").unlink()
    (outside / "vae").rename(model / "vae.real")
    (model / "vae").symlink_to("vae.real")
    (tmp_path / "alias").symlink_to("model")
    assert weight_files(tmp_path / "alias" / "vae")[1]
    assert load_model(tmp_path / "alias", device="cpu")
    # the hub's cache: snapshots/COMMIT/vae/file -> blobs/HASH
    blobs, snapshot = tmp_path / "models--a/blobs", tmp_path / "models--a/snapshots/0/vae"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for f in (model / "vae").iterdir():
        (blobs / f"hash-of-{f.name}").write_bytes(f.read_bytes())
        (snapshot / f.name).symlink_to(f"../../../blobs/hash-of-{f.name}")
    assert weight_files(snapshot)[1]


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "unet/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json",
    ],
)
def test_a_configuration_is_no_link_out_of_the_model(model, tmp_path, name):
    "What is named may be another model's, or a file of whoever opens it."
    file, outside = model / name, tmp_path / "elsewhere"
    file.rename(outside)
    file.symlink_to(outside)
    with pytest.raises(ModelError, match=f"{file.name} is a link to .*, outside the model's"):
        load_model(model, device="cpu")
    file.unlink()
    outside.rename(file.with_name("real"))
    file.symlink_to("real")
    assert load_model(model, device="cpu")


def test_an_index_is_no_link_out_of_the_model(model, tmp_path):
    (tmp_path / "elsewhere").write_text('{"weight_map": {}}')
    for f in (model / "unet").glob("*.safetensors"):
        f.unlink()
    index = model / "unet/diffusion_pytorch_model.safetensors.index.json"
    index.unlink(missing_ok=True)
    index.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="outside the model's folder"):
        weight_files(model / "unet")


def test_a_whole_model_is_read_from_the_hubs_cache(model, tmp_path):
    blobs, snapshot = tmp_path / "models--a/blobs", tmp_path / "models--a/snapshots/0"
    blobs.mkdir(parents=True)
    for i, f in enumerate(sorted(p for p in model.rglob("*") if p.is_file())):
        (place := snapshot / f.relative_to(model)).parent.mkdir(parents=True, exist_ok=True)
        (blobs / str(i)).write_bytes(f.read_bytes())
        place.symlink_to(os.path.relpath(blobs / str(i), place.parent))
    assert load_model(snapshot, device="cpu")


def test_a_scheduler_is_one_of_those_that_are_known(model):
    from dataclasses import replace

    parts = load_model(model, device="cpu")
    assert type(parts.scheduler_object()).__name__ == "LCMScheduler"
    for name in ("DiffusionPipeline", "utils", ["x"], None):
        other = replace(parts, scheduler=dict(parts.scheduler, _class_name=name))
        with pytest.raises(ModelError, match="is not one of DDIMScheduler"):
            other.scheduler_object()


@pytest.fixture(scope="module")
def peft(whole, tmp_path_factory):
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("peft")
    held = load_file(random_lora(folder / "x.safetensors", load_model(whole, device="cpu").unet))
    named = {k.replace("unet.", "base_model.model.", 1): v for k, v in held.items()}
    save_file(named, folder / "a.safetensors")
    return folder


@pytest.mark.parametrize(
    "text, says",
    [
        ('{"r": "four"}', "r='four': give a whole number"),
        ('{"r": 4, "lora_alpha": [1]}', r"lora_alpha=\[1\]: give a number"),
        ('{"r": 4, "lora_alpha": 1e999}', "lora_alpha=inf: give a number"),
        ('{"r": 4, "lora_alpha": 4, "rank_pattern": 0.5}', "rank_pattern=0.5: give a table"),
        ('{"r": 4, "rank_pattern": {"(a+)+": 4}}', r"pattern '\(a\+\)\+': give names of layers"),
        ('{"r": 4, "alpha_pattern": {"(": 4}}', r"pattern '\('"),
        ('{"r": 4, "use_dora": "no"}', "use_dora='no': give true or false"),
        ("[" * 100_000, "nested too deeply"),
        (b"\xff", "not UTF-8"),
        ("3", "no JSON object"),
    ],
)
def test_a_loras_configuration_is_checked(whole, peft, text, says):
    data = text if isinstance(text, bytes) else text.encode()
    (peft / "adapter_config.json").write_bytes(data)
    with pytest.raises(ModelError, match="a.safetensors: its configuration.*" + says):
        load_model(whole, device="cpu", loras=peft / "a.safetensors")


def test_a_loras_patterns_are_followed(whole, peft):
    said = dict(r=4, lora_alpha=4, rank_pattern={".*to_q": 4}, alpha_pattern={"to_k": 8})
    (peft / "adapter_config.json").write_text(json.dumps(said))
    assert load_model(whole, device="cpu", loras=peft / "a.safetensors").adapters


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04" + b"\0" * 50, b"\x80\x02.", b"x" * 1000])
def test_damaged_torch_files_are_refused(tmp_path, data):
    from fastedit.measure import load_backbone

    (tmp_path / "dino-vitb8.pt").write_bytes(data)
    (tmp_path / "clip-vit-b16.pt").write_bytes(data)
    for name in ("dino-vitb8", "clip-vit-b16"):
        with pytest.raises(ModelError, match=f"{name}.pt cannot be read as weights"):
            load_backbone(name, str(tmp_path))


def test_a_torch_file_without_a_table_of_weights_is_refused(tmp_path):
    import torch
    from fastedit.measure import load_backbone

    torch.save([torch.zeros(2)], tmp_path / "dino-vitb8.pt")
    with pytest.raises(ModelError, match="holds no table of weights"):
        load_backbone("dino-vitb8", str(tmp_path))


def test_a_damaged_checkpoint_or_array_of_training_is_refused(tmp_path):
    import numpy as np
    import torch
    from fastedit.training.data import kept_array
    from fastedit.training.loop import fit

    net = torch.nn.Linear(1, 1)
    (tmp_path / "t.pt").write_bytes(b"x" * 100)
    with pytest.raises(ModelError, match="t.pt is damaged or of another run"):
        fit("t", {"net": net}, lambda *a: None, 1, tmp_path)
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY")
    np.save(tmp_path / "b.npy", np.zeros(3))
    for name in ("a", "b"):
        with pytest.raises(DataError, match=f"{name}.npy (is damaged|holds)"):
            kept_array(tmp_path / f"{name}.npy", (2,), np.uint8, None)


def test_a_precision_that_cannot_be_shown_is_refused():
    from fastedit.models import check_precision

    class Silent:
        def __repr__(self):
            raise RuntimeError("no words")

    with pytest.raises(OptionError, match="use one of|precision"):
        check_precision(Silent())


def test_two_tokenizers_of_different_length_are_refused():
    import torch
    from fastedit.denoise.codec import _check_alike

    _check_alike([torch.zeros(1, 77, 4), torch.zeros(1, 77, 8)])
    with pytest.raises(ModelError, match="77 and 64 tokens"):
        _check_alike([torch.zeros(1, 77, 4), torch.zeros(1, 64, 8)])
