"""Pipelines in memory: the same tensors, the same pictures as the pipeline's own, and nothing of it
changed."""

import numpy as np, pytest, torch
from PIL import Image
from fastedit import FastEditor
from fastedit.core import ModelError, OptionError
from fastedit.editor import EditRequest
from fastedit.editor.again import reproduce
from fastedit.models import borrow, random_lora, random_model, weights_hash
from fastedit.world import render, sample_scene

A = Image.fromarray(render(sample_scene(5), 64))
SAME = dict(method="img2img", schedule="stock", steps=4, strength=0.75, guidance=1.5, seed=3)


def apart(a, b):
    return np.abs(np.asarray(a).astype(int) - np.asarray(b)).max()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    d = tmp_path_factory.mktemp("models")
    return {f: random_model(d / f, f, channels=(16, 32, 32), width=16) for f in ("sdxl", "sd15")}


def load(folders, kind, family="sdxl", **kw):
    import diffusers

    diffusers.logging.disable_progress_bar()
    if family == "sd15":
        kw |= dict(safety_checker=None)
    if kind == "StableDiffusionInpaintPipeline":
        return diffusers.StableDiffusionInpaintPipeline.from_pipe(
            load(folders, "StableDiffusionPipeline", family, **kw)
        )
    pipe = getattr(diffusers, kind).from_pretrained(folders[family], **kw)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stock(pipe, **kw):
    asked = dict(image=A, strength=0.75, guidance_scale=1.5, num_inference_steps=4) | kw
    return pipe("a blue ball", generator=torch.Generator().manual_seed(3), **asked).images[0]


@pytest.mark.parametrize(
    "kind, family",
    [("StableDiffusionXLImg2ImgPipeline", "sdxl"), ("StableDiffusionImg2ImgPipeline", "sd15")],
)
def test_an_edit_is_what_the_pipeline_gives_and_leaves_it_alone(folders, kind, family):
    pipe = load(folders, kind, family)
    before, hashes = (
        stock(pipe),
        {
            k: weights_hash(dict(m.state_dict()))
            for k, m in pipe.components.items()
            if isinstance(m, torch.nn.Module)
        },
    )
    editor = FastEditor(pipe)
    got = editor(A, "a blue ball", control="none", **SAME)
    editor(A, "a cup", source_prompt="a ball", method="p2p", steps=2)
    assert apart(got.image, before) <= 1 and stock(pipe).tobytes() == before.tobytes()
    assert hashes == {
        k: weights_hash(dict(m.state_dict()))
        for k, m in pipe.components.items()
        if isinstance(m, torch.nn.Module)
    }
    assert all(a is b for a, b in zip(editor.parts.unet.parameters(), pipe.unet.parameters()))


@pytest.mark.parametrize(
    "kind, family",
    [
        ("StableDiffusionXLPipeline", "sdxl"),
        ("StableDiffusionXLInpaintPipeline", "sdxl"),
        ("StableDiffusionXLControlNetPipeline", "sdxl"),
        ("StableDiffusionPipeline", "sd15"),
        ("StableDiffusionInpaintPipeline", "sd15"),
        ("StableDiffusionControlNetImg2ImgPipeline", "sd15"),
        ("LatentConsistencyModelImg2ImgPipeline", "sd15"),
    ],
)
def test_pipelines_of_other_tasks_lend_their_parts(folders, kind, family):
    extra = dict(controlnet=load_control(folders, family)) if "ControlNet" in kind else {}
    pipe = load(folders, kind, family, **extra)
    editor, folder = FastEditor(pipe), FastEditor(folders[family], controlnet="ControlNet" in kind)
    a, b = (e(A, "a blue ball", **SAME) for e in (editor, folder))
    assert (
        a.image.tobytes() == b.image.tobytes()
        and a.control_nfe == b.control_nfe
        and bool(a.control_nfe) == ("ControlNet" in kind)
    )


