"""Models: registry, real folder layouts with small random weights, checks before loading, LoRA,
single files, fetching."""

import json, shutil, sys, threading
from dataclasses import replace
from pathlib import Path
import pytest, torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
from ldm import to_checkpoint
from fastedit import models as M
from fastedit.core import ModelError, OptionError
from fastedit.models.fetching import _wanted
from fastedit.models.files import read_json
from fastedit.models.folders import _listing
from fastedit.models.single_file import default_scheduler
from fastedit.models.tokenizer import openai_tokenizer


@pytest.fixture(autouse=True)
def _home(tmp_path_factory, monkeypatch):
    "No test sees the user's own models or caches."
    d = tmp_path_factory.getbasetemp()
    for k, v in dict(
        FASTEDIT_CACHE="cache",
        HF_HUB_CACHE="hub",
        FASTEDIT_MODELS="mirror",
        FASTEDIT_MODELS_TOML="none.toml",
    ).items():
        monkeypatch.setenv(k, str(d / v))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "Small models in the layouts that are found in the wild."
    d = tmp_path_factory.mktemp("models")
    kw = dict(channels=(16, 32, 32), width=16)
    return dict(
        xl=M.random_model(d / "xl", **kw),
        w=M.random_model(d / "w", w_embedding=True, **kw),
        sd15=M.random_model(d / "sd15", "sd15", **kw),
        fp16=M.random_model(d / "fp16", variant="fp16", **kw),
        sharded=M.random_model(d / "sharded", max_shard="100KB", **kw),
        root=d,
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return M.random_weights(tmp_path_factory.mktemp("weights"))


def eps(c, size=16, seed=0):
    "One noise prediction of a small model."
    g = torch.Generator().manual_seed(seed)
    cross = c.unet.config.cross_attention_dim
    x, e = torch.randn(1, 4, size, size, generator=g), torch.randn(1, 77, cross, generator=g)
    kw = (
        dict(
            added_cond_kwargs=dict(
                text_embeds=torch.randn(1, cross // 2, generator=g), time_ids=torch.zeros(1, 6)
            )
        )
        if c.text_encoder_2 is not None
        else {}
    )
    with torch.no_grad():
        return c.unet(
            x.to(c.dtype),
            500,
            e.to(c.dtype),
            **{k: {a: b.to(c.dtype) for a, b in v.items()} for k, v in kw.items()},
        ).sample.float()


def copy(src, dst):
    shutil.copytree(src, dst)
    return dst


# --- architectures and registry -------------------------------------------------------------------

METHODS_TABLE = {
    "sdxl": 2_567_463_684,
    "ssd-1b": 1_331_334_404,
    "lcm-ssd-1b": 1_331_334_404 + 81_920,
    "lcm-sdxl": 2_567_463_684 + 81_920,
    "sd15": 859_520_964,
    "vae-sdxl": 83_653_863,
    "taesd": 2_445_063,
    "controlnet-sdxl": 1_251_014_160,
    "controlnet-sdxl-mid": 270_942_480,
    "controlnet-sdxl-small": 160_111_120,
    "clip-l": 123_060_480,
    "clip-bigg": 694_659_840,
}


@pytest.mark.parametrize("arch", list(M.ARCHITECTURES))
def test_parameter_counts(arch):
    n = M.count_parameters(M.build(arch))
    assert n == M.ARCHITECTURES[arch].parameters == METHODS_TABLE.get(arch, n)


@pytest.mark.parametrize(
    "spec",
    list({s.arch: s for s in M.MODELS.values() if s.arch and s.controlnet}.values()),
    ids=lambda s: s.key,
)
def test_controlnet_residuals_fit_each_unet_they_are_offered_for(spec):
    "The residuals' shapes at the native size are those of the UNet's own skip connections."
    unet = M.build(spec.arch)
    side = spec.resolution // spec.vae_factor
    c, n = unet.config.block_out_channels, unet.config.layers_per_block
    skips = [(c[0], side)]
    for i, ch in enumerate(c):
        skips += [(ch, side >> i)] * n + ([(ch, side >> (i + 1))] if i < len(c) - 1 else [])
    for part in (p for p in M.CONTROLNETS.values() if p.family == spec.family):
        cn = M.build(part.arch)
        ins = [b.resnets[0].in_channels for b in unet.down_blocks]
        assert [z.out_channels for z in cn.controlnet_down_blocks] == [
            s[0] for s in skips
        ] and cn.controlnet_mid_block.out_channels == c[-1]
        assert [b.resnets[0].in_channels for b in cn.down_blocks] == ins and [
            bool(b.downsamplers) for b in cn.down_blocks
        ] == [bool(b.downsamplers) for b in unet.down_blocks]


@pytest.mark.parametrize(
    "unet,cn",
    [
        ("ssd-1b", "controlnet-sdxl-small"),
        ("lcm-ssd-1b", "controlnet-sdxl-mid"),
        ("sd15", "controlnet-sd15"),
    ],
)
def test_unet_takes_the_residuals_on_the_meta_device(unet, cn):
    u, c = M.build(unet), M.build(cn)
    xl = u.config.addition_embed_type == "text_time"
    side = u.config.sample_size
    x, e = (
        torch.empty(1, 4, side, side, device="meta"),
        torch.empty(1, 77, u.config.cross_attention_dim, device="meta"),
    )
    kw = (
        dict(
            added_cond_kwargs=dict(
                text_embeds=torch.empty(1, 1280, device="meta"),
                time_ids=torch.empty(1, 6, device="meta"),
            )
        )
        if xl
        else {}
    )
    t = torch.empty(1, device="meta")
    down, mid = c(
        x,
        t,
        e,
        controlnet_cond=torch.empty(1, 3, side * 8, side * 8, device="meta"),
        return_dict=False,
        **kw,
    )
    assert (
        u(
            x, t, e, down_block_additional_residuals=down, mid_block_additional_residual=mid, **kw
        ).sample.shape
        == x.shape
    )


def test_registry_is_complete_and_consistent():
    for k, s in M.MODELS.items():
        assert (
            k == s.key
            and s.licence
            and s.scheduler
            and s.guidance in ("cfg", "w-embedding", "none")
            and s.guidance_range[0] <= s.guidance_default <= s.guidance_range[1]
        )
        if s.arch:
            assert (s.guidance == "w-embedding") == bool(
                M.ARCHITECTURES[s.arch].config.get("time_cond_proj_dim")
            ), "guidance kind is the UNet's own"
            cross = sum(M.ARCHITECTURES[a].config["hidden_size"] for a in s.text_archs)
            assert M.ARCHITECTURES[s.arch].config["cross_attention_dim"] == cross
        if s.family == "flow":
            import diffusers

            assert hasattr(diffusers, s.pipeline)
    assert M.MODELS["ssd-1b-lora"].lora.repo.endswith("ssd-1b") and M.MODELS[
        "sdxl"
    ].lora.repo.endswith("sdxl"), "each UNet has its own LoRA"
    # one file in fp32, whatever is asked for
    vae = 4 * M.ARCHITECTURES["vae-sdxl"].parameters / 1e9
    assert round(M.MODELS["ssd-1b"].size_gb("fp16"), 2) == 4.95 and M.MODELS["ssd-1b"].size_gb(
        "fp32"
    ) - vae == pytest.approx(2 * (M.MODELS["ssd-1b"].size_gb("fp16") - vae))
    assert round(
        M.MODELS["sdxl"].size_gb() - replace(M.MODELS["sdxl"], lora=None).size_gb(), 3
    ) == 0.394 and all(
        s.lora is None or s.lora.bytes > 10**8
        for k, s in M.MODELS.items()
        if not k.startswith("mini")
    )
    assert (
        "openrail++" in M.MODELS["ssd-1b"].licence
        and "openrail++" in M.MODELS["ssd-1b-lora"].licence
        and "magicbrush" not in M.MODELS
    )


def test_what_is_not_known_for_sure_is_said(folders):
    """A source is pinned to a commit, or follows the branch main and says so; doctor repeats it;
    models that are here have no open questions."""
    loose = set()
    for s in M.MODELS.values():
        for src in filter(None, (s.base, s.unet, s.lora)):
            assert src.pinned or src.revision == "main"
            if not src.pinned and not s.key.startswith("mini"):
                loose.add(src.repo)
                assert any(src.repo in q and "not pinned" in q for q in s.open_questions())
        assert ("licence" in s.confirmed) == (
            not any("licence" in q for q in s.open_questions())
        ) or s.key.startswith("mini")
    assert loose and all(
        p.source.pinned or p.source.revision == "main"
        for p in (*M.CONTROLNETS.values(), *M.VAES.values())
    )
    d = M.diagnose("ssd-1b")
    assert d.questions == M.MODELS["ssd-1b"].open_questions() and all(
        f"not known for sure: {q}" in str(d) for q in d.questions
    )
    assert (
        not M.MODELS["mini"].open_questions()
        and not M.load_model(folders["xl"]).spec.open_questions()
    )


@pytest.mark.parametrize("bad", ["ssd1b", "no/such/place", ""])
def test_unknown_names_list_the_known_ones(bad):
    with pytest.raises(ModelError, match="ssd-1b.*mini") if bad else pytest.raises(ModelError):
        M.load_model(bad)


def test_toml(tmp_path, folders, monkeypatch):
    f = tmp_path / "m.toml"
    f.write_text(
        '[a]\nlike = "ssd-1b"\ndefault_steps = 6\n'
        f'[b]\npath = "{folders["sd15"]}"\nguidance_default = 3.0\n'
        f'[c]\nlike = "sdxl"\npath = "{folders["xl"]}"\n'
    )
    got = M.read_models_toml(f)
    assert (
        got["a"].default_steps == 6
        and got["a"].unet == M.MODELS["ssd-1b"].unet
        and got["b"].family == "sd15"
        and got["b"].guidance_default == 3
        and got["c"].lora == M.MODELS["sdxl"].lora
    )
    monkeypatch.setenv("FASTEDIT_MODELS_TOML", str(f))
    assert M.load_model("b").spec.key == "b"
    for text, word in (
        ("[a]\nlike='x'", "like"),
        ("[a]\nlike='sdxl'\nstepz=4", "stepz"),
        ("a=1", "table"),
        ("[a", "TOML"),
        ("[a]\nbase='x'", "family"),
        ("[a]\nlike='sdxl'\nbase={repoo='x'}", "repoo"),
    ):
        f.write_text(text)
        with pytest.raises(ModelError, match=word):
            M.read_models_toml(f)


# --- real folder layouts --------------------------------------------------------------------------


def test_layouts_load_through_one_door(folders):
    xl, sharded = M.load_model(folders["xl"]), M.load_model(folders["sharded"])
    assert (
        len(list((folders["sharded"] / "unet").glob("*-of-*.safetensors"))) > 1
        and (
            folders["sharded"] / "unet" / "diffusion_pytorch_model.safetensors.index.json"
        ).is_file()
    )
    assert torch.equal(eps(xl), eps(sharded)) and eps(xl).std() > 0
    half = M.load_model(folders["fp16"], precision="fp32")
    assert half.dtype == torch.float32 and torch.allclose(eps(half), eps(xl), atol=2e-2), (
        "an fp16 variant also serves fp32"
    )
    assert M.load_model(folders["fp16"], precision="bf16").dtype == torch.bfloat16
    sd = M.load_model(folders["sd15"])
    assert (
        sd.text_encoder_2 is None and sd.spec.family == "sd15" and eps(sd).shape == (1, 4, 16, 16)
    )
    w = M.load_model(folders["w"])
    assert w.spec.guidance == "w-embedding" and w.unet.config.time_cond_proj_dim == 32
    assert M.load_model(folders["xl"], controlnet=False).controlnet is None
    assert (
        len({c.revision for c in (xl, half, sd, w)}) == 4
        and M.load_model(folders["xl"]).revision == xl.revision
    )


def test_stock_pipeline_loads_a_random_model(folders):
    from diffusers import StableDiffusionXLControlNetImg2ImgPipeline as P
    from PIL import Image

    pipe = P.from_pretrained(folders["xl"])
    pipe.set_progress_bar_config(disable=True)
    for w, h in ((64, 64), (96, 48)):
        im = Image.new("RGB", (w, h), (200, 30, 20))
        out = pipe(
            "a ball",
            image=im,
            control_image=im,
            num_inference_steps=2,
            strength=1.0,
            guidance_scale=1.5,
            generator=torch.manual_seed(0),
        ).images[0]
        assert out.size == (w, h)


def test_mirror_and_hub_cache_are_found_offline(folders, tmp_path, monkeypatch):
    spec = M.ModelSpec("mine", "sdxl", M.Source("someone/model"), controlnet="own")
    with pytest.raises(ModelError, match="unet .someone/model/unet."):
        M.load_model(spec)
    monkeypatch.setenv("FASTEDIT_MODELS", str(tmp_path))
    copy(folders["xl"], tmp_path / "someone" / "model")
    a = M.load_model(spec)
    monkeypatch.delenv("FASTEDIT_MODELS")
    hub = tmp_path / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))
    repo = hub / "models--someone--model"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc123")
    copy(folders["xl"], repo / "snapshots" / "abc123")
    b = M.load_model(spec)
    assert a.revision == b.revision and torch.equal(eps(a), eps(b))
    with pytest.raises(ModelError):
        M.load_model(replace(spec, base=M.Source("someone/model", revision="v2")))


