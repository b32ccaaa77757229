"""Networks asked the quick way: the bits of diffusers' own code, nothing left behind, nothing
special passed over; packed weights that notice when the weights change."""

import threading
import pytest, torch
from torch import nn
from fastedit.denoise.sharing import is_exchanged
from fastedit import denoise as Q
from fastedit.denoise import packing, tricks
from fastedit.core import OptionError
from fastedit.denoise import Denoiser
from fastedit.models import attach_lora, load_model, random_model

KW = dict(channels=(16, 32, 32), width=16)


def g(seed=0):
    return torch.Generator().manual_seed(seed)


def x(n=1, seed=0, side=16):
    return torch.randn(n, 4, side, side, generator=g(seed))


EDGES = (torch.rand(1, 3, 64, 64, generator=g(9)) > 0.8).float()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    d = tmp_path_factory.mktemp("quick")
    return dict(
        cfg=random_model(d / "cfg", **KW),
        w=random_model(d / "w", w_embedding=True, **KW),
        sd15=random_model(d / "sd15", "sd15", **KW),
    )


@pytest.fixture
def parts(folders):
    return load_model(folders["cfg"], device="cpu")


def asked(parts, net="unet", n=1, side=16, how=None, seed=0, **kw):
    "Ask a network of a model by itself; `how` is None for diffusers' own way, or whether to pack."
    d = Denoiser(parts)
    t = d.text("a red ball").repeat(n)
    m = getattr(parts, net)
    c = d._conditions(t, (n, 4, side, side))
    z = x(n, seed, side)
    if net == "unet" and m.config.time_cond_proj_dim:
        kw["timestep_cond"] = torch.randn(n, m.config.time_cond_proj_dim, generator=g(5))
    if net == "controlnet":
        kw["controlnet_cond"] = torch.nn.functional.interpolate(EDGES, side * 4).expand(
            n, -1, -1, -1
        )
    ask = (
        (lambda: m.decode(z).sample)
        if net == "vae"
        else lambda: m(z, 500, encoder_hidden_states=t.states, return_dict=False, **c, **kw)
    )
    with torch.no_grad():
        if how is None:
            y = ask()
        else:
            with Q.quick(m, how):
                y = ask()
    flat = []

    def walk(v):
        flat.append(v.reshape(-1)) if isinstance(v, torch.Tensor) else [walk(i) for i in v]

    walk(y)
    return torch.cat(flat)


def left(net):
    return [n for n, m in net.named_modules() if "forward" in vars(m)]


@pytest.mark.parametrize("net", ["unet", "controlnet", "vae"])
@pytest.mark.parametrize("kind", ["cfg", "w", "sd15"])
@pytest.mark.parametrize("n, side", [(1, 16), (2, 16), (1, 24)])
def test_the_bits_are_diffusers_own_and_packed_ones_are_near(folders, kind, net, n, side):
    p = load_model(folders[kind], device="cpu")
    want = asked(p, net, n, side)
    assert torch.equal(asked(p, net, n, side, how=False), want)
    packed = asked(p, net, n, side, how=True)
    assert (
        torch.allclose(packed, want, atol=1e-4)
        and torch.equal(packed, asked(p, net, n, side, how=True))
        and not left(getattr(p, net))
    )
    assert torch.equal(asked(p, net, n, side), want), "stock code is as it was"


def test_the_standard_layers_are_exchanged_all_of_them(parts):
    kinds = {
        k: sum(type(m).__name__ == k for m in parts.unet.modules())
        for k in ("Attention", "BasicTransformerBlock", "ResnetBlock2D", "Conv2d")
    }
    with torch.no_grad(), Q.quick(parts.unet, True):
        assert len(left(parts.unet)) == sum(kinds.values()) and min(kinds.values()) > 3
    with torch.no_grad(), Q.quick(parts.unet):
        assert len(left(parts.unet)) == sum(kinds.values()) - kinds["Conv2d"]
    with torch.no_grad(), pytest.raises(RuntimeError), Q.quick(parts.unet, True):
        raise RuntimeError
    assert not left(parts.unet)


