"""LoRA files: every form against stock diffusers or its formula, refusals in words, several at
once, requests and command line."""

import copy, json, logging, math, subprocess, sys
import diffusers, numpy as np, pytest, torch
from safetensors.torch import load_file, save_file
from fastedit import lora as L, models as M
from fastedit.core import ModelError, OptionError

NETS = "unet", "text_encoder", "text_encoder_2"
UNET = lambda n: n.endswith(
    (
        "attn1.to_q",
        "attn2.to_k",
        "attn1.to_out.0",
        "proj_in",
        "ff.net.2",
        "conv1",
        "time_emb_proj",
        "downsamplers.0.conv",
    )
)
TEXT = lambda n: n.endswith(("q_proj", "out_proj", "fc1"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    d = tmp_path_factory.mktemp("lora")
    folders = {
        "xl": M.random_model(d / "xl", channels=(16, 32, 32), width=16),
        "sd15": M.random_model(d / "sd15", "sd15", channels=(16, 32, 32), width=16),
    }
    return {k: (f, M.load_model(f, device="cpu", controlnet=False)) for k, f in folders.items()}


def nets_of(parts):
    return {k: copy.deepcopy(getattr(parts, k)) for k in NETS if getattr(parts, k) is not None}


def layers_of(net, pick):
    return {
        n: m
        for n, m in net.named_modules()
        if pick(n) and isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))
    }


def draw(*shape, g=torch.Generator().manual_seed(3)):
    return torch.randn(*shape, generator=g) * 0.2


def tensors(net, pick, style, prefix, rank=lambda i: 4, alpha=None, dora=False):
    "A file's tensors for some layers of a network."
    out, ends = (
        {},
        {
            "peft": ("lora_A", "lora_B"),
            "kohya": ("lora_down", "lora_up"),
            "diffusers": ("lora.down", "lora.up"),
        }[style],
    )
    for i, (n, m) in enumerate(layers_of(net, pick).items()):
        w, r = m.weight, rank(i)
        if "text" in prefix or "te" in prefix:
            n = n if n.startswith("text_") else f"text_model.{n}"
        k = prefix + (n.replace(".", "_") if style == "kohya" else n)
        out |= {
            f"{k}.{ends[0]}.weight": draw(r, *w.shape[1:]),
            f"{k}.{ends[1]}.weight": draw(w.shape[0], r, *(1,) * (w.ndim - 2)),
        }
        if alpha:
            out[f"{k}.alpha"] = torch.tensor(float(alpha(i)))
        if dora:
            size = w.flatten(1).norm(dim=1) * (draw(w.shape[0]).abs() + 0.5)
            out[f"{k}.dora_scale" if style == "kohya" else f"{k}.lora_magnitude_vector"] = (
                size.reshape(-1, *(1,) * (w.ndim - 1))
                if style == "kohya"
                else size.reshape(1, -1, 1, 1)
                if w.ndim == 4
                else size
            )
    return out


def write(path, sd, meta=None):
    save_file({k: v.contiguous().clone() for k, v in sd.items()}, path, meta)
    return path


def ours(parts, file, weight=1.0):
    nets = nets_of(parts)
    found, notes = L.read_lora(file, nets)
    for k, d in found.items():
        L.fuse_lora(nets[k], (d, weight))
    return nets, notes


def stock(parts, file, weight=1.0):
    nets = nets_of(parts)
    rest = dict(vae=parts.vae, tokenizer=parts.tokenizer, scheduler=parts.scheduler_object())
    if "text_encoder_2" in nets:
        p = diffusers.StableDiffusionXLPipeline(**rest, **nets, tokenizer_2=parts.tokenizer_2)
    else:
        p = diffusers.StableDiffusionPipeline(
            **rest,
            **nets,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    p.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="a")
    p.set_adapters(["a"], [weight])
    p.fuse_lora(components=list(nets))
    return {
        k: {n.replace(".base_layer", ""): v for n, v in m.state_dict().items() if "lora_" not in n}
        for k, m in nets.items()
    }


def old_names(sd):
    for a, b in (
        (".to_out.0.", "_to_out."),
        ("attn1.", "attn1.processor."),
        ("attn2.", "attn2.processor."),
        ("attn1_", "attn1.processor."),
        ("attn2_", "attn2.processor."),
        (".lora.down", "_lora.down"),
        (".lora.up", "_lora.up"),
    ):
        sd = {k.replace(a, b) if "attn" in k else k: v for k, v in sd.items()}
    return sd


def attention(n):
    return UNET(n) and "attn" in n