def test_absent_registry_model_is_one_error_before_loading(monkeypatch):
    monkeypatch.setattr(
        "fastedit.models.load.load_network", lambda *a: pytest.fail("nothing may be loaded")
    )
    with pytest.raises(ModelError) as e:
        M.load_model("ssd-1b")
    assert all(
        x in str(e.value)
        for x in ("fastedit fetch ssd-1b", "segmind/SSD-1B/text_encoder_2", "lcm-ssd-1b", "GB")
    )


def _cut(f):
    f.write_bytes(f.read_bytes()[:-100])


def _text(f):
    f.write_text("<html>404</html>")


def _empty(f):
    f.write_bytes(b"")


def _huge(f):
    f.write_bytes((1 << 60).to_bytes(8, "little") + b"{}")


def _list(f):
    f.write_bytes((2).to_bytes(8, "little") + b"[]")


@pytest.mark.parametrize("spoil", [_cut, _text, _empty, _huge, _list, Path.unlink])
def test_damaged_weights_are_refused_before_loading(folders, tmp_path, spoil, monkeypatch):
    d = copy(folders["xl"], tmp_path / "m")
    spoil(d / "vae" / "diffusion_pytorch_model.safetensors")
    monkeypatch.setattr(
        "fastedit.models.load.load_network", lambda *a: pytest.fail("nothing may be loaded")
    )
    with pytest.raises(ModelError, match="vae"):
        M.load_model(d)


