"""FlowEdit on tiny random pipelines: the formula by hand, the stock pipeline as its limit, counts,
and words for what cannot be."""

from dataclasses import replace
import numpy as np, pytest, torch
from PIL import Image
from fastedit import FastEditor, models as M, world as pb
from fastedit.core import Cancelled, OptionError
from fastedit.editor import EditRequest, flow as F
from fastedit.methods import find_method, register_method

KEYS = "sd35-medium", "flux2-klein"
A = Image.fromarray(pb.render(pb.sample_scene(5), 64))
B = "a blue ball"


@pytest.fixture(scope="module")
def editors(tmp_path_factory):
    def made(key):
        folder = F.random_flow(tmp_path_factory.mktemp("flow") / key, key)
        spec = replace(M.MODELS[key], base=M.Source(str(folder)), resolution=64)
        return FastEditor(spec, device="cpu", precision="fp32")

    return {k: made(k) for k in KEYS}


def pixels(image):
    return np.asarray(image).astype(int)


def edit(editor, **settings):
    asked = dict(source_prompt="a red ball", method="flowedit", steps=6, strength=0.5) | settings
    return editor(A, B, **asked)


def stock(pipe, n, steps, guidance):
    "The stock pipeline's picture from the same noise."
    latents = n
    if type(pipe).__name__ == "Flux2KleinPipeline":
        latents = n.permute(0, 2, 1).reshape(1, -1, 16, 16)
    return pipe(
        prompt=B,
        height=64,
        width=64,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=latents,
    ).images[0]


@pytest.mark.parametrize("key, guidance", [("sd35-medium", 4.0), ("flux2-klein", 1.0)])
def test_sampling_only_is_the_stock_pipeline(editors, key, guidance):
    m = editors[key].flow
    ours = m.flowedit(A, B, "", 3, 1.0, guidance, 1.0, seed=3, n_min=3)
    n = torch.randn(ours.latents.shape, generator=torch.Generator().manual_seed(3))
    want = stock(m.pipe, n, 3, guidance)
    assert np.abs(pixels(want) - pixels(ours.image)).max() <= 1


@pytest.mark.parametrize("key", KEYS)
def test_equal_prompts_give_the_picture_back(editors, key):
    e = editors[key]
    whole = edit(e, source_prompt=B, steps=4, **({} if key == KEYS[1] else dict(guidance=3.5)))
    less = edit(e, source_prompt=B, steps=2, **({} if key == KEYS[1] else dict(guidance=3.5)))
    assert np.abs(pixels(whole.image) - pixels(less.image)).max() <= 1
    assert torch.allclose(whole.latents, less.latents, atol=1e-5)


def test_the_formula_by_hand(editors):
    pipe = editors["sd35-medium"].flow.pipe
    made = editors["sd35-medium"].flow.flowedit(
        A, B, "a red ball", 4, 0.5, 5.0, 2.0, seed=1, n_avg=2
    )
    px = torch.from_numpy(np.asarray(A)).permute(2, 0, 1)[None].float() / 127.5 - 1
    c = pipe.vae.config
    with torch.no_grad():
        z0 = (pipe.vae.encode(px).latent_dist.mode() - c.shift_factor) * c.scaling_factor
        words = {
            w: pipe.encode_prompt(w, w, w, do_classifier_free_guidance=False)
            for w in ("", "a red ball", B)
        }
        pipe.scheduler.set_timesteps(4)
        sigmas, noise, z = pipe.scheduler.sigmas, torch.Generator().manual_seed(1), z0.clone()

        def v(x, sigma, w, g):
            def one(w):
                return pipe.transformer(
                    x,
                    words[w][0],
                    words[w][2],
                    torch.full((1,), 1000 * float(sigma)),
                    return_dict=False,
                )[0]

            return one("") + g * (one(w) - one(""))

        for i in (2, 3):
            d = 0
            for _ in range(2):
                n = torch.randn(z0.shape, generator=noise)
                xs = (1 - sigmas[i]) * z0 + sigmas[i] * n
                d = d + v(z + xs - z0, sigmas[i], B, 5.0) - v(xs, sigmas[i], "a red ball", 2.0)
            z = z + (sigmas[i + 1] - sigmas[i]) * d / 2
    assert torch.allclose(made.latents, z, atol=1e-4)
    assert made.nfe == 2 * 2 * 4


@pytest.mark.parametrize("n_avg, n_min", [(1, 0), (3, 0), (2, 1)])
def test_evaluations_are_as_counted(editors, n_avg, n_min):
    r = edit(editors["sd35-medium"], options=dict(n_avg=n_avg, n_min=n_min))
    assert r.nfe == F.FLOWEDIT.nfe(3, 2, 2, n_avg, n_min)
    assert len(r.timesteps) == 3 and list(r.timesteps) == sorted(r.timesteps, reverse=True)


@pytest.mark.parametrize("key", KEYS)
def test_same_request_same_bytes(editors, key):
    e = editors[key]
    first = edit(e, seed=4)
    assert first.request.method == "flowedit" and first.request.strength == 0.5
    assert e(A, request=first.request).image.tobytes() == first.image.tobytes()
    assert edit(e, seed=5).latents.tolist() != first.latents.tolist()


def test_a_step_is_told_and_can_stop(editors):
    seen = []

    def told(s):
        seen.append(s)
        if s["step"] == 1:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        edit(editors["sd35-medium"], on_step=told)
    assert [s["step"] for s in seen] == [0, 1] and seen[0]["steps"] == 3
    assert torch.equal(seen[1]["latents"], seen[1]["clean"])