FORMS = {  # what stock diffusers reads as we do
    "peft": lambda p: tensors(p.unet, UNET, "peft", "unet."),
    "ranks": lambda p: tensors(p.unet, UNET, "peft", "unet.", rank=lambda i: 2 + i % 3),
    "kohya": lambda p: tensors(p.unet, UNET, "kohya", "lora_unet_", alpha=lambda i: 2),
    "kohya without alpha": lambda p: tensors(p.unet, UNET, "kohya", "lora_unet_"),
    "diffusers": lambda p: tensors(p.unet, attention, "diffusers", "unet."),
    "old diffusers": lambda p: old_names(tensors(p.unet, attention, "diffusers", "unet.")),
    "dora": lambda p: tensors(p.unet, UNET, "peft", "unet.", dora=True),
    "text": lambda p: {
        **tensors(p.unet, UNET, "peft", "unet."),
        **tensors(p.text_encoder, TEXT, "peft", "text_encoder."),
        **(tensors(p.text_encoder_2, TEXT, "peft", "text_encoder_2.") if p.text_encoder_2 else {}),
    },
    "kohya text": lambda p: {
        **tensors(p.unet, UNET, "kohya", "lora_unet_", alpha=lambda i: 2),
        **tensors(
            p.text_encoder,
            TEXT,
            "kohya",
            "lora_te1_" if p.text_encoder_2 else "lora_te_",
            alpha=lambda i: 2,
        ),
        **(
            tensors(p.text_encoder_2, TEXT, "kohya", "lora_te2_", alpha=lambda i: 2)
            if p.text_encoder_2
            else {}
        ),
    },
}


@pytest.mark.parametrize(
    "family,form", [*(("xl", f) for f in FORMS), ("sd15", "kohya text"), ("sd15", "text")]
)
def test_what_is_applied_is_what_stock_diffusers_applies(models, tmp_path, family, form):
    parts = models[family][1]
    sd = FORMS[form](parts)
    f = write(tmp_path / "l.safetensors", sd)
    log = logging.getLogger("transformers")
    log.setLevel(logging.CRITICAL)
    (mine, notes), theirs = ours(parts, f, 0.7), stock(parts, f, 0.7)
    for k, net in mine.items():
        assert (
            max(float((v - theirs[k][n]).abs().max()) for n, v in net.state_dict().items()) <= 1e-6
        ), k
    assert any(
        not torch.equal(a, b)
        for a, b in zip(mine["unet"].state_dict().values(), parts.unet.state_dict().values())
    )
    if "text" in form:
        assert all(
            any(
                not torch.equal(a, b)
                for a, b in zip(
                    mine[k].state_dict().values(), getattr(parts, k).state_dict().values()
                )
            )
            for k in mine
        )
        assert "text encoder" in notes[0] and ("second text encoder" in notes[0]) == (
            family == "xl"
        )


def test_scale_in_a_files_metadata(models, tmp_path):
    parts = models["xl"][1]
    pick = lambda n: n.endswith(("attn1.to_q", "attn1.to_k"))
    sd = tensors(parts.unet, pick, "peft", "unet.") | tensors(
        parts.text_encoder, lambda n: n.endswith("q_proj"), "peft", "text_encoder."
    )
    odd = next(iter(layers_of(parts.unet, pick)))
    meta = {
        "unet.r": 4,
        "unet.lora_alpha": 8,
        "unet.alpha_pattern": {odd: 3},
        "unet.rank_pattern": {},
        "unet.target_modules": ["to_q", "to_k"],
        "text_encoder.r": 4,
        "text_encoder.lora_alpha": 2,
        "text_encoder.target_modules": ["q_proj"],
    }
    f = write(
        tmp_path / "m.safetensors", sd, {"format": "pt", "lora_adapter_metadata": json.dumps(meta)}
    )
    found, _ = L.read_lora(f, nets_of(parts))
    assert (
        {v.scale for n, v in found["unet"].items() if n != odd} == {2.0}
        and found["unet"][odd].scale == 0.75
        and {v.scale for v in found["text_encoder"].values()} == {0.5}
    )
    mine, theirs = ours(parts, f)[0], stock(parts, f)
    assert all(
        float((v - theirs[k][n]).abs().max()) <= 1e-6
        for k in mine
        for n, v in mine[k].state_dict().items()
    )
    again = lambda **new: L.read_lora(
        write(
            tmp_path / "n.safetensors",
            sd,
            {"lora_adapter_metadata": json.dumps(meta | {f"unet.{k}": v for k, v in new.items()})},
        ),
        nets_of(parts),
    )
    assert again(use_rslora=True)[0]["unet"][odd].scale == 3 / math.sqrt(4)
    for bad, word in (
        (dict(r=8), "rank 4"),
        (dict(use_dora=True), "DoRA"),
        (dict(bias="all"), "bias"),
        (dict(init_lora_weights="pissa_niter_4"), "pissa"),
        (dict(modules_to_save=["conv_in"]), "modules_to_save"),
    ):
        with pytest.raises(ModelError, match=word):
            again(**bad)
    for text in ("{", "[1]"):
        with pytest.raises(ModelError, match="JSON"):
            L.read_lora(
                write(tmp_path / "j.safetensors", sd, {"lora_adapter_metadata": text}),
                nets_of(parts),
            )


