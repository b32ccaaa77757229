"Saved edits that are run again; what an edit keeps out, keeps apart and writes down."

import json, os, subprocess, sys, warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from typer.testing import CliRunner
from fastedit import picturebook as pb
from fastedit.cli import app
from fastedit.core import (
    DataError,
    FastEditError,
    ImageError,
    MaskError,
    OptionError,
    PromptError,
)
from fastedit.denoise import Memo
from fastedit.editor import EditRequest, FastEditor
from fastedit.images import pack_mask, read_image, read_metadata, save_image, unpack_mask
from fastedit.models import load_model, random_model
from fastedit.editor import changes, find_source, reproduce
from fastedit.denoise import machine, numerics, ordinary, stamp
from shared import instruct_folder

same = lambda a, b: np.array_equal(np.asarray(a), np.asarray(b))
A = np.asarray(pb.render(pb.sample_scene(5), 64))
KW = dict(source_prompt="a red ball", steps=2)
REGION = np.zeros((64, 64), np.float32)
REGION[16:48, 16:48] = 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("model") / "tiny", channels=(16, 32, 32), width=16)


@pytest.fixture(scope="module")
def ed(folder):
    return FastEditor(str(folder), device="cpu")


# ---- again, from the file


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
@pytest.mark.parametrize(
    "mask", [None, REGION, np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)]
)
@pytest.mark.filterwarnings("ignore:a JPEG")
def test_a_saved_edit_is_repeated_from_its_file(ed, tmp_path, suffix, mask):
    Image.fromarray(A[:, ::-1]).save(tmp_path / "a-other.png")
    Image.fromarray(A).save(tmp_path / "scene.png")
    edit = ed(A, "a blue ball", mask=mask, **KW)
    p = edit.save(tmp_path / f"out.{suffix}")
    found = reproduce(p, editor=ed)
    assert (
        found.identical
        and found.differing == 0
        and found.pixels == 4096
        and not found.changed
        and found.lossy == (suffix == "jpg")
        and same(found.result.image, edit.image)
    )
    assert (
        ("as far as a JPEG can tell" if found.lossy else "bit-identical") in str(found)
        and found.result.request == edit.request
        and json.dumps(found.to_dict())
    )
    told = read_metadata(p)
    assert (
        told["machine"]["threads"] == 1
        and told["machine"]["device"] == "cpu"
        and told["machine"]["build"]
        and "kind" in told["machine"]
    )
    if mask is None:
        assert "mask" not in told
    elif mask is REGION:
        assert len(told["mask"]) < 200


def test_what_differs_is_said(ed, folder, tmp_path):
    Image.fromarray(A).save(tmp_path / "scene.png")
    p = ed(A, "a blue ball", **KW).save(tmp_path / "out.png")
    told = read_metadata(p)
    a = np.asarray(Image.open(p)).copy()
    a[3, 5, 1] ^= 7
    save_image(a, tmp_path / "one.png", told)
    r = reproduce(tmp_path / "one.png", editor=ed)
    assert (
        not r.identical
        and r.differing == 1
        and 0 < r.largest <= 7
        and "1 of 4,096 pixels differ" in str(r)
        and "nothing that the file records has changed" in str(r)
    )
    other = dict(
        told,
        machine=dict(told["machine"], threads=7, kind="a toaster"),
        versions=dict(told["versions"], torch="1.0"),
        revision="0" * 16,
    )
    save_image(Image.open(p), tmp_path / "old.png", other)
    r = reproduce(tmp_path / "old.png", editor=ed)
    assert (
        r.identical
        and {"threads was 7, is 1", "torch was 1.0, is " + told["versions"]["torch"]}
        <= set(r.changed)
        and "toaster" in str(r)
        and "weights" in str(r)
    )
    with torch.no_grad():
        parts = load_model(str(folder), device="cpu")
        parts.unet.conv_out.weight.mul_(1.5)
    r = reproduce(p, editor=FastEditor(parts))
    assert not r.identical and r.differing > 100 and r.largest > 0