def load_control(folders, family):
    from diffusers import ControlNetModel

    return ControlNetModel.from_pretrained(folders[family] / "controlnet")


def test_components_in_a_dict_and_a_controlnet_beside_them(folders):
    pipe = load(folders, "StableDiffusionXLImg2ImgPipeline")
    parts = {k: v for k, v in pipe.components.items() if v is not None}
    a, b = FastEditor(parts), FastEditor(pipe, controlnet=load_control(folders, "sdxl"))
    assert a.parts.controlnet is None and b(A, "a cup", method="img2img").control_nfe
    assert a.spec.key == "pipeline:components"
    assert (
        FastEditor(
            load(folders, "StableDiffusionXLControlNetImg2ImgPipeline"), controlnet=False
        ).parts.controlnet
        is None
    )


def test_loras_of_the_pipeline_act_and_stand_in_the_request(folders, tmp_path):
    pipe = load(folders, "StableDiffusionXLImg2ImgPipeline")
    editor = FastEditor(pipe)
    plain = editor(A, "a blue ball", control="none", **SAME)
    pipe.load_lora_weights(
        random_lora(tmp_path / "a.safetensors", pipe.unet, std=0.2), adapter_name="style"
    )
    pipe.set_adapters("style", 0.5)
    half, theirs = editor(A, "a blue ball", control="none", **SAME), stock(pipe)
    assert apart(half.image, theirs) <= 1 < apart(half.image, plain.image)
    assert [(x["file"], x["weight"]) for x in half.request.loras] == [
        ("style", 0.5)
    ] and half.revision != plain.revision
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    fused = editor(A, "a blue ball", control="none", **SAME)
    assert (
        fused.revision not in (plain.revision, half.revision)
        and not fused.request.loras
        and apart(fused.image, stock(pipe)) <= 1
    )


def test_what_is_exchanged_in_the_pipeline_is_seen(folders):
    from diffusers import DDIMScheduler

    pipe = load(folders, "StableDiffusionXLImg2ImgPipeline")
    editor = FastEditor(pipe)
    first = editor.parts.revision
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    assert (
        editor(A, "a cup", steps=2).request.model == editor.spec.key
        and editor.parts.scheduler["_class_name"] == "DDIMScheduler"
    )
    second = editor.parts.revision
    next(iter(pipe.text_encoder.parameters())).data += 1
    assert len({first, second, editor(A, "a cup", steps=2).revision}) == 3
    pipe.unet = load(folders, "StableDiffusionXLImg2ImgPipeline").unet
    editor(A, "a cup", steps=2)
    assert editor.parts.unet is pipe.unet


def test_the_revision_is_that_of_the_numbers(folders):
    a, b = (borrow(load(folders, "StableDiffusionXLImg2ImgPipeline")) for _ in range(2))
    assert a.revision == b.revision
    b.vae.decoder.conv_out.bias.data[0] += 1e-6
    assert (
        borrow(
            {
                k: v
                for k, v in (
                    ("unet", b.unet),
                    ("vae", b.vae),
                    ("text_encoder", b.text_encoder),
                    ("text_encoder_2", b.text_encoder_2),
                    ("tokenizer", b.tokenizer),
                    ("tokenizer_2", b.tokenizer_2),
                    ("scheduler", b.scheduler_object()),
                )
            }
        ).revision
        != a.revision
    )


def test_a_vae_that_overflows_is_widened_as_stock_does(folders):
    pipe = load(folders, "StableDiffusionXLImg2ImgPipeline", torch_dtype=torch.float16)
    pipe.vae.register_to_config(force_upcast=True)
    theirs = stock(pipe)
    ours = FastEditor(pipe)(A, "a blue ball", control="none", **SAME)
    assert (
        pipe.vae.dtype == torch.float16
        and ours.request.precision == "fp16"
        and apart(ours.image, theirs) <= 2
    )