def test_with_gradients_all_is_as_it_was(parts):
    d = Denoiser(parts)
    t = d.text("a ball")
    z = x().requires_grad_()
    with Q.quick(parts.unet, True):
        assert not left(parts.unet)
    d.output(z, 500, t).sum().backward()
    assert z.grad.abs().sum() > 0


def test_nested_and_from_two_threads_it_stays_until_the_last_one_leaves(parts):
    u, inside, go = parts.unet, threading.Event(), threading.Event()

    def other():
        with torch.no_grad(), Q.quick(u, True):
            inside.set()
            go.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait(10)
    with torch.no_grad():
        with Q.quick(u), Q.quick(u, True):
            assert left(u)
        assert left(u)
    go.set()
    thread.join()
    assert not left(u)


# --- nothing special is passed over


@pytest.mark.parametrize(
    "name", ["to_q", "norm1", "ff.net.0.proj", "ff.net.1", "time_emb_proj", "nonlinearity", "conv1"]
)
def test_hooks_on_inner_layers_run(parts, name):
    asked(parts, how=True)  # known before the hook comes
    m = next(m for n, m in parts.unet.named_modules() if n.endswith("." + name))
    seen = []
    hook = m.register_forward_hook(lambda *a: seen.append(1))
    try:
        asked(parts, how=True)
    finally:
        hook.remove()
    count = len(seen)
    asked(parts, how=True)
    assert count == len(seen) >= 1


def test_a_lora_that_is_kept_apart_is_heard(parts):
    before = asked(parts, how=False)
    names = [
        n
        for n, m in parts.unet.named_modules()
        if n.endswith(("to_q", "to_out.0", "ff.net.2")) and isinstance(m, nn.Linear)
    ]
    sizes = {n: parts.unet.get_submodule(n) for n in names}
    attach_lora(
        parts.unet,
        {
            n: (
                torch.randn(4, m.in_features, generator=g(1)),
                torch.randn(m.out_features, 4, generator=g(2)),
                4.0,
            )
            for n, m in sizes.items()
        },
    )
    want = asked(parts)
    assert not torch.allclose(want, before, atol=1e-2) and torch.equal(
        asked(parts, how=False), want
    )


def swap(net, name, make):
    at, _, k = name.rpartition(".")
    owner = net.get_submodule(at)
    old = owner._modules[k]
    owner._modules[k] = make(old)


class Minus(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, *a, **kw):
        return -self.layer(*a, **kw)


@pytest.mark.parametrize(
    "name",
    [
        "resnets.0.conv1",
        "resnets.0.conv2",
        "attn1",
        "attn2",
        "to_out.0",
        "to_v",
        "norm3",
        "ff",
        "conv_in",
        "resnets.0",
    ],
)
def test_a_layer_that_is_exchanged_later_is_asked(parts, name):
    before = asked(parts, how=True)
    at = next(n for n, _ in parts.unet.named_modules() if n == name or n.endswith("." + name))
    swap(parts.unet, at, Minus)
    want = asked(parts)
    assert (
        torch.equal(asked(parts, how=False), want)
        and torch.allclose(asked(parts, how=True), want, atol=1e-4)
        and not torch.allclose(before, want, atol=1e-3)
    )


def test_a_class_that_is_exchanged_later_is_asked(parts):
    b = next(m for m in parts.unet.modules() if type(m).__name__ == "BasicTransformerBlock")
    asked(parts, how=True)

    class Mine(type(b)):
        def forward(self, *a, **kw):
            return 2 * super().forward(*a, **kw)

    b.__class__ = Mine
    assert torch.equal(asked(parts, how=False), asked(parts))
    torch.nn.utils.parametrize.register_parametrization(
        next(m for m in parts.unet.modules() if type(m) is nn.Linear), "weight", nn.Identity()
    )
    assert torch.equal(asked(parts, how=False), asked(parts))


def test_settings_of_convolutions_that_change_later_count(parts):
    asked(parts, how=True)
    for m in parts.unet.modules():
        if isinstance(m, nn.Conv2d) and m.padding != (0, 0):
            m.padding_mode = "circular"
    assert torch.allclose(asked(parts, how=True), asked(parts), atol=1e-4)
    c = parts.controlnet.conv_in
    asked(parts, "controlnet", how=True)
    c._conv_forward = lambda x, w, b: torch.nn.functional.conv2d(x, 2 * w, b, padding=1)
    assert torch.allclose(
        asked(parts, "controlnet", how=True), asked(parts, "controlnet"), atol=1e-4
    )


