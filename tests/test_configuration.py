"""Every configuration entry is fed a value of its own: followed (diffusers' numbers), refused in
words, or without effect."""

import inspect, json, os, shutil
import diffusers, numpy as np, pytest, torch
from PIL import Image
from transformers import CLIPTextConfig
from fastedit import memory, models as M
from fastedit.conditions import canny
from fastedit.models import (
    CONFIGURATION,
    SCHEDULERS,
    check_configuration,
    scheduler_values,
    upcasts,
)
from fastedit.core import ModelError
from fastedit.models.fetching import _wanted
from fastedit.denoise import Denoiser
from fastedit.editor import EditRequest, FastEditor
from fastedit.methods.base import ddim
from fastedit.denoise import NoiseSchedule

FILES = dict(
    scheduler="scheduler/scheduler_config.json",
    model_index="model_index.json",
    unet="unet/config.json",
    controlnet="controlnet/config.json",
    vae="vae/config.json",
    text_encoder="text_encoder_2/config.json",
    tokenizer="tokenizer/tokenizer_config.json",
)
A = Image.fromarray(
    np.kron(
        np.random.default_rng(1).integers(0, 255, (8, 8, 3), np.uint8), np.ones((8, 8, 1), np.uint8)
    )
)
TINY = dict(channels=(16, 32, 32), width=16)
HOW = dict(
    method="img2img",
    schedule="stock",
    steps=4,
    strength=1.0,
    guidance=2.0,
    control="canny",
    control_scale=0.5,
    seed=3,
)
BETAS = [round(1e-4 + i * 2e-5, 7) for i in range(1000)]


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return M.random_model(tmp_path_factory.mktemp("configuration") / "m", **TINY)


def changed(base, tmp_path, part, **values):
    "The same model, with some entries of one file changed."
    folder = shutil.copytree(base, tmp_path / "m", copy_function=os.link)
    f = folder / FILES[part]
    said = json.loads(f.read_text())
    f.unlink()
    f.write_text(json.dumps(said | values))
    return folder


def ours(folder, **kw):
    return np.asarray(
        FastEditor(str(folder), device="cpu")(A, "a yellow kite", **{**HOW, **kw}).image
    ).astype(int)


def stock(folder, **kw):
    p = diffusers.StableDiffusionXLControlNetImg2ImgPipeline.from_pretrained(folder)
    p.set_progress_bar_config(disable=True)
    return np.asarray(
        p(
            "a yellow kite",
            image=A,
            control_image=canny(A),
            strength=1.0,
            num_inference_steps=4,
            guidance_scale=2.0,
            controlnet_conditioning_scale=0.5,
            generator=torch.Generator().manual_seed(3),
            height=64,
            width=64,
            **kw,
        ).images[0]
    ).astype(int)


@pytest.fixture(scope="session")
def plain(base):
    return ours(base)


# --- what the table says is complete
def signature(name):
    return {
        k: v.default
        for k, v in inspect.signature(getattr(diffusers, name).__init__).parameters.items()
        if k != "self"
    }


@pytest.mark.parametrize(
    "part, names",
    [
        ("scheduler", SCHEDULERS),
        ("unet", ("UNet2DConditionModel",)),
        ("controlnet", ("ControlNetModel",)),
        ("vae", ("AutoencoderKL", "AutoencoderTiny")),
        (
            "model_index",
            (
                "StableDiffusionXLPipeline",
                "StableDiffusionXLImg2ImgPipeline",
                "StableDiffusionXLControlNetImg2ImgPipeline",
                "StableDiffusionPipeline",
                "StableDiffusionXLInstructPix2PixPipeline",
            ),
        ),
    ],
)
def test_every_entry_of_diffusers_is_in_the_table(part, names):
    assert not {k for n in names for k in signature(n)} - set(CONFIGURATION[part])


def test_every_entry_of_transformers_is_in_the_table():
    assert not {k for k in CLIPTextConfig().to_dict() if k[0] != "_"} - set(
        CONFIGURATION["text_encoder"]
    )


