"""What is meant for a GPU, as far as a CPU can tell: refusals, what is kept and when it is let go,
no waiting inside the loop, and the study of full size to its end on tiny networks."""

import copy, json
from dataclasses import replace
import pytest, torch
from typer.testing import CliRunner
from fastedit import models as M, world as pb
from fastedit.core import OptionError
from fastedit.denoise import Count, Denoiser, NoiseSchedule, Text
from fastedit.editor import FastEditor
from fastedit.methods.base import STEPPERS, pairs
from fastedit.studies import speed as S

PICTURE = pb.render(pb.sample_scene(11), 64)
ASK = dict(source_prompt="a red ball", seed=3, steps=2)


class Standin:
    "Calls the network with its own copies of the inputs, as a replay does."

    def __init__(self, run, leaves, pool, stream):
        self.run = run
        self.given = [x.clone() if isinstance(x, torch.Tensor) else x for x in leaves]
        self.run(self.given)

    def __call__(self, leaves):
        for own, new in zip(self.given, leaves):
            if isinstance(own, torch.Tensor):
                own.copy_(new)
        return [y.clone() for y in self.run(self.given)]


@pytest.fixture(scope="module")
def toys():
    # packed weights are a CPU's trick, and have networks asked in inference mode
    return {k: M.speed_up(S.shaped(k, "cpu", toy=True), packed=False) for k in S.SHAPES}


def editor_with(parts, recorder=Standin):
    parts = S.copied(parts)
    parts.graphs = M.Graphs(recorder=recorder)
    return FastEditor(parts)


# --- refusals


@pytest.mark.parametrize("option", ["graphs", "pinned"])
def test_a_cpu_has_no_such_trick(toys, option):
    with pytest.raises(OptionError, match=f"{option}=True: .* computes on cpu: leave {option} out"):
        S.copied(toys["sdxl"], **{option: True})
    with pytest.raises(OptionError, match=f"{option}=True"):
        FastEditor("mini", device="cpu", **{option: True})


def test_channels_last_takes_names_of_networks(toys):
    parts = S.copied(toys["sdxl"], channels_last=("vae",))
    assert parts.vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert parts.unet.down_blocks[0].resnets[0].conv1.weight.is_contiguous()
    assert parts.revision != toys["sdxl"].revision
    with pytest.raises(OptionError, match="channels_last='vae'"):
        S.copied(toys["sdxl"], channels_last="vae")


# --- joined projections


def test_joined_projections_answer_alike_and_own_their_rows(toys):
    parts = S.copied(toys["sdxl"], joined=True)
    before = FastEditor(toys["sdxl"])(PICTURE, "a blue ball", **ASK)
    after = FastEditor(parts)(PICTURE, "a blue ball", **ASK)
    assert S.apart(after, before)["pixels"] <= 1
    assert parts.weight_bytes() == toys["sdxl"].weight_bytes()
    for a, b in zip(parts.unet.parameters(), toys["sdxl"].unet.parameters()):
        assert torch.equal(a, b)


def test_what_is_joined_comes_apart_where_weights_move(toys):
    attention = S.copied(toys["sdxl"], joined=True).unet.mid_block.attentions[0]
    first = attention.transformer_blocks[0].attn1
    x = torch.randn(1, 4, first.to_q.in_features)
    assert M.projected(first, x) is not None
    attention.half().float()
    assert M.projected(first, x) is None and "_joined" not in vars(first)


# --- recordings


def test_replayed_edits_have_the_bytes_of_plain_ones(toys):
    for name, parts in toys.items():
        e = editor_with(parts)
        for method in ("img2img", "ddcm", "turbo"):
            kw = dict(ASK, method=method)
            plain = FastEditor(parts)(PICTURE, "a blue ball", **kw)
            for _ in range(2):
                assert e(PICTURE, "a blue ball", **kw).image.tobytes() == plain.image.tobytes()
                e.cache.clear()
        assert e.parts.graphs.kept and not e.parts.graphs.failed


def test_attention_control_and_listeners_are_computed_plainly(toys):
    e = editor_with(toys["sdxl"])
    e(PICTURE, "a blue ball", method="ddcm", options=dict(uac=True), control="none", **ASK)
    assert not e.parts.graphs.kept
    hook = e.parts.unet.mid_block.register_forward_hook(lambda *_: None)
    e(PICTURE, "a blue ball", control="none", method="img2img", **ASK)
    assert not e.parts.graphs.kept
    hook.remove()
    e(PICTURE, "a blue ball", control="none", method="img2img", **ASK)
    assert len(e.parts.graphs.kept) == 1