@pytest.mark.parametrize(
    "name",
    ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json", "vae/config.json"],
)
@pytest.mark.parametrize("text", ["", "[1]", "{", None])
def test_damaged_configurations_are_refused(folders, tmp_path, name, text):
    d = copy(folders["xl"], tmp_path / "m")
    f = d / name
    f.write_text(text) if text is not None else f.unlink()
    with pytest.raises(ModelError, match=Path(name).name):
        M.load_model(d)


@pytest.mark.parametrize(
    "part, entry, says",
    [
        ("unet", dict(block_out_channels=[16, 32, 48]), "ControlNet's blocks"),
        ("controlnet", dict(layers_per_block=2), "ControlNet's blocks"),
        ("controlnet", dict(in_channels=8), "ControlNet takes latents of 8"),
        ("vae", dict(latent_channels=16), "VAE has 16 latent channels"),
        ("text_encoder", dict(hidden_size=64), "the text encoders give"),
        ("text_encoder_2", dict(projection_dim=48), "pooled text"),
        ("unet", dict(cross_attention_dim=48), "reads text states of width 48"),
    ],
)
def test_configurations_that_do_not_belong_together_are_refused_before_a_weight_is_read(
    folders, tmp_path, monkeypatch, part, entry, says
):
    d = copy(folders["xl"], tmp_path / "m")
    change = json.loads((d / part / "config.json").read_text()) | entry
    (d / part / "config.json").write_text(json.dumps(change))
    monkeypatch.setattr(
        "fastedit.models.load.load_network", lambda *a: pytest.fail("a network was loaded")
    )
    with pytest.raises(ModelError, match=says):
        M.load_model(d)


@pytest.mark.parametrize("side", [999, 257, 1, [64, 999]])
def test_a_native_size_that_no_unet_has_is_refused(folders, tmp_path, side):
    d = copy(folders["sd15"], tmp_path / "m")
    assert M.local_spec(d).resolution == M.local_spec(folders["sd15"]).resolution
    _say(d / "unet/config.json", sample_size=side)
    with pytest.raises(ModelError, match="sample_size=.*correct the entry"):
        M.local_spec(d)


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int32])
def test_whole_numbers_are_no_weights(folders, tmp_path, monkeypatch, kind):
    d = copy(folders["sd15"], tmp_path / "m")
    file = d / "unet/diffusion_pytorch_model.safetensors"
    sd = load_file(file)
    save_file(sd | {"conv_in.weight": sd["conv_in.weight"].to(kind)}, file)
    said = {torch.int8: "I8", torch.uint8: "U8", torch.int32: "I32"}[kind]
    monkeypatch.setattr(
        "fastedit.models.load.load_network", lambda *a: pytest.fail("a network was loaded")
    )
    with pytest.raises(ModelError, match=f"conv_in.weight is of type {said}: .*scales"):
        M.load_model(d)
    assert not M.diagnose(str(d)).ok


