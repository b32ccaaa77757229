"Settings that cannot act: whatever changes no pixel is said, and whatever is said changes none."

import numpy as np, pytest
from fastedit import FastEditor, world
from fastedit.methods.base import find_method, method_names
from shared import instruct_folder


@pytest.fixture(scope="module")
def editors(tmp_path_factory):
    told = instruct_folder(tmp_path_factory.mktemp("told"))
    names = dict(told=told, **{m: m for m in ("mini", "mini-s", "mini-teacher")})
    return {k: FastEditor(m, device="cpu") for k, m in names.items()}


IMAGE = world.render(
    world.Scene(
        (world.Thing("balloon", "red", "plain", "large", 0.0, 0.5, 0.45),), "meadow", "flat", 0.3
    )
)


def edit(editors, method, model=None, **kw):
    m = find_method(method)
    model = model or ("told" if m.instruction else "mini" if m.few_step else "mini-teacher")
    given = (
        dict(steps=3, **(dict(source_prompt="a drawing of a balloon") if m.source_prompt else {}))
        if method not in ("identity", "vae")
        else {}
    )
    if m.key == "edit_friendly":
        given["strength"] = 0.8
    r = editors[model](
        IMAGE,
        "make the balloon blue" if m.instruction else "a drawing of a cat",
        method=method,
        **{**given, **kw},
    )
    return np.asarray(r.image), r.notes


def check(plain, other, word):
    changed, said = (
        bool((plain[0] != other[0]).any()),
        any(word in n and "nothing" in n for n in other[1]),
    )
    assert changed != said, (changed, other[1])
    assert not any("nothing" in n for n in plain[1]), plain[1]


RUN = [m for m in method_names() if m != "leditspp"]


@pytest.mark.parametrize("method", RUN)
def test_what_changes_no_pixel_is_said(editors, method):
    kw = (
        {}
        if method in ("identity", "vae", "null_text", "negative_prompt_inversion")
        else dict(guidance=2)
    )
    if method in ("null_text", "negative_prompt_inversion"):
        kw = dict(guidance=2)
    if method == "null_text":
        kw["options"] = dict(iterations=0)
    plain = edit(editors, method, **kw)
    check(
        plain,
        edit(editors, method, negative_prompt="meadow", **kw),
        "negative prompt" if kw else "negative_prompt",
    )
    check(plain, edit(editors, method, source_guidance=3.0, **kw), "source_guidance")
    if not find_method(method).source_prompt:
        check(
            plain,
            edit(editors, method, source_prompt="a drawing of a house", **kw),
            "source prompt" if kw else "source_prompt",
        )


@pytest.mark.parametrize(
    "kw, setting",
    [
        (dict(guidance=1), dict(negative_prompt="meadow")),
        (dict(guidance="linear:1:1"), dict(negative_prompt="meadow")),
        (dict(guidance="linear:1:2"), dict(negative_prompt="meadow")),
        (dict(guidance=0.5), dict(negative_prompt="meadow")),
        (dict(guidance=0.5, schedule="stock", strength=0.8), dict(negative_prompt="meadow")),
        (
            dict(guidance="linear:3:.5", schedule="stock", strength=0.8),
            dict(negative_prompt="meadow"),
        ),
        (dict(guidance=1, schedule="stock", strength=0.8), dict(guidance=0.5)),
        (dict(guidance=1, schedule="stock", strength=0.8), dict(guidance="linear:1:.2")),
        (dict(guidance=1, schedule="stock", strength=0.8), dict(guidance=2)),
        (dict(guidance=1), dict(guidance=0.5)),
        ({}, dict(feather=7.0)),
        ({}, dict(mask=Ellipsis, feather=7.0)),
    ],
)
@pytest.mark.parametrize("model", ["mini", "mini-s"])
def test_guidance_and_feather(editors, model, kw, setting):
    mask = dict(mask=np.pad(np.ones((32, 32)), 16)) if "mask" in setting else {}
    setting = {k: v for k, v in setting.items() if v is not Ellipsis}
    word = "negative prompt" if "negative_prompt" in setting else next(iter(setting))
    plain, other = (
        edit(editors, "img2img", model, **mask, **kw),
        edit(editors, "img2img", model, **mask, **{**kw, **setting}),
    )
    check((plain[0], [n for n in plain[1] if "stock" not in n]), other, word)


