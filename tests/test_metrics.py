"""Metrics against public implementations on the same random weights, the benchmark's oddities one
by one, and what happens without weights."""

import math, os, warnings
import numpy as np, pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from fastedit.core import ImageError, ModelError, OptionError
from fastedit.measure import (
    BACKBONES,
    PROFILES,
    Clip,
    Dino,
    Pair,
    Scorer,
    clip_score,
    dino_input,
    directional_similarity,
    fetch_backbones,
    load_backbone,
    lpips_distance,
    mse,
    profile_metrics,
    psnr,
    self_similarity,
    ssim,
    ssim_map,
    structure_distance,
)
from fastedit import measure as metrics
from fastedit.measure.backbones import CLIPS

warnings.filterwarnings("ignore")
g = torch.Generator().manual_seed(0)
A, B = torch.rand(3, 3, 72, 80, generator=g), torch.rand(3, 3, 72, 80, generator=g)
B[1] = (A[1] + 0.05 * torch.randn(A[1].shape, generator=g)).clamp(0, 1)
B[2] = A[2].flip(-1)
M = torch.zeros(3, 1, 72, 80)
M[0, :, 10:40, 20:50] = 1
M[1, :, :5] = 1
M[2, :, 30:, :] = 1
close = lambda x, y, tol=1e-5: torch.allclose(
    torch.as_tensor(x).float(), torch.as_tensor(y).float(), atol=tol, rtol=1e-5
)


def u8(x):
    return (x * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def pair(i=0, **kw):
    return Pair(u8(A[i]), u8(B[i]), M[i, 0].numpy(), "a red ball", "a blue ball", **kw)


# ---- pixels, against torchmetrics


@pytest.mark.parametrize("w", [None, 1 - M])
def test_psnr_and_ssim_equal_torchmetrics_on_whole_and_blackened_frames(w):
    from torchmetrics.functional.image import (
        peak_signal_noise_ratio,
        structural_similarity_index_measure,
    )

    a, b = (A, B) if w is None else (A * w, B * w)
    for i in range(3):
        assert close(
            psnr(a, b)[i], peak_signal_noise_ratio(b[i : i + 1], a[i : i + 1], data_range=1.0)
        )
        assert close(
            ssim(a, b)[i],
            structural_similarity_index_measure(b[i : i + 1], a[i : i + 1], data_range=1.0),
        )
        assert close(mse(a, b)[i], torch.nn.functional.mse_loss(a[i], b[i]))


def test_a_weight_of_one_changes_nothing():
    one = torch.ones_like(M)
    for f in (mse, psnr, ssim):
        assert close(f(A, B, one), f(A, B), 1e-6)


def test_weighted_mse_is_the_mean_over_the_selected_pixels():
    keep = (1 - M[0, 0]).bool()
    assert close(mse(A, B, 1 - M)[0], (A - B)[0][:, keep].square().mean())


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_what_is_painted_into_the_edited_region_never_counts(seed):
    other = torch.where(
        M > 0, torch.rand(B.shape, generator=torch.Generator().manual_seed(seed)), B
    )
    for f in (mse, psnr, ssim):
        assert torch.equal(f(A, B, 1 - M), f(A, other, 1 - M))


def test_equal_pictures_are_perfect():
    assert (
        mse(A, A).max() == 0
        and (psnr(A, A) == metrics.BEST_PSNR).all()
        and close(ssim(A, A), torch.ones(3))
        and close(ssim(A, A, 1 - M), torch.ones(3))
    )
    assert ssim_map(A, B).shape == (3, 1, 72, 80) and ssim_map(A, B).max() <= 1


# ---- LPIPS, against the package and torchmetrics, same random trunk


@pytest.mark.parametrize("net", ["squeeze", "alex"])
def test_lpips_equals_the_package_and_torchmetrics(net):
    import lpips
    from torchmetrics.functional.image.lpips import _LPIPS

    ours = load_backbone(f"lpips-{net}", random=0)
    theirs = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    theirs.load_state_dict(ours.state_dict())
    theirs.eval()
    tm = _LPIPS(net=net, pnet_rand=True, pretrained=True).eval()
    tm.net.load_state_dict(dict(zip(tm.net.state_dict(), ours.net.state_dict().values())))
    with torch.no_grad():
        expected = theirs(2 * A - 1, 2 * B - 1).flatten()
        assert close(lpips_distance(ours, A, B), expected) and close(
            tm(2 * A - 1, 2 * B - 1).flatten(), expected
        )
    assert expected.min() > 0 and close(lpips_distance(ours, A, A), torch.zeros(3))


def test_background_lpips_ignores_the_edited_region_and_restores_the_model():
    net = load_backbone("lpips-squeeze", random=0)
    w = 1 - M
    other = torch.where(M > 0, torch.rand(B.shape, generator=torch.Generator().manual_seed(5)), B)
    assert (
        torch.equal(lpips_distance(net, A, B, w), lpips_distance(net, A, other, w))
        and net.spatial is False
    )
    inside = torch.where(M > 0, B, A)
    assert close(lpips_distance(net, A, inside, w), torch.zeros(3))


def test_a_trunk_file_is_read_into_the_right_layers(tmp_path, monkeypatch):
    import torchvision

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "none"))
    torch.manual_seed(3)
    net = torchvision.models.squeezenet1_1(weights=None)
    torch.save(net.state_dict(), tmp_path / "squeezenet1_1-12345678.pth")
    ours = load_backbone("lpips-squeeze", folder=str(tmp_path))
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert close(ours.net(x)[6], net.features(x))
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "alexnet-0.pth")
    with pytest.raises(ModelError, match="alexnet-0.pth"):
        load_backbone("lpips-alex", folder=str(tmp_path))
    (tmp_path / "vgg16-0.pth").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="vgg16-0.pth cannot be read"):
        load_backbone("lpips-vgg", folder=str(tmp_path))