def test_positions_of_old_text_encoders_are_whole_numbers_and_pass(folders, tmp_path):
    d = copy(folders["sd15"], tmp_path / "m")
    file = d / "text_encoder/model.safetensors"
    old = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    save_file(load_file(file) | old, file, metadata={"format": "pt"})
    assert torch.equal(eps(M.load_model(d)), eps(M.load_model(folders["sd15"])))


def test_whole_numbers_in_a_checkpoint_are_named(folders, tmp_path):
    sd, f = to_checkpoint(M.load_model(folders["sd15"])), tmp_path / "x.safetensors"
    for k in ("unet", "vae", "text_encoder"):
        copy(folders["sd15"] / k, tmp_path / "x" / k)
    name = "model.diffusion_model.out.2.weight"
    save_file(sd | {name: sd[name].to(torch.int8), "model_ema.n": torch.tensor(1)}, f)
    with pytest.raises(ModelError, match=f"{name} is of type I8"):
        M.load_model(f)


def _hidden(folder, n):
    _say(folder / "text_encoder/config.json", num_hidden_layers=n)


def test_text_encoders_that_leave_layers_out_are_noted(folders, tmp_path):
    d = copy(folders["sd15"], tmp_path / "m")
    n = json.loads((d / "text_encoder/config.json").read_text())["num_hidden_layers"]
    assert not any("layers" in x for x in M.load_model(d).notes)
    _hidden(d, n - 1)
    c = M.load_model(d)
    assert any(
        f"text_encoder has {n} layers and its configuration uses {n - 1}" in x for x in c.notes
    )
    assert c.text_encoder.config.num_hidden_layers == n - 1


def test_so_are_those_in_a_checkpoint(folders, tmp_path):
    f = tmp_path / "x.safetensors"
    save_file(to_checkpoint(M.load_model(folders["xl"])), f)
    for k in ("unet", "vae", "text_encoder", "text_encoder_2"):
        copy(folders["xl"] / k, tmp_path / "x" / k)
    n = json.loads((tmp_path / "x/text_encoder_2/config.json").read_text())["num_hidden_layers"]
    assert not any("layers" in x for x in M.load_model(f).notes)
    _say(tmp_path / "x/text_encoder_2/config.json", num_hidden_layers=n - 1)
    assert any(f"text_encoder_2 has {n} layers" in x for x in M.load_model(f).notes)


def _say(file, **entries):
    "Change entries of a configuration file."
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


@pytest.mark.parametrize("part", ["unet", "vae", "controlnet"])
@pytest.mark.parametrize("said", ["SD3Transformer2DModel", "UNet3DConditionModel", ["x"]])
def test_a_network_of_another_class_is_refused_before_a_weight_is_read(
    folders, tmp_path, monkeypatch, part, said
):
    d = copy(folders["xl"], tmp_path / "m")
    _say(d / part / "config.json", _class_name=said)
    monkeypatch.setattr(
        "fastedit.models.load.load_network", lambda *a: pytest.fail("a network was loaded")
    )
    name = said if isinstance(said, str) else "x"
    with pytest.raises(ModelError, match=f"{part}/config.json.*{name}.*another kind than"):
        M.load_model(d)


def test_the_names_that_flax_has_for_the_same_networks_pass(folders, tmp_path):
    d = copy(folders["xl"], tmp_path / "m")
    _say(d / "unet/config.json", _class_name="FlaxUNet2DConditionModel")
    _say(d / "vae/config.json", _class_name="FlaxAutoencoderKL")
    _say(d / "model_index.json", unet=["diffusers", "FlaxUNet2DConditionModel"])
    assert torch.equal(eps(M.load_model(d)), eps(M.load_model(folders["xl"])))


@pytest.mark.parametrize(
    "part, said",
    [
        ("unet", ["diffusers", "UNet3DConditionModel"]),
        ("vae", ["diffusers", "VQModel"]),
        ("text_encoder", ["transformers", "T5EncoderModel"]),
        ("text_encoder_2", ["transformers", "T5EncoderModel"]),
        ("tokenizer", ["transformers", "T5Tokenizer"]),
        ("unet", [None, None]),
        ("vae", [None, None]),
        ("tokenizer_2", [None, None]),
    ],
)
def test_an_index_that_names_another_part_or_none_is_refused(folders, tmp_path, part, said):
    d = copy(folders["xl"], tmp_path / "m")
    _say(d / "model_index.json", **{part: said})
    words = "only" if said[0] else "the model has none"
    with pytest.raises(ModelError, match=f"model_index.json: {part}.*{words}"):
        M.load_model(d)


def test_a_controlnet_that_the_index_says_is_absent_is_not_loaded(folders, tmp_path):
    d = copy(folders["xl"], tmp_path / "m")
    assert M.load_model(d).controlnet is not None
    _say(d / "model_index.json", controlnet=[None, None])
    assert M.load_model(d).controlnet is None


def test_text_is_read_by_clip_alone(folders, tmp_path):
    d = copy(folders["sd15"], tmp_path / "m")
    _say(d / "text_encoder/config.json", model_type="t5")
    with pytest.raises(ModelError, match="model_type='t5' cannot be followed"):
        M.load_model(d)


def test_a_tiny_vae_is_known_by_its_configuration(folders, tmp_path):
    from fastedit.models.places import _vae_place

    tiny = tmp_path / "small"
    tiny.mkdir()
    (tiny / "config.json").write_text('{"_class_name": "AutoencoderTiny"}')
    assert _vae_place(M.MODELS["sdxl"], str(tiny))[0] == "AutoencoderTiny"
    assert (
        M.MODELS["sdxl"].vae != "own" and _vae_place(M.MODELS["sdxl"], None)[0] == "AutoencoderKL"
    )


def test_the_doctor_knows_a_network_of_another_class(folders, tmp_path):
    d = copy(folders["xl"], tmp_path / "m")
    _say(d / "controlnet/config.json", _class_name="SD3ControlNetModel")
    found = next(f for f in M.diagnose(str(d)).findings if f.component == "controlnet")
    assert found.state == "damaged" and "SD3ControlNetModel" in found.detail


