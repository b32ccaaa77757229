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