def test_scale_of_pefts_own_files_and_of_trainers_notes(models, tmp_path):
    unet = models["xl"][1].unet
    sd = tensors(unet, attention, "peft", "base_model.model.")
    f = write(tmp_path / "adapter_model.safetensors", sd)
    found, notes = L.read_lora(f, unet)
    assert {v.scale for v in found["unet"].values()} == {1.0} and "adapter_config.json" in notes[0]
    (tmp_path / "adapter_config.json").write_text(
        json.dumps(dict(peft_type="LORA", r=4, lora_alpha=6))
    )
    found, notes = L.read_lora(f, unet)
    assert {v.scale for v in found["unet"].values()} == {1.5} and not notes
    sd = tensors(unet, attention, "kohya", "lora_unet_")
    _, notes = L.read_lora(
        write(tmp_path / "k.safetensors", sd, dict(ss_network_alpha="1", ss_network_dim="4")), unet
    )
    assert "alpha 1" in notes[0] and "weight 0.25" in notes[0]
    sd |= {k.replace("lora_up.weight", "alpha"): torch.tensor(2.0) for k in sd if "lora_up" in k}
    found, notes = L.read_lora(
        write(tmp_path / "k.safetensors", sd, dict(ss_network_alpha="1", ss_network_dim="4")), unet
    )
    assert not notes and {v.scale for v in found["unet"].values()} == {0.5}


def test_alphas_that_differ_between_layers_follow_the_formula(models, tmp_path):
    parts = models["xl"][1]
    sd = tensors(
        parts.unet, UNET, "kohya", "lora_unet_", rank=lambda i: 2 + i % 3, alpha=lambda i: 1 + i % 4
    ) | tensors(parts.text_encoder, TEXT, "kohya", "lora_te1_", alpha=lambda i: 1 + i % 3)
    mine, _ = ours(parts, write(tmp_path / "l.safetensors", sd), 0.5)
    for net, pick, prefix in (
        ("unet", UNET, "lora_unet_"),
        ("text_encoder", TEXT, "lora_te1_text_model_"),
    ):
        for n, m in layers_of(getattr(parts, net), pick).items():
            d, u, a = (
                sd[f"{prefix}{n.replace('.', '_')}.{e}"]
                for e in ("lora_down.weight", "lora_up.weight", "alpha")
            )
            want = m.weight + 0.5 * float(a) / d.shape[0] * (u.flatten(1) @ d.flatten(1)).reshape(
                m.weight.shape
            )
            assert torch.allclose(mine[net].get_submodule(n).weight, want, atol=1e-6), n


def flat(n):
    return "lora_unet_" + n.replace(".", "_")


