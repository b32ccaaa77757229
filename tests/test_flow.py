"""Flow models: stock pipelines behind the editor's call; refusals in words, counted cost, callback
and cancellation, on tiny random pipelines in real folder layouts."""

import json, shutil
from dataclasses import replace
import numpy as np, pytest, torch
from PIL import Image
from skimage import data
from fastedit import FastEditor, flow as F, models as M, world as pb
from fastedit.core import Cancelled, MemoryPlanError, ModelError, NumericalError, OptionError

KEYS = {
    "flux2-klein": None,
    "flux-kontext": 2.5,
    "qwen-image-edit": 4.0,
    "dreamlite": None,
}  # row -> guidance at which a step costs one evaluation, or two for Qwen


@pytest.fixture(scope="module", autouse=True)
def small_reference():
    """Qwen's pipeline shows its VAE a megapixel whatever the working size; a tiny test cannot wait
    for that."""
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as q

    before = q.VAE_IMAGE_SIZE, q.CONDITION_IMAGE_SIZE
    q.VAE_IMAGE_SIZE = q.CONDITION_IMAGE_SIZE = 64 * 64
    yield
    q.VAE_IMAGE_SIZE, q.CONDITION_IMAGE_SIZE = before


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {k: F.random_flow(tmp_path_factory.mktemp("flow") / k, k) for k in KEYS}


def row(folder, key):
    return replace(M.MODELS[key], base=M.Source(str(folder)), resolution=64)


@pytest.fixture(scope="module")
def editors(folders):
    return {k: FastEditor(row(f, k), device="cpu") for k, f in folders.items()}


A = Image.fromarray(pb.render(pb.sample_scene(5), 64)).resize((60, 48))


def hooks(m):
    "Hooks of ours; transformers keeps some of its own."
    return sum(
        f.__module__.startswith("fastedit")
        for n in m.modules().values()
        for x in n.modules()
        for f in (*x._forward_hooks.values(), *x._forward_pre_hooks.values())
    )


@pytest.mark.parametrize("key", list(KEYS))
def test_one_call_one_account(editors, key):
    """Same call, same result type; times and evaluations are what ran; the same request gives the
    same bytes; what comes back has the source's size."""
    e, steps, seen = editors[key], 3, []
    kw = dict(
        steps=steps,
        seed=3,
        size=(80, 64),
        **({} if KEYS[key] is None else dict(guidance=KEYS[key])),
    )
    r = e(A, "make it blue", on_step=seen.append, **kw)
    assert (
        r.image.size == A.size
        and r.request.method == "flow"
        and r.request.steps == steps
        and r.request.size == (80, 64)
        and r.request.model == key
    )
    assert (
        r.nfe == steps * (2 if key == "qwen-image-edit" else 1)
        and r.control_nfe == 0
        and len(r.timesteps) == steps
        and list(r.timesteps) == sorted(r.timesteps, reverse=True)
        and r.timesteps[0] > 900
    )
    assert (
        tuple(s["t"] for s in seen) == r.timesteps
        and torch.equal(seen[-1]["latents"], r.latents)
        and torch.equal(seen[-1]["clean"], r.latents)
        and not torch.equal(seen[0]["clean"], seen[0]["latents"])
    )
    assert (
        0 < r.network_seconds <= r.seconds["total"]
        and {"transformer", "encode", "decode", "text_encoder"} <= set(r.seconds)
        and hooks(e.parts) == 0
    )
    assert (
        e(A, "make it blue", **kw).image.tobytes()
        == r.image.tobytes()
        != e(A, "make it blue", **{**kw, "seed": 4}).image.tobytes()
    )
    assert (
        e(A, request=replace(r.request)).image.tobytes() == r.image.tobytes()
        and key in r.summary
        and np.asarray(r.image).std() > 0
    )


