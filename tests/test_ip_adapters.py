"""An IP-Adapter that fastedit loads itself: found, checked, equal to stock, and said where it
cannot be."""

import shutil
import diffusers, pytest, torch
from PIL import Image
from typer.testing import CliRunner
from fastedit import EditRequest, FastEditor
from fastedit.cli import app
from fastedit.core import ModelError, OptionError
from fastedit.memory import RESIDENCIES, predict_memory
from fastedit.models import (
    IMAGE_ENCODERS,
    IP_ADAPTERS,
    MODELS,
    Source,
    build,
    diagnose,
    find_spec,
    load_model,
    quiet_libraries,
    random_ip_folder,
    random_model,
    tiny_configs,
)
from fastedit.models.ip_adapters import adapter_file, encoder_folder, put_ip_adapter
from fastedit.models.networks import load_network
from fastedit.models.places import ip_places
from fastedit.world import render, sample_scene

A, B, C = (Image.fromarray(render(sample_scene(i), 64)) for i in (5, 6, 7))
SMALL = dict(channels=(16, 32, 32), width=16)
SAME = dict(method="img2img", schedule="stock", steps=4, strength=0.75, seed=3, control="none")


@pytest.fixture(scope="module", params=["sdxl", "sd15"])
def folder(request, tmp_path_factory):
    home = tmp_path_factory.mktemp("m") / request.param
    random_model(home, request.param, **SMALL)
    unet = load_network("UNet2DConditionModel", home / "unet")
    for plus in (False, True):
        random_ip_folder(home / "ip" / ("plus" if plus else "plain"), unet, plus=plus)
    return home


@pytest.fixture(scope="module")
def editor(folder):
    return FastEditor(folder, ip_adapter=folder / "ip" / "plain")


def stock(folder, kind, picture, guidance, scale):
    xl = (folder / "tokenizer_2").is_dir()
    cls = getattr(diffusers, f"StableDiffusion{'XL' if xl else ''}Img2ImgPipeline")
    with quiet_libraries():
        pipe = cls.from_pretrained(folder, **({} if xl else dict(safety_checker=None)))
        pipe.load_ip_adapter(folder / "ip", subfolder=kind, weight_name="ip-adapter.safetensors")
    pipe.set_progress_bar_config(disable=True)
    pipe.set_ip_adapter_scale(scale)
    return pipe(
        "a cup",
        image=A,
        ip_adapter_image=picture,
        strength=0.75,
        num_inference_steps=4,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).images


def apart(a, b):
    return (getattr(a, "latents", a) - getattr(b, "latents", b)).abs().max().item()


@pytest.mark.parametrize("kind, guidance, scale", [("plain", 1.0, 1.0), ("plus", 3.0, 0.6)])
def test_it_is_the_stock_pipelines(folder, kind, guidance, scale):
    own = FastEditor(folder, ip_adapter=folder / "ip" / kind / "ip-adapter.safetensors")
    how = dict(SAME, guidance=guidance, reference_scale=scale)
    want, got = stock(folder, kind, B, guidance, scale), own(A, "a cup", reference=B, **how)
    assert apart(want, got) < 1e-3 < apart(want, own(A, "a cup", reference=C, **how))


def test_at_scale_0_nothing_is_seen(folder, editor):
    plain = FastEditor(folder)(A, "a cup", **SAME)
    silent = editor(A, "a cup", reference=B, reference_scale=0, **SAME)
    assert apart(plain, silent) == 0 and plain.image.tobytes() == silent.image.tobytes()


def test_a_scale_holds_for_its_own_edit(editor):
    first = editor(A, "a cup", reference=B, **SAME)
    weak = editor(A, "a cup", reference=B, reference_scale=0.2, **SAME)
    assert apart(first, weak) > 1e-3
    assert apart(first, editor(A, "a cup", reference=B, **SAME)) == 0
    assert apart(first, editor(A, "a cup", reference=B, reference_scale=1, **SAME)) == 0
    scales = [p.scale for p in editor.parts.unet.attn_processors.values() if hasattr(p, "scale")]
    assert scales and all(s == [1.0] for s in scales)


def test_kept_answers_know_the_scale(folder):
    own = FastEditor(folder, ip_adapter=folder / "ip" / "plain", keep_negative=True)
    how = dict(SAME, guidance=3.0)
    for scale in (1.0, 0.3):
        kept = own(A, "a cup", reference=B, reference_scale=scale, **how)
        again = own(A, "a boat", reference=B, reference_scale=scale, **how)
        fresh = FastEditor(folder, ip_adapter=folder / "ip" / "plain", keep_negative=True)
        assert apart(kept, fresh(A, "a cup", reference=B, reference_scale=scale, **how)) == 0
        assert again.reused