def test_recordings_go_with_the_weights_and_by_number(toys):
    e = editor_with(toys["ssd-1b"])
    e.parts.graphs.most = 2
    ask = dict(ASK, method="img2img", control="none")
    for size in ((64, 64), (64, 32), (32, 64)):
        e(PICTURE, "a blue ball", size=size, **ask)
    assert len(e.parts.graphs.kept) == 2
    weight = e.parts.unet.conv_in.weight
    weight.data = weight.data.clone()
    e(PICTURE, "a blue ball", size=(64, 64), **ask)
    assert len(e.parts.graphs.kept) == 1
    e.free()
    assert not e.parts.graphs.kept and not copy.deepcopy(e.parts.graphs).kept


def test_what_cannot_be_recorded_is_computed_and_said(toys):
    def broken(*_):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    e = editor_with(toys["sdxl"], broken)
    plain = FastEditor(toys["sdxl"])(PICTURE, "a blue ball", **ASK)
    assert e(PICTURE, "a blue ball", **ASK).image.tobytes() == plain.image.tobytes()
    assert e.parts.graphs.failed == "operation not permitted when stream is capturing"


def test_no_memory_for_a_recording_is_raised():
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    graphs, net = M.Graphs(recorder=full), torch.nn.Linear(2, 2).requires_grad_(False).eval()
    with torch.no_grad(), pytest.raises(torch.OutOfMemoryError):
        graphs.ask(net, torch.ones(1, 2))
    assert not graphs.failed


def test_networks_that_come_and_go_are_not_recorded(toys):
    parts = S.copied(toys["sdxl"])
    parts.graphs = M.Graphs(recorder=Standin)
    e = FastEditor(parts, residency="model-offload")
    e(PICTURE, "a blue ball", method="img2img", **ASK)
    assert not parts.graphs.kept
    e.release()
    e = FastEditor(parts, residency="text-cached")
    e(PICTURE, "a blue ball", method="img2img", **ASK)
    assert len(parts.graphs.kept) == 2
    e.release()


# --- nothing waits inside the loop


class Sent(torch.utils._python_dispatch.TorchDispatchMode):
    "Notes what crosses between a CPU and a GPU while it is on."

    def __init__(self):
        super().__init__()
        self.crossed = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
            source = args[-1] if func.overloadpacket is torch.ops.aten.copy_ else args[0]
            if source.device != out.device:
                self.crossed.append((str(func), tuple(source.shape)))
        return out