def test_blocks_that_are_compiled_later_are_left_alone(parts):
    asked(parts, how=True)
    b = next(m for m in parts.unet.modules() if type(m).__name__ == "BasicTransformerBlock")
    b._compiled_call_impl = lambda *a, **kw: type(b).forward(b, *a, **kw)
    with torch.no_grad(), Q.quick(parts.unet, True):
        assert not left(b) and left(parts.unet)


def test_an_error_on_the_way_in_leaves_nothing_behind(parts):
    asked(parts, how=True)
    c = parts.unet.conv_in
    w = c._parameters.pop("weight")
    c.weight_orig = nn.Parameter(w)
    c.weight = w.detach()  # as pruning does
    assert torch.allclose(asked(parts, how=True), asked(parts), atol=1e-4) and not left(parts.unet)

    class Bad:
        def look(self):
            raise MemoryError

    tricks._PLANS[parts.unet].convs = [({}, Bad())]
    with torch.no_grad(), pytest.raises(MemoryError), Q.quick(parts.unet, True):
        pass
    assert not left(parts.unet) and not is_exchanged(parts.unet, "plain")


def test_nothing_is_kept_where_nothing_is_packed(parts):
    import weakref

    asked(parts, how=False)
    c = parts.unet.conv_in
    old = weakref.ref(c.weight.untyped_storage())
    c.weight.data = c.weight.data.clone()
    assert old() is None, "weights that went away are let go"
    asked(parts, how=True)
    assert tricks._PLANS[parts.unet].convs
    old = weakref.ref(c.weight.untyped_storage())
    c.weight.data = c.weight.data.clone()
    assert old() is None
    asked(parts, how=False)
    assert tricks._PLANS[parts.unet].convs is None
    asked(parts, how=True)
    Q.forget(parts.unet)
    assert tricks._PLANS[parts.unet].convs is None


def test_a_lora_on_convolutions_that_peft_merges(parts):
    asked(parts, how=True)
    names = [n for n, m in parts.unet.named_modules() if n.endswith("conv1")]
    g1 = g(3)
    attach_lora(
        parts.unet,
        {
            n: (
                torch.randn(4, m.in_channels, 3, 3, generator=g1),
                torch.randn(m.out_channels, 4, 1, 1, generator=g1),
                1.0,
            )
            for n in names
            for m in [parts.unet.get_submodule(n)]
        },
    )
    a = asked(parts, how=True)
    assert torch.allclose(a, asked(parts), atol=1e-4)
    parts.unet.set_adapters("lcm", 0.25)
    assert torch.allclose(asked(parts, how=True), asked(parts), atol=1e-4) and not torch.allclose(
        asked(parts), a, atol=1e-3
    )
    parts.unet.fuse_lora()
    assert torch.allclose(asked(parts, how=True), asked(parts), atol=1e-4)
    parts.unet.unfuse_lora()
    assert torch.allclose(asked(parts, how=True), asked(parts), atol=1e-4)


def test_an_attention_processor_is_asked(parts):
    from diffusers.models.attention_processor import AttnProcessor2_0

    asked(parts, how=True)
    seen = []

    class Mine:
        def __call__(
            self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None
        ):
            seen.append(1)
            return AttnProcessor2_0()(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb
            )

    before = parts.unet.attn_processors
    want = asked(parts, how=True)
    parts.unet.set_attn_processor(Mine())
    try:
        assert torch.equal(asked(parts, how=True), want) and len(seen) == len(before)
    finally:
        parts.unet.set_attn_processor(before)


def test_masks_and_keywords_go_to_diffusers(parts):
    mask = torch.ones(1, Denoiser(parts).text("a").states.shape[1])
    mask[:, 5:] = 0
    kw = dict(encoder_attention_mask=mask)
    assert torch.equal(asked(parts, how=False, **kw), asked(parts, **kw)) and not torch.equal(
        asked(parts, **kw), asked(parts)
    )
    kw = dict(cross_attention_kwargs=dict(scale=1.0))
    assert torch.equal(asked(parts, how=False, **kw), asked(parts, **kw))