def test_parts_that_do_not_belong_together(folders, tmp_path):
    d = copy(folders["xl"], tmp_path / "a")
    c = json.loads((d / "unet" / "config.json").read_text())
    (d / "unet" / "config.json").write_text(json.dumps({**c, "block_out_channels": [16, 32, 48]}))
    with pytest.raises(ModelError, match="unet"):
        M.load_model(d, controlnet=False)
    (d / "unet" / "config.json").write_text(json.dumps({**c, "layers_per_block": 2}))
    with pytest.raises(ModelError, match="unet"):
        M.load_model(d, controlnet=False)
    d = copy(folders["xl"], tmp_path / "b")
    shutil.rmtree(d / "text_encoder")
    other = M.random_model(tmp_path / "o", "sd15", width=32, channels=(16, 32, 32))
    copy(other / "text_encoder", d / "text_encoder")
    with pytest.raises(ModelError, match="width"):
        M.load_model(d)
    d = copy(folders["xl"], tmp_path / "c")
    shutil.rmtree(d / "text_encoder_2")
    with pytest.raises(ModelError, match="text_encoder_2"):
        M.load_model(d)
    with pytest.raises(ModelError, match="ControlNet"):
        M.load_model(
            folders["xl"],
            controlnet=str(
                M.random_model(tmp_path / "p", channels=(32, 32, 32), width=16) / "controlnet"
            ),
        )


def test_pickles_and_foreign_code_are_refused(folders, tmp_path):
    d = copy(folders["xl"], tmp_path / "a")
    (d / "unet" / "diffusion_pytorch_model.safetensors").rename(
        d / "unet" / "diffusion_pytorch_model.bin"
    )
    with pytest.raises(ModelError, match="pickled"):
        M.load_model(d)
    d = copy(folders["xl"], tmp_path / "b")
    i = json.loads((d / "model_index.json").read_text())
    (d / "model_index.json").write_text(json.dumps({**i, "unet": ["my_code", "MyUNet"]}))
    with pytest.raises(ModelError, match="code of its own"):
        M.load_model(d)
    f = tmp_path / "x.ckpt"
    f.write_bytes(b"x")
    with pytest.raises(ModelError, match="safetensors"):
        M.load_model(f)
    d = copy(folders["sharded"], tmp_path / "c")
    next((d / "unet").glob("*-00001-*")).unlink()
    with pytest.raises(ModelError, match="shards"):
        M.load_model(d)


def test_original_vae_stays_in_fp32_when_the_rest_is_fp16(folders, tmp_path):
    d = copy(folders["xl"], tmp_path / "m")
    f = d / "vae" / "config.json"
    c = json.loads(f.read_text())
    assert M.load_model(d, precision="fp16").vae.dtype == torch.float16
    f.write_text(json.dumps({**c, "force_upcast": True}))
    m = M.load_model(d, precision="fp16")
    assert m.vae.dtype == torch.float32 and m.dtype == torch.float16 and "fp16" in m.notes[0]
    with pytest.raises(OptionError):
        M.load_model(d, precision="fp17")


def test_controlnet_of_another_family_is_refused(folders):
    with pytest.raises(ModelError, match="canny-sdxl-small"):
        M.load_model("ssd-1b", controlnet="canny-sd15")
    with pytest.raises(ModelError, match="unknown"):
        M.load_model(folders["xl"], controlnet="cany")
    with pytest.raises(ModelError, match="use False"):
        M.load_model("sd-turbo", controlnet="canny-sd15")


# --- precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "precision,error", [("fp16", 0.02), ("bf16", 0.1), ("fp8", 0.5), ("int8", 0.05), ("nf4", 0.6)]
)
def test_precisions_on_a_cpu_weigh_what_is_counted(folders, precision, error):
    """Every precision that runs on a CPU gives nearly the plain answer, and its weights take
    exactly the bytes that `module_bytes` says."""
    if need := M.PRECISIONS[precision].needs:
        pytest.importorskip(need)
    a, q = (
        M.load_model(folders["xl"], device="cpu"),
        M.load_model(folders["xl"], device="cpu", precision=precision),
    )
    assert q.vae.dtype == getattr(torch, M.compute_dtype(precision))
    counted = q.weight_bytes()  # before the first use, at which bitsandbytes may repack
    for k in ("unet", "controlnet", "text_encoder", "text_encoder_2"):
        assert (
            counted[k]
            == M.module_bytes(getattr(a, k), precision, "cpu")
            < M.module_bytes(getattr(a, k), "fp32", "cpu")
        )
    x, y = eps(a), eps(q)
    assert 0 < (x - y).abs().max() < error * x.abs().max()


def test_precisions_that_cannot_work_are_refused(folders, monkeypatch):
    with pytest.raises(OptionError, match="does not work on cpu: use fp32"):
        M.load_model(folders["xl"], device="cpu", precision="int4")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for k, word in (("int8", "pip install torchao"), ("nf4", "pip install bitsandbytes")):
        with pytest.raises(OptionError, match=word):
            M.load_model(folders["xl"], device="cpu", precision=k)
    with pytest.raises(OptionError, match="torchao, mslk.*wheel index"):
        M.check_precision("int4", "cuda")


def test_the_table_of_precisions_is_whole():
    cpu, gpu = M.precision_rows("taesd", "cpu"), M.precision_rows("taesd", "cuda")
    assert [r["precision"] for r in cpu] == [r["precision"] for r in gpu] == list(M.PRECISIONS)
    for r in cpu:
        assert (r["bytes"] is None) == ("cpu" not in r["devices"]) and (
            r["bytes"] is not None or r["here"] == "not on cpu"
        )
    assert (
        all(r["bytes"] <= gpu[0]["bytes"] for r in gpu)
        and gpu[0]["bytes"] == 4 * M.ARCHITECTURES["taesd"].parameters
        and {r["compute"] for r in cpu if r["weights"] != "as computed"} == {"float32"}
    )