def test_steps_on_a_gpu_wait_for_nothing(toys, monkeypatch):
    """Fake tensors know where they would lie: in the steps nothing crosses, and no number is asked
    for, but for what `sent` queues."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from fastedit.denoise import codec, denoiser, schedules
    from contextlib import nullcontext

    queued = []

    def sent(x, device, dtype=None):
        queued.append(tuple(x.shape))
        return torch.empty(x.shape, dtype=dtype or x.dtype, device=device)

    def filled_in(level, like):
        assert level.numel() == 1 and not level.is_cuda and like.is_cuda
        return torch.full(level.shape, 0.5, dtype=like.dtype, device=like.device)

    monkeypatch.setattr(schedules, "_as", filled_in)
    monkeypatch.setattr(Denoiser, "pairs", lambda self, g: True)  # numbers of the CPU
    monkeypatch.setattr(denoiser, "sent", sent)
    monkeypatch.setattr(codec, "_marked", lambda *_: nullcontext())
    arch = M.tiny_configs("sdxl", (16, 32, 32), width=16)["unet"]
    schedule = NoiseSchedule()
    schedule.alphas_cumprod, schedule._end  # made before, as by a first step
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        parts = replace(toys["sdxl"], unet=M.build(arch, "cuda"), execution="cuda")
        d = Denoiser(parts)
        d.schedule = schedule
        text = Text(torch.empty(1, 77, 32, device="cuda"), torch.empty(1, 16, device="cuda"))
        d.negative = text
        x = torch.empty(1, 4, 16, 16, device="cuda")
        noise = x.clone()
        with Sent() as seen:
            for t, prev in pairs((999, 499)):
                z = d.clean(x, t, text, 1.5)
                both = d.clean(torch.cat([x, x]), t, Text.stack(text, text), [1.0, 1.5])
                x, _ = STEPPERS["lcm"](d.schedule, x, x, z, t, prev, None, lambda: noise)
    assert x.device.type == "cuda" and both.shape[0] == 2
    assert not seen.crossed, seen.crossed
    assert set(queued) <= {(1, 6), (1,), (2,)}  # sizes and guidance scales


def test_the_family_s_contrast_counts_where_the_pictures_are():
    from torch._subclasses.fake_tensor import FakeTensorMode
    from fastedit.training import contrast

    with FakeTensorMode(), Sent() as seen:
        a, b, c = (torch.empty(4, 8, device="cuda") for _ in range(3))
        loss = contrast(a, b, c, torch.ones((), device="cuda"))
    assert loss.device.type == "cuda" and not seen.crossed


def test_the_family_s_networks_are_asked_without_waiting(tmp_path):
    from torch._subclasses.fake_tensor import FakeTensorMode
    from fastedit import training as T

    T.SCHEDULE.alphas_cumprod, T.SCHEDULE._end  # kept for all: not to be made of fake tensors
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        stock = T.Stock(T.TOY, tmp_path, torch.device("cuda"), 0, lambda *_: None)
        unet = T.family_unet(T.TOY)
        control = T.family_controlnet(T.TOY, unet)
        x, t = torch.empty(2, 4, T.TOY.cells, T.TOY.cells), torch.zeros(2, dtype=torch.long)
        text = torch.empty(2, 40, 32), torch.empty(2, 16)
        with Sent() as seen:
            more = T.residuals(stock, control, x, t, text, torch.empty(2, 3, 64, 64))
            e = T.ask_unet(stock, unet, x, t, text, **more)
    assert e.device.type == "cuda" and not seen.crossed


@pytest.mark.parametrize(
    "name, rate",
    [
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("Tesla T4", 65),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 80GB HBM3", 989),
    ],
)
def test_a_card_is_held_against_half_of_its_own_rate(name, rate):
    assert S.attainable(name, 1.0)[0] == rate * 1e12 / 2


@pytest.mark.parametrize("name", ["NVIDIA L40", "NVIDIA T400", "NVIDIA GH200 480GB", "a CPU"])
def test_a_card_that_is_not_listed_is_held_against_a_product(name):
    assert S.attainable(name, 1.0) == (1.0, "a large matrix product, timed here")


def test_marks_are_read_when_seconds_are_asked_for():
    class Mark:
        def __init__(self, at):
            self.at, self.waited = at, False

        def synchronize(self):
            self.waited = True

        def elapsed_time(self, other):
            assert other.waited
            return other.at - self.at

    count = Count(seconds={"unet": 1.0})
    count.marks = [("unet", Mark(0.0), Mark(500.0)), ("vae", Mark(600.0), Mark(700.0))]
    assert count.network_seconds == pytest.approx(1.6)
    assert not count.marks and count.seconds == pytest.approx({"unet": 1.5, "vae": 0.1})


# --- the study


def test_the_study_runs_to_its_end_and_its_file_is_whole_all_the_time(tmp_path):
    path = tmp_path / "rows.json"
    out = CliRunner().invoke(
        __import__("fastedit.cli", fromlist=["app"]).app,
        ["bench-speed", "--full-size", "--device", "cpu", "--model", "ssd-1b", "--steps", "1"]
        + ["--repeats", "1", "--json", str(path), "--quiet"],
    )
    assert out.exit_code == 0, out.output
    found = json.loads(path.read_text())
    rows = {k: [r for r in found["rows"] if r["kind"] == k] for k in ("case", "trick", "capped")}
    assert not [r for r in found["rows"] if r["kind"] == "failed"]
    assert {r["case"] for r in rows["case"]} == set(S.TARGETS)
    assert {r["trick"] for r in rows["trick"]} < set(S.TRICKS_HERE)
    assert all(r["bound_s"] > 0 and r["nfe"] > 0 for r in rows["case"])
    assert {r["side"] for r in rows["capped"]} >= {"ours", "stock"}
    assert {"graphs", "pinned", "queued"} == {o["what"].split()[-1] for o in found["left_out"]}


def test_a_budget_leaves_out_in_words_and_a_fault_ends_nothing(monkeypatch):
    from fastedit.studies.speed import in_minutes as page

    def fault(*_):
        raise RuntimeError("CUDA error: something\nlong")

    monkeypatch.setattr(page, "trick", fault)
    monkeypatch.setattr(page.Budget, "rounds", lambda self, each, most: min(most, 1))
    run = S.full_run(("sdxl",), "cpu", 5, steps=1, repeats=1, tricks=("joined",))
    assert run.of("failed")[0]["error"] == "RuntimeError: CUDA error: something"
    assert len(run.of("case")) == 8 and "failed" in str(run)
    assert not S.full_run(("sdxl",), "cpu", 0.001, steps=1, repeats=1).of("case")


@pytest.mark.parametrize(
    "kw, word", [(dict(minutes=0), "minutes=0"), (dict(steps=0), "at least 1"), ({}, "sdxk")]
)
def test_what_cannot_be_meant(kw, word):
    from fastedit.core import FastEditError

    models = ("sdxl",) if kw else ("sdxk",)
    with pytest.raises(FastEditError, match=word):
        S.full_run(models, "cpu", **kw)


def test_tricks_that_move_or_cost_are_not_chosen():
    row = dict(failed="", pixels=0, ratio=0.9)
    rows = [
        dict(row, trick="joined"),
        dict(row, trick="channels_last", pixels=3),
        dict(row, trick="VAE channels_last"),
        dict(row, trick="graphs", failed="no"),
        dict(row, trick="text kept"),
    ]
    assert S.chosen(rows) == dict(joined=True, channels_last=("vae",))