# ---- CLIP, against transformers' model inside torchmetrics' CLIPScore

SIZES = dict(
    vision=dict(image_size=32, layers=2, width=64, head_width=16, patch_size=8),
    text=dict(context_length=77, vocab_size=49408, width=32, heads=2, layers=2),
)


@pytest.fixture(scope="module")
def clip():
    import open_clip
    from open_clip.model import CLIP

    torch.manual_seed(0)
    return Clip(
        CLIP(48, SIZES["vision"], SIZES["text"], quick_gelu=True), open_clip.SimpleTokenizer(), 32
    )


@pytest.fixture(scope="module")
def dino():
    import timm

    torch.manual_seed(0)
    return Dino(
        timm.models.vision_transformer.VisionTransformer(
            img_size=64, patch_size=8, embed_dim=48, depth=3, num_heads=12, num_classes=0
        ),
        64,
    )


def as_transformers(model):
    "The same weights in transformers' CLIP."
    from transformers import CLIPConfig, CLIPModel

    both = dict(num_hidden_layers=2, hidden_act="quick_gelu")
    cfg = CLIPConfig(
        projection_dim=48,
        vision_config=dict(
            hidden_size=64,
            intermediate_size=256,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
            **both,
        ),
        text_config=dict(
            hidden_size=32,
            intermediate_size=128,
            num_attention_heads=2,
            vocab_size=49408,
            max_position_embeddings=77,
            eos_token_id=49407,
            bos_token_id=49406,
            pad_token_id=0,
            **both,
        ),
    )
    hf, new, old = CLIPModel(cfg).eval(), {}, model.state_dict()

    def block(src, dst):
        for part in ("weight", "bias"):
            for k, v in zip("qkv", old[f"{src}.attn.in_proj_{part}"].chunk(3)):
                new[f"{dst}.self_attn.{k}_proj.{part}"] = v
            for a, b in (
                ("attn.out_proj", "self_attn.out_proj"),
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ):
                new[f"{dst}.{b}.{part}"] = old[f"{src}.{a}.{part}"]

    for i in range(2):
        block(f"transformer.resblocks.{i}", f"text_model.encoder.layers.{i}")
        block(f"visual.transformer.resblocks.{i}", f"vision_model.encoder.layers.{i}")
    new |= {
        "text_model.embeddings.token_embedding.weight": old["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": old["positional_embedding"],
        "vision_model.embeddings.class_embedding": old["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": old["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": old["visual.positional_embedding"],
        "text_projection.weight": old["text_projection"].T,
        "visual_projection.weight": old["visual.proj"].T,
        "logit_scale": old["logit_scale"],
    }
    for a, b in (
        ("ln_final", "text_model.final_layer_norm"),
        ("visual.ln_pre", "vision_model.pre_layrnorm"),
        ("visual.ln_post", "vision_model.post_layernorm"),
    ):
        new |= {f"{b}.{p}": old[f"{a}.{p}"] for p in ("weight", "bias")}
    missing, extra = hf.load_state_dict(new, strict=False)
    assert not extra and all("position_ids" in k for k in missing)
    return hf


def test_clip_score_equals_torchmetrics_with_transformers_on_the_same_weights(clip):
    from torchmetrics.functional.multimodal import clip_score as theirs

    hf = as_transformers(clip.model)

    class Adapter(torch.nn.Module):
        config, inner = hf.config, hf

        def get_image_features(self, x):
            o = hf.get_image_features(x)
            return o if torch.is_tensor(o) else o.pooler_output

        def get_text_features(self, ids, mask):
            o = hf.get_text_features(ids, mask)
            return o if torch.is_tensor(o) else o.pooler_output

    def processor(text=None, images=None, **kw):
        if images is not None:
            return {
                "pixel_values": torch.stack(
                    [clip.prepare(i.permute(1, 2, 0).numpy()) for i in images]
                )
            }
        ids = clip.tokenizer(text)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    pictures, prompts = [u8(x[:, :32, :32]) for x in A], ["a red ball", "two dogs, one cat", "x"]
    ours = clip_score(clip.images(pictures), clip.texts(prompts))
    with torch.no_grad():
        for i in range(3):
            t = theirs(
                torch.from_numpy(pictures[i]).permute(2, 0, 1),
                prompts[i],
                model_name_or_path=lambda: (Adapter(), processor),
            )
            assert abs(float(t) - float(ours[i])) < 1e-3 * 1e-2 * 100  # 1e-5 of the scale of 100


def test_clip_preprocessing_equals_open_clips(clip):
    from open_clip.transform import image_transform
    from PIL import Image

    theirs = image_transform(32, is_train=False, mean=Clip.mean, std=Clip.std)
    for h, w in ((72, 80), (33, 90), (20, 28), (32, 32)):
        im = np.random.default_rng(h).integers(0, 256, (h, w, 3), dtype=np.uint8)
        assert torch.allclose(clip.prepare(im), theirs(Image.fromarray(im)), atol=1e-6)


def test_public_clips_are_built_with_quick_gelu():
    import open_clip

    assert all(open_clip.get_model_config(m)["quick_gelu"] for m in CLIPS.values())


def test_clip_score_is_never_negative_and_direction_by_hand():
    e = torch.eye(3)
    assert clip_score(e[:1], -e[:1]).item() == 0 and clip_score(e[:1], e[:1]).item() == 100
    assert directional_similarity(e[:1], e[1:2], e[:1], e[1:2]).item() == pytest.approx(1)
    assert directional_similarity(e[:1], e[1:2], e[1:2], e[:1]).item() == pytest.approx(-1)
    assert torch.isnan(directional_similarity(e[:1], e[1:2], e[:1], e[:1])).all()


# ---- DINO


def test_keys_are_those_of_timms_own_attention(dino):
    x = dino_input(A, 64)
    kept = []
    hook = dino.model.blocks[-1].attn.k_norm.register_forward_hook(lambda m, i, o: kept.append(o))
    with torch.no_grad():
        dino.model.forward_features(x)
    hook.remove()
    assert close(dino.keys(x), kept[0].transpose(1, 2).flatten(2)) and dino.keys(x).shape == (
        3,
        65,
        48,
    )


def test_attention_rebuilt_from_the_keys_gives_timms_output(dino):
    blk, seen = dino.model.blocks[-1], {}
    hooks = [blk.attn.register_forward_hook(lambda m, i, o: seen.update(x=i[0], out=o))]
    with torch.no_grad():
        keys = dino.keys(dino_input(A, 64))
        hooks[0].remove()
        q, _, v = (
            t.unflatten(-1, (12, 4)).transpose(1, 2) for t in blk.attn.qkv(seen["x"]).chunk(3, -1)
        )
        k = keys.unflatten(-1, (12, 4)).transpose(1, 2)
        out = (torch.softmax(q @ k.mT / 2, -1) @ v).transpose(1, 2).flatten(2)
        assert close(blk.attn.proj(out), seen["out"])


def test_structure_distance_as_published(dino):
    ka, kb = dino.keys(dino_input(A, 64)), dino.keys(dino_input(B, 64))

    def reference(x, eps=1e-8):  # the benchmark's attn_cosine_sim
        x = x[None]
        n = x.norm(dim=2, keepdim=True)
        return (x @ x.permute(0, 2, 1)) / torch.clamp(n @ n.permute(0, 2, 1), min=eps)

    want = torch.stack([F.mse_loss(reference(a), reference(b)) for a, b in zip(ka, kb)])
    assert close(structure_distance(ka, kb), want, 1e-6) and structure_distance(ka, ka).max() == 0
    assert self_similarity(ka).diagonal(dim1=1, dim2=2).allclose(torch.ones(3, 65), atol=1e-5)


# ---- the oddities of `pnp`


def test_pnp_feeds_dino_0_to_255_without_antialiasing():
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (Dino.mean, Dino.std))
    big = F.interpolate(A, (512, 512))
    from torchvision.transforms import InterpolationMode, Resize

    odd = (Resize((224, 224), InterpolationMode.BILINEAR, antialias=False)(big * 255) - mean) / std
    proper = (Resize((224, 224), InterpolationMode.BILINEAR, antialias=True)(big) - mean) / std
    assert close(dino_input(big, benchmark=True), odd, 1e-3) and close(
        dino_input(big), proper, 1e-4
    )
    assert dino_input(big, benchmark=True).max() > 1000 > 3 > dino_input(big).max()


def test_pnp_and_corrected_structure_differ_only_by_their_input(dino):
    rows = {
        p: Scorer(p, only="dino-vitb8-structure", nets={"dino-vitb8": dino})([pair()])[0]
        for p in ("pnp", "whole", "corrected")
    }
    v = {p: list(r.values())[0] for p, r in rows.items()}
    assert v["pnp"] == pytest.approx(
        structure_distance(
            *[
                dino.keys(
                    dino_input(torch.from_numpy(u8(x[0])).permute(2, 0, 1)[None] / 255, 64, True)
                )
                for x in (A, B)
            ]
        ).item(),
        rel=1e-4,
    )
    assert v["pnp"] != pytest.approx(v["corrected"], rel=1e-3)


def test_pnp_measures_blackened_frames_without_renormalising():
    from torchmetrics.functional.image import (
        peak_signal_noise_ratio,
        structural_similarity_index_measure,
    )

    row = Scorer("pnp", only=["psnr-bg", "ssim-bg", "mse-bg"])([pair()])[0]
    w = 1 - M[:1]
    a, b = (torch.from_numpy(u8(x[0])).permute(2, 0, 1)[None].float() / 255 * w for x in (A, B))
    assert row["pnp/psnr-bg"] == pytest.approx(
        peak_signal_noise_ratio(b, a, data_range=1.0).item(), abs=1e-5
    )
    assert row["pnp/ssim-bg"] == pytest.approx(
        structural_similarity_index_measure(b, a, data_range=1.0).item(), abs=1e-5
    )
    own = Scorer("corrected", only="mse-bg")([pair()])[0]["corrected/mse-bg"]
    # the area is not taken out
    assert row["pnp/mse-bg"] == pytest.approx(own * w.mean().item(), rel=1e-4)


def test_pnp_lpips_sees_the_blackened_pictures():
    net = load_backbone("lpips-squeeze", random=0)
    w = 1 - M[:1]
    a, b = (torch.from_numpy(u8(x[0])).permute(2, 0, 1)[None].float() / 255 * w for x in (A, B))
    row = Scorer("pnp", only="lpips-squeeze-bg", random=0)([pair()])[0]
    with torch.no_grad():
        assert row == {
            "pnp/lpips-squeeze-bg~random0": pytest.approx(
                net(a * 2 - 1, b * 2 - 1).item(), abs=1e-5
            )
        }


def test_pnp_clip_edited_is_the_uint8_picture_times_the_mask_black_outside(clip):
    s = Scorer("pnp", only=["clip-vit-l14", "clip-vit-l14-edit"], nets={"clip-vit-l14": clip})
    p = pair()
    row = s([p])[0]
    cut = p.edited.copy()
    cut[p.mask == 0] = 0
    text = clip.texts(["a blue ball"])
    assert row["pnp/clip-vit-l14-edit~given"] == pytest.approx(
        clip_score(clip.images([cut]), text).item(), abs=1e-4
    )
    assert row["pnp/clip-vit-l14~given"] == pytest.approx(
        clip_score(clip.images([p.edited]), text).item(), abs=1e-4
    )


def test_an_empty_background_or_region_has_no_value():
    full, none = np.ones((72, 80), np.float32), np.zeros((72, 80), np.float32)
    for p in ("pnp", "corrected"):
        s = Scorer(p, only=["psnr-bg", "ssim-bg", "mse-bg"])
        rows = s([Pair(u8(A[0]), u8(B[0]), m) for m in (full, None, none)])
        assert [set(map(type, r.values())) for r in rows] == [{type(None)}, {type(None)}, {float}]


def test_whole_resizes_by_lanczos_and_keeps_the_brackets(clip):
    from PIL import Image

    p = pair(raw_target="a [blue] ball")
    s = Scorer("whole", only=["mse", "clip-vit-b16"], nets={"clip-vit-b16": clip})
    row = s([p])[0]
    big = [
        np.asarray(Image.fromarray(x).resize((512, 512), Image.LANCZOS))
        for x in (p.source, p.edited)
    ]
    assert row["whole/mse"] == pytest.approx(np.mean((big[0] / 255 - big[1] / 255) ** 2), rel=1e-4)
    assert row["whole/clip-vit-b16~given"] == pytest.approx(
        clip_score(clip.images([big[1]]), clip.texts(["a [blue] ball"])).item(), abs=1e-4
    )
    assert not any(m.key.endswith(("-bg", "-edit")) for m in profile_metrics("whole"))


# ---- the scorer


def test_every_metric_states_itself():
    for profile in PROFILES:
        ms = profile_metrics(profile)
        assert len({m.name for m in ms}) == len(ms) > 3
        for m in ms:
            assert (
                m.what
                and m.citation
                and m.range[0] < m.range[1]
                and m.region in ("whole", "background", "edited")
                and m.name.startswith(profile + "/")
            )
            assert (
                m.backbone == ""
                or (m.backbone in BACKBONES and m.key.startswith(m.backbone))
                and "|" not in m.what
            )
    with pytest.raises(OptionError, match="pnp, whole"):
        profile_metrics("mine")


def test_missing_weights_concern_one_metric_only(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("FASTEDIT_CACHE", str(tmp_path))
    s = Scorer("corrected")
    row = s([pair()])[0]
    assert set(s.unavailable) == {
        n for n in s.names if any(b in n for b in ("lpips", "clip", "dino"))
    }
    assert all(
        v.startswith("unavailable: no weights of") and "fetch metrics" in v
        for v in s.unavailable.values()
    )
    assert {n for n, v in row.items() if v is None} == set(s.unavailable) and row[
        "corrected/psnr-bg"
    ] > 0
    assert "6 of 12" in repr(s) and s._repr_markdown_().count("unavailable:") == 6


def test_a_missing_library_is_a_reason_too(monkeypatch):
    import builtins

    real = builtins.__import__

    def deny(name, *a, **k):
        if name == "lpips":
            raise ModuleNotFoundError("No module named 'lpips'", name="lpips")
        return real(name, *a, **k)

    load_backbone.cache_clear()
    monkeypatch.setattr(builtins, "__import__", deny)
    with pytest.raises(ModelError, match="needs the package lpips"):
        load_backbone("lpips-squeeze", random=7)


def test_networks_are_loaded_once():
    assert load_backbone("lpips-squeeze", random=0) is load_backbone("lpips-squeeze", random=0)


def test_random_weights_are_seeded_and_leave_the_callers_generator_alone():
    torch.manual_seed(5)
    x = torch.rand(1)
    torch.manual_seed(5)
    load_backbone("lpips-squeeze", random=1)
    assert torch.equal(torch.rand(1), x)
    a, b = load_backbone("lpips-squeeze", random=1), load_backbone("lpips-squeeze", random=0)
    assert not torch.equal(next(a.net.parameters()), next(b.net.parameters()))


def test_batches_sizes_and_order_do_not_matter(clip, dino):
    small = Pair(u8(A[0][:, :40, :48]), u8(B[0][:, :40, :48]), None, "a", "b")
    pairs = [pair(0), small, pair(1), pair(2)]
    keys = ["psnr-bg", "ssim", "clip-vit-l14", "clip-vit-l14-dir", "dino-vitb8-structure"]
    nets = {"clip-vit-l14": clip, "dino-vitb8": dino}
    whole = Scorer("corrected", only=keys, nets=nets)(pairs)
    one = [Scorer("corrected", only=keys, nets=nets, batch=1, keep=0)(p)[0] for p in pairs]
    for r, q in zip(whole, one):
        assert list(r) == list(q)
        for k in r:
            assert r[k] is q[k] is None or r[k] == pytest.approx(q[k], abs=1e-4)


def test_embeddings_are_computed_once_per_content(clip):
    calls = []

    class Counted(Clip):
        def images(self, xs):
            calls.append(len(xs))
            return super().images(xs)

    s = Scorer(
        "corrected",
        only=["clip-vit-l14", "clip-vit-l14-dir"],
        nets={"clip-vit-l14": Counted(clip.model, clip.tokenizer, 32)},
    )
    first = s([pair(0), pair(1)])
    assert sum(calls) == 4
    assert s([pair(0), pair(1)]) == first and sum(calls) == 4
    s.keep = 1
    s([pair(2)])
    assert len(s._kept) == 1 and s([pair(0)])[0] == pytest.approx(first[0], abs=1e-4)


def test_identity_preserves_everything():
    p = Pair(u8(A[0]), u8(A[0]), M[0, 0].numpy())
    row = Scorer("corrected")([p])[0]
    assert (
        row["corrected/psnr-bg"] == metrics.BEST_PSNR
        and row["corrected/ssim-bg"] == pytest.approx(1)
        and row["corrected/mse"] == 0
    )


@pytest.mark.parametrize(
    "p, word",
    [
        (
            Pair(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)),
            "edited picture is 9x8",
        ),
        (
            Pair(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8), np.ones((4, 4))),
            "mask is 4x4",
        ),
        (Pair(np.zeros((8, 8, 3)), np.zeros((8, 8, 3), np.uint8)), "uint8"),
        (Pair(np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8)), "shape"),
    ],
)
def test_bad_pairs_are_refused(p, word):
    with pytest.raises(ImageError, match=word):
        Scorer("corrected", only="mse")([p])