def test_groups_that_do_not_divide_a_width_stay_wide():
    lin = lambda n: torch.nn.Linear(n, 8, bias=False)
    assert (
        M.module_bytes(lin(128), "int4") == 128 * 8 // 2 + 8 * 4
        and M.module_bytes(lin(320), "int4") == 320 * 8 * 2
    )


# --- speed ----------------------------------------------------------------------------------------


def test_channels_last_is_an_option_that_shows(folders):
    a, b = (
        M.load_model(folders["xl"], device="cpu"),
        M.load_model(folders["xl"], device="cpu", channels_last=True),
    )
    assert b.unet.conv_in.weight.is_contiguous(
        memory_format=torch.channels_last
    ) and not a.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(eps(a), eps(b), atol=1e-4) and a.revision != b.revision


def test_compiling_touches_the_blocks_alone_and_says_so(folders, monkeypatch):
    c = M.load_model(folders["xl"], device="cpu", compile=True)
    compiled = {
        type(m).__name__
        for n in (c.unet, c.controlnet)
        for m in n.modules()
        if m._compiled_call_impl
    }
    assert (
        compiled == {"BasicTransformerBlock", "ResnetBlock2D"}
        and "compiled" in c.notes[-1]
        and c.revision != M.load_model(folders["xl"], device="cpu").revision
    )
    assert not any(m._compiled_call_impl for m in c.vae.modules())
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(
        "fastedit.models.load.load_network", lambda *a: pytest.fail("nothing may be loaded")
    )
    with pytest.raises(OptionError, match="compiler"):
        M.load_model(folders["xl"], device="cpu", compile=True)


# --- LoRA -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kohya,alpha", [(False, None), (True, None), (True, 2.0)])
def test_lora_formats_fused_and_unfused(folders, tmp_path, kohya, alpha):
    base = M.load_model(folders["xl"])
    f = M.random_lora(tmp_path / "l.safetensors", base.unet, kohya=kohya, alpha=alpha)
    fused, loose = (
        M.load_model(folders["xl"], lora=f),
        M.load_model(folders["xl"], lora=f, fuse=False),
    )
    assert (
        (eps(fused) - eps(base)).abs().max() > 1e-2
        and torch.allclose(eps(fused), eps(loose), atol=1e-4)
        and fused.adapters[0]["fused"]
        and not loose.adapters[0]["fused"]
    )
    same = M.random_lora(tmp_path / "d.safetensors", base.unet)
    if kohya:
        assert torch.equal(eps(fused), eps(M.load_model(folders["xl"], lora=same))) == (
            alpha is None
        ), "both formats are the same LoRA; alpha scales it"


def test_lora_with_original_block_names(folders, tmp_path):
    base = M.load_model(folders["xl"])
    f = M.random_lora(tmp_path / "l.safetensors", base.unet, kohya=True)
    sd = load_file(f)
    n = base.unet.config.layers_per_block + 1
    keep = {k: v for k, v in sd.items() if "attentions" in k and "mid" not in k}
    save_file(keep, tmp_path / "a.safetensors")
    import re

    def ldm(k):
        k = re.sub(
            r"down_blocks_(\d)_attentions_(\d)_",
            lambda m: f"input_blocks_{1 + int(m[1]) * n + int(m[2])}_1_",
            k,
        )
        return re.sub(
            r"up_blocks_(\d)_attentions_(\d)_",
            lambda m: f"output_blocks_{int(m[1]) * n + int(m[2])}_1_",
            k,
        )

    save_file({ldm(k): v for k, v in keep.items()}, tmp_path / "b.safetensors")
    assert torch.equal(
        eps(M.load_model(folders["xl"], lora=tmp_path / "a.safetensors")),
        eps(M.load_model(folders["xl"], lora=tmp_path / "b.safetensors")),
    )


def test_lora_for_another_unet_is_an_error(folders, tmp_path):
    other = M.load_model(M.random_model(tmp_path / "o", channels=(16, 16, 48), width=16))
    f = M.random_lora(tmp_path / "l.safetensors", other.unet)
    with pytest.raises(ModelError, match="own LoRA"):
        M.load_model(folders["xl"], lora=f)
    save_file({"x": torch.zeros(1)}, tmp_path / "e.safetensors")
    with pytest.raises(ModelError, match="no LoRA"):
        M.load_model(folders["xl"], lora=tmp_path / "e.safetensors")
    with pytest.raises(ModelError, match="not found"):
        M.load_model(folders["xl"], lora=tmp_path / "absent.safetensors")
    _cut(f)
    with pytest.raises(ModelError, match="cut off"):
        M.load_model(folders["xl"], lora=f)


# --- single files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["xl", "sd15"])
def test_single_file_checkpoint_equals_the_folder(folders, tmp_path, kind):
    c = M.load_model(folders[kind], controlnet=False)
    f = tmp_path / "ckpt.safetensors"
    save_file(to_checkpoint(c), f)
    with pytest.raises(ModelError, match="parameters"):
        M.load_model(f)
    for k in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if (folders[kind] / k).is_dir():
            (tmp_path / "ckpt" / k).mkdir(parents=True)
            shutil.copy(folders[kind] / k / "config.json", tmp_path / "ckpt" / k)
    s = M.load_model(f)
    assert torch.equal(eps(c), eps(s)) and s.spec.family == c.spec.family and s.controlnet is None
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    ids = torch.tensor([[3, 5, 9]])
    with torch.no_grad():
        assert torch.equal(
            c.vae.encode(x).latent_dist.mean, s.vae.encode(x).latent_dist.mean
        ) and torch.equal(c.text_encoder(ids)[0], s.text_encoder(ids)[0])
        if kind == "xl":
            assert torch.equal(c.text_encoder_2(ids)[0], s.text_encoder_2(ids)[0])
    assert s.tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407], (
        "CLIP's own vocabulary, as published"
    )
    sd = load_file(f)
    sd.pop(next(k for k in sd if k.startswith("first_stage_model.decoder.up")))
    save_file(sd, f)
    with pytest.raises(ModelError, match="vae"):
        M.load_model(f)
    save_file({"x": torch.zeros(2)}, f)
    with pytest.raises(ModelError, match="original key format"):
        M.load_model(f)


