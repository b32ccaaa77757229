"Teaching a model to edit by pairs: what is learned, from where, resumed, and refused in words."

import csv, json
import numpy as np, pytest, torch
from types import SimpleNamespace
from PIL import Image
from safetensors.torch import load_file
from fastedit import FastEditor
from fastedit.core import DataError, ModelError, OptionError
from fastedit.denoise import Denoiser
from fastedit.models import load_model, random_model
from fastedit.training.edit_lora import (
    Pair,
    accelerator,
    data_pairs,
    drawn_pairs,
    edit_loss,
    lessons,
    train_edit_lora,
)
from fastedit.training.distillation import lora_config, save_lora
from fastedit.training.loop import Alone, _gradients, fit
from shared import instruct_folder


def write_pairs(folder, *lines):
    folder.mkdir(exist_ok=True)
    for name, value in (("a.png", 40), ("b.png", 200)):
        Image.new("RGB", (80, 60), (value, 90, 90)).save(folder / name)
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (folder / "pairs.jsonl").write_text(text, encoding="utf-8")
    return folder


GOOD = dict(image="a.png", target="b.png", source_prompt="a dark wall", target_prompt="a red wall")


def losses(state):
    with open(state / "edit-lora.csv", encoding="utf-8") as f:
        return [(int(r["step"]), float(r["loss"])) for r in csv.DictReader(f)]


def test_drawn_pairs_are_edits_with_their_right_answers():
    pairs = drawn_pairs(10)
    assert len(pairs) == 10 and len({p.prompt for p in pairs}) == 10
    assert all("[" not in p.prompt + p.source_prompt for p in pairs)
    assert any((p.source != p.target).any() for p in pairs)


def test_a_data_set_with_targets_is_read_in_order(tmp_path):
    odd = dict(GOOD, target_prompt="a wall\u2028and a [red] door")
    found = data_pairs(write_pairs(tmp_path / "d", GOOD, odd))
    assert [p.prompt for p in found] == ["a red wall", "a wall\u2028and a red door"]
    assert found[0].target == tmp_path / "d" / "b.png"