def test_equal_to_the_stock_pipeline(editors):
    "The adapter adds nothing to the picture: the pipeline, called by hand, gives the same pixels."
    e, im = editors["flux2-klein"], A.resize((80, 64))
    r = e(im, "make it blue", steps=2, seed=7, size=(80, 64))
    want = e.parts.pipe(
        image=[im],
        prompt="make it blue",
        height=64,
        width=80,
        num_inference_steps=2,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(7),
    ).images[0]
    assert np.abs(np.asarray(want).astype(int) - np.asarray(r.image)).max() <= 1


def test_true_guidance_costs_a_pair_only_where_it_is_on(editors):
    e = editors["qwen-image-edit"]
    kw = dict(steps=2, size=(80, 64))
    assert [e(A, "make it blue", guidance=g, **kw).nfe for g in (1.0, 4.0)] == [2, 4]
    a, b = (
        e(A, "make it blue", guidance=4.0, negative_prompt=n, **kw) for n in ("", "a dark picture")
    )
    assert a.image.tobytes() != b.image.tobytes()


@pytest.mark.parametrize(
    "kw, word",
    [
        (dict(method="ddcm"), "edits by .flow. or .flowedit."),
        (dict(strength=0.5), "pure noise"),
        (dict(control="canny"), "no ControlNet"),
        (dict(control_scale=0.5), "no ControlNet"),
        (dict(schedule="stock"), "grid"),
        (dict(source_guidance=2.0), "no source branch"),
        (dict(options=dict(sampler="lcm")), "sampler"),
        (dict(guidance=3.0), "distilled"),
        (dict(guidance="linear:3:1"), "one number"),
        (dict(negative_prompt="ugly"), "leave it out"),
    ],
)
def test_settings_without_a_meaning_are_refused(editors, kw, word):
    with pytest.raises(OptionError, match=word):
        editors["flux2-klein"](A, "make it blue", **kw)
    assert hooks(editors["flux2-klein"].parts) == 0


def test_a_negative_prompt_needs_guidance(editors):
    with pytest.raises(OptionError, match="no effect"):
        editors["qwen-image-edit"](A, "make it blue", guidance=1.0, negative_prompt="ugly")


def test_what_is_passed_over_is_said(editors):
    e = editors["flux-kontext"]
    r = e(A, "make it blue", source_prompt="a ball", steps=1, size=(80, 64), guidance=9.0)
    assert any("source prompt is not used" in n for n in r.notes) and any(
        "outside 1 to 5" in n for n in r.notes
    )


@pytest.mark.parametrize("key", list(KEYS))
def test_cancelling_leaves_no_trace(editors, key):
    e = editors[key]

    def stop(s):
        if s["step"] == 1:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        e(A, "make it blue", steps=4, size=(80, 64), on_step=stop)
    assert hooks(e.parts) == 0
    e(A, "make it blue", steps=1, size=(80, 64))


def test_outside_a_mask_nothing_changes(editors):
    mask = np.zeros((48, 60), np.uint8)
    mask[10:30, 10:40] = 255
    r = editors["flux2-klein"](
        A, "make it blue", steps=1, mask=Image.fromarray(mask), size=(80, 64)
    )
    out = np.asarray(r.image)
    assert (
        (out[mask == 0] == np.asarray(A)[mask == 0]).all()
        and (out[mask > 0] != np.asarray(A)[mask > 0]).any()
        and any("afterwards" in n for n in r.notes)
        and r.request.mask
    )


def test_kontext_works_at_its_own_sizes():
    m = F.FlowModel(M.MODELS["flux-kontext"], None, "")
    assert (
        m.working_size(1000, 1000) == (1024, 1024)
        and m.working_size(400, 100) == (1568, 672)
        and F.FlowModel(M.MODELS["flux2-klein"], None, "").working_size(10, 10) is None
    )