@pytest.mark.parametrize(
    "change",
    [
        dict(residual_connection=True),
        dict(rescale_output_factor=2.0),
        dict(group_norm=nn.GroupNorm(4, 16)),
    ],
)
def test_attention_with_something_of_its_own_is_left_alone(parts, change):
    a = next(m for n, m in parts.unet.named_modules() if n.endswith("attn1"))
    assert Q.plain_attention(a) is not None
    for k, v in change.items():
        setattr(a, k, v)
    assert Q.plain_attention(a) is None


def test_a_resnet_or_block_with_something_of_its_own_is_left_alone(parts):
    r = next(m for m in parts.unet.modules() if type(m).__name__ == "ResnetBlock2D")
    b = next(m for m in parts.unet.modules() if type(m).__name__ == "BasicTransformerBlock")
    assert Q.plain_resnet(r) and Q.plain_block(b)
    for m, k, v, find in (
        (r, "time_embedding_norm", "scale_shift", Q.plain_resnet),
        (r, "output_scale_factor", 1.4, Q.plain_resnet),
        (r.dropout, "p", 0.1, Q.plain_resnet),
        (b, "norm_type", "ada_norm", Q.plain_block),
        (b.ff.net[1], "p", 0.1, Q.plain_block),
    ):
        old = getattr(m, k)
        setattr(m, k, v)
        assert find(r if find is Q.plain_resnet else b) is None
        setattr(m, k, old)


# --- packed weights


def test_packed_weights_notice_a_change(parts):
    c = parts.unet.conv_in
    old = asked(parts, how=True)
    with torch.no_grad():
        c.weight.mul_(2)
    twice = asked(parts, how=True)
    assert torch.allclose(twice, asked(parts), atol=1e-4) and not torch.allclose(
        twice, old, atol=1e-3
    )
    c.weight = nn.Parameter(c.weight / 2, requires_grad=False)
    assert torch.equal(asked(parts, how=True), old)
    c.weight.data.mul_(2)
    Q.forget(parts.unet)
    assert torch.equal(asked(parts, how=True), twice)
    c.bias = nn.Parameter(c.bias + 1, requires_grad=False)
    assert torch.allclose(asked(parts, how=True), asked(parts), atol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv2d(8, 8, 3, padding=1),
        lambda: nn.Conv2d(8, 8, 3, stride=2, padding=1),
        lambda: nn.Conv2d(8, 4, 1),
        lambda: nn.Conv2d(8, 8, 3, padding=2, dilation=2),
        lambda: nn.Conv2d(8, 8, 3, padding=1, groups=4),
        lambda: nn.Conv2d(8, 8, 3, bias=False),
    ],
)
@pytest.mark.parametrize("shape", [(1, 8, 4, 4), (3, 8, 5, 7), (2, 8, 40, 40)])
def test_a_packed_convolution_is_the_convolution(make, shape):
    c = make().requires_grad_(False)
    p = Q.PackedConv(c)
    z = torch.randn(shape, generator=g())
    with torch.no_grad():
        for y in (z, z.to(memory_format=torch.channels_last), z[:1]):
            assert torch.allclose(p(y), c(y), atol=1e-5)
    with torch.enable_grad():
        assert p(z.requires_grad_()).requires_grad


def test_what_is_packed_is_decided_by_machine_and_model(parts, folders, monkeypatch):
    n = Q.convolution_bytes(parts)
    assert (
        n
        == 4
        * sum(
            m.weight.numel()
            for k in ("unet", "controlnet", "vae")
            for m in getattr(parts, k).modules()
            if type(m) is nn.Conv2d
        )
        and Q.machine_memory() > 1 << 28
    )
    assert Q.packs(parts) and not Q.packs(load_model(folders["cfg"], device="cpu", packed=False))
    parts.execution = torch.device("meta")
    assert not Q.packs(parts)
    parts.execution = None
    monkeypatch.setattr(packing, "machine_memory", lambda: 4 * n - 1)
    assert not Q.packs(load_model(folders["cfg"], device="cpu")) and Q.packs(
        load_model(folders["cfg"], device="cpu", packed=True)
    )
    with pytest.raises(OptionError, match="packed='yes'"):
        load_model(folders["cfg"], device="cpu", packed="yes")
    assert (
        len(
            {
                load_model(folders["cfg"], device="cpu", packed=k).revision
                for k in (None, True, False)
            }
        )
        == 3
    ), "an option enters the revision"


