"""Whatever kind of value is given, the answer is one of our own errors that names it and says what
to give; nobody sees a library's."""

from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from fastedit import models as M
from fastedit.core import ImageError, MaskError, ModelError, OptionError, PromptError, in_words
from fastedit.editor import EditRequest, FastEditor
from fastedit.methods.base import find_method

PICTURE = Image.new("RGB", (64, 64), "white")
NET = torch.nn.Linear(2, 2)
ODD = (
    b"mini",
    3,
    2.5,
    True,
    ["mini"],
    {"a": 1},
    {1},
    object(),
    print,
    NET,
    torch.zeros(2),
    np.zeros(3),
    PICTURE,
    ValueError,
    torch.float16,
)


def same_name(value) -> str:
    "A name that is the same in every process, with no address in memory."
    return in_words(value)[:60]


@pytest.fixture(scope="module")
def editor():
    return FastEditor("mini", device="cpu")


def refused(error, make, *words):
    "Run and return the message, which is short, on one line, and shows no address in memory."
    with pytest.raises(error) as e:
        make()
    text = str(e.value)
    assert type(e.value).__module__ == "fastedit.errors"
    assert (
        len(text) < 900
        and "\n" not in text
        and " at 0x" not in text
        and all(w in text for w in words)
    ), text
    return text


@pytest.mark.parametrize(
    "value,want",
    [
        ("fp16", "'fp16'"),
        (3, "3"),
        (None, "None"),
        (["a", "b"], "['a', 'b']"),
        (Path("a.png"), "PosixPath('a.png')"),
        (PICTURE, "an Image of PIL"),
        (NET, "a Linear of torch"),
        (torch.float16, "torch.float16"),
        (print, "<built-in function print>"),
        (object(), "an object"),
        (ValueError, "the class ValueError"),
        (list(range(200)), "a list of 200"),
        (b"x" * 200, "a bytes of 200"),
        ("x" * 200, "'" + "x" * 77 + "...'"),
        (lambda: 1, "a function"),
    ],
)
def test_values_are_named(value, want):
    assert in_words(value) == want


# --- the editor


@pytest.mark.parametrize("model", [None, "", " ", *ODD], ids=same_name)
def test_what_is_no_model(model):
    words = ("this dict has no unet", "SDXL") if isinstance(model, dict) else ("mini", "folder")
    refused(ModelError, lambda: FastEditor(model, device="cpu"), *words)
    refused(ModelError, lambda: M.load_model(model, device="cpu"), "mini")


def test_names_that_no_file_system_bears():
    for name in ("x" * 5000, "a\0b"):
        refused(ModelError, lambda: M.find_spec(name), "unknown")


def test_a_network_is_no_model():
    unet = M.load_model("mini", device="cpu").unet
    refused(ModelError, lambda: FastEditor(unet), "UNet2DConditionModel")


@pytest.mark.parametrize(
    "kw,words",
    [
        (dict(scheduler="x"), ("'scheduler'", "editor(picture")),
        (dict(residancy="auto"), ("residency",)),
        (dict(dtype=torch.float16), ("dtype", "precision")),
        (dict(strength=0.4), ("strength", "editor(picture")),
        (dict(residency="residnt"), ("residnt", "resident")),
        (dict(residency=["resident"]), ("resident",)),
        (dict(residency=None), ("None", "resident")),
        *(
            (dict(device=d), (str(d), "cpu"))
            for d in ("mps", "meta", "xpu", "cuda:99", "gpu", "", "cpu,cuda")
        ),
        *(
            (dict(device=d), ("cpu",))
            for d in (True, 1.5, [], b"cpu", PICTURE, torch.device("meta"))
        ),
        *(
            (dict(precision=p), ("fp16",))
            for p in (16, "half", torch.float16, M.PRECISIONS["fp16"], ["fp16"], b"fp16", PICTURE)
        ),
        (dict(precision=torch.float32), ("'fp32'",)),
        *(
            (dict(budget_gb=b), ("budget_gb", "GiB"))
            for b in ("6", [6], True, -1, 0, float("nan"), float("inf"), PICTURE)
        ),
        *(
            (dict(cache_bytes=b), ("cache_bytes",))
            for b in ("1GB", -1, None, True, 1.5, [1], PICTURE)
        ),
        *(
            (dict([(k, v)]), (k, "True or False"))
            for k in ("allow_smaller", "keep_negative", "fuse", "channels_last", "compile")
            for v in ("yes", 1, None, PICTURE)
        ),
        (dict(meter=3), ("live_tensors",)),
        (dict(meter="yes"), ("live_tensors",)),
        (dict(vae=NET), ("vae=", "folder")),
        (dict(vae=["sdxl-original"]), ("vae=",)),
    ],
    ids=same_name,
)
def test_what_an_editor_cannot_be_made_with(kw, words):
    refused(OptionError, lambda: FastEditor("mini", **dict(dict(device="cpu"), **kw)), *words)