def test_bad_options_are_refused():
    for kw in (dict(profile="x"), dict(only="lpips"), dict(batch=0), dict(keep=-1)):
        with pytest.raises(OptionError):
            Scorer(**kw)
    with pytest.raises(OptionError, match="no backbone"):
        load_backbone("resnet")
    assert Scorer("corrected", only="mse")([]) == []


def test_fetching_reports_failures_and_goes_on(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "none"))
    import torchvision

    good = torchvision.models.squeezenet1_1(weights=None).state_dict()

    def load(url, model_dir, **kw):
        if "squeeze" not in url:
            raise OSError("no network")
        torch.save(good, f"{model_dir}/{os.path.basename(url)}")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", load)
    out = fetch_backbones(["lpips-alex", "lpips-squeeze"], folder=tmp_path / "w")
    assert out["lpips-alex"] == "failed: OSError: no network" and out["lpips-squeeze"].is_file()
    assert (
        Scorer("pnp", only="lpips-squeeze-bg", folder=str(tmp_path / "w"))([pair()])[0][
            "pnp/lpips-squeeze-bg"
        ]
        > 0
    )


# ---- the drawn world


def test_drawn_profile_on_a_drawn_entry(tmp_path):
    from fastedit.world import write_benchmark
    from fastedit.measure import read_data

    data = read_data(write_benchmark(tmp_path / "d", per_type={1: 1, 9: 1}, quiet=True))
    s = Scorer("drawn", only=["mse-truth", "psnr-bg", "reader-success", "ssim-truth"])
    true, same = (
        s([Pair.of(e, e.load_target()) for e in data]),
        s([Pair.of(e, e.load()) for e in data]),
    )
    assert [r["drawn/mse-truth"] for r in true] == [0, 0] and all(
        r["drawn/mse-truth"] > 0 for r in same
    )
    # a style edit has no background
    assert same[0]["drawn/psnr-bg"] == metrics.BEST_PSNR and same[1]["drawn/psnr-bg"] is None
    if not any("reader" in n for n in s.unavailable):
        assert true[0]["drawn/reader-success"] == 1 and same[0]["drawn/reader-success"] == 0