def test_several_in_one_call(editor):
    how = dict(method="img2img", steps=2, reference=B, reference_scale=0.5, control="none")
    for e, s in zip(editor(A, "a cup", seeds=[1, 2], at_once=2, **how), (1, 2)):
        assert apart(e, editor(A, "a cup", seed=s, **how)) < 1e-3


def test_the_request_holds_the_scale(editor):
    e = editor(A, "a cup", reference=B, reference_scale=0.5, **SAME)
    assert EditRequest.from_json(e.request.json) == e.request
    assert e.request.reference_scale == 0.5
    again = editor(A, request=e.request, reference=B)
    assert again.image.tobytes() == e.image.tobytes()


@pytest.mark.parametrize("scale", [-0.1, 11, "much", True])
def test_scales_that_are_none(scale):
    with pytest.raises(OptionError, match="reference_scale"):
        EditRequest("a cup", reference_scale=scale)


def test_a_scale_without_a_picture_is_said():
    e = FastEditor("mini")(A, "a cup", method="img2img", steps=1, reference_scale=0.5)
    assert "reference_scale 0.5 does nothing without a reference" in e.notes


def test_its_files_are_in_the_revision(folder, editor, tmp_path):
    plain = load_model(folder)
    assert plain.revision != editor.parts.revision and plain.seer is None
    unet = load_network("UNet2DConditionModel", folder / "unet")
    other = random_ip_folder(tmp_path / "ip", unet, seed=1)
    assert load_model(folder, ip_adapter=other).revision != editor.parts.revision


def test_its_image_encoder_comes_and_goes(folder, editor):
    moved = FastEditor(folder, ip_adapter=folder / "ip" / "plain", residency="model-offload")
    e = moved(A, "a cup", reference=B, **SAME)
    assert any(row[:2] == ("image_encoder", "in") for row in moved.parts.mover.log)
    assert apart(e, editor(A, "a cup", reference=B, **SAME)) == 0
    moved.release()


@pytest.mark.parametrize("more", [dict(joined=True), dict(precision="bf16"), dict(fuse=False)])
def test_other_ways_to_load_take_it(folder, more):
    own = FastEditor(folder, ip_adapter=folder / "ip" / "plain", **more)
    e, f = (own(A, "a cup", reference=x, **SAME) for x in (B, C))
    assert apart(e, f) > 1e-3


def test_what_no_one_shows_is_said(folder, editor):
    with pytest.raises(OptionError, match="give reference=.*load the model without ip_adapter"):
        editor(A, "a cup", **SAME)
    with pytest.raises(OptionError, match="loaded without an IP-Adapter"):
        FastEditor(folder)(A, "a cup", reference=B, **SAME)
    with pytest.raises(OptionError, match="takes over the attention"):
        editor(A, "a cup", source_prompt="a ball", reference=B, method="p2p", steps=2)


# --- files
@pytest.fixture
def home(tmp_path):
    unet = build(tiny_configs(**SMALL)["unet"], "cpu")
    return random_ip_folder(tmp_path / "sdxl_models", unet)


def test_the_encoder_of_its_width_is_found(home):
    file = adapter_file(home)
    assert encoder_folder(file) == home / "image_encoder"
    shutil.copytree(home / "image_encoder", home.parent / "models" / "image_encoder")
    config = home / "image_encoder" / "config.json"
    config.write_text(config.read_text().replace('"projection_dim": 16', '"projection_dim": 24'))
    assert encoder_folder(file) == home.parent / "models" / "image_encoder"
    shutil.rmtree(home.parent / "models")
    with pytest.raises(ModelError, match="projection_dim is 16, and that of .* is 24"):
        encoder_folder(file)
    shutil.rmtree(home / "image_encoder")
    with pytest.raises(ModelError, match="no image encoder beside it: put it into"):
        encoder_folder(file)


def test_files_that_are_none(home, tmp_path):
    from safetensors.torch import load_file, save_file

    (tmp_path / "ip-adapter.bin").write_bytes(b"0")
    with pytest.raises(ModelError, match="only .safetensors files are read"):
        adapter_file(tmp_path / "ip-adapter.bin")
    with pytest.raises(ModelError, match="no .safetensors file"):
        adapter_file(tmp_path)
    shutil.copy(home / "ip-adapter.safetensors", home / "b.safetensors")
    with pytest.raises(ModelError, match="b.safetensors, ip-adapter.safetensors: give the path"):
        adapter_file(home)
    tensors = load_file(home / "b.safetensors")
    save_file({"a": torch.zeros(1)}, home / "b.safetensors")
    with pytest.raises(ModelError, match="is no IP-Adapter"):
        encoder_folder(home / "b.safetensors")
    face = {k.replace("image_proj.proj", "image_proj.proj.0"): t for k, t in tensors.items()}
    save_file(face, home / "b.safetensors")
    with pytest.raises(ModelError, match="reads faces"):
        encoder_folder(home / "b.safetensors")