def test_several_controlnets_that_are_not_here():
    named = ["canny-sdxl-small", "canny-sdxl"]
    refused(
        ModelError,
        lambda: FastEditor("mini", device="cpu", controlnet=named),
        *named,
        "fastedit fetch",
    )


@pytest.mark.parametrize(
    "controlnet",
    [(), NET, PICTURE, 1, 0, 1.5, {"a": 1}, b"own", np.zeros(3), "nowhere"],
    ids=same_name,
)
def test_what_is_no_controlnet(controlnet):
    refused(
        ModelError,
        lambda: FastEditor("mini", device="cpu", controlnet=controlnet),
        "controlnet",
        "False",
    )
    refused(
        ModelError, lambda: M.load_model("ssd-1b", device="cpu", controlnet=controlnet), "canny"
    )


def test_a_loaded_model_is_taken_as_it_is(editor):
    for kw in (dict(precision="fp16"), dict(controlnet=False), dict(precision=torch.float16)):
        refused(OptionError, lambda: FastEditor(editor.parts, **kw), "loaded")
    for kw in (dict(), dict(precision="fp32"), dict(precision="auto")):
        assert FastEditor(editor.parts, **kw).parts is editor.parts


def test_an_editor_says_what_it_is(editor, tmp_path):
    assert (
        repr(editor)
        == "FastEditor('mini', device='cpu', precision='fp32', residency='resident'): 64x64"
    )
    assert "'model-offload'" in repr(
        FastEditor("mini-s", device="cpu", residency="model-offload")
    ) and "'bf16'" in repr(FastEditor("mini", device="cpu", precision="bf16"))


# --- one edit


@pytest.mark.parametrize(
    "kw,error,words",
    [
        *(
            (dict(prompt=p), PromptError, ("prompt",))
            for p in (None, ["a cup"], b"a cup", 3, PICTURE, "")
        ),
        (dict(prompt="a cup", negative_prompt=["x"]), PromptError, ("negative",)),
        *(
            (dict(prompt="a cup", source_prompt=p), PromptError, ("source_prompt",))
            for p in (["x"], 3, PICTURE)
        ),
        *(
            (dict(prompt="a cup", method=m), OptionError, ("method", "'edit_friendly-4'"))
            for m in (EditRequest, ["ddcm"], 3, None, print)
        ),
        (dict(prompt="a cup", method=find_method("ddcm")), OptionError, ("method", "'ddcm'")),
        (dict(prompt="a cup", method="magic"), OptionError, ("magic", "ddcm")),
        *(
            (dict(prompt="a cup", control=c), OptionError, ("control=", "canny", "none"))
            for c in (True, "cany", 3)
        ),
        (dict(prompt="a cup", control=Path("a.png")), ImageError, ("a.png",)),
        *(
            (dict(prompt="a cup", on_step=f), OptionError, ("on_step",))
            for f in ("print", 3, PICTURE)
        ),
        *((dict(prompt="a cup", options=o), OptionError, ("options",)) for o in ("a=1", [1], 3)),
        *(
            (dict(prompt="a cup", schedule=s), OptionError, ("schedule",))
            for s in (["stock"], 3, PICTURE)
        ),
        *(
            (dict(prompt="a cup", size=s), OptionError, ("size",))
            for s in ("64x64", 64, (64,), (64.0, 64.0), PICTURE)
        ),
        *(
            (dict(prompt="a cup", **{k: v}), OptionError, (k,))
            for k in ("guidance", "source_guidance", "control_scale")
            for v in (object(), PICTURE, 1j, np.ones(3), [PICTURE], b"1")
        ),
        *(
            (dict(prompt="a cup", precision=p), OptionError, ("precision",))
            for p in (torch.float16, 16, "fp17", ["fp32"])
        ),
        *(
            (dict(prompt="a cup", **{k: v}), OptionError, (k,))
            for k in ("steps", "strength", "seed", "feather")
            for v in ("4", [4], PICTURE, True)
        ),
        *(
            (dict(request=r), OptionError, ("EditRequest",))
            for r in ("{}", dict(prompt="a cup"), 3, PICTURE)
        ),
        (dict(prompt="a cup", stepz=4), OptionError, ("stepz", "steps")),
    ],
    ids=same_name,
)
def test_what_no_edit_can_be_asked_with(editor, kw, error, words):
    refused(error, lambda: editor(PICTURE, **kw), *words)