def test_a_clip_folder_is_read(tmp_path, clip, monkeypatch):
    import json
    from safetensors.torch import save_file

    monkeypatch.setenv("FASTEDIT_WEIGHTS", str(tmp_path))
    (tmp_path / "mini-clip").mkdir()
    cfg = dict(
        model_cfg=dict(
            embed_dim=48, quick_gelu=True, vision_cfg=SIZES["vision"], text_cfg=SIZES["text"]
        )
    )
    (tmp_path / "mini-clip/open_clip_config.json").write_text(json.dumps(cfg))
    save_file(
        {k: v.contiguous() for k, v in clip.model.state_dict().items()},
        tmp_path / "mini-clip/model.safetensors",
    )
    load_backbone.cache_clear()
    mine = load_backbone("clip-mini")
    load_backbone.cache_clear()
    assert (
        mine.side == 32
        and torch.equal(mine.texts(["a cat"]), clip.texts(["a cat"]))
        and torch.equal(mine.images([u8(A[0])]), clip.images([u8(A[0])]))
    )


# ---- speed and memory


def test_throughput_says_what_it_timed():
    r = metrics.throughput("drawn", 4)
    assert (
        r["uncached"] > 0
        and r["cached"] > 0
        and (r["n"], r["size"]) == (4, 64)
        and "reader" in r["networks"]
        and not r["random_weights"]
    )
    with pytest.raises(OptionError, match="at least one"):
        metrics.throughput("drawn", 0)
    with pytest.raises(OptionError, match="no profile"):
        metrics.throughput("none", 1)