def test_another_picture_or_mask_is_refused(ed, tmp_path):
    Image.fromarray(A).save(tmp_path / "scene.png")
    p = ed(A, "a blue ball", mask=REGION, **KW).save(tmp_path / "out.png")
    q = ed(A, "a blue ball", **KW).save(tmp_path / "free.png")
    other = A.copy()
    other[0, 0, 0] ^= 1
    with pytest.raises(ImageError, match="not what"):
        reproduce(p, image=other, editor=ed)
    with pytest.raises(MaskError, match="not the one"):
        reproduce(p, mask=np.roll(REGION, 1), editor=ed)
    with pytest.raises(MaskError, match="without a mask"):
        reproduce(q, mask=REGION, editor=ed)
    with pytest.raises(DataError, match="no fastedit request"):
        reproduce(tmp_path / "scene.png", editor=ed)
    bare = dict(read_metadata(p))
    bare.pop("mask")
    save_image(Image.open(p), tmp_path / "bare.png", bare)
    with pytest.raises(MaskError, match="does not hold it"):
        reproduce(tmp_path / "bare.png", editor=ed)
    assert reproduce(tmp_path / "bare.png", mask=REGION, editor=ed).identical
    (tmp_path / "scene.png").unlink()
    with pytest.raises(ImageError, match="--image"):
        reproduce(p, editor=ed)
    assert reproduce(p, image=A, editor=ed).identical and find_source(p, "0" * 32) is None


