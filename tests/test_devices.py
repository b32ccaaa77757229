"""Where a model computes when nobody says, and rows of ControlNets and inpainting models."""

import pytest, torch
from fastedit.core import OptionError
from fastedit.models import (
    ARCHITECTURES,
    CONTROLNETS,
    DEVICES,
    MODELS,
    build,
    check_device,
    default_device,
    device_words,
    is_there,
)


def only(monkeypatch, *kinds):
    for kind in ("cuda", "mps", "xpu"):
        module = torch.backends.mps if kind == "mps" else getattr(torch, kind)
        monkeypatch.setattr(module, "is_available", lambda kind=kind: kind in kinds)


@pytest.mark.parametrize(
    "there, chosen",
    [
        ((), "cpu"),
        (("mps",), "mps"),
        (("xpu",), "xpu"),
        (("cuda", "mps"), "cuda"),
        (("mps", "xpu"), "mps"),
    ],
)
def test_the_gpu_that_is_there_is_the_default(monkeypatch, there, chosen):
    only(monkeypatch, *there)
    assert default_device() == chosen and is_there("cpu")


def test_rocm_is_named(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert device_words("cuda") == "ROCm 6.4"
    monkeypatch.setattr(torch.version, "hip", None)
    assert device_words("cuda") == "CUDA" and device_words("mps") == "Apple Metal"


def test_the_table_claims_nothing_that_was_not_run():
    assert list(DEVICES)[-1] == "cpu"
    assert all(DEVICES[k][1] == "nothing yet" for k in ("mps", "xpu"))


@pytest.mark.parametrize("name", ["tpu", "cudda", "meta"])
def test_other_devices_are_refused_in_words(name):
    with pytest.raises(OptionError, match=name):
        check_device(name)


def test_every_known_kind_of_map_has_a_controlnet():
    for family, kinds in (
        ("sdxl", "canny depth openpose tile scribble"),
        ("sd15", "canny depth openpose tile softedge scribble seg"),
    ):
        for kind in kinds.split():
            assert CONTROLNETS[f"{kind}-{family}"].family == family
    for part in CONTROLNETS.values():
        assert part.arch in ARCHITECTURES
        assert (part.disk_bytes() > 3e8) == (part.family != "mini")
    tile = CONTROLNETS["tile-sdxl"]
    assert tile.disk_bytes("fp32") == tile.disk_bytes("fp16") == pytest.approx(2.5e9, rel=0.01)


@pytest.mark.parametrize("key", ["sd15-inpaint", "sdxl-inpaint"])
def test_inpainting_models_have_nine_channels(key):
    spec = MODELS[key]
    unet = build((ARCHITECTURES[spec.arch].cls, ARCHITECTURES[spec.arch].config), "meta")
    assert unet.config.in_channels == 9
    assert sum(p.numel() for p in unet.parameters()) == ARCHITECTURES[spec.arch].parameters


def test_models_that_want_trailing_times_say_so():
    assert {k for k, s in MODELS.items() if s.spacing} == {"sdxl-lightning", "hyper-sdxl"}
