"""Photographs on models that know drawings: the guess, the refusal on the command line, the warning
in Python."""

import io, warnings
from pathlib import Path
import numpy as np, pytest, skimage.data
from PIL import Image
from typer.testing import CliRunner
from fastedit import picturebook as pb
from fastedit.cli import app
from fastedit import editor as E
from fastedit.pictures import looks_photographic, shading


def jpeg(im, quality, kind="JPEG"):
    b = io.BytesIO()
    im.save(b, kind, quality=quality)
    return Image.open(io.BytesIO(b.getvalue())).convert("RGB")


def drawn(seed, size):
    return Image.fromarray(pb.render(pb.sample_scene(seed), size))


def shades(seed, alpha=1.2, w=160, h=128, noise=3.0):
    "A picture with a natural scene's spectrum, and a sensor's noise."
    g = np.random.default_rng(seed)
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(h), np.fft.fftfreq(w), indexing="ij"))
    f[0, 0] = 1
    x = np.stack(
        [np.fft.ifft2(np.fft.fft2(g.normal(size=(h, w))) / f**alpha).real for _ in range(3)], -1
    )
    x = 0.75 * x[..., :1] + 0.25 * x
    return Image.fromarray(
        ((x - x.mean()) / x.std() * 50 + 120 + g.normal(size=x.shape) * noise)
        .clip(0, 255)
        .astype(np.uint8)
    )


def hopper():
    import matplotlib

    return Image.open(
        Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    ).convert("RGB")


@pytest.fixture(scope="module")
def mini():
    return E.FastEditor("mini", device="cpu")


def test_no_drawn_scene_is_taken_for_a_photograph():
    """All styles, sizes from the model's own to eight times that, whole and as lossy copies:
    several hundred, no false alarm."""
    seen, n = set(), 0
    for seed in range(90):
        scene, size = pb.sample_scene(30_000 + seed), (64, 80, 128, 256, 512)[seed % 5]
        im = Image.fromarray(pb.render(scene, size))
        seen.add(scene.style)
        for x in (
            im,
            jpeg(im, 85),
            jpeg(im, 60),
            jpeg(im, 40),
            jpeg(im, 70, "WEBP"),
            im.resize((96, 64), Image.BICUBIC),
        ):
            assert not looks_photographic(x), (seed, shading(x))
            n += 1
    assert n == 540 and len(seen) >= 3


@pytest.mark.parametrize("name", ("chelsea", "coffee", "hubble_deep_field", "grass"))
def test_a_photograph_of_few_shades_is_known_by_its_grain(name):
    im = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
    assert looks_photographic(im), (name, shading(im))


@pytest.mark.parametrize("size", (256, 320, 512))
def test_a_large_drawing_is_no_photograph_in_jpeg_either(size):
    for seed in range(12):
        im = Image.fromarray(pb.render(pb.sample_scene(60_000 + seed), size))
        for x in (im, jpeg(im, 85), jpeg(im, 60), jpeg(im, 30)):
            assert not looks_photographic(x), (seed, shading(x))


def test_no_edit_of_a_scene_is_taken_for_a_photograph(mini):
    for seed in range(10):
        scene = pb.sample_scene(40_000 + seed)
        im = Image.fromarray(pb.render(scene, (64, 96, 128)[seed % 3]))
        for method in ("ddcm", "img2img"):
            out = mini(
                im, "a blue ball", source_prompt=pb.caption(scene), method=method, seed=seed
            ).image
            for x in (out, jpeg(out, 85), jpeg(out, 60)):
                assert not looks_photographic(x), (seed, method, shading(x))


def test_photographs_are_recognised():
    p = hopper()
    w, h = p.size
    for x in (
        p,
        p.resize((64, 64), 2),
        p.resize((1500, 1800)),
        jpeg(p, 50),
        p.crop((0, 0, w * 6 // 10, h * 6 // 10)),
        p.crop((w // 4, h // 4, w * 3 // 4, h * 3 // 4)),
        p.transpose(0),
    ):
        assert looks_photographic(x), shading(x)
    assert sum(looks_photographic(shades(s, a)) for s in range(10) for a in (1.0, 1.2, 1.5)) >= 27
    g = np.random.default_rng(0)
    y, x = np.mgrid[:128, :128] / 127
    assert looks_photographic(np.stack([x, y, 1 - x], -1)) and not looks_photographic(
        g.integers(0, 256, (96, 128, 3), dtype=np.uint8)
    )
    for plain in (
        Image.new("RGB", (64, 64), "teal"),
        Image.new("RGB", (8, 8)),
        Image.new("L", (300, 20), 128),
    ):
        assert not looks_photographic(plain)


def run(*args):
    import re

    r = CliRunner().invoke(app, [str(a) for a in args], env=dict(COLUMNS="200"))
    r.words = re.sub(r"\s+", " ", r.stderr)
    return r


def test_the_command_line_refuses_a_photograph_unless_mini_was_meant(tmp_path):
    photo, scene, out = tmp_path / "p.png", tmp_path / "s.png", tmp_path / "o.png"
    shades(1).save(photo)
    drawn(5, 128).save(scene)
    ask = ("a blue ball", "-o", out, "--steps", 1, "--method", "img2img")
    r = run("edit", photo, *ask, "-q")
    assert (
        r.exit_code == 2
        and not out.exists()
        and "p.png looks like a photograph" in r.words
        and all(w in r.words for w in ("--model ssd-1b", "--model mini", "--anyway"))
        and r.stdout == ""
    )
    E.notes.warned.clear()
    for how in (
        ("--model", "mini"),
        ("--anyway",),
        ("--model", "mini-s"),
        ("--model", "mini", "-q"),
    ):
        out.unlink(missing_ok=True)
        E.notes.warned.clear()
        r = run("edit", photo, *ask, *how)
        assert (
            r.exit_code == 0
            and out.exists()
            and r.words.count("drawn picture-book scenes only") == 1
        ), r.stderr
    assert (
        run("edit", scene, *ask).exit_code == 0
        and "picture-book" not in run("edit", scene, *ask).stderr
    )


def test_python_warns_once_a_picture_and_the_note_stays(mini):
    E.notes.warned.clear()
    kw = dict(method="img2img", steps=1)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        notes = [
            mini(p, "a cup", **kw).notes for p in (shades(2), shades(2), drawn(7, 64), shades(3))
        ]
        mini.cache.clear()
        mini(shades(2), "a ball", **kw)
    found = [w for w in seen if "picture-book" in str(w.message)]
    assert (
        [E.DRAWN_ONLY in n for n in notes] == [True, True, False, True]
        and len(found) == 2
        and "ssd-1b" in str(found[0].message)
        and found[0].filename == __file__
        and issubclass(found[0].category, UserWarning)
    )


def test_a_sweep_warns_too(mini):
    from fastedit.sweep import Sweep

    E.notes.warned.clear()
    with pytest.warns(UserWarning, match="picture-book"):
        list(
            Sweep(
                shades(4), "a cup", editor=mini, method="img2img", steps=1, strength=[0.4, 0.6]
            ).results()
        )


@pytest.mark.parametrize("size", [(64, 64), (128, 96), (512, 512)])
def test_mere_noise_is_no_photograph(size):
    for seed in range(3):
        noise = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
        assert not looks_photographic(Image.fromarray(noise))