def test_relatives_follow_their_formulas(models, tmp_path):
    unet = models["xl"][1].unet
    lin = next(n for n in layers_of(unet, lambda n: n.endswith("attn1.to_q")))
    conv = next(n for n in layers_of(unet, lambda n: n.endswith("conv1")))
    o, i = unet.get_submodule(lin).weight.shape
    co, ci, kh, kw = unet.get_submodule(conv).weight.shape
    cases = {}
    a, b, c, d = draw(o, 3), draw(3, i), draw(o, 3), draw(3, i)
    cases["LoHa"] = (
        lin,
        dict(hada_w1_a=a, hada_w1_b=b, hada_w2_a=c, hada_w2_b=d, alpha=torch.tensor(2.0)),
        2 / 3 * (a @ b) * (c @ d),
    )
    t1, t2, a, b, c, d = (
        draw(3, 3, kh, kw),
        draw(3, 3, kh, kw),
        draw(3, co),
        draw(3, ci),
        draw(3, co),
        draw(3, ci),
    )
    cp = lambda t, x, y: torch.einsum("ijkl,jr,ip->prkl", t, y, x)
    cases["LoHa, Tucker"] = (
        conv,
        dict(hada_t1=t1, hada_w1_a=a, hada_w1_b=b, hada_t2=t2, hada_w2_a=c, hada_w2_b=d),
        cp(t1, a, b) * cp(t2, c, d),
    )
    a, b, c, d = draw(co, 3), draw(3, ci * kh * kw), draw(co, 3), draw(3, ci * kh * kw)
    cases["LoHa, convolution"] = (
        conv,
        dict(hada_w1_a=a, hada_w1_b=b, hada_w2_a=c, hada_w2_b=d, alpha=torch.tensor(3.0)),
        ((a @ b) * (c @ d)).reshape(co, ci, kh, kw),
    )
    w1, w2 = draw(4, 2), draw(o // 4, i // 2)
    cases["LoKr"] = lin, dict(lokr_w1=w1, lokr_w2=w2, alpha=torch.tensor(7.0)), torch.kron(w1, w2)
    a, b = draw(o // 4, 3), draw(3, i // 2)
    cases["LoKr, thin"] = (
        lin,
        dict(lokr_w1=w1, lokr_w2_a=a, lokr_w2_b=b, alpha=torch.tensor(1.5)),
        0.5 * torch.kron(w1, a @ b),
    )
    w1, w2 = draw(2, 4), draw(co // 2, ci // 4, kh, kw)
    cases["LoKr, convolution"] = (
        conv,
        dict(lokr_w1=w1, lokr_w2=w2),
        torch.kron(w1[..., None, None], w2),
    )
    t, a, b = draw(3, 3, kh, kw), draw(3, co // 2), draw(3, ci // 4)
    cases["LoKr, Tucker"] = (
        conv,
        dict(lokr_w1=w1, lokr_t2=t, lokr_w2_a=a, lokr_w2_b=b, alpha=torch.tensor(3.0)),
        torch.kron(w1[..., None, None], torch.einsum("ijkl,ip,jr->prkl", t, a, b).contiguous()),
    )
    down, mid, up = draw(3, ci, 1, 1), draw(3, 3, kh, kw), draw(co, 3, 1, 1)
    x = draw(1, ci, 6, 6)
    cases["LoCon, Tucker"] = (
        conv,
        {
            "lora_down.weight": down,
            "lora_mid.weight": mid,
            "lora_up.weight": up,
            "alpha": torch.tensor(6.0),
        },
        2 * torch.einsum("on,nmkl,mi->oikl", up[..., 0, 0], mid, down[..., 0, 0]),
    )
    for name, (layer, sd, delta) in cases.items():
        found, notes = L.read_lora(
            write(tmp_path / "l.safetensors", {f"{flat(layer)}.{k}": v for k, v in sd.items()}),
            unet,
        )
        net = L.fuse_lora(copy.deepcopy(unet), (found["unet"], -0.5))
        assert torch.allclose(
            net.get_submodule(layer).weight,
            unet.get_submodule(layer).weight - 0.5 * delta,
            atol=1e-6,
        ), name
        assert (not notes) == name.startswith("LoCon") and (not notes or name[:4] in notes[0])
    net = torch.nn.functional.conv2d(
        torch.nn.functional.conv2d(torch.nn.functional.conv2d(x, down), mid), up
    )
    assert torch.allclose(
        net, torch.nn.functional.conv2d(x, cases["LoCon, Tucker"][2] / 2), atol=1e-5
    ), "the middle part is a convolution between two thin ones"


def test_dora_of_kohyas_follows_the_formula(models, tmp_path):
    unet = models["xl"][1].unet
    sd = tensors(unet, UNET, "kohya", "lora_unet_", alpha=lambda i: 2, dora=True)
    mine, notes = ours(models["xl"][1], write(tmp_path / "l.safetensors", sd), 0.8)
    for n, m in layers_of(unet, UNET).items():
        d, u, size = (
            sd[f"{flat(n)}.{e}"] for e in ("lora_down.weight", "lora_up.weight", "dora_scale")
        )
        w = m.weight + 0.8 * 0.5 * (u.flatten(1) @ d.flatten(1)).reshape(m.weight.shape)
        want = w * (size.flatten() / w.flatten(1).norm(dim=1)).reshape(-1, *(1,) * (w.ndim - 1))
        assert torch.allclose(mine["unet"].get_submodule(n).weight, want, atol=2e-6), n
    assert "DoRA" in notes[0]


def test_biases_are_added(models, tmp_path):
    unet = models["xl"][1].unet
    n = next(iter(layers_of(unet, lambda n: n.endswith("proj_in"))))
    sd = tensors(unet, lambda x: x == n, "peft", "unet.")
    sd[f"unet.{n}.lora_B.bias"] = draw(unet.get_submodule(n).weight.shape[0])
    mine, _ = ours(models["xl"][1], write(tmp_path / "l.safetensors", sd), 0.5)
    assert torch.allclose(
        mine["unet"].get_submodule(n).bias,
        unet.get_submodule(n).bias + 0.5 * sd[f"unet.{n}.lora_B.bias"],
        atol=1e-6,
    )


BAD = {  # what is added to (or taken from) a good file, and a word of the refusal
    "per input column": lambda sd, k, w: {f"{k}.dora_scale": torch.ones(1, w.shape[1])},
    "no part of a LoRA": lambda sd, k, w: {f"{k}.diff": torch.zeros(w.shape)},
    "which together make no": lambda sd, k, w: {f"{k}.hada_w1_a": draw(w.shape[0], 4)},
    "other shape|another shape": lambda sd, k, w: {f"{k}.lora_up.weight": draw(w.shape[0] + 1, 4)},
    "different ranks": lambda sd, k, w: {f"{k}.lora_up.weight": draw(w.shape[0], 5)},
    "are not there": lambda sd, k, w: {
        "lora_unet_down_blocks_9_attn_to_q.lora_down.weight": draw(4, 4),
        "lora_unet_down_blocks_9_attn_to_q.lora_up.weight": draw(4, 4),
    },
    "second text encoder": lambda sd, k, w: {
        "lora_te2_text_model_encoder_layers_7_mlp_fc1.lora_down.weight": draw(4, 16),
        "lora_te2_text_model_encoder_layers_7_mlp_fc1.lora_up.weight": draw(32, 4),
    },
    "under two names": lambda sd, k, w: {
        f"unet.{k.removeprefix('lora_unet_')}.lora_A.weight": sd[f"{k}.lora_down.weight"],
        f"unet.{k.removeprefix('lora_unet_')}.lora_B.weight": sd[f"{k}.lora_up.weight"],
    },
    "NaN": lambda sd, k, w: {
        f"{k}.lora_up.weight": torch.full_like(sd[f"{k}.lora_up.weight"], float("nan"))
    },
    "is of type int8": lambda sd, k, w: {
        f"{k}.lora_up.weight": torch.ones_like(sd[f"{k}.lora_up.weight"], dtype=torch.int8)
    },
    "only a scale": lambda sd, k, w: {"lora_unet_conv_in.alpha": torch.tensor(1.0)},
}


@pytest.mark.parametrize("word", BAD)
def test_a_file_that_would_be_used_in_part_is_refused(models, tmp_path, word):
    parts = models["xl"][1]
    n = next(iter(layers_of(parts.unet, lambda n: n.endswith("attn1.to_q"))))
    sd = tensors(parts.unet, attention, "kohya", "lora_unet_")
    f = write(
        tmp_path / "l.safetensors", sd | BAD[word](sd, flat(n), parts.unet.get_submodule(n).weight)
    )
    with pytest.raises(ModelError, match=word) as e:
        L.read_lora(f, nets_of(parts))
    assert str(f) in str(e.value)


def test_an_alpha_may_be_a_whole_number(models, tmp_path):
    parts = models["xl"][1]
    sd = tensors(parts.unet, attention, "kohya", "lora_unet_")
    stem = next(k for k in sd if k.endswith(".lora_down.weight")).split(".")[0]
    f = write(tmp_path / "l.safetensors", sd | {f"{stem}.alpha": torch.tensor(2)})
    layer = next(x for x in L.read_lora(f, nets_of(parts))[0]["unet"].values() if x.scale != 1)
    assert layer.scale == 2 / layer.rank


def test_stabilitys_block_names_also_beside_diffusers_own(models, tmp_path):
    unet = models["xl"][1].unet
    names = {
        "input_blocks_1_0_in_layers_2": "down_blocks.0.resnets.0.conv1",
        "input_blocks_3_1_transformer_blocks_0_attn1_to_q": (
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
        ),
        "input_blocks_2_0_op": "down_blocks.0.downsamplers.0.conv",
        "middle_block_1_proj_in": "mid_block.attentions.0.proj_in",
        "output_blocks_0_0_out_layers_3": "up_blocks.0.resnets.0.conv2",
        "input_blocks_3_0_skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
        "input_blocks_3_0_emb_layers_1": "down_blocks.1.resnets.0.time_emb_proj",
        "time_embed_0": "time_embedding.linear_1",
        "label_emb_0_2": "add_embedding.linear_2",
        "input_blocks_0_0": "conv_in",
        "out_2": "conv_out",
        "output_blocks_1_2_conv": "up_blocks.0.upsamplers.0.conv",
    }
    sd = {}
    for old, new in names.items():
        w = unet.get_submodule(new).weight
        sd |= {
            f"lora_unet_{old}.lora_down.weight": draw(2, *w.shape[1:]),
            f"lora_unet_{old}.lora_up.weight": draw(w.shape[0], 2, *(1,) * (w.ndim - 2)),
        }
    found, _ = L.read_lora(write(tmp_path / "l.safetensors", sd), unet)
    assert set(found["unet"]) == set(names.values())
    for old, new in names.items():
        assert torch.equal(
            found["unet"][new].tensors["lora_A"], sd[f"lora_unet_{old}.lora_down.weight"]
        )
    both = sd | tensors(unet, lambda n: n.endswith("attn2.to_k"), "kohya", "lora_unet_")
    found, _ = L.read_lora(write(tmp_path / "b.safetensors", both), unet)
    assert 2 * sum(map(len, found.values())) == len(both), "a file in two spellings is read whole"


def test_a_text_encoders_half_for_another_family_is_refused(models, tmp_path):
    xl, sd = models["xl"][1], models["sd15"][1]
    f = write(tmp_path / "l.safetensors", tensors(xl.text_encoder_2, TEXT, "kohya", "lora_te2_"))
    L.read_lora(f, nets_of(xl))
    with pytest.raises(ModelError, match="second text encoder"):
        L.read_lora(f, nets_of(sd))
    with pytest.raises(ModelError, match="own LoRA"):
        L.read_lora(
            write(tmp_path / "s.safetensors", tensors(sd.unet, UNET, "kohya", "lora_unet_")),
            nets_of(xl),
        )


# --- several at once ------------------------------------------------------------------------------


def test_what_is_asked_for():
    assert L.asked_loras() == (True, ()) and L.asked_loras(False) == L.asked_loras(None) == (
        False,
        (),
    )
    a, b = L.Lora("a.safetensors", 0.8), L.Lora("b.safetensors")
    assert (
        L.asked_loras("a.safetensors:.8")
        == L.asked_loras(("a.safetensors", 0.8))
        == L.asked_loras(loras=("a.safetensors", np.float64(0.8)))
        == L.asked_loras(loras=[a])
        == (True, (a,))
    )
    assert (
        L.asked_loras("a.safetensors:.8", ["b.safetensors"])
        == L.asked_loras(loras=[("a.safetensors", 0.8), "b.safetensors"])
        == L.asked_loras(loras=L.named_loras([a, b]))
        == (True, (a, b))
    )
    assert L.asked_loras(False, ["a.safetensors:-1e-1"]) == (
        False,
        (L.Lora("a.safetensors", -0.1),),
    )
    for bad in (
        ("a.safetensors", float("nan")),
        ("a.safetensors", float("inf")),
        ("a.safetensors", None),
        ("a.safetensors", True),
        [("a.safetensors", "x")],
        5,
        "",
        [("a", 0.1, 0.2)],
        [dict(fil="a")],
        "a.safetensors:nan",
        "a.safetensors:",
        "a.safetensors:.8x",
    ):
        with pytest.raises(OptionError, match="LoRA"):
            L.asked_loras(loras=bad)


def test_colons_in_paths(tmp_path, monkeypatch):
    assert (
        L.parse_lora("C:/loras/a.safetensors") == L.Lora("C:/loras/a.safetensors")
        and L.parse_lora(r"C:\loras\a.safetensors:-2").weight == -2
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:1").write_bytes(b"")
    assert L.parse_lora("a:1") == L.Lora("a:1") and L.parse_lora("a:1:.5") == L.Lora("a:1", 0.5)


@pytest.fixture(scope="module")
def three(models, tmp_path_factory):
    d = tmp_path_factory.mktemp("three")
    unet = models["xl"][1].unet
    return [
        M.random_lora(d / f"{k}.safetensors", unet, seed=i, kohya=i == 1)
        for i, k in enumerate("abc")
    ]


def weights(parts):
    return torch.cat(
        [
            p.flatten()
            for k in NETS
            if getattr(parts, k) is not None
            for p in getattr(parts, k).parameters()
        ]
    )


def test_several_add_up_and_their_order_moves_only_last_bits(models, three):
    f, base = models["xl"]
    load = lambda *x, **kw: M.load_model(f, device="cpu", controlnet=False, loras=list(x), **kw)
    a, b, c = three
    w = weights(base)
    one = [weights(load((x, s))) - w for x, s in zip(three, (0.8, -0.4, 1.5))]
    p = load((a, 0.8), (b, -0.4), (c, 1.5))
    q = load((c, 1.5), (a, 0.8), (b, -0.4))
    assert (
        torch.allclose(weights(p) - w, sum(one), atol=1e-5)
        and torch.allclose(weights(p), weights(q), atol=1e-6)
        and float((weights(p) - w).abs().max()) > 0.05
    )
    assert (
        len(
            {
                base.revision,
                p.revision,
                q.revision,
                load((a, 0.8)).revision,
                load((a, 0.9)).revision,
                load((a, 0)).revision,
            }
        )
        == 6
    )
    assert [(x["source"], x["scale"], x["own"]) for x in p.adapters] == [
        ("a.safetensors", 0.8, False),
        ("b.safetensors", -0.4, False),
        ("c.safetensors", 1.5, False),
    ]
    zero = load((a, 0), (b, 0))
    assert (
        torch.equal(weights(zero), w)
        and all("weight 0" in n for n in zero.notes)
        and len(zero.notes) == 2
    )
    with pytest.raises(OptionError, match="twice.*sum of the weights"):
        load((a, 0.5), (a, 0.3))


def test_a_models_own_lora_stays_and_comes_first(tmp_path, monkeypatch, three):
    w = tmp_path / "weights"
    M.random_weights(w)
    monkeypatch.setenv("FASTEDIT_WEIGHTS", str(w))
    monkeypatch.setenv("FASTEDIT_CACHE", str(tmp_path / "cache"))
    load = lambda **kw: M.load_model("mini", device="cpu", controlnet=False, **kw)
    bare, own = load(lora=False), load()
    f = M.random_lora(tmp_path / "u.safetensors", bare.unet, seed=9)
    both = load(lora=f)
    change = weights(load(lora=False, loras=f)) - weights(bare)
    assert (
        float(change.abs().max()) > 0.01
        and torch.allclose(weights(both) - weights(own), change, atol=1e-6)
        and not torch.equal(weights(own), weights(bare))
    )
    assert [x.get("own", True) for x in both.adapters] == [True, False] and both.adapters[1][
        "source"
    ] == "u.safetensors"
    loose = load(lora=(f, 0.5), fuse=False)
    assert list(loose.unet.peft_config) == ["lcm", "lora1"] and not any(
        p.requires_grad for p in loose.unet.parameters()
    )
    loose.unet.fuse_lora()
    merged = {
        n.replace(".base_layer", ""): p
        for n, p in loose.unet.named_parameters()
        if "lora_" not in n
    }
    want = dict(load(lora=(f, 0.5)).unet.named_parameters())
    assert merged.keys() == want.keys() and all(
        torch.allclose(merged[n], p, atol=1e-6) for n, p in want.items()
    )
    with pytest.raises(OptionError, match="twice"):
        load(loras=w / "mini" / "lcm-lora" / "pytorch_lora_weights.safetensors")


def test_a_dora_comes_after_what_was_given_before_it(models, three, tmp_path):
    f, base = models["xl"]
    d = write(tmp_path / "d.safetensors", tensors(base.unet, UNET, "peft", "unet.", dora=True))
    load = lambda *x, **kw: M.load_model(f, device="cpu", controlnet=False, loras=x, **kw)
    n = "mid_block.resnets.0.conv1"
    rows = lambda p: p.unet.get_submodule(n).weight.flatten(1).norm(dim=1)
    size = load_file(d)[f"unet.{n}.lora_magnitude_vector"].flatten()
    assert torch.allclose(rows(load(three[0], d)), size, atol=1e-5) and not torch.allclose(
        rows(load(d, three[0])), size, atol=1e-5
    )
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    k = dict(
        encoder_hidden_states=torch.ones(1, 7, 32),
        added_cond_kwargs=dict(text_embeds=torch.ones(1, 16), time_ids=torch.ones(1, 6)),
    )
    with torch.no_grad():
        assert torch.allclose(
            load(d).unet(x, 5, **k).sample, load(d, fuse=False).unet(x, 5, **k).sample, atol=1e-4
        )
    with pytest.raises(ModelError, match="fuse=True"):
        load(three[0], d, fuse=False)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_rounded_once(models, three, precision):
    f, _ = models["xl"]
    dtype = dict(fp16=torch.float16, bf16=torch.bfloat16)[precision]
    load = lambda p, x=(): M.load_model(f, device="cpu", controlnet=False, precision=p, loras=x)
    unet, plain = load(precision, [(three[0], 0.8), (three[1], 0.3)]).unet, load(precision).unet
    d = [L.read_lora(x, plain)[0]["unet"] for x in three[:2]]
    for n in d[0]:
        w = plain.get_submodule(n).weight.float() + sum(
            s
            * (x[n].tensors["lora_B"].flatten(1) @ x[n].tensors["lora_A"].flatten(1)).reshape(
                plain.get_submodule(n).weight.shape
            )
            * x[n].scale
            for s, x in zip((0.8, 0.3), d)
        )
        assert (
            unet.get_submodule(n).weight.float() - w
        ).abs().max() <= w.abs().max() * torch.finfo(dtype).eps / 2 + 1e-6 and unet.get_submodule(
            n
        ).weight.dtype == dtype


def test_files_that_are_none(models, tmp_path):
    f, _ = models["xl"]
    load = lambda x: M.load_model(f, device="cpu", loras=x)
    (tmp_path / "x.ckpt").write_bytes(b"x")
    (tmp_path / "y.safetensors").write_bytes(b"no such thing")
    for path, word in (
        (tmp_path, "folder"),
        (tmp_path / "x.ckpt", "pickle"),
        (tmp_path / "nowhere.safetensors", "not found"),
        (tmp_path / "y.safetensors", "safetensors"),
    ):
        with pytest.raises(ModelError, match=word):
            load(path)


# --- requests and the command line ----------------------------------------------------------------


def test_requests_name_their_loras(models, three, tmp_path, monkeypatch):
    from PIL import Image
    from fastedit import EditRequest, FastEditor

    f, _ = models["xl"]
    kw = dict(device="cpu", controlnet=False)
    im = Image.new("RGB", (64, 64), (200, 90, 30))
    e, bare = (
        FastEditor(str(f), loras=[(three[0], 0.8), (three[1], -0.4)], **kw),
        FastEditor(str(f), **kw),
    )
    settings = dict(size=(64, 64), steps=1, method="img2img")
    r = e(im, "a ball", **settings)
    r.save(tmp_path / "o.png")
    q = EditRequest.from_png(tmp_path / "o.png")
    assert (
        q == r.request
        and [(x["file"], x["weight"], x["hash"]) for x in q.loras]
        == [(p.name, w, M.file_hash(p)[:16]) for p, w in zip(three, (0.8, -0.4))]
        and "a.safetensors:0.8" in r.summary
    )
    assert (
        e(im, request=q).image.tobytes() == r.image.tobytes()
        and bare(im, "a ball", **settings).request.loras == ()
        and bare(im, "a ball", **settings).image.tobytes() != r.image.tobytes()
    )
    with pytest.raises(
        OptionError, match="has no LoRA, the request asks for a.safetensors with weight 0.8"
    ):
        bare(im, request=q)
    with pytest.raises(OptionError, match="b.safetensors with weight -0.4"):
        e(im, "a ball", loras=[("a.safetensors", 0.8)], **settings)
    old = json.loads(q.json)
    del old["loras"]
    assert e(im, request=EditRequest.from_json(json.dumps(old))).request == q, (
        "requests from before still read"
    )
    monkeypatch.chdir(three[0].parent)
    assert FastEditor(str(f), loras=q.loras, **kw).parts.revision == e.parts.revision
    M.random_lora(tmp_path / "a.safetensors", bare.parts.unet, seed=77)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="not the one that was asked for"):
        FastEditor(str(f), loras=q.loras[:1], **kw)
    for bad in ([dict(file="a", hash="", weight=float("nan"))], [3]):
        with pytest.raises(OptionError):
            EditRequest("a ball", loras=bad)


def test_a_sweep_over_weights_runs_each_of_them(models, three, monkeypatch):
    from PIL import Image
    from fastedit.sweep import Sweep

    f, _ = models["xl"]
    monkeypatch.chdir(f.parent)
    s = Sweep(
        Image.new("RGB", (64, 64), (200, 90, 30)),
        "a ball",
        model=f.name,
        seed=[0, 1],
        loras=[(str(three[0]), 0.0), (str(three[0]), 2.0)],
        method="img2img",
        steps=1,
        size=(64, 64),
        control="none",
    )
    assert s.plan().distinct == 4 and [s.jobs[i][1]["loras"][1] for i, _ in s.plan().order] == [
        0.0,
        0.0,
        2.0,
        2.0,
    ]
    s.run(quiet=True)
    assert (
        not [d.row for d in s._done.values() if d.image is None]
        and len({d.image.tobytes() for d in s._done.values()}) == 4
    )


def test_the_command_line_refuses_before_anything_is_loaded(tmp_path):
    code = (
        "import sys; from fastedit.cli import main\n"
        "sys.argv = ['fastedit', 'edit', 'x.png', 'a ball', '-o', 'y.png', '--lora', sys.argv[1]]\n"
        "try: main()\nexcept SystemExit as e: print(e.code, 'torch' in sys.modules)"
    )
    for given, word in (
        ("nowhere.safetensors:.8", "not found"),
        ("a.safetensors:nan", "finite"),
        ("a.safetensors:.8x", "no weight"),
    ):
        r = subprocess.run(
            [sys.executable, "-c", code, given], capture_output=True, text=True, cwd=tmp_path
        )
        assert word in r.stderr and r.stdout.split()[1] == "False", (r.stdout, r.stderr)
