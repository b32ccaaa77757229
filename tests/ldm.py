"""Write single-file checkpoints in the original (LDM) key format from small diffusers models: the
inverse of what the loaders do."""

import re
import torch


def _resnet(k):
    for a, b in (
        ("norm1", "in_layers.0"),
        ("conv1", "in_layers.2"),
        ("norm2", "out_layers.0"),
        ("conv2", "out_layers.3"),
        ("time_emb_proj", "emb_layers.1"),
        ("conv_shortcut", "skip_connection"),
    ):
        k = k.replace(a, b)
    return k


def _inside(kind: str, rest: str) -> str:
    return f"0.{_resnet(rest)}" if kind == "resnets" else f"1.{rest}"


def unet_to_ldm(unet) -> dict:
    "Rename a UNet's weights to `model.diffusion_model.*`."
    n = unet.config.layers_per_block + 1
    out = {}
    top = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "time_embedding.cond_proj": "time_embed.cond_proj",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
    }
    for k, v in unet.state_dict().items():
        stem, leaf = k.rsplit(".", 1)
        if stem in top:
            new = f"{top[stem]}.{leaf}"
        elif m := re.match(r"down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", k):
            i, kind, j, rest = int(m[1]), m[2], int(m[3]), m[4]
            new = f"input_blocks.{1 + i * n + j}.{_inside(kind, rest)}"
        elif m := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.*)", k):
            new = f"input_blocks.{(int(m[1]) + 1) * n}.0.op.{m[2]}"
        elif m := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", k):
            rest = _resnet(m[3]) if m[1] == "resnets" else m[3]
            new = f"middle_block.{2 * int(m[2]) if m[1] == 'resnets' else 1}.{rest}"
        elif m := re.match(r"up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", k):
            i, kind, j, rest = int(m[1]), m[2], int(m[3]), m[4]
            new = f"output_blocks.{i * n + j}.{_inside(kind, rest)}"
        elif m := re.match(r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.(.*)", k):
            i = int(m[1])
            attn = hasattr(unet.up_blocks[i], "attentions")
            new = f"output_blocks.{i * n + n - 1}.{2 if attn else 1}.conv.{m[2]}"
        else:
            raise KeyError(k)
        out[f"model.diffusion_model.{new}"] = v
    return out


def vae_to_ldm(vae) -> dict:
    """Rename a VAE's weights to `first_stage_model.*`; attention projections become 1x1
    convolutions."""
    n = len(vae.config.block_out_channels)
    out = {}
    for k, v in vae.state_dict().items():
        new = k.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        new = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", new)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(
            r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{n - 1 - int(m[1])}.block.", new
        )
        new = re.sub(
            r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{n - 1 - int(m[1])}.upsample", new
        )
        new = re.sub(
            r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new
        ).replace("mid_block.attentions.0", "mid.attn_1")
        if "attn_1" in new:
            new = (
                new.replace("group_norm", "norm")
                .replace("to_q", "q")
                .replace("to_k", "k")
                .replace("to_v", "v")
                .replace("to_out.0", "proj_out")
            )
            if v.ndim == 2:
                v = v[:, :, None, None]
        out[f"first_stage_model.{new}"] = v
    return out


def clip_to_ldm(text, prefix) -> dict:
    "Rename a CLIP-L text encoder's weights."
    return {
        prefix + (k if k.startswith("text_model.") else "text_model." + k): v
        for k, v in text.state_dict().items()
    }


def openclip_to_ldm(text, prefix) -> dict:
    "Rename an OpenCLIP text encoder's weights; q, k, v become one projection."
    sd, out = text.state_dict(), {}
    top = {
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.final_layer_norm.weight": "ln_final.weight",
        "text_model.final_layer_norm.bias": "ln_final.bias",
    }
    for k, v in sd.items():
        if k in top:
            out[prefix + top[k]] = v
        elif k == "text_projection.weight":
            out[prefix + "text_projection"] = v.T.contiguous()
        elif "q_proj" in k:
            new = k.replace("text_model.encoder.layers.", "transformer.resblocks.").replace(
                "self_attn.q_proj.", "attn.in_proj_"
            )
            out[prefix + new] = torch.cat(
                [sd[k.replace("q_proj", x)] for x in ("q_proj", "k_proj", "v_proj")]
            )
        elif "k_proj" not in k and "v_proj" not in k:
            new = (
                k.replace("text_model.encoder.layers.", "transformer.resblocks.")
                .replace("self_attn", "attn")
                .replace("layer_norm", "ln_")
                .replace("mlp.fc1", "mlp.c_fc")
                .replace("mlp.fc2", "mlp.c_proj")
            )
            out[prefix + new] = v
    return out


def to_checkpoint(c) -> dict:
    "Join a loaded model's networks into one checkpoint of SDXL's or SD1.5's kind."
    xl = c.text_encoder_2 is not None
    text = clip_to_ldm(
        c.text_encoder,
        "conditioner.embedders.0.transformer." if xl else "cond_stage_model.transformer.",
    )
    if xl:
        text |= openclip_to_ldm(c.text_encoder_2, "conditioner.embedders.1.model.")
    return {
        k: v.contiguous() for k, v in {**unet_to_ldm(c.unet), **vae_to_ldm(c.vae), **text}.items()
    }