def test_policies_and_packing_go_together(parts):
    from fastedit import FastEditor
    from fastedit.memory import RESIDENCIES, live_tensors
    from fastedit.world import render, sample_scene
    import numpy as np

    picture, kw = (
        render(sample_scene(9_000_001), 64),
        dict(method="img2img", control="canny", guidance=2.0, steps=2),
    )
    want = FastEditor(parts)(picture, "a cup", **kw)
    for policy in RESIDENCIES:
        e = FastEditor(parts, residency=policy)
        assert torch.equal(e(picture, "a cup", **kw).latents, want.latents), policy
        if parts.mover:
            parts.mover.release()
    weighed = FastEditor(parts, meter=live_tensors())(picture, "a cup", **kw)
    assert weighed.peak_memory > 0 and torch.allclose(weighed.latents, want.latents, atol=1e-3)
    assert np.abs(np.asarray(weighed.image).astype(int) - np.asarray(want.image)).max() <= 1


def test_a_budget_leaves_no_room_for_copies(folders):
    from fastedit import FastEditor

    assert (
        FastEditor(folders["cfg"], device="cpu", budget_gb=4).parts.packed is False
        and FastEditor(folders["cfg"], device="cpu").parts.packed is None
        and FastEditor(folders["cfg"], device="cpu", budget_gb=4, packed=True).parts.packed
    )


def test_other_types_are_left_alone(folders):
    p = load_model(folders["cfg"], device="cpu", precision="bf16")
    assert Q.convolution_bytes(p) == 0
    d = Denoiser(p)
    t = d.text("a ball")
    y = d.output(x(), 500, t)
    with torch.no_grad():
        assert torch.equal(y, d.output(x(), 500, t)) and not left(p.unet)


@pytest.mark.parametrize("overlap", [False, True])
def test_after_layers_came_and_went_it_is_quick_again(parts, overlap):
    from fastedit.memory import by_leaves, whole_again

    want = asked(parts, how=True)
    parts.execution = torch.device("cpu")
    by_leaves(parts.unet, parts.execution, overlap)
    assert left(parts.unet)
    meanwhile = asked(parts, how=True)
    assert torch.allclose(meanwhile, want, atol=1e-4)
    whole_again(parts.unet)
    assert not left(parts.unet) and torch.equal(asked(parts, how=True), want)
    with torch.no_grad(), Q.quick(parts.unet, True):
        assert len(left(parts.unet)) > 50


# --- switches


def test_each_trick_has_a_switch(parts):
    with torch.no_grad():
        with Q.switched_off("layers"), Q.quick(parts.unet, True):
            assert set(left(parts.unet)) == {
                n for n, m in parts.unet.named_modules() if type(m) is nn.Conv2d
            }
        with Q.switched_off("weights"), Q.quick(parts.unet, True):
            assert left(parts.unet) and not any(
                type(parts.unet.get_submodule(n)) is nn.Conv2d for n in left(parts.unet)
            )
        with Q.switched_off(*Q.TRICKS), Q.quick(parts.unet, True):
            assert not left(parts.unet)
    assert all(map(Q.in_use, Q.TRICKS)) and not left(parts.unet)


def test_a_trick_switched_off_gives_diffusers_own_bits(parts):
    want = asked(parts)
    with Q.switched_off("weights"):
        assert torch.equal(asked(parts, how=True), want)
    with Q.switched_off(*Q.TRICKS), torch.no_grad():
        d = Denoiser(parts)
        with d._asked(parts.unet):
            assert not torch.is_inference_mode_enabled()
    with torch.no_grad(), d._asked(parts.unet):
        assert torch.is_inference_mode_enabled()


def test_a_trick_that_is_unknown_is_refused():
    with (
        pytest.raises(OptionError, match="use one of layers, weights, versions"),
        Q.switched_off("speed"),
    ):
        pass
    assert all(map(Q.in_use, Q.TRICKS))