# --- noise levels
@pytest.mark.parametrize("name", SCHEDULERS)
def test_noise_levels_are_the_class_s_own(name):
    silent = scheduler_values(dict(_class_name=name))
    own = signature(name)
    for k in ("beta_start", "beta_end", "beta_schedule"):
        assert silent[k] == own[k]
    for k, other in (("clip_sample", False), ("set_alpha_to_one", True)):
        if k in own:
            assert silent.get(k, other) == own[k]
    for c in (
        {},
        dict(rescale_betas_zero_snr=True),
        dict(beta_schedule="squaredcos_cap_v2"),
        dict(trained_betas=BETAS),
        dict(beta_schedule="scaled_linear", beta_start=0.001, beta_end=0.03),
        dict(beta_schedule="linear", beta_start=0.001),
    ):
        want = getattr(diffusers, name).from_config(c)
        assert (
            NoiseSchedule.from_config(dict(c, _class_name=name)).alphas_cumprod
            - want.alphas_cumprod
        ).abs().max() <= 1e-6


@pytest.mark.parametrize(
    "kw",
    [
        dict(),
        dict(set_alpha_to_one=False),
        dict(clip_sample=True),
        dict(clip_sample=True, clip_sample_range=0.3),
        dict(prediction_type="v_prediction", rescale_betas_zero_snr=True),
        dict(prediction_type="sample"),
    ],
)
def test_ddim_steps_equal_diffusers(kw):
    c = (
        dict(
            _class_name="DDIMScheduler",
            clip_sample=False,
            timestep_spacing="trailing",
            beta_schedule="scaled_linear",
        )
        | kw
    )
    s = diffusers.DDIMScheduler.from_config(c)
    s.set_timesteps(4)
    mine = NoiseSchedule.from_config(c)
    g = torch.Generator().manual_seed(0)
    x = y = torch.randn(2, 4, 8, 8, generator=g)
    grid = s.timesteps.tolist()
    for t, prev in zip(grid, [*grid[1:], -1]):
        out = torch.randn(2, 4, 8, 8, generator=g)
        x = s.step(out, t, x).prev_sample
        e, z = mine.split(out, y, t)
        y = ddim(mine, z, e, prev)
        assert torch.allclose(x, y, atol=1e-5)


# --- followed: the stock pipeline's picture
_NETWORK = dict(
    norm_eps=0.1,
    act_fn="relu",
    norm_num_groups=8,
    attention_head_dim=8,
    flip_sin_to_cos=False,
    freq_shift=1,
    mid_block_scale_factor=2.0,
    upcast_attention=True,
)
FOLLOWED = [
    ("scheduler", dict([kv]))
    for kv in dict(
        beta_start=0.002,
        beta_end=0.03,
        beta_schedule="squaredcos_cap_v2",
        trained_betas=BETAS,
        prediction_type="sample",
        clip_sample=True,
        timestep_scaling=0.001,
    ).items()
] + [
    (
        "scheduler",
        dict(
            rescale_betas_zero_snr=True,
            prediction_type="v_prediction",
            clip_sample=True,
            clip_sample_range=0.3,
        ),
    ),
    ("unet", _NETWORK),
    ("unet", dict(center_input_sample=True)),
    ("unet", dict(time_embedding_act_fn="silu")),
    (
        "unet",
        dict(
            timestep_post_act="silu",
            downsample_padding=1,
            resnet_skip_time_act=True,
            resnet_out_scale_factor=2.0,
        ),
    ),
    ("controlnet", dict(_NETWORK, downsample_padding=1)),
    ("vae", dict(scaling_factor=0.5)),
    ("vae", dict(act_fn="relu", norm_num_groups=4)),
    ("vae", dict(latents_mean=[0.1, 0.2, -0.1, 0.3], latents_std=[2.0, 1.5, 0.7, 1.1])),
    ("vae", dict(latents_mean=[0.1, 0.2, -0.1, 0.3])),
    (
        "text_encoder",
        dict(
            hidden_act="quick_gelu", layer_norm_eps=0.1, num_attention_heads=4, num_hidden_layers=1
        ),
    ),
    ("text_encoder", dict(eos_token_id=5)),
    ("tokenizer", dict(pad_token="!")),
    ("model_index", dict(force_zeros_for_empty_prompt=False)),
]
UNSEEN = [dict(latents_mean=[0.1, 0.2, -0.1, 0.3])]  # half of a pair: pipelines do not look