def test_the_standin_is_scored_per_type_in_little_memory():
    from fastedit.measure import COUNTS, check_standin

    d = check_standin(0.06)
    assert (
        d["entries"]
        == sum(t["n"] for t in d["types"])
        == sum(math.ceil(n * 0.06) for n in COUNTS.values())
        and [t["type"] for t in d["types"]] == list("0123456789")
        and d["growth_mb"] < 300
    )
    assert (
        all(t["corrected/psnr-bg"] > 20 and t["with_background"] == t["n"] for t in d["types"][:9])
        and d["types"][9]["corrected/psnr-bg"] is None
        and d["types"][9]["with_background"] == 0
    )


def test_fetching_metrics_offline_ends_in_words(monkeypatch):
    from pathlib import Path
    from typer.testing import CliRunner
    from fastedit import measure
    from fastedit.cli import app

    monkeypatch.setattr(
        measure,
        "fetch_backbones",
        lambda: {"lpips-alex": Path("alexnet.pth"), "clip-vit-l14": "failed: OSError: no network"},
    )
    r = CliRunner().invoke(app, ["fetch", "metrics", "-q"])
    assert (
        r.exit_code == 1
        and "clip-vit-l14: failed: OSError: no network" in r.output
        and "1 of 2 networks" in r.output
        and "Traceback" not in r.output
    )
    monkeypatch.setattr(measure, "fetch_backbones", lambda: {"lpips-alex": Path("alexnet.pth")})
    assert CliRunner().invoke(app, ["fetch", "metrics", "-q"]).exit_code == 0