@pytest.mark.parametrize(
    "line, words",
    [
        (dict(GOOD, target_prompt=" "), "target_prompt"),
        (dict(GOOD, target="c.png"), "c.png"),
        (dict(GOOD, target="../a.png"), "leaves the data folder"),
        ({k: v for k, v in GOOD.items() if k != "target"}, "1 of 2 entries .* have no target"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, words):
    with pytest.raises(DataError, match=words):
        data_pairs(write_pairs(tmp_path / "d", GOOD, line))


def test_what_is_learned_keeps_edits_and_goes_on():
    "A model that answered rightly would have no loss: asked about the goal itself it is near it."
    d = Denoiser(load_model("mini", device="cpu", controlnet=False))
    same = [Pair(p.target, p.target, p.prompt, p.prompt) for p in drawn_pairs(4)]
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    known, _ = edit_loss(d, lessons(d, same, quiet=True), 8)(0, rng)
    rng = np.random.default_rng(0)
    edits, _ = edit_loss(d, lessons(d, drawn_pairs(4), quiet=True), 8)(0, rng)
    assert known.item() < edits.item()


def test_one_pair_is_learned(tmp_path):
    p = drawn_pairs(1)[0]
    train_edit_lora(tmp_path, 50, 2, pairs=[p], device="cpu", quiet=True)
    first = losses(tmp_path)[-1][1]
    train_edit_lora(tmp_path, 100, 2, pairs=[p], device="cpu", quiet=True)
    (_, a), (last, b) = losses(tmp_path)
    assert a == first and last == 100 and b < 0.85 * a


def test_a_folder_teaches_a_lora_that_an_edit_takes(tmp_path):
    pairs = write_pairs(tmp_path / "d", GOOD)
    file = train_edit_lora(tmp_path / "s", 2, 2, pairs=pairs, rank=2, device="cpu", quiet=True)
    picture = Image.new("RGB", (64, 64), (90, 90, 90))
    plain, taught = (
        FastEditor("mini", device="cpu", loras=given)(picture, "a red ball", method="img2img")
        for given in ((), [(str(file), 1.0)])
    )
    assert taught.request.loras[0]["file"] == file.name
    assert (np.asarray(plain.image) != np.asarray(taught.image)).any()


@pytest.mark.parametrize("family", ["sdxl", "sd15"])
def test_models_in_folders_learn_too(tmp_path, family):
    folder = random_model(tmp_path / family, family, channels=(16, 32, 32), width=16)
    pairs = write_pairs(tmp_path / "d", GOOD)
    file = train_edit_lora(
        tmp_path / "s", 1, 1, str(folder), pairs, rank=2, device="cpu", quiet=True
    )
    assert file.is_file() and losses(tmp_path / "s")[0][0] == 1


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(OptionError, match="rank=0"):
        train_edit_lora(tmp_path, rank=0)
    with pytest.raises(ModelError):
        train_edit_lora(tmp_path, model=str(tmp_path / "none"), pairs=drawn_pairs(1), quiet=True)


def test_the_command_line_trains(tmp_path):
    from typer.testing import CliRunner
    from fastedit.cli import app

    pairs = write_pairs(tmp_path / "d", GOOD)
    asked = ["train", "edit-lora", "--pairs", str(pairs), "--steps", "1", "--batch", "1", "-q"]
    r = CliRunner().invoke(app, [*asked, "--state", str(tmp_path / "s"), "--device", "cpu"])
    assert r.exit_code == 0, r.output
    assert "pytorch_lora_weights.safetensors" in "".join(r.output.split())


def test_a_model_that_sees_more_than_a_picture_is_refused(tmp_path):
    with pytest.raises(OptionError, match="sees 8 channels, not the 4"):
        train_edit_lora(tmp_path, model=instruct_folder(tmp_path), pairs=drawn_pairs(1), quiet=True)


def test_no_pair_is_refused(tmp_path):
    with pytest.raises(DataError, match="give at least one"):
        train_edit_lora(tmp_path, pairs=[])


def taught(folder, model="mini", steps=3, batch=2, **kw):
    pairs = kw.pop("pairs", None) or drawn_pairs(8)
    return train_edit_lora(folder, steps, batch, model, pairs, 2, device="cpu", quiet=True, **kw)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    "An SDXL-shaped model of tiny parts."
    home = tmp_path_factory.mktemp("m") / "sdxl"
    return str(random_model(home, channels=(16, 32, 32), width=16))


def far(a, b):
    a, b = load_file(a), load_file(b)
    return max((a[k].float() - b[k].float()).abs().max().item() for k in a)


def test_accelerate_gives_the_bytes_of_the_plain_loop(tmp_path, tiny):
    by_accelerate = taught(tmp_path / "a", tiny)
    parts = load_model(tiny, device="cpu", controlnet=False)
    d = Denoiser(parts)
    given = lessons(d, drawn_pairs(8), quiet=True)
    torch.manual_seed(6)
    parts.unet.requires_grad_(False).add_adapter(lora_config(2))
    how = dict(lr=None, adam_lr=2e-3, ema=0.98, every=50, quiet=True)
    fit("edit-lora", dict(unet=parts.unet), edit_loss(d, given, 2), 3, tmp_path / "b", **how)
    save_lora(parts.unet, tmp_path / "b")
    assert by_accelerate.read_bytes() == (tmp_path / "b" / by_accelerate.name).read_bytes()


def test_parts_add_up_to_one_batch(tiny):
    "Two parts of two pairs have the gradients of one of four, but for the order of sums."
    parts = load_model(tiny, device="cpu", controlnet=False)
    d, run = Denoiser(parts), SimpleNamespace(name="edit-lora", before=(0, 0))
    given = lessons(d, drawn_pairs(8), quiet=True)
    torch.manual_seed(6)
    parts.unet.requires_grad_(False).add_adapter(lora_config(2))

    def gradients(batch, accumulate):
        by = accelerator("cpu", accumulate=accumulate)
        told = _gradients(run, edit_loss(d, given, batch, accumulate), 3, 0, by)
        found = {n: p.grad.clone() for n, p in parts.unet.named_parameters() if p.requires_grad}
        parts.unet.zero_grad()
        return told["loss"], torch.cat([g.flatten() for g in found.values()])

    (whole, a), (split, b), (_, other) = (gradients(*x) for x in ((4, 1), (2, 2), (2, 1)))
    assert split == pytest.approx(whole, rel=1e-5)
    assert (a - b).norm() < 1e-4 * a.norm() < 0.1 * a.norm() < (a - other).norm()


def test_mixed_precision_keeps_the_adapter_whole(tmp_path, tiny):
    full, mixed = taught(tmp_path / "a", tiny), taught(tmp_path / "b", tiny, precision="bf16")
    assert 0 < far(full, mixed) < 0.05
    kept = torch.load(tmp_path / "b" / "edit-lora.pt", weights_only=True)
    assert all(p.dtype == torch.float32 for p in kept["params"].values())
    (_, a), (_, b) = losses(tmp_path / "a")[0], losses(tmp_path / "b")[0]
    assert a == pytest.approx(b, rel=0.05)
    both = taught(tmp_path / "c", tiny, precision="bf16", accumulate=2)
    assert 0 < far(mixed, both) < 0.05


def test_a_run_with_parts_goes_on(tmp_path, tiny):
    at_once = taught(tmp_path / "a", tiny, 4, 1, accumulate=2)
    taught(tmp_path / "b", tiny, 2, 1, accumulate=2)
    again = taught(tmp_path / "b", tiny, 4, 1, accumulate=2)
    assert far(again, at_once) == 0
    assert [s for s, _ in losses(tmp_path / "b")] == [2, 4]


class Second(Alone):
    "The second of two processes, the first of which has the same gradients."

    num_processes, process_index, is_main_process = 2, 1, False

    def reduce(self, x, how):
        assert how == "mean"
        return x


def test_only_the_main_process_writes(tmp_path):
    net, asked = torch.nn.Linear(2, 1), []

    def loss_fn(step, rng, part):
        asked.append(part)
        return net(torch.ones(1, 2)).square().mean(), {}

    fit("toy", dict(net=net), loss_fn, 3, tmp_path, lr=None, quiet=True, by=Second())
    assert asked == [1, 1, 1] and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "how, words",
    [
        (dict(precision="fp16"), "fp16.*GPU: use bf16 or fp32"),
        (dict(precision="nf4"), "precision='nf4'.*fp32, bf16, fp16"),
        (dict(accumulate=0), "accumulate=0"),
    ],
)
def test_what_accelerate_cannot_is_refused_first(how, words):
    with pytest.raises(OptionError, match=words):
        accelerator("cpu", **how)


def test_precision_and_parts_can_be_typed(tmp_path, tiny):
    from typer.testing import CliRunner
    from fastedit.cli import app

    pairs = write_pairs(tmp_path / "d", GOOD)
    asked = ["train", "edit-lora", "--pairs", str(pairs), "--steps", "1", "--batch", "1", "-q"]
    asked += ["--model", tiny, "--state", str(tmp_path / "s"), "--device", "cpu"]
    r = CliRunner().invoke(app, [*asked, "--precision", "bf16", "--accumulate", "2"])
    assert r.exit_code == 0, r.output
    r = CliRunner().invoke(app, ["train", "vae", "--accumulate", "2"])
    assert r.exit_code == 2 and "--accumulate" in r.output