@pytest.mark.parametrize(
    "part, values", FOLLOWED, ids=lambda v: v if isinstance(v, str) else "+".join(v)
)
def test_followed_as_the_stock_pipeline_does(base, plain, tmp_path, part, values):
    folder = changed(base, tmp_path, part, **values)
    got = ours(folder)
    assert np.abs(got - stock(folder)).max() <= 1
    assert (got != plain).any() == (values not in UNSEEN), (
        "the value must change the picture, or this test shows nothing"
    )


SHAPES = dict(
    a=(
        dict(
            layers_per_block=2,
            transformer_layers_per_block=2,
            conv_in_kernel=5,
            conv_out_kernel=5,
            time_embedding_dim=96,
            use_linear_projection=False,
            addition_time_embed_dim=16,
            projection_class_embeddings_input_dim=6 * 16 + 16,
        ),
        dict(
            layers_per_block=2,
            transformer_layers_per_block=2,
            use_linear_projection=False,
            conditioning_embedding_out_channels=(8, 8, 8),
        ),
        dict(
            layers_per_block=2,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=False,
        ),
    ),
    b=(
        dict(
            mid_block_type="UNetMidBlock2D",
            resnet_time_scale_shift="scale_shift",
            cross_attention_norm="layer_norm",
            reverse_transformer_layers_per_block=(1, 2, 1),
            transformer_layers_per_block=(1, 2, 1),
        ),
        dict(
            resnet_time_scale_shift="scale_shift",
            addition_time_embed_dim=16,
            projection_class_embeddings_input_dim=6 * 16 + 16,
        ),
        dict(block_out_channels=(8, 8, 16)),
    ),
    c=(
        dict(
            only_cross_attention=True,
            mid_block_only_cross_attention=False,
            down_block_types=("CrossAttnDownBlock2D",) * 3,
            up_block_types=("CrossAttnUpBlock2D",) * 3,
        ),
        dict(only_cross_attention=True, mid_block_type="UNetMidBlock2DCrossAttn"),
        dict(sample_size=32),
    ),
)


@pytest.mark.parametrize("name", SHAPES)
def test_entries_that_shape_a_network_are_followed(tmp_path, name):
    configs = M.tiny_configs(vocab=514, **TINY)
    for k, more in zip(("unet", "controlnet", "vae"), SHAPES[name]):
        configs[k] = configs[k][0], configs[k][1] | more
    folder = M.random_model(tmp_path / "m", configs=configs)
    assert np.abs(ours(folder) - stock(folder)).max() <= 1


def test_prompts_are_cut_where_the_tokenizer_says(base, tmp_path):
    f = (
        changed(base, tmp_path, "tokenizer", model_max_length=20)
        / "tokenizer_2/tokenizer_config.json"
    )
    said = json.loads(f.read_text())
    f.unlink()
    f.write_text(json.dumps(said | dict(model_max_length=20)))
    d = Denoiser(M.load_model(tmp_path / "m", device="cpu"))
    assert d.text("a kite").states.shape[1] == d.unconditional().states.shape[1] == 20
    with pytest.raises(ModelError, match="model_max_length"):
        M.load_model(
            changed(base, tmp_path / "long", "tokenizer", model_max_length=100), device="cpu"
        )


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_a_map_s_channels_come_in_the_network_s_order(base, tmp_path, order):
    p = M.load_model(
        changed(base, tmp_path, "controlnet", controlnet_conditioning_channel_order=order),
        device="cpu",
    )
    g = torch.Generator().manual_seed(0)
    edges, x = torch.rand(1, 3, 64, 64, generator=g), torch.randn(1, 4, 16, 16, generator=g)
    d = Denoiser(p, edges)
    text = d.text("a kite")
    with torch.no_grad():
        more = d._conditions(text, x.shape)
        down, mid = p.controlnet(
            x,
            torch.tensor(500),
            encoder_hidden_states=text.states,
            controlnet_cond=edges,
            return_dict=False,
            **more,
        )
        want = p.unet(
            x,
            torch.tensor(500),
            encoder_hidden_states=text.states,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
            return_dict=False,
            **more,
        )[0]
        assert torch.allclose(d.output(x, 500, text, 1.0, 1.0), want, atol=1e-5)