# --- small pictures, long prompts, odd masks
def _tiny(side, **kw):
    a, b = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    return metrics.Pair(
        a, b, np.pad(np.ones((1, 1)), ((0, side - 1), (0, side - 1))), target_prompt="a ball", **kw
    )


@pytest.mark.parametrize(
    "side, lost",
    [
        (4, {"ssim", "lpips-squeeze", "lpips-alex", "lpips-vgg"}),
        (6, {"lpips-squeeze", "lpips-alex", "lpips-vgg"}),
        (16, {"lpips-squeeze", "lpips-alex"}),
        (17, {"lpips-alex"}),
        (31, set()),
    ],
)
def test_a_picture_too_small_has_no_value_and_the_reason(side, lost):
    only = [
        "psnr",
        "psnr-bg",
        "ssim",
        "ssim-bg",
        "lpips-squeeze",
        "lpips-squeeze-bg",
        "lpips-alex",
        "lpips-alex-bg",
        "lpips-vgg",
        "lpips-vgg-bg",
    ]
    s = metrics.Scorer("corrected", only=only, random=0)
    row, notes = s(_tiny(side))[0], s.notes(_tiny(side))
    assert {m.key for m in s.metrics if row[s.name(m)] is None} == {
        k for k in only if k.removesuffix("-bg") in lost
    }
    assert (
        all(f"{side}x{side}" in n for n in notes)
        and all(any(f"{k}" in n for n in notes) for k in lost)
        and bool(notes) == bool(lost)
    )