def test_the_command_says_it_by_its_exit_code(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(A).save("a.png")
    go = lambda *args: CliRunner().invoke(app, [str(a) for a in args])
    assert go("edit", "a.png", "a blue ball", "-o", "b.png", "--model", folder, "-q").exit_code == 0
    r = go("reproduce", "b.png", "-q")
    assert r.exit_code == 1 and "--model" in r.stderr
    r = go("reproduce", "b.png", "-q", "--model", folder)
    assert r.exit_code == 0 and "bit-identical" in r.stdout and not r.stderr
    a = np.asarray(Image.open("b.png")).copy()
    a[:9] = 0
    save_image(a, "c.png", read_metadata("b.png"))
    r = go("reproduce", "c.png", "--image", "a.png", "--json", "-q", "--model", folder)
    assert r.exit_code == 1 and json.loads(r.stdout)["differing"] > 100
    for args in (
        ("a.png",),
        ("b.png", "--image", "c.png"),
        ("b.png", "--mask", "a.png"),
        ("nowhere.png",),
    ):
        assert go("reproduce", *args).exit_code == 1


def test_a_model_that_the_method_cannot_work_with_is_refused_before_it_is_loaded(
    folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(A).save("a.png")
    go = lambda *args: CliRunner().invoke(app, [str(a) for a in args])
    assert go("edit", "a.png", "a blue ball", "-o", "b.png", "--model", folder, "-q").exit_code == 0
    other = instruct_folder(tmp_path / "other")
    monkeypatch.setattr(
        "fastedit.models.load.load_network", lambda *a: pytest.fail("a network was loaded")
    )
    r = go("reproduce", "b.png", "-q", "--model", other)
    assert r.exit_code == 1 and "needs a UNet with 4 input channels" in r.stderr


# ---- a request that names other inputs


def test_a_request_with_other_inputs_is_noted(ed):
    edit, free = ed(A, "a blue ball", mask=REGION, **KW), ed(A, "a blue ball", **KW)
    other = A.copy()
    other[30:40] = 9
    assert (
        ed(A, mask=REGION, request=edit.request).notes == edit.notes
        and ed(A, request=free.request).notes == free.notes
    )
    for image, mask, r, words in (
        (A, None, edit.request, "none was given"),
        (A, np.roll(REGION, 9), edit.request, "another mask"),
        (other, REGION, edit.request, "another picture"),
        (A, REGION, free.request, "without a mask"),
    ):
        assert any(words in n for n in ed(image, mask=mask, request=r).notes)
    assert not any(
        "request was made" in n
        for n in ed(other, request=EditRequest("a ball", model=ed.spec.key, **KW)).notes
    )


# ---- transparency


def test_a_sticker_stays_one(ed, tmp_path):
    a = np.concatenate([A, np.zeros((64, 64, 1), np.uint8)], -1)
    a[8:56, 8:56, 3] = 255
    a[30:34, 30:34, 3] = 100
    a[:8, :, :3] = 7  # colours under the ground
    edit = ed(a, "a blue ball", mask=REGION, **KW)
    out = np.asarray(edit.image)
    assert (
        edit.image.mode == "RGBA"
        and same(out[..., 3], a[..., 3])
        and same(out[REGION == 0], a[REGION == 0])
    )
    assert not same(out, a) and any("transparent" in n for n in edit.notes)
    for suffix in ("png", "webp"):
        p = edit.save(tmp_path / f"o.{suffix}")
        assert same(Image.open(p), out) and reproduce(p, image=a, editor=ed).identical
    with pytest.warns(UserWarning) as said:
        assert Image.open(edit.save(tmp_path / "o.jpg")).mode == "RGB"
    assert any("transparency" in str(w.message) for w in said) and any(
        "lossy" in str(w.message) for w in said
    )
    plain = ed(read_image(a).image, "a blue ball", mask=REGION, **KW)
    shown = np.asarray(Image.alpha_composite(Image.new("RGBA", (64, 64), "white"), edit.image))[
        ..., :3
    ].astype(int)
    opaque = a[..., 3] == 255
    assert (
        same(shown[opaque], np.asarray(plain.image)[opaque])
        and edit.request.image != plain.request.image
    )
    corner = np.zeros((64, 64))
    corner[:8, :8] = 1
    assert any("cannot be seen" in n for n in ed(a, "a blue ball", mask=corner, **KW).notes)
    a[..., 3] = 255
    assert ed(a, "a blue ball", **KW).image.mode == "RGB"


def test_a_lossy_file_with_a_mask_says_so(ed, tmp_path):
    edit = ed(A, "a blue ball", mask=REGION, **KW)
    with pytest.warns(UserWarning, match="lossy"):
        p = edit.save(tmp_path / "o.jpg")
    assert any("lossy" in n for n in read_metadata(p)["notes"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        edit.save(tmp_path / "o.png")
        edit.save(tmp_path / "o.webp")
        ed(A, "a blue ball", **KW).save(tmp_path / "p.jpg")


def test_masks_in_files_are_small_and_exact(ed, tmp_path):
    soft = (np.arange(64 * 64).reshape(64, 64) % 256 / np.float32(255)).astype(np.float32)
    faint = np.zeros((64, 64), np.float32)
    faint[:9] = np.float32(1) / 255
    for m in (REGION, soft, faint):
        assert same(unpack_mask(pack_mask(m)), m)
    assert (
        len(pack_mask(REGION)) < 150
        and len(pack_mask(np.kron(REGION, np.ones((32, 32), np.float32)))) < 3000
    )
    noise = np.random.default_rng(0).random((400, 400)).astype(np.float32)
    edit = replace(ed(A, "a ball", mask=REGION, **KW), mask=noise)
    with pytest.warns(UserWarning, match="not stored"):
        p = edit.save(tmp_path / "o.webp")
    assert "mask" not in read_metadata(p)


# ---- what an edit keeps out, and what it keeps apart


def default(dtype):
    torch.set_default_dtype(dtype)


SWITCHES = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference": torch.inference_mode,
    "grad": torch.enable_grad,
    "device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("name", [*SWITCHES, "dtype"])
@pytest.mark.parametrize("memo", [False, True])
def test_what_is_switched_around_an_edit_does_not_count(folder, name, memo):
    kw = dict(method="ddcm", control="canny", **KW)
    fresh = FastEditor(str(folder), device="cpu")(A, "a blue ball", **kw)
    e = FastEditor(str(folder), device="cpu")
    e.memo = Memo() if memo else None
    try:
        if name == "dtype":
            default(torch.float64)
        with SWITCHES.get(name, nullcontext)():
            inside = e(A, "a blue ball", **kw)
            built = FastEditor(str(folder), device="cpu")
            here = built(A, "a blue ball", **kw)
            if name == "dtype":
                assert torch.get_default_dtype() == torch.float64
            if name == "autocast":
                assert torch.is_autocast_enabled("cpu")
    finally:
        default(torch.float32)
    after = e(A, "a blue ball", **kw)
    for r in (inside, after, here, built(A, "a blue ball", **kw)):
        assert same(r.image, fresh.image) and not r.latents.is_inference()


def test_answers_under_other_settings_are_kept_apart(ed):
    ed.cache.clear()
    ed(A, "a cup", **KW)
    misses = ed.cache.misses
    ed(A, "a cup", **KW)
    assert ed.cache.misses == misses
    was = torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled
    try:
        torch.set_float32_matmul_precision("medium")
        ed(A, "a cup", **KW)
        assert ed.cache.misses > misses
        m = machine()
        assert m["matmul"] == "medium"
    finally:
        torch.set_float32_matmul_precision(was[0])
    misses = ed.cache.misses
    ed(A, "a cup", **KW)
    assert ed.cache.misses == misses and "matmul" not in machine()
    memo = Memo()
    memo.ask("text", b"k", 1, lambda: torch.zeros(1))
    torch.use_deterministic_algorithms(True)
    try:
        assert memo.ask("text", b"k", 1, lambda: torch.ones(1)) == 1
    finally:
        torch.use_deterministic_algorithms(False)
    assert memo.ask("text", b"k", 1, lambda: torch.ones(1)) == 0


@pytest.mark.parametrize(
    "part, memo", [("vae", False), ("unet", True), ("text_encoder", False), ("text_encoder", True)]
)
def test_a_network_that_was_changed_in_place_is_asked_again(folder, part, memo):
    def changed(parts):
        with torch.no_grad():
            for p in getattr(parts, part).parameters():
                p.mul_(1.03)

    e = FastEditor(load_model(str(folder), device="cpu"))
    e.memo = Memo() if memo else None
    before = e(A, "a blue ball", **KW)
    changed(e.parts)
    after = e(A, "a blue ball", **KW)
    parts = load_model(str(folder), device="cpu")
    changed(parts)
    assert same(after.image, FastEditor(parts)(A, "a blue ball", **KW).image) and not same(
        after.image, before.image
    )


def test_a_stamp_knows_exchanged_and_written_parameters():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    first, old = stamp([net]), net[1]
    assert stamp([net]) == first
    net[1] = torch.nn.Linear(2, 2)
    assert stamp([net]) != first
    net[1] = old
    assert stamp([net]) == first
    with torch.no_grad():
        net[0].bias.zero_()
    assert stamp([net]) != first
    with torch.inference_mode():
        assert isinstance(stamp([torch.nn.Linear(2, 2)]), int)


def _wrap(module):
    "A module in another one, as adapters do it; the parameters are the same."

    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, x):
            return 1.5 * self.inner(x)

    return Scaled()


def _rewire(p):
    p.text_encoder.encoder.layers[0].mlp = _wrap(p.text_encoder.encoder.layers[0].mlp)


def _other_forward(p):
    conv = p.vae.encoder.conv_in
    plain = conv.forward
    conv.forward = lambda x: 1.3 * plain(x)


CHANGED = dict(
    hook=lambda p: p.vae.encoder.conv_in.register_forward_hook(lambda m, given, out: 1.3 * out),
    before=lambda p: p.vae.encoder.conv_in.register_forward_pre_hook(lambda m, x: (1.3 * x[0],)),
    forward=_other_forward,
    module=_rewire,
    buffer=lambda p: p.text_encoder.embeddings.position_ids.copy_(torch.arange(76, -1, -1)),
    scaling=lambda p: p.vae.register_to_config(scaling_factor=0.5),
    tokens=lambda p: [setattr(t, "model_max_length", 8) for t in (p.tokenizer, p.tokenizer_2)],
)


@pytest.mark.parametrize("what", CHANGED)
def test_whatever_is_changed_of_a_network_what_was_kept_is_not_given_back(folder, what):
    e = FastEditor(load_model(str(folder), device="cpu"))
    prompt = "a small blue ball on a large green meadow before a wall"
    before = e(A, prompt, **KW)
    CHANGED[what](e.parts)
    after = e(A, prompt, **KW)
    parts = load_model(str(folder), device="cpu")
    CHANGED[what](parts)
    assert same(after.image, FastEditor(parts)(A, prompt, **KW).image)
    assert not same(after.image, before.image)


def test_hooks_that_were_there_do_not_count(folder):
    e = FastEditor(load_model(str(folder), device="cpu"))
    e(A, "a blue ball", **KW)
    misses = e.cache.misses
    e(A, "a blue ball", **KW)
    hook = e.parts.unet.register_forward_hook(lambda module, given, answer: None)
    hook.remove()
    e(A, "a blue ball", **KW)
    assert e.cache.misses == misses, "a plain edit finds what was kept, after a hook, too"


def test_ordinary_restores_even_after_an_error():
    before = numerics()
    with torch.autocast("cpu"), torch.device("meta"):
        with pytest.raises(ZeroDivisionError):
            with ordinary():
                assert torch.zeros(1).device.type == "cpu" and not torch.is_autocast_enabled("cpu")
                1 / 0
        assert torch.is_autocast_enabled("cpu") and torch.zeros(1).is_meta
    assert numerics() == before


def test_scores_do_not_depend_on_autocast_either():
    from fastedit.measure import Pair, Scorer

    pair = Pair(A, np.ascontiguousarray(A[:, ::-1]), REGION, "a red ball", "a blue ball")
    fresh = Scorer("drawn")([pair])
    s = Scorer("drawn")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = s([pair])
    assert inside == fresh == s([pair])


def test_another_instruction_set_is_told(ed, folder, tmp_path):
    "torch's own, and that of the library below it; a process each, as both are asked once."
    Image.fromarray(A).save(tmp_path / "scene.png")
    p = ed(A, "a blue ball", **KW).save(tmp_path / "out.png")
    held = ed(A, "a blue ball", **KW).to_dict()["machine"]
    assert torch.backends.cpu.get_cpu_capability() in held["kind"] and "processor" in held
    run = (
        "import sys; from fastedit.editor import reproduce\n"
        "print(reproduce(sys.argv[1], model=sys.argv[2]))"
    )
    env = {**os.environ, "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    said = subprocess.run(
        [sys.executable, "-c", run, str(p), str(folder)],
        capture_output=True,
        text=True,
        env=env,
        cwd=Path(__file__).parents[1],
    ).stdout
    assert "ONEDNN_MAX_CPU_ISA was None, is SSE41" in said
    if "DEFAULT" not in held["kind"]:
        assert f"kind was {held['kind']}, is " in said and "DEFAULT" in said


def test_a_file_of_before_processors_were_named_is_no_change(ed, tmp_path):
    Image.fromarray(A).save(tmp_path / "scene.png")
    edit = ed(A, "a blue ball", **KW)
    told = json.loads(json.dumps(edit.to_dict()))
    del told["machine"]["processor"]
    assert changes(told, edit) == ()


# ---- what a saved edit names by a hash


@pytest.fixture(scope="module")
def encoded(ed):
    "Words as tensors, as the editor takes them."
    text = ed.denoiser().text("a blue ball")
    return dict(prompt_embeds=text.states, pooled_prompt_embeds=text.pooled)


@pytest.fixture
def save(ed, tmp_path):
    "Save an edit of the scene, with the scene beside it."

    def saved(prompt=None, editor=ed, **how):
        Image.fromarray(A).save(tmp_path / "scene.png")
        how = dict(source_prompt="a red ball", method="img2img", steps=1) | how
        return editor(A, prompt, **how).save(tmp_path / "edit.png")

    return saved


def test_it_is_repeated_with_its_control_picture(ed, save):
    p = save("a cup", control=A)
    assert reproduce(p, editor=ed, given=dict(control=A)).identical


def test_it_is_repeated_with_its_encoded_words(ed, save, encoded):
    p = save(**encoded)
    assert reproduce(p, editor=ed, given=encoded).identical


def test_it_is_repeated_with_its_reference_picture(folder, save):
    import diffusers
    from fastedit.models import quiet_libraries, random_ip_adapter

    with quiet_libraries():
        kind = diffusers.StableDiffusionXLImg2ImgPipeline
        editor = FastEditor(random_ip_adapter(kind.from_pretrained(folder)))
    p = save("a cup", editor=editor, reference=A)
    assert reproduce(p, editor=editor, given=dict(reference=A)).identical


def test_what_it_lacks_is_said_before_a_model_is_loaded(save):
    p = save("a cup", control=A)
    with pytest.raises(OptionError, match=r"does not hold all .* given=dict\(.* --control"):
        reproduce(p)


def test_words_that_it_lacks_are_said(save, encoded):
    with pytest.raises(PromptError, match="does not hold all .* prompt_embeds"):
        reproduce(save(**encoded))


@pytest.mark.parametrize(
    "given,words",
    [
        (dict(reference=A), "made without a reference picture: leave it out"),
        (dict(control="canny"), "control='canny': give the picture"),
        (dict(control="nowhere.png"), "nowhere.png"),
        (dict(referense=A), "did you mean 'reference'"),
        (dict(seed=1), "'seed' is unknown"),
        (A, "give a dict"),
        (dict(control=np.ascontiguousarray(A[::-1])), "edit.png: .* is not the one of the request"),
    ],
)
def test_what_it_was_not_made_with_is_refused(save, given, words):
    p = save("a cup", control=A)
    with pytest.raises(FastEditError, match=words):
        reproduce(p, given=given)


def test_the_command_refuses_another_control_picture_before_it_loads(save, tmp_path):
    p = save("a cup", control=A)
    Image.fromarray(A[::-1]).save(tmp_path / "other.png")
    r = CliRunner().invoke(app, ["reproduce", str(p), "--control", str(tmp_path / "other.png")])
    assert r.exit_code == 2 and "is not the one of the request" in r.output