def test_a_base_model_takes_guidance(folders, tmp_path):
    "FLUX.2 [klein] comes distilled and not; the folder says which."
    d = tmp_path / "base"
    shutil.copytree(folders["flux2-klein"], d)
    f = d / "model_index.json"
    f.write_text(json.dumps({**json.loads(f.read_text()), "is_distilled": False}))
    e = FastEditor(row(d, "flux2-klein"), device="cpu")
    assert e(A, "make it blue", steps=2, size=(80, 64), guidance=4.0).nfe == 4


@pytest.mark.parametrize(
    "spoil, word",
    [
        (lambda d: (d / "model_index.json").unlink(), "not on this machine"),
        (lambda d: shutil.rmtree(d / "vae"), "vae is missing"),
        (
            lambda d: (d / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(
                b"0" * 100
            ),
            "safetensors",
        ),
        (
            lambda d: (d / "transformer" / "diffusion_pytorch_model.safetensors").rename(
                d / "transformer" / "pickled.bin"
            ),
            "no .safetensors",
        ),
        (
            lambda d: (d / "model_index.json").write_text(
                (d / "model_index.json").read_text().replace("Flux2KleinPipeline", "FluxPipeline")
            ),
            "needs a Flux2KleinPipeline",
        ),
        (
            lambda d: (d / "model_index.json").write_text(
                (d / "model_index.json").read_text().replace('"diffusers"', '"evil"', 1)
            ),
            "never run",
        ),
    ],
)
def test_a_bad_folder_is_one_error_before_loading(folders, tmp_path, spoil, word, monkeypatch):
    import diffusers

    d = tmp_path / "m"
    shutil.copytree(folders["flux2-klein"], d)
    spoil(d)
    monkeypatch.setattr(
        diffusers.Flux2KleinPipeline,
        "from_pretrained",
        lambda *a, **k: pytest.fail("nothing may be loaded"),
    )
    with pytest.raises(ModelError, match=word):
        FastEditor(row(d, "flux2-klein"), device="cpu")


def test_what_such_a_model_cannot_have(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("FASTEDIT_MODELS", raising=False)
    with pytest.raises(ModelError, match="fastedit fetch flux2-klein"):
        FastEditor("flux2-klein", device="cpu")
    spec = row(folders["flux2-klein"], "flux2-klein")
    for kw, word in (
        (dict(precision="fp16"), "overflows"),
        (dict(residency="text-cached"), "model-offload"),
        (dict(controlnet="canny-sdxl"), "leave it out"),
        (dict(budget_gb=8), "budget_gb=8.*leave it out"),
        (dict(precision="int4"), "does not work on cpu"),
    ):
        with pytest.raises(OptionError, match=word):
            FastEditor(spec, device="cpu", **kw)


def test_the_command_line_edits_with_them(folders, tmp_path, monkeypatch):
    from typer.testing import CliRunner
    from fastedit.cli import app
    from fastedit.images import read_metadata

    monkeypatch.setenv("FASTEDIT_MODELS", str(tmp_path / "models"))
    shutil.copytree(
        folders["flux2-klein"], tmp_path / "models" / "black-forest-labs" / "FLUX.2-klein-4B"
    )
    A.save(tmp_path / "a.png")
    run = lambda *a: CliRunner().invoke(
        app,
        [
            "edit",
            str(tmp_path / "a.png"),
            "make it blue",
            "-o",
            str(tmp_path / "b.png"),
            "--model",
            "flux2-klein",
            "--size",
            "80x64",
            "--steps",
            "2",
            "--device",
            "cpu",
            *a,
        ],
    )
    r = run("-q")
    assert r.exit_code == 0, r.output
    m = read_metadata(tmp_path / "b.png")
    assert m["request"]["method"] == "flow" and m["nfe"] == 2 and len(m["timesteps"]) == 2
    assert run("--method", "flow", "-q").exit_code == 0
    r = run("--method", "ddcm", "-q")
    assert r.exit_code == 2 and "'flow' or 'flowedit'" in " ".join(r.output.split())


def test_nan_is_an_error_and_no_picture(folders):
    e = FastEditor(row(folders["flux2-klein"], "flux2-klein"), device="cpu")
    next(e.parts.pipe.transformer.parameters()).fill_(float("nan"))
    with pytest.raises(NumericalError):
        e(A, "make it blue", steps=1, size=(80, 64))


def test_full_memory_is_one_error_with_a_way_out(editors, monkeypatch):
    def full(*a, **k):
        raise torch.OutOfMemoryError("full")

    e = editors["flux2-klein"]
    monkeypatch.setattr(e.parts.pipe.vae, "decode", full)
    with pytest.raises(MemoryPlanError, match="80x64.*model-offload"):
        e(A, "make it blue", steps=1, size=(80, 64))
    assert hooks(e.parts) == 0


def test_precisions_and_revisions(folders):
    spec = row(folders["flux2-klein"], "flux2-klein")
    plain = F.load_flow(spec, "cpu", "fp32")
    half = F.load_flow(spec, "cpu", "bf16")
    assert (
        2 * sum(half.weight_bytes().values()) <= sum(plain.weight_bytes().values()) + 64
        and half.revision != plain.revision == F.load_flow(spec, "cpu", "fp32").revision
        and "bf16" in plain.notes[0]
    )
    small = F.load_flow(spec, "cpu", "fp8")
    assert small.weight_bytes()["transformer"] < plain.weight_bytes()["transformer"]
    assert small.edit(A.resize((80, 64)), "make it blue", 1, 1.0).nfe == 1


@pytest.mark.parametrize("key", list(F.FLOW_PARTS))
def test_sizes_are_counted(key):
    assert sum(F.flow_bytes(key).values()) / 1e9 == pytest.approx(M.MODELS[key].disk_gb, rel=0.02)


@pytest.mark.parametrize("setting", [dict(prompt_weights=True), dict(long_prompts=True)])
def test_settings_of_other_text_encoders_are_refused(setting):
    from fastedit.editor import EditRequest

    spec = M.MODELS["flux2-klein"]
    F.check_flow(spec, EditRequest("a cup", model=spec.key, method="flow"))
    with pytest.raises(OptionError, match=next(iter(setting))):
        F.check_flow(spec, EditRequest("a cup", model=spec.key, method="flow", **setting))


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_encoded_prompts_are_refused(field):
    from fastedit.editor import EditRequest

    spec = M.MODELS["flux2-klein"]
    asked = dict(prompt="a cup", model=spec.key, method="flow") | {field: "embeds:0123456789abcdef"}
    with pytest.raises(OptionError, match=f"{field}_embeds: .* reads words"):
        F.check_flow(spec, EditRequest(**asked))


def test_a_drifted_picture_is_said_to_be_so(editors, monkeypatch):
    from fastedit.drift import move

    e, flow = editors["flux2-klein"], editors["flux2-klein"].flow
    cat = Image.fromarray(data.chelsea()[:256, 60:316])
    made = flow.edit(cat.resize((64, 64)), "a dog", 1, 1.0)

    def drifted(self, image, *_, **__):
        return replace(made, image=Image.fromarray(np.asarray(move(image, (3, 0)))))

    monkeypatch.setattr(F.FlowModel, "edit", drifted)
    moved = e(cat, "a dog", steps=1, size=(256, 256))
    assert any("drifted (shift (+3.0" in n for n in moved.notes)
    back = e(cat, "a dog", steps=1, size=(256, 256), repair=True)
    assert not any("drifted" in n for n in back.notes) and any("repair: " in n for n in back.notes)


KLEIN = "flux2-klein-fp8", "flux2-klein-gguf"


def original(weights):
    "The transformer of a tiny klein under the names of its makers' own files."
    renamed = {
        "x_embedder": "img_in",
        "context_embedder": "txt_in",
        "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "proj_out": "final_layer.linear",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
        "single_transformer_blocks": "single_blocks",
        "transformer_blocks": "double_blocks",
        "modulation_img.linear": "modulation_img.lin",
        "modulation_txt.linear": "modulation_txt.lin",
        "stream_modulation.linear": "stream_modulation.lin",
        "attn.to_qkv_mlp_proj": "linear1",
        "attn.norm_q.": "norm.query_norm.",
        "attn.norm_k.": "norm.key_norm.",
    }
    double = {
        "attn.to_out.0": "img_attn.proj",
        "attn.to_add_out": "txt_attn.proj",
        "ff.linear_in": "img_mlp.0",
        "ff.linear_out": "img_mlp.2",
        "ff_context.linear_in": "txt_mlp.0",
        "ff_context.linear_out": "txt_mlp.2",
        "attn.norm_added_q.": "txt_attn.norm.query_norm.",
        "attn.norm_added_k.": "txt_attn.norm.key_norm.",
        "attn.norm_q.": "img_attn.norm.query_norm.",
        "attn.norm_k.": "img_attn.norm.key_norm.",
    }
    out = {}
    for name, w in weights.items():
        new = name
        if name.startswith("transformer_blocks"):
            for a, b in double.items():
                new = new.replace(a, b)
        for a, b in renamed.items():
            new = new.replace(a, b)
        if new.startswith("single"):
            new = new.replace("attn.to_out", "linear2")
        if "_norm." in new:
            new = new.replace(".weight", ".scale")
        if name.startswith("norm_out"):
            w = torch.cat(w.chunk(2)[::-1])
        out[new] = w
    for own, parts in (
        ("img_attn.qkv", "attn.to_{}"),
        ("txt_attn.qkv", "attn.add_{}_proj"),
    ):
        for block in {n.split(".")[1] for n in out if n.startswith("double_blocks")}:
            names = [f"double_blocks.{block}.{parts.format(x)}.weight" for x in "qkv"]
            out[f"double_blocks.{block}.{own}.weight"] = torch.cat([out.pop(n) for n in names])
    return out


def as_fp8(weights, path):
    "Write weights as the makers do: matrices of blocks in float8, a scale for each."
    from safetensors.torch import save_file

    out = {}
    for name, w in weights.items():
        if w.ndim == 2 and "_blocks." in name:
            scale = w.abs().max() / 448
            out[name] = (w / scale).to(torch.float8_e4m3fn)
            out[name + "_scale"] = scale
            out[name.removesuffix("weight") + "input_scale"] = torch.ones(())
        else:
            out[name] = w.contiguous()
    save_file(out, path)


def as_gguf(weights, path):
    "Write weights as a GGUF: 8 bits a number where a row can be parted, 32 elsewhere."
    import gguf

    writer = gguf.GGUFWriter(str(path), "flux")
    for name, w in weights.items():
        a, kind = w.float().numpy(), gguf.GGMLQuantizationType.F32
        if w.ndim == 2 and w.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            a = gguf.quants.quantize(a, kind)
        writer.add_tensor(name, a, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def apart(folders, tmp_path):
    "Make a row whose transformer is one file, in a folder that has no weights for it."
    from diffusers import Flux2Transformer2DModel

    net = Flux2Transformer2DModel.from_pretrained(folders["flux2-klein"] / "transformer")
    home = tmp_path / "klein"
    shutil.copytree(folders["flux2-klein"], home)
    (home / "transformer" / "diffusion_pytorch_model.safetensors").unlink()

    def make(key):
        name, write = ("t.gguf", as_gguf) if "gguf" in key else ("t.safetensors", as_fp8)
        write(original(net.state_dict()), tmp_path / name)
        return replace(row(home, key), unet=M.Source(str(tmp_path), file=name))

    return net, make


@pytest.mark.parametrize("key", KLEIN)
def test_a_transformer_from_one_file_is_the_same(apart, folders, key):
    if "gguf" in key:
        pytest.importorskip("gguf")
    net, make = apart
    spec = make(key)
    given, whole = (
        F.load_flow(spec, "cpu", "fp32"),
        F.load_flow(row(folders["flux2-klein"], key.rsplit("-", 1)[0]), "cpu", "fp32"),
    )
    assert given.revision != whole.revision
    if "gguf" not in key:
        for name, w in net.state_dict().items():
            assert (
                given.pipe.transformer.state_dict()[name] - w
            ).abs().max() <= 0.07 * w.abs().max()
    a, b = (m.edit(A.resize((80, 64)), "make it blue", 2, 1.0) for m in (given, whole))
    far = (a.latents - b.latents).abs().max() / b.latents.abs().max()
    assert 0 < far < 0.1 and a.nfe == b.nfe == 2
    packed = F.load_flow(spec, "cpu", "fp8")
    assert bool(packed.notes) == ("gguf" in key)


def test_a_bad_file_of_a_transformer_is_said(apart, monkeypatch):
    _, make = apart
    spec = make("flux2-klein-fp8")
    file = M.locate_file(spec.unet)
    file.unlink()
    with pytest.raises(ModelError, match="fastedit fetch flux2-klein-fp8"):
        F.load_flow(spec, "cpu")
    for name, text, words in (
        ("t.safetensors", b"12345678", "t.safetensors"),
        ("t.gguf", b"PK12", "no GGUF"),
        ("t.gguf", b"GGUF", "pip install gguf"),
    ):
        (file.parent / name).write_bytes(text)
        if text == b"GGUF":
            monkeypatch.setattr("fastedit.editor.flow.stored.find_package", lambda n: None)
        with pytest.raises(ModelError, match=words):
            F.load_flow(replace(spec, unet=M.Source(str(file.parent), file=name)), "cpu")
    with pytest.raises(ModelError, match="belong to no float8"):
        F.widened({"a.weight_scale": torch.ones(())}, torch.float32)


def test_what_is_fetched_leaves_out_what_is_apart():
    from fastedit.models.fetching import _of_pipeline
    from fastedit.models.places import expected_bytes, needed

    names = ["model_index.json", "vae/config.json", "transformer/config.json", "x.safetensors"]
    weights = ["transformer/diffusion_pytorch_model.safetensors"]
    assert _of_pipeline(names + weights, apart=True) == names[:3]
    for key in KLEIN:
        spec, places = needed(key)
        assert list(places) == ["pipeline", "transformer"]
        sizes = expected_bytes(spec, places, "fp16")
        assert sum(sizes.values()) == int(spec.disk_gb * 1e9)
        assert spec.unet.pinned and sizes["transformer"] == spec.unet.bytes


@pytest.mark.parametrize("name", ["dreamlite-base", "flux2-klein-9b", "flux2-klein-nvfp4"])
def test_what_was_looked_at_and_is_not_here_says_why(name):
    with pytest.raises(ModelError, match="use dreamlite|use flux2-klein"):
        M.find_spec(name)
    repo = {"dreamlite-base": "carlofkl/DreamLite-base"}.get(name)
    if repo:
        with pytest.raises(ModelError, match="28 steps"):
            M.find_spec(repo)


def test_dreamlite_tells_of_its_steps(editors):
    told = []
    e = editors["dreamlite"](A, "make it blue", on_step=told.append)
    assert [t["step"] for t in told] == [0, 1, 2, 3] and e.nfe == 4
    assert torch.equal(told[-1]["latents"], told[-1]["clean"])
    assert "step" not in vars(editors["dreamlite"].parts.pipe.scheduler)
    with pytest.raises(OptionError, match="guidance"):
        editors["dreamlite"](A, "make it blue", guidance=2.0)


def test_an_older_diffusers_is_said(folders):
    from fastedit.editor.flow.loading import _from_folder

    spec = replace(row(folders["dreamlite"], "dreamlite"), pipeline="DreamLiteNextPipeline")
    with pytest.raises(ModelError, match="pip install -U diffusers"):
        _from_folder(folders["dreamlite"], spec, torch.float32)