def test_it_fits_one_kind_of_unet(home):
    file = adapter_file(home)
    with pytest.raises(ModelError, match="is for 7 attentions and the UNet has 11"):
        deep = tiny_configs(**SMALL)["unet"]
        deep = deep[0], dict(deep[1], layers_per_block=2)
        put_ip_adapter(build(deep, "cpu"), file)
    with pytest.raises(ModelError, match="has to be"):
        put_ip_adapter(build(tiny_configs(channels=(16, 32, 64), width=16)["unet"], "cpu"), file)


@pytest.mark.parametrize("key", list(IP_ADAPTERS))
def test_rows_fit_their_models(key):
    row = IP_ADAPTERS[key]
    fit = [s for s in MODELS.values() if s.arch in row.archs]
    assert fit and all(s.family == row.family for s in fit)
    places = ip_places(fit[0], key)
    assert places["ip_adapter"][1].bytes == row.disk_bytes() > 4e7
    assert places["image_encoder"][1] == IMAGE_ENCODERS[row.encoder].source
    found = diagnose(key)
    assert found.command == f"fastedit fetch {key}" and len(found.findings) == 2
    with pytest.raises(ModelError, match="does not fit the UNet"):
        ip_places(find_spec("ssd-1b"), key)


@pytest.mark.parametrize("given", [True, 3, "", Source("a/b"), "ip-sdx", "no/such/file"])
def test_names_that_are_none(given):
    with pytest.raises(ModelError, match="ip_adapter"):
        load_model("mini", ip_adapter=given)


def test_a_part_is_no_model():
    with pytest.raises(ModelError, match="and ip_adapter='ip-sdxl' uses it"):
        find_spec("ip-sdxl")


# --- command line
def test_it_can_be_typed(folder, tmp_path):
    for name, p in dict(a=A, b=B).items():
        p.save(tmp_path / f"{name}.png")
    out, ask = tmp_path / "out.png", ["edit", str(tmp_path / "a.png"), "a cup", "-o"]
    ask += [str(out), "--model", str(folder), "--method", "img2img", "--steps", "2", "-q"]
    seen = ["--reference", str(tmp_path / "b.png")]
    loaded = ["--ip-adapter", str(folder / "ip" / "plain")]
    done = CliRunner().invoke(app, [*ask, *loaded, *seen, "--reference-scale", "0.5"])
    assert done.exit_code == 0, done.output
    request = EditRequest.from_png(out)
    assert request.reference.startswith("picture:") and request.reference_scale == 0.5
    again = ["reproduce", str(out), "--model", str(folder), *loaded, "-q"]
    done = CliRunner().invoke(app, [*again, *seen])
    assert done.exit_code == 0 and "bit-identical" in done.output
    done = CliRunner().invoke(app, again)
    assert done.exit_code and "--reference" in " ".join(done.stderr.split())
    for lost, match in ((seen, "nothing would see it"), (loaded, "wants to see a picture")):
        done = CliRunner().invoke(app, [*ask, *lost])
        assert done.exit_code == 2 and match in " ".join(done.stderr.split())


# --- memory
def test_its_memory_is_planned_before_it_is_loaded(folder):
    home = folder / "ip" / "plain"
    parts = load_model(folder, ip_adapter=home)
    before = predict_memory(folder, "fp32", "model-offload", ip_adapter=home)
    loaded = predict_memory(parts, "fp32", "model-offload")
    assert before.weights == loaded.weights
    assert [s.stage for s in before.stages] == [s.stage for s in loaded.stages]
    assert before.stages[0].stage == "reference" and before.moved == loaded.moved
    own = {k: n for k, n in before.weights.items() if k in ("unet", "ip_adapter", "image_encoder")}
    real = parts.weight_bytes()
    assert own["unet"] + own["ip_adapter"] == real["unet"]
    assert own["image_encoder"] == real["image_encoder"]


@pytest.mark.parametrize("residency", list(RESIDENCIES))
def test_an_adapter_counts_in_every_plan(residency):
    kw = dict(precision="fp16", residency=residency)
    plain, more = (predict_memory("sdxl", ip_adapter=k, **kw) for k in (None, "ip-plus-sdxl"))
    assert more.weights["ip_adapter"] == IP_ADAPTERS["ip-plus-sdxl"].disk_bytes()
    assert more.weights["image_encoder"] == pytest.approx(2 * 632_076_800, rel=1e-5)
    assert more.required >= plain.required and more.moved >= plain.moved
    if residency == "resident":
        assert more.required > plain.required + 2e9


@pytest.mark.parametrize("adapter", ["ip-sdxl", "ip-sd15"])
def test_a_plan_refuses_what_the_loader_refuses(adapter):
    from fastedit.memory import plan

    with pytest.raises(ModelError):
        plan("ssd-1b", 24, ip_adapter=adapter)