def test_latents_are_shifted_and_scaled_as_the_vae_says(base, tmp_path):
    for i, more in enumerate(
        (
            dict(shift_factor=0.3),
            dict(latents_mean=[0.1, 0.2, -0.1, 0.3], latents_std=[2.0, 1.5, 0.7, 1.1]),
        )
    ):
        p = M.load_model(
            changed(base, tmp_path / str(i), "vae", scaling_factor=0.5, **more), device="cpu"
        )
        d = Denoiser(p)
        x = torch.rand(1, 3, 64, 64) * 2 - 1
        with torch.no_grad():
            raw = p.vae.encode(x).latent_dist.mean
        mean, std = (
            torch.tensor(more.get(k, [v] * 4)).view(1, 4, 1, 1)
            for k, v in (("latents_mean", 0.3), ("latents_std", 1.0))
        )
        z = d.encode(x)
        assert torch.allclose(z, (raw - mean) * 0.5 / std, atol=1e-5)
        with torch.no_grad():
            assert torch.allclose(d.decode(z), p.vae.decode(raw).sample, atol=1e-4)


# --- refused, in words
CLASSES = dict(class_embed_type="timestep", num_class_embeds=10)
WIDE = dict(encoder_hid_dim=8, encoder_hid_dim_type="text_proj")
REFUSED = dict(
    scheduler=dict(
        num_train_timesteps=500,
        original_inference_steps=100,
        thresholding=True,
        timestep_type="continuous",
        use_flow_sigmas=True,
        use_dynamic_shifting=True,
        shift_terminal=0.1,
        variance_type="learned_range",
        beta_schedule="sigmoid",
        prediction_type="flow_prediction",
        trained_betas=[0.1, 0.2],
        rescale_betas_zero_snr=True,
    ),
    unet=dict(
        CLASSES,
        **WIDE,
        class_embeddings_concat=True,
        attention_type="gated",
        num_attention_heads=4,
        dtype="float16",
        addition_embed_type="image",
        quantization_config=dict(load_in_4bit=True),
    ),
    controlnet=dict(
        CLASSES,
        **WIDE,
        global_pool_conditions=True,
        conditioning_channels=1,
        num_attention_heads=4,
        dtype="float16",
        addition_embed_type="text",
        controlnet_conditioning_channel_order="gbr",
        quantization_config=dict(load_in_4bit=True),
    ),
    vae=dict(
        in_channels=1, out_channels=4, dtype="float16", quantization_config=dict(load_in_4bit=True)
    ),
    text_encoder=dict(
        use_attention_mask=True,
        return_dict=False,
        use_return_dict=False,
        auto_map=dict(AutoModel="x.py"),
        quantization_config=dict(load_in_4bit=True),
    ),
    tokenizer=dict(auto_map=dict(AutoTokenizer="x.py"), tokenizer_class="T5Tokenizer"),
    model_index=dict(requires_aesthetics_score=True),
)


@pytest.mark.parametrize("part", REFUSED)
def test_refused_in_words(base, tmp_path, part):
    for i, (key, value) in enumerate(REFUSED[part].items()):
        with pytest.raises(ModelError, match=key):
            M.load_model(changed(base, tmp_path / str(i), part, **{key: value}), device="cpu")