@pytest.mark.parametrize(
    "picture",
    [
        None,
        [PICTURE],
        "nothing.png",
        Path("nothing.png"),
        "https://a.b/c.png",
        3,
        {},
        torch.zeros(3, 64, 64),
        b"",
        b"no picture",
        "a" * 300,
        print,
    ],
    ids=same_name,
)
def test_what_is_no_picture(editor, picture):
    refused(ImageError, lambda: editor(picture, "a cup"))


@pytest.mark.parametrize(
    "mask",
    [
        "nothing.png",
        Path("nothing.png"),
        [PICTURE],
        3,
        True,
        torch.ones(64, 64),
        np.zeros((64, 64)),
        np.array(["a"]),
        b"",
        print,
    ],
    ids=same_name,
)
def test_what_is_no_mask(editor, mask):
    refused(MaskError, lambda: editor(PICTURE, "a cup", mask=mask))


@pytest.mark.parametrize("kind", [str, Path])
def test_an_address_is_shown_as_it_was_given(editor, kind):
    refused(
        ImageError,
        lambda: editor(kind("https://example.com/a/b.png"), "a cup"),
        "https://example.com/a/b.png",
    )


# --- precision, where none is asked for


@pytest.mark.parametrize(
    "model,gpu",
    [
        ("ssd-1b", "fp16"),
        ("sdxl", "fp16"),
        ("sd15-lcm", "fp16"),
        ("sdxl-turbo", "fp16"),
        ("flux2-klein", "bf16"),
        ("mini", "fp32"),
        ("mini-s", "fp32"),
    ],
)
def test_the_native_precision(model, gpu):
    spec = M.find_spec(model)
    assert (
        M.native_precision(spec, "cuda") == M.native_precision(spec, torch.device("cuda:1")) == gpu
        and M.native_precision(spec, torch.device("cpu")) == "fp32"
    )
    assert (
        M.chosen_precision(spec, "auto", "cuda") == M.chosen_precision(spec, None, "cuda:0") == gpu
        and M.chosen_precision(spec, "bf16", "cuda") == "bf16"
    )


def test_a_request_says_which_precision_ran(editor):
    for ask in (
        EditRequest("a cup", steps=1),
        EditRequest("a cup", steps=1, precision="fp32"),
        EditRequest("a cup", steps=1, precision="auto"),
    ):
        got = editor(PICTURE, request=ask).request
        assert got.precision == "fp32" and '"precision":"fp32"' in got.json
    half = FastEditor("mini", device="cpu", precision="bf16")
    assert (
        half(PICTURE, "a cup", steps=1).request.precision
        == "bf16"
        == half(PICTURE, request=EditRequest("a cup", steps=1)).request.precision
    )
    refused(
        OptionError,
        lambda: half(PICTURE, request=EditRequest("a cup", precision="fp32")),
        "bf16",
        "fp32",
    )