# --- embedded models ------------------------------------------------------------------------------


def test_mini_folders(weights, monkeypatch, tmp_path):
    monkeypatch.setenv("FASTEDIT_WEIGHTS", str(weights))
    monkeypatch.setenv("FASTEDIT_CACHE", str(tmp_path / "c"))
    p = M.mini_path("mini")
    assert (
        p == M.mini_path("mini")
        and p != M.mini_path("mini", lora=False) == M.mini_path("mini-teacher")
        and json.loads((p / "model_index.json").read_text())["scheduler"][1] == "LCMScheduler"
    )
    mini, loose, teacher, plain, s = (
        M.load_model("mini"),
        M.load_model("mini", fuse=False),
        M.load_model("mini-teacher"),
        M.load_model("mini", lora=False),
        M.load_model("mini-s"),
    )
    assert (
        torch.allclose(eps(mini), eps(loose), atol=1e-4)
        and torch.equal(eps(teacher), eps(plain))
        and not torch.allclose(eps(mini), eps(teacher), atol=1e-2)
    )
    assert (
        teacher.scheduler["_class_name"] == "DDIMScheduler"
        and mini.scheduler_object().__class__.__name__ == "LCMScheduler"
        and s.unet.config.time_cond_proj_dim
    )
    assert torch.equal(eps(M.load_model(p)), eps(mini)), (
        "the folder and the name give the same networks"
    )
    (p / "vae" / "config.json").unlink()
    assert M.mini_path("mini") == p and (p / "vae" / "config.json").is_file(), (
        "a damaged copy is made again"
    )
    assert sorted(x.name for x in (tmp_path / "c").iterdir()) == sorted(
        {p.name, M.mini_path("mini-s").name, M.mini_path("mini-teacher").name}
    ), "nothing half-made is left behind"


def test_a_model_that_was_withdrawn_says_why_and_what_to_use():
    with pytest.raises(ModelError, match="was withdrawn.*drawn instructions: use instruct-pix2pix"):
        M.find_spec("mini-instruct")


def test_mini_path_is_safe_when_many_want_it_at_once(weights, monkeypatch, tmp_path):
    monkeypatch.setenv("FASTEDIT_WEIGHTS", str(weights))
    monkeypatch.setenv("FASTEDIT_CACHE", str(tmp_path / "c"))
    got = []
    ts = [threading.Thread(target=lambda: got.append(M.mini_path("mini-s"))) for _ in range(6)]
    [t.start() for t in ts]
    [t.join() for t in ts]
    assert len(got) == 6 and len(set(got)) == 1 and len(list((tmp_path / "c").iterdir())) == 1


def _truncate(p):
    _cut(p / "unet" / "diffusion_pytorch_model.safetensors")


def _flip(p):
    f = p / "unet" / "diffusion_pytorch_model.safetensors"
    b = bytearray(f.read_bytes())
    b[-1] ^= 1
    f.write_bytes(bytes(b))


def _foreign(p):
    shutil.copyfile(
        p / "vae" / "diffusion_pytorch_model.safetensors",
        p / "unet" / "diffusion_pytorch_model.fp16.safetensors",
    )


def _exchanged(p):
    shutil.copyfile(
        p / "vae" / "diffusion_pytorch_model.safetensors",
        p / "unet" / "diffusion_pytorch_model.safetensors",
    )


def _file_for_folder(p):
    shutil.rmtree(p / "vae")
    (p / "vae").write_text("")


def _file_for_all(p):
    shutil.rmtree(p)
    p.write_text("")


def _dangling(p):
    shutil.rmtree(p)
    p.symlink_to(p.parent / "nowhere")


def _locked(p):
    (p / "vae" / "config.json").chmod(0)
    (p / "unet").chmod(0)


@pytest.mark.parametrize(
    "spoil",
    [
        _truncate,
        _flip,
        _foreign,
        _exchanged,
        _file_for_folder,
        _file_for_all,
        _dangling,
        _locked,
        lambda p: _empty(p / "vae" / "diffusion_pytorch_model.safetensors"),
        lambda p: (p / "vae" / "config.json").write_text("{"),
        lambda p: (p / "tokenizer" / "vocab.json").unlink(),
        lambda p: shutil.rmtree(p / "text_encoder"),
        lambda p: (p / ".fastedit.json").write_text("["),
    ],
)
def test_a_damaged_assembled_model_heals_itself(weights, monkeypatch, tmp_path, spoil):
    monkeypatch.setenv("FASTEDIT_WEIGHTS", str(weights))
    monkeypatch.setenv("FASTEDIT_CACHE", str(tmp_path / "c"))
    p = M.mini_path("mini-s")
    whole = _listing(p)
    spoil(p)
    assert (
        M.mini_path("mini-s") == p
        and _listing(p) == whole
        and M.sealed(p)
        and [x.name for x in p.parent.iterdir()] == [p.name]
    )