@pytest.mark.parametrize(
    "kw, setting, word",
    [
        (dict(control="none"), dict(control_scale=0.7), "control_scale"),
        (dict(control_scale=0.0), dict(control="canny-auto"), "control "),
        (dict(control="canny"), dict(control_scale=0.9), "control_scale"),
        (dict(control="canny"), dict(control_scale="linear:1:0"), "control_scale"),
        (dict(control="none"), dict(control_scale=(0.0, 1.0, 0.0, 0.0)), "control_scale"),
    ],
)
def test_control(editors, kw, setting, word):
    check(*(edit(editors, "img2img", **{**kw, **s}) for s in ({}, setting)), word) if kw != dict(
        control_scale=0.0
    ) else check(
        (edit(editors, "img2img", control="none")), edit(editors, "img2img", **kw, **setting), word
    )


@pytest.mark.parametrize(
    "method, base, name, value",
    [
        ("ddcm", {}, "threshold", 0.6),
        ("ddcm", {}, "cross_until", 0.2),
        ("ddcm", dict(uac=True), "cross_until", 0.1),
        ("ddcm", dict(region="model"), "threshold", 0.7),
        ("chord", dict(proximal=False), "t_end", 0.5),
        ("chord", {}, "t_end", 0.5),
        ("p2p", dict(blend=False), "blend_from", 0.9),
        ("p2p", dict(blend=False), "threshold", 0.9),
        ("p2p", {}, "weight", 5.0),
        ("ddcm", dict(uac=True), "threshold", 0.8),
    ],
)
def test_options(editors, method, base, name, value):
    check(
        edit(editors, method, options=base),
        edit(editors, method, options={**base, name: value}),
        f"option {name}",
    )


def test_defaults_and_recalled_requests_say_nothing(editors):
    for model in ("mini", "mini-s"):
        e = editors[model]
        r = e(IMAGE, "a drawing of a cat", method="img2img", steps=2)
        assert r.notes == () and e(IMAGE, request=r.request).notes == ()
    assert all(m.source_guidance for m in map(find_method, method_names()) if m.guided_source)


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 1.5])
def test_stock_schedule_equals_the_stock_pipeline_below_one(editors, guidance):
    import torch
    from fastedit.conditions import canny
    from fastedit.studies.speed import stock_pipeline
    from PIL import Image

    for model in ("mini", "mini-s"):
        source = Image.fromarray(IMAGE)
        pipe = stock_pipeline(editors[model].parts)
        ours = editors[model](
            source,
            "a drawing of a cat",
            method="img2img",
            schedule="stock",
            steps=4,
            strength=0.8,
            guidance=guidance,
            control="canny",
            control_scale=0.5,
            seed=5,
        )
        assert ours.nfe == len(ours.timesteps) * (2 if guidance > 1 else 1)
        theirs = pipe(
            "a drawing of a cat",
            image=source,
            control_image=canny(source),
            strength=0.8,
            num_inference_steps=4,
            guidance_scale=guidance,
            controlnet_conditioning_scale=0.5,
            generator=torch.Generator().manual_seed(5),
            width=64,
            height=64,
        ).images[0]
        assert np.abs(np.asarray(theirs).astype(int) - np.asarray(ours.image)).max() <= 1


@pytest.mark.parametrize("scheduler, heard", [("own", False), ("euler", False), ("ddim", True)])
def test_eta_is_heard_by_those_that_have_it(editors, scheduler, heard):
    kw = dict(scheduler=scheduler, options=dict(eta=0.5))
    noisy, notes = edit(editors, "img2img", "mini", **kw)
    assert any("eta" in n for n in notes) != heard
    plain, _ = edit(editors, "img2img", "mini", scheduler=scheduler)
    assert np.array_equal(noisy, plain) != heard


def test_settings_of_words_do_nothing_for_controls(editors):
    _, notes = edit(editors, "identity", "mini", clip_skip=1, prompt_weights=True)
    assert any("clip_skip, prompt_weights do nothing" in n for n in notes)