def test_words_of_a_textual_inversion_are_written_out(folders):
    pipe = load(folders, "StableDiffusionXLImg2ImgPipeline")
    for tok, enc in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
        vectors = torch.randn(2, enc.config.hidden_size, generator=torch.Generator().manual_seed(1))
        pipe.load_textual_inversion(vectors, token="<mine>", tokenizer=tok, text_encoder=enc)
    theirs = pipe(
        "a <mine> ball",
        image=A,
        strength=0.75,
        guidance_scale=1.5,
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(3),
    ).images[0]
    assert apart(FastEditor(pipe)(A, "a <mine> ball", control="none", **SAME).image, theirs) <= 1


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda p: p.components | dict(unet=None), "has no unet"),
        (lambda p: p.components | dict(text_encoder_2=None), "no text_encoder_2"),
        (lambda p: p.components | dict(t2i=p.vae), "an edit would leave out"),
        (lambda p: p.components | dict(vae=p.unet), "vae is a UNet2DConditionModel"),
    ],
)
def test_what_cannot_be_borrowed_is_said(folders, change, says):
    with pytest.raises(ModelError, match=says):
        FastEditor(change(load(folders, "StableDiffusionXLImg2ImgPipeline")))


def test_a_pipeline_that_moves_itself_or_trains_is_refused(folders):
    from accelerate.hooks import ModelHook, add_hook_to_module

    pipe = load(folders, "StableDiffusionXLImg2ImgPipeline")
    add_hook_to_module(pipe.unet, ModelHook())
    with pytest.raises(ModelError, match="remove_all_hooks"):
        FastEditor(pipe)
    pipe.remove_all_hooks()
    pipe.vae.train()
    with pytest.raises(ModelError, match="training mode"):
        FastEditor(pipe)
    pipe.vae.eval()
    for kw in (
        dict(precision="fp16"),
        dict(loras="a.safetensors"),
        dict(controlnet="canny-sdxl"),
        dict(device="meta"),
    ):
        with pytest.raises(OptionError):
            FastEditor(pipe, **kw)


def test_another_kind_of_pipeline_is_named_with_what_is_taken(folders):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    pipe = DDPMPipeline(
        UNet2DModel(
            sample_size=8,
            block_out_channels=(32, 32),
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
        ),
        DDPMScheduler(),
    )
    with pytest.raises(ModelError, match="DDPMPipeline has no vae.*SDXL"):
        FastEditor(pipe)
    with pytest.raises(ModelError, match="is no name: FastEditor"):
        from fastedit.models import load_model

        load_model(pipe)


def test_a_saved_edit_is_repeated_with_the_pipeline(folders, tmp_path):
    pipe = load(folders, "StableDiffusionXLImg2ImgPipeline")
    A.save(tmp_path / "a.png")
    FastEditor(pipe)(tmp_path / "a.png", "a cup", method="img2img").save(tmp_path / "b.png")
    assert reproduce(tmp_path / "b.png", editor=FastEditor(pipe)).identical
    with pytest.raises(ModelError, match="editor=FastEditor"):
        reproduce(tmp_path / "b.png")
    with pytest.raises(ModelError):
        FastEditor(EditRequest.from_png(tmp_path / "b.png").model)


def test_an_edit_is_made_again_from_the_folder_that_the_pipeline_was_saved_in(folders, tmp_path):
    pipe = load(folders, "StableDiffusionXLImg2ImgPipeline")
    A.save(tmp_path / "a.png")
    edit = FastEditor(pipe)(tmp_path / "a.png", "a blue ball", control="none", **SAME)
    edit.save(tmp_path / "b.png")
    pipe.save_pretrained(tmp_path / "saved")
    with pytest.raises(ModelError, match="save_pretrained"):
        reproduce(tmp_path / "b.png")
    again = reproduce(tmp_path / "b.png", model=str(tmp_path / "saved"), device="cpu")
    assert again.identical
    assert any("the request's model was pipeline:" in c for c in again.changed)