def test_a_folder_that_cannot_be_read_is_not_sealed(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text("{}")
    M.seal(tmp_path)
    assert M.sealed(tmp_path)

    def refused(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("fastedit.models.folders.file_hash", refused)
    assert not M.sealed(tmp_path)


def test_a_damaged_vocabulary_in_the_cache_is_written_again(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTEDIT_CACHE", str(tmp_path))
    p = M.openai_tokenizer()
    whole = _listing(p)
    (p / "vocab.json").write_text("{")
    assert M.openai_tokenizer() == p and _listing(p) == whole
    q = default_scheduler()
    (q / "scheduler_config.json").write_text("")
    assert (
        default_scheduler() == q
        and read_json(q / "scheduler_config.json")["num_train_timesteps"] == 1000
    )


def test_damaged_weights_of_the_package_are_named(weights, monkeypatch, tmp_path):
    shutil.copytree(weights, tmp_path / "w")
    monkeypatch.setenv("FASTEDIT_WEIGHTS", str(tmp_path / "w"))
    _cut(tmp_path / "w" / "vae" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(
        ModelError, match="vae.diffusion_pytorch_model.safetensors.*force-reinstall"
    ):
        M.mini_path("mini-s")


def test_mini_path_errors(weights, monkeypatch, tmp_path):
    with pytest.raises(ModelError, match="mini-s"):
        M.mini_path("maxi")
    monkeypatch.setenv("FASTEDIT_WEIGHTS", str(tmp_path / "none"))
    with pytest.raises(ModelError, match="FASTEDIT_WEIGHTS"):
        M.mini_path("mini")
    assert not M.diagnose("mini").ok
    monkeypatch.setenv("FASTEDIT_WEIGHTS", str(weights))
    f = tmp_path / "file"
    f.write_text("")
    monkeypatch.setenv("FASTEDIT_CACHE", str(f / "x"))
    with pytest.raises(ModelError, match="FASTEDIT_CACHE"):
        M.mini_path("mini")
    assert M.diagnose("mini").ok


@pytest.mark.parametrize("name", ["file", "file/x", "\udcff"])
@pytest.mark.parametrize("make", [M.mini_path, default_scheduler, openai_tokenizer])
def test_a_cache_that_cannot_be_used_says_how_to_choose_another(
    weights, monkeypatch, tmp_path, name, make
):
    monkeypatch.setenv("FASTEDIT_WEIGHTS", str(weights))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTEDIT_CACHE", str(tmp_path / name))
    why = "no UTF-8" if name == "\udcff" else "cannot write to"
    with pytest.raises(ModelError, match=f"{why}.*set FASTEDIT_CACHE to a folder") as e:
        make()
    assert "again" not in str(e.value)


# --- tokenizer, sizes -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import CLIPTokenizer

    d = tmp_path_factory.mktemp("tok")
    n = M.clip_tokenizer(d, ["a red ball on a meadow", "two striped fish"] * 20, 600)
    return CLIPTokenizer.from_pretrained(d), n


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=60))
def test_tokenizer_knows_every_text(tokenizer, text):
    t, n = tokenizer
    ids = t(text, padding="max_length", max_length=77, truncation=True).input_ids
    assert len(ids) == 77 and ids[0] == n - 2 and ids[-1] == n - 1 and max(ids) < n
    if "<|" not in text:
        assert not (set(ids[1 : ids.index(n - 1)]) & {n - 1, n - 2})


def test_tokenizer_learns_words(tokenizer):
    assert tokenizer[0].tokenize("A RED ball") == ["a</w>", "red</w>", "ball</w>"]


@settings(deadline=None)
@given(st.integers(1, 9000), st.integers(1, 9000), st.sampled_from(["ssd-1b", "sd15-lcm", "mini"]))
def test_working_size(w, h, name):
    s = M.MODELS[name]
    a, b = M.working_size(s, w, h)
    assert (
        a % s.multiple == b % s.multiple == 0
        and 0.55 < a * b / s.resolution**2 < 1.7
        and ((a >= b) == (w >= h) or a == b)
    )


def test_working_size_examples():
    assert M.working_size(M.MODELS["ssd-1b"], 1024, 1024) == (1024, 1024) and M.working_size(
        M.MODELS["mini"], 300, 300
    ) == (64, 64)
    with pytest.raises(OptionError):
        M.working_size(M.MODELS["mini"], 0, 5)


# --- diagnosing and fetching ----------------------------------------------------------------------


def test_diagnose_names_what_is_missing(folders, tmp_path):
    d = M.diagnose("ssd-1b")
    unet = next(f for f in d.findings if f.component == "unet")
    assert (
        not d.ok
        and unet.state == "missing"
        and unet.bytes == 2 * M.ARCHITECTURES["lcm-ssd-1b"].parameters
        and d.command == "fastedit fetch ssd-1b"
        and "fastedit fetch ssd-1b" in str(d)
    )
    assert M.diagnose(folders["xl"]).ok and not M.diagnose("flux2-klein").ok
    m = copy(folders["xl"], tmp_path / "m")
    _cut(m / "unet" / "diffusion_pytorch_model.safetensors")
    bad = M.diagnose(m)
    assert [f.component for f in bad.findings if f.state == "damaged"] == ["unet"]


@pytest.mark.parametrize(
    "precision,names,want",
    [
        (
            "fp16",
            [
                "config.json",
                "diffusion_pytorch_model.safetensors",
                "diffusion_pytorch_model.fp16.safetensors",
            ],
            "diffusion_pytorch_model.fp16.safetensors",
        ),
        (
            "fp32",
            [
                "config.json",
                "diffusion_pytorch_model.safetensors",
                "diffusion_pytorch_model.fp16.safetensors",
            ],
            "diffusion_pytorch_model.safetensors",
        ),
        (
            "fp16",
            ["config.json", "diffusion_pytorch_model.safetensors", "x.bin", "other.safetensors"],
            "diffusion_pytorch_model.safetensors",
        ),
        (
            "fp16",
            [
                "config.json",
                "model.fp16-00001-of-00001.safetensors",
                "model.safetensors.index.fp16.json",
            ],
            "model.fp16-00001-of-00001.safetensors",
        ),
    ],
)
def test_wanted_files(precision, names, want):
    got = _wanted(names, "UNet2DConditionModel", M.Source("a/b"), precision)
    assert want in got and "config.json" in got and not {"x.bin", "other.safetensors"} & set(got)
    assert sum(n.endswith(".safetensors") for n in got) == 1


def test_wanted_refuses_pickles():
    with pytest.raises(ModelError, match="run code"):
        _wanted(["config.json", "pytorch_model.bin"], "CLIPTextModel", M.Source("a/b"), "fp16")