def test_a_refusal_belongs_to_the_class_that_knows_the_entry(base, tmp_path):
    check_configuration(
        "scheduler",
        dict(original_inference_steps=100, rescale_betas_zero_snr=True),
        kind="PNDMScheduler",
    )
    # keeps 2**-24 of the signal
    check_configuration(
        "scheduler", dict(rescale_betas_zero_snr=True), kind="EulerDiscreteScheduler"
    )
    with pytest.raises(ModelError, match="final_sigmas_type"):
        check_configuration(
            "scheduler", dict(final_sigmas_type="sigma_min"), kind="EulerDiscreteScheduler"
        )
    for kind in ("EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler"):
        with pytest.raises(ModelError, match=kind):
            M.load_model(
                changed(base, tmp_path / kind, "scheduler", _class_name=kind), device="cpu"
            )
    with pytest.raises(ModelError, match="projection_class_embeddings_input_dim"):
        c = M.tiny_configs(vocab=514, **TINY)
        c["unet"] = (
            c["unet"][0],
            dict(c["unet"][1], projection_class_embeddings_input_dim=5 * 8 + 16),
        )
        M.load_model(M.random_model(tmp_path / "score", configs=c), device="cpu")


@pytest.mark.parametrize(
    "part, values",
    [
        ("scheduler", dict(beta_start="small")),
        ("scheduler", dict(beta_end=None)),
        ("scheduler", dict(trained_betas=["x"] * 1000)),
        ("vae", dict(scaling_factor="x")),
        ("vae", dict(scaling_factor=0)),
        ("vae", dict(shift_factor="x")),
        ("vae", dict(latents_mean=[0.1, 0.2])),
        ("vae", dict(latents_mean=[0.0] * 4, latents_std=[1.0, 1.0, 0, 1.0])),
        ("vae", dict(latents_mean=[0.0] * 4, latents_std=[1.0, -1.0, 1.0, 1.0])),
        ("vae", dict(scaling_factor=-0.13)),
        ("scheduler", dict(beta_start=-1)),
        ("scheduler", dict(beta_end=0)),
        ("scheduler", dict(beta_end=2)),
        ("scheduler", dict(trained_betas=[0.1] * 999 + [2.0])),
        ("scheduler", dict(trained_betas=[-0.1] + [0.1] * 999)),
        ("scheduler", dict(clip_sample=True, clip_sample_range=0)),
        ("scheduler", dict(_class_name="LCMScheduler", timestep_scaling=0)),
    ],
)
def test_what_is_no_number_is_refused(base, tmp_path, part, values):
    with pytest.raises(ModelError, match=list(values)[-1]):
        M.load_model(changed(base, tmp_path, part, **values), device="cpu")


def test_stock_steps_on_another_scheduler_are_said(base, tmp_path):
    e = FastEditor(
        str(changed(base, tmp_path, "scheduler", _class_name="DDIMScheduler")), device="cpu"
    )
    assert any("DDIMScheduler" in n for n in e(A, "a yellow kite", **HOW).notes)


# --- no effect
NOTHING = dict(
    scheduler=dict(
        dynamic_thresholding_ratio=0.5,
        sample_max_value=2.0,
        flow_shift=3.0,
        time_shift_type="linear",
        timestep_spacing="trailing",
        steps_offset=0,
        use_karras_sigmas=True,
        use_exponential_sigmas=True,
        use_beta_sigmas=True,
        use_lu_lambdas=True,
        final_sigmas_type="sigma_min",
        sigma_min=0.1,
        sigma_max=3.0,
        interpolation_type="log_linear",
        solver_order=3,
        solver_type="heun",
        algorithm_type="sde-dpmsolver++",
        lower_order_final=False,
        euler_at_final=True,
        lambda_min_clipped=-5.0,
        predict_x0=False,
        disable_corrector=[0],
        solver_p="x",
        skip_prk_steps=True,
        noise_sampler_seed=1,
        predictor_order=3,
        corrector_order=3,
        tau_func="x",
        set_alpha_to_one=True,
    ),
    unet=dict(dropout=0.5, addition_embed_type_num_heads=8, torch_dtype="float16"),
    controlnet=dict(addition_embed_type_num_heads=8, torch_dtype="float16"),
    vae=dict(sample_size=8, torch_dtype="float16"),
    text_encoder=dict(
        bos_token_id=1,
        pad_token_id=2,
        attention_dropout=0.5,
        dropout=0.5,
        initializer_range=1.0,
        initializer_factor=2.0,
        architectures=["X"],
        model_type="clip_text_model",
        output_hidden_states=True,
        output_attentions=True,
        chunk_size_feed_forward=1,
        is_encoder_decoder=True,
        problem_type="regression",
        id2label={"0": "a"},
        label2id={"a": 0},
        transformers_version="1",
        name_or_path="x",
        dtype="float16",
        torch_dtype="float16",
    ),
    tokenizer=dict(
        add_prefix_space=True,
        do_lower_case=False,
        errors="strict",
        clean_up_tokenization_spaces=True,
        padding_side="right",
        truncation_side="right",
        name_or_path="x",
        special_tokens_map_file="x",
        processor_class="X",
        backend="x",
        is_local=False,
        local_files_only=True,
    ),
    model_index=dict(
        add_watermarker=True,
        requires_safety_checker=True,
        safety_checker=[None, None],
        feature_extractor=[None, None],
        image_encoder=[None, None],
        is_cosxl_edit=True,
    ),
)
MADE = {
    "tokenizer_file",
    "vae",
    "text_encoder",
    "text_encoder_2",
    "tokenizer",
    "tokenizer_2",
    "unet",
    "controlnet",
    "scheduler",
}  # name files and folders