def test_outside_a_mask_nothing_changes(editors):
    mask = np.zeros((64, 64), np.uint8)
    mask[10:40, 10:40] = 255
    out = pixels(edit(editors["flux2-klein"], mask=Image.fromarray(mask)).image)
    assert (out[mask == 0] == pixels(A)[mask == 0]).all()
    assert (out[mask > 0] != pixels(A)[mask > 0]).any()


def test_without_a_source_prompt_it_says_so(editors):
    r = edit(editors["sd35-medium"], source_prompt=None)
    assert any("no source prompt" in n for n in r.notes)


def test_a_model_without_another_way_takes_it_by_itself(editors):
    assert editors["sd35-medium"](A, B, steps=2).request.method == "flowedit"
    assert editors["flux2-klein"](A, B, steps=1).request.method == "flow"


@pytest.mark.parametrize(
    "key, settings, words",
    [
        ("sd35-medium", dict(method="flow"), "edits by 'flowedit'"),
        ("flux-kontext", dict(method="flowedit"), "edits by 'flow'"),
        ("sd35-medium", dict(method="flowedti"), "flowedit"),
        ("sd35-medium", dict(steps=4, strength=0.1), "leaves none of 4 steps"),
        ("sd35-medium", dict(options=dict(n_avg=0)), "n_avg=0"),
        ("sd35-medium", dict(options=dict(navg=2)), "n_avg"),
        ("sd35-medium", dict(steps=4, options=dict(n_min=4)), "only 3 of 4 steps run"),
        ("sd35-medium", dict(control="canny"), "no ControlNet"),
        ("flux2-klein", dict(method="flowedit", source_guidance=2.0), "distilled"),
        ("flux2-klein", dict(method="flowedit", guidance=2.0), "distilled"),
    ],
)
def test_what_cannot_be_is_refused(key, settings, words):
    spec = M.MODELS[key]
    way = {} if "method" in settings else dict(method=F.own_way(spec))
    with pytest.raises(OptionError, match=words):
        F.check_flow(spec, EditRequest(B, model=key, **way, **settings))


def test_other_models_are_told_where_it_runs():
    with pytest.raises(OptionError, match="is for flow models"):
        find_method("flowedit")
    with pytest.raises(OptionError, match="is there already"):
        register_method(replace(find_method("ddcm"), key="flowedit"))


@pytest.mark.parametrize("field", ["steps", "strength", "guidance"])
@pytest.mark.parametrize("key", KEYS)
def test_nothing_chooses_for_a_flow_model(key, field):
    r = EditRequest(B, model=key, method="flowedit", **{field: "auto"})
    with pytest.raises(OptionError, match=f"{field}='auto': .* nothing was measured"):
        F.check_flow(M.MODELS[key], r)


# --- quantised transformers


class Stored(torch.nn.Module):
    "A transformer whose weights are bytes, as a quantiser leaves them; it computes in `dtype`."

    def __init__(self, net, plain=False, **told):
        super().__init__()
        self.kept, self.config, self.device = [net], dict(net.config), net.device
        self.weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)
        if plain:  # such as a norm, which a GGUF leaves in fp32
            self.norm = torch.nn.Parameter(torch.ones(2))
        self.wanted, self.asked = told.pop("wanted"), set()
        for k, v in told.items():
            setattr(self, k, v)

    dtype = torch.uint8

    def forward(self, hidden_states, timestep, **kw):
        self.asked |= {hidden_states.dtype, timestep.dtype}
        (net,) = self.kept
        return net(hidden_states=hidden_states.float(), timestep=timestep.float(), **kw)


def of_quantizer(dtype):
    from types import SimpleNamespace as N

    return N(quantization_config=N(compute_dtype=dtype))


STORED = [
    dict(hf_quantizer=of_quantizer(torch.bfloat16), wanted=torch.bfloat16, plain=True),
    dict(compute_dtype=torch.float16, wanted=torch.float16),
    dict(compute_dtype="torch.bfloat16", wanted=torch.bfloat16),
    dict(compute_dtype=torch.uint8, wanted=torch.float32, plain=True),
    dict(dtype=torch.float8_e4m3fn, wanted=torch.float32),
    dict(wanted=torch.float32),
]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("how", STORED, ids=lambda how: ",".join(how))
def test_a_quantised_transformer_is_asked_in_the_type_it_computes_in(
    editors, key, how, monkeypatch
):
    flow = editors[key].flow
    given = F.compute_type(flow.net)
    net = Stored(flow.net, **how)
    assert given == torch.float32 and F.compute_type(net) == net.wanted
    monkeypatch.setattr(flow.pipe, "transformer", net)
    made = flow.flowedit(A, B, "a red ball", 2, 1.0, 3.0, 2.0, seed=1)
    assert net.asked == {net.wanted} and flow.dtype == net.wanted
    monkeypatch.undo()
    whole = flow.flowedit(A, B, "a red ball", 2, 1.0, 3.0, 2.0, seed=1)
    tolerance = 0 if net.wanted == torch.float32 else 0.05 * whole.latents.abs().max()
    assert (made.latents - whole.latents).abs().max() <= tolerance


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_a_precision_leaves_the_type_that_a_network_computes_in(editors, precision):
    import copy

    if precision == "int8":
        pytest.importorskip("torchao")
    want = getattr(torch, M.compute_dtype(precision, "cpu"))
    net = copy.deepcopy(editors["sd35-medium"].flow.net).to(want)
    assert F.compute_type(M.quantize(net, precision, "cpu")) == want