def test_small_pictures_are_refused_in_words_by_the_formulas():
    x = torch.rand(1, 3, 4, 5)
    with pytest.raises(ImageError, match="at least 6 pixels, and the picture is 5x4"):
        metrics.ssim(x, x)
    with pytest.raises(ImageError, match="lpips-squeeze's network needs sides of at least 17"):
        metrics.lpips_distance(metrics.load_backbone("lpips-squeeze", random=0), x, x)


def test_a_prompt_cut_at_the_context_is_said():
    s = metrics.Scorer("drawn", only=["clip-mini"])
    a = np.zeros((64, 64, 3), np.uint8)
    net = s.net("clip-mini")
    fits, long = "a red ball", "a red ball and a blue cup " * 12
    assert not s.notes(metrics.Pair(a, a, target_prompt=fits))
    (n,) = s.notes(metrics.Pair(a, a, target_prompt=long))
    k = net.cut(long)
    assert k > 0 and f"last {k} tokens" in n and "context" in n
    one = metrics.Scorer("corrected", only=["clip-vit-b16"], random=0, nets={"clip-vit-b16": net})
    assert "clip-vit-b16" in one.notes(metrics.Pair(a, a, target_prompt=long))[0]


@pytest.mark.parametrize(
    "mask, word",
    [
        (np.full((8, 8), np.nan), "nan"),
        (np.full((8, 8), 255, np.uint8), "255"),
        (np.full((8, 8), -0.5), "-0.5"),
        (np.ones((8, 8, 3)), "shape"),
        (np.ones((4, 8)), "one size"),
    ],
)
def test_odd_masks_are_refused(mask, word):
    a = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ImageError, match=word):
        metrics.Scorer("corrected", only=["psnr-bg"])(metrics.Pair(a, a, mask))


def test_an_empty_background_has_no_value():
    a = np.zeros((8, 8, 3), np.uint8)
    s = metrics.Scorer("corrected", only=["psnr-bg", "psnr"])
    assert s(metrics.Pair(a, a, np.ones((8, 8))))[0] == {
        "corrected/psnr-bg": None,
        "corrected/psnr": 100.0,
    }