@pytest.mark.parametrize("part", NOTHING)
def test_no_effect_changes_no_byte(base, plain, tmp_path, part):
    folder = changed(base, tmp_path, part, **NOTHING[part])
    e = FastEditor(str(folder), device="cpu")
    assert not e.parts.notes and (np.asarray(e(A, "a yellow kite", **HOW).image) == plain).all()


def test_entries_of_others_families_change_nothing(tmp_path):
    base = M.random_model(tmp_path / "a", "sd15", **TINY)
    kw = dict(method="img2img", steps=2, guidance=2.0, control="none")
    want = ours(base, schedule=None, **kw)
    for part, more in (
        ("model_index", dict(force_zeros_for_empty_prompt=True)),
        ("vae", dict(latents_mean=[1.0] * 4, latents_std=[2.0] * 4, force_upcast=True)),
    ):
        assert (
            ours(changed(base, tmp_path / part, part, **more), schedule=None, **kw) == want
        ).all()


# --- unknown, and the table itself
def test_what_nobody_has_heard_of_is_said(base, tmp_path):
    for part in FILES:
        notes = M.load_model(changed(base, tmp_path / part, part, warmth=3), device="cpu").notes
        assert len(notes) == 1 and "warmth" in notes[0] and FILES[part].split("/")[-1] in notes[0]
    assert M.load_model(base, device="cpu").notes == ()


def test_every_entry_was_fed():
    fed = {
        p: {k for q, d in FOLLOWED if q == p for k in d}
        | set(REFUSED.get(p, ()))
        | set(NOTHING.get(p, ()))
        for p in FILES
    }
    for i, p in enumerate(("unet", "controlnet", "vae")):
        fed[p] |= {k for x in SHAPES.values() for k in x[i]}
    fed["controlnet"] |= {"cross_attention_dim", "down_block_types", "block_out_channels"}
    fed["controlnet"] |= {"in_channels"}  # by a ControlNet of other latents, which does not fit
    fed["unet"] |= {
        "sample_size",
        "block_out_channels",
        "cross_attention_dim",
        "in_channels",
        "out_channels",
        "time_cond_proj_dim",
    }  # `tiny_configs` itself, and every other test
    fed["vae"] |= {
        "shift_factor",
        "force_upcast",
        "latent_channels",
        "down_block_types",
        "up_block_types",
    }
    fed["text_encoder"] |= {
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
        "vocab_size",
        "projection_dim",
    }
    tiny = set(signature("AutoencoderTiny"))
    left = {
        p: set(CONFIGURATION[p]) - fed[p] - MADE - (tiny if p == "vae" else set()) for p in FILES
    }
    assert left == dict(
        scheduler=set(),
        model_index=set(),
        unet={"dual_cross_attention", "time_embedding_type"},
        controlnet=set(),
        vae=set(),
        text_encoder=set(),
        tokenizer={
            "model_max_length",
            "bos_token",
            "eos_token",
            "unk_token",
            "added_tokens_decoder",
            "additional_special_tokens",
            "extra_special_tokens",
        },
    )


# --- the three facts
def test_one_rule_says_which_vae_stays_wide(base, tmp_path):
    for family, said, want in (
        ("sdxl", None, "float32"),
        ("sdxl", True, "float32"),
        ("sdxl", False, "float16"),
        ("sd15", None, "float16"),
        ("sd15", True, "float16"),
    ):
        folder = M.random_model(tmp_path / f"{family}{said}", family, **TINY)
        f = folder / "vae/config.json"
        c = json.loads(f.read_text())
        c.pop("force_upcast")
        f.write_text(json.dumps(c | ({} if said is None else dict(force_upcast=said))))
        p = M.load_model(folder, device="cpu", precision="fp16", controlnet=False)
        assert str(p.vae.dtype) == f"torch.{want}"
        for what in (str(folder), p):
            assert memory.weight_bytes(what, "fp16", device="cpu")["vae"] == sum(
                t.numel() * t.element_size() for t in (*p.vae.parameters(), *p.vae.buffers())
            )
    for spec in M.MODELS.values():  # the registry's word on a VAE is its architecture's
        if spec.vae:
            assert M.VAES[spec.vae].fp16 != upcasts(
                M.ARCHITECTURES[M.VAES[spec.vae].arch].config, spec.family
            )


def test_an_absent_negative_prompt_is_not_an_empty_one(base, tmp_path):
    a, b, c = ours(base), ours(base, negative_prompt=""), ours(base, negative_prompt="a lamp")
    assert (a != b).any() and (b != c).any()
    for n, got in (("", b), ("a lamp", c)):
        assert np.abs(stock(base, negative_prompt=n) - got).max() <= 1
    f = changed(base, tmp_path / "b", "model_index") / "model_index.json"
    said = json.loads(f.read_text())
    f.unlink()
    said.pop("force_zeros_for_empty_prompt")
    f.write_text(json.dumps(said))
    assert (ours(f.parent) == a).all(), "a silent file means zeros, as in diffusers"
    e = FastEditor(
        str(changed(base, tmp_path / "c", "model_index", force_zeros_for_empty_prompt=False)),
        device="cpu",
    )
    r = e(A, "a yellow kite", **HOW)
    assert r.request.negative_prompt == "" and (np.asarray(r.image) == b).all(), (
        "without zeros the two are the same, and the request says so"
    )
    e = FastEditor(str(base), device="cpu")
    r = e(A, "a yellow kite", **HOW)
    again = EditRequest.from_json(r.request.json)
    assert again.negative_prompt is None and (np.asarray(e(A, request=again).image) == a).all()
    assert (
        EditRequest.from_json('{"prompt": "x", "negative_prompt": ""}').negative_prompt == ""
        and EditRequest.from_json('{"prompt": "x"}').negative_prompt is None
    )


@pytest.mark.parametrize("broken", ["gone", "no merges", "empty", "damaged"])
def test_a_tokenizer_without_its_vocabulary_is_found_early(base, tmp_path, broken):
    folder = shutil.copytree(base, tmp_path / "m")
    t = folder / "tokenizer_2"
    if broken == "gone":
        (t / "vocab.json").unlink()
        (t / "merges.txt").unlink()
    elif broken == "no merges":
        (t / "merges.txt").unlink()
    else:
        (t / "vocab.json").write_text("{}" if broken == "empty" else '{"a":')
    state = {f.component: f.state for f in M.diagnose(folder).findings}
    assert state["tokenizer_2"] == "damaged" and state["tokenizer"] == "ok"
    with pytest.raises(ModelError, match="tokenizer_2"):
        M.load_model(folder, device="cpu")


def test_a_repository_without_a_vocabulary_is_refused_before_it_is_fetched():
    src, names = (
        M.Source("x/y", "tokenizer"),
        ["tokenizer/tokenizer_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt"],
    )
    assert _wanted(names, "CLIPTokenizer", src, "fp16") == names
    with pytest.raises(ModelError, match="vocabulary"):
        _wanted(names[:2], "CLIPTokenizer", src, "fp16")
