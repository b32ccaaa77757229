"""The larger family: its engine against the small family's, files that can be carried, every stage
to its end on a toy, further runs, and what is refused."""

import json
from dataclasses import replace
import pytest, torch
from typer.testing import CliRunner
from fastedit import training as T, world as W
from fastedit.cli import app
from fastedit.core import ModelError, OptionError
from fastedit.models import load_model, local_spec


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A toy that had every stage for a moment."
    folder = tmp_path_factory.mktemp("family")
    small = replace(T.TOY, scenes=24, edits=10, batch=8)
    return folder, small, T.train_family(folder, "cpu", 0.001, small, cores=0, say=lambda *_: None)


def test_every_stage_leaves_its_network_and_a_figure(trained):
    folder, _, report = trained
    assert list(report.stages) == list(T.ORDER_OF_FAMILY) and not report.notes
    for what, name, _ in T.FAMILY_GOALS:
        assert report.figures[what][name] is not None
    card = (folder / "README.md").read_text()
    assert "A toy" in card and all(f"| {s} | " in card for s in T.ORDER_OF_FAMILY)
    assert json.loads((folder / "figures.json").read_text()) == report.to_dict()
    assert max(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 16 << 20


def test_a_later_run_goes_on_and_sees_other_scenes(trained):
    folder, small, before = trained
    more = T.train_family(folder, "cpu", 0.001, small, only=("lcm",), cores=0, say=lambda *_: None)
    assert more.stages["lcm"]["steps"] > before.stages["lcm"]["steps"]
    assert more.stages["reader"] == before.stages["reader"]
    assert json.loads((folder / "runs.json").read_text()) == dict(runs=2)
    a, b = (T.Stock(small, folder, torch.device("cpu"), 0, lambda *_: None) for _ in range(2))
    a.draw(9, 0)
    b.draw(9, 1)
    assert not torch.equal(a.data["pictures"], b.data["pictures"])


@pytest.mark.parametrize(
    "only, missing",
    [
        (("vae", "teacher"), "student, lcm-lora, lcm, controlnet, instruct"),
        (("teacher", "lcm"), "student, lcm-lora, controlnet, instruct"),
    ],
)
def test_no_stage_is_trained_without_those_that_rest_on_it(trained, only, missing):
    folder, small, _ = trained
    card = (folder / "README.md").read_bytes()
    with pytest.raises(OptionError, match=f"stage '{only[0]}' alone spoils .*: add {missing}, or"):
        T.train_family(folder, "cpu", 1.0, small, only=only)
    assert (folder / "README.md").read_bytes() == card
    T.check_family(1, (*only, *missing.split(", ")), folder)
    T.check_family(1, only, folder / "new")


def test_a_judge_draws_each_chunk_from_noise_of_its_own(trained):
    folder, small, _ = trained
    stock = T.Stock(small, folder, torch.device("cpu"), 0, lambda *_: None)
    held = T.Held(stock, 1)
    unet, *encoders = T.made(stock, "unet-s", "text_encoder", "text_encoder_2")
    twice = held.tokens.repeat(2, 1)
    z = T.FamilyJudge(stock, held).sampled(unet, encoders, twice, rows=1, guidance=2.0)
    assert z.shape == (2, small.latents, small.cells, small.cells)
    assert not torch.allclose(*z)


def test_each_twentieth_of_the_rows_lacks_text_picture_or_both():
    torch.manual_seed(0)
    mute, blind = T.leave_out(20_000)
    for rows in (mute & ~blind, blind & ~mute, mute & blind):
        assert rows.shape == (20_000, 1) and abs(rows.float().mean().item() - 0.05) < 0.006
    assert not any(m.any() for m in T.leave_out(9, share=0.0))


@torch.no_grad()
def test_instructions_are_learnt_by_the_plain_error_of_the_noise(trained, monkeypatch):
    "Noise of ones against an answer of zeros costs 1 at each time: no time weighs more."
    from fastedit.training import generators as G

    folder, small, _ = trained
    stock, seen = T.Stock(small, folder, torch.device("cpu"), 0, lambda *_: None), []
    blank = torch.from_numpy(stock.words.row("")).long()
    z = torch.zeros(3, small.latents, small.cells, small.cells)
    stock.edits = dict(told=blank.expand(3, -1), z_before=z + 2, z_after=z)
    unet, *encoders = T.made(stock, "unet", "text_encoder", "text_encoder_2")

    def ask(stock, unet, x, t, text):
        seen.append(x)
        return torch.zeros_like(x[:, : small.latents])

    monkeypatch.setattr(G, "ask_unet", ask)
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    monkeypatch.setattr(G, "fit_within", lambda name, nets, loss, *a, **k: loss(0)[0])
    monkeypatch.setattr(G, "save_instruct", lambda *a: None)
    monkeypatch.setattr(G, "leave_out", lambda n, d: (torch.zeros(n, 1).bool(),) * 2)
    assert T.learn_instruct(stock, 1.0, unet, encoders, 0.5).item() == 1
    (x,) = seen
    assert x.shape[1] == 2 * small.latents and (x[:, small.latents :] == 4).all()


def test_its_folders_are_models_of_their_own_latents(trained):
    folder, small, _ = trained
    spec = local_spec(folder / small.key)
    assert (spec.resolution, spec.vae_factor) == (small.size, small.factor)
    parts = load_model(folder / f"{small.key}-instruct", device="cpu")
    assert parts.unet.config.in_channels == 2 * small.latents


def test_instruction_models_count_relative_to_the_latents(tmp_path):
    "Sixteen channels of latents make 32 of an instruction model, and 16 of any other."
    from fastedit.memory import predict_memory
    from fastedit.methods import check_model, find_method
    from fastedit.models import random_model, tiny_configs

    c = tiny_configs("sdxl", (16, 32, 32), width=16)

    def wide(name, **more):
        c[name] = c[name][0], dict(c[name][1], **more)

    wide("vae", latent_channels=16)
    wide("unet", in_channels=16, out_channels=16)
    wide("controlnet", in_channels=16)
    plain = load_model(random_model(tmp_path / "plain", configs=c), device="cpu")
    assert check_model(find_method("ddcm"), plain) is not None
    with pytest.raises(ModelError, match="needs a UNet with 32 input channels"):
        check_model(find_method("instruct"), plain)
    wide("unet", in_channels=32)
    told = load_model(random_model(tmp_path / "told", configs=c), device="cpu", controlnet=False)
    check_model(find_method("instruct"), told)
    assert predict_memory(told, "fp32", device="cpu").work.method == "instruct"
    assert predict_memory(plain, "fp32", device="cpu").work.method != "instruct"
    wide("unet", in_channels=16)
    wide("controlnet", in_channels=4)
    with pytest.raises(ModelError, match="ControlNet takes latents of 4 channels"):
        load_model(random_model(tmp_path / "mixed", configs=c), device="cpu")


def test_updates_in_groups_are_updates_one_by_one():
    torch.manual_seed(0)
    grads = torch.randn(3, 8, 12)
    ours, theirs = ([torch.nn.Parameter(torch.ones(8, 12)) for _ in range(3)] for _ in range(2))
    together, apart = T.Muon(ours), [T.Muon([p]) for p in theirs]
    for scale in (1.0, -0.5):
        for p, q, g in zip(ours, theirs, grads):
            p.grad, q.grad = g * scale, g * scale
        for o in (together, *apart):
            o.step()
    for p, q in zip(ours, theirs):
        assert torch.allclose(p, q, atol=1e-4)


def test_levels_are_the_small_family_s():
    levels, t = T.Levels(torch.device("cpu")), torch.tensor([0, 499, 999])
    a, s = T.SCHEDULE.levels(t)
    assert torch.equal(torch.stack(levels.at(t)), torch.stack([a, s]))
    assert torch.allclose(levels.weight(t), T.snr_weight(t))
    cover = torch.rand(3, 8, 8)
    assert torch.allclose(levels.cells(cover, t), T.cell_weight(cover, t))


def test_shards_are_small_whole_and_in_half_precision(tmp_path):
    tensors = {f"w{i}": torch.full((3_000_000,), float(i)) for i in range(6)}
    T.write_shards(tensors | dict(n=torch.tensor(7)), tmp_path / "a", steps=3)
    files = list((tmp_path / "a").glob("*.safetensors"))
    assert len(files) == 3 and all(f.stat().st_size < 16 << 20 for f in files)
    found, about = T.read_shards(tmp_path / "a")
    assert about["steps"] == 3 and int(found.pop("n")) == 7
    assert all(torch.equal(found[k], v) for k, v in tensors.items())
    assert T.read_shards(tmp_path / "none") == ({}, {})


def test_a_loss_that_is_not_finite_is_said(tmp_path):
    net = torch.nn.Linear(2, 2)
    with pytest.raises(OptionError, match="stage toy: the loss became nan"):
        T.fit_within(
            "toy",
            dict(net=net),
            lambda step: (net(torch.full((1, 2), float("nan"))).sum(), {}),
            1.0,
            tmp_path,
            say=lambda *_: None,
        )


@pytest.mark.parametrize(
    "args, word",
    [
        (["--minutes", "0", "--toy"], "minutes=0"),
        (["--only", "vea", "--toy"], "did you mean 'vae'"),
        (["--device", "cpu"], "use --toy"),
        (["--only", "student", "--toy", "--minutes", ".001"], "has no 'vae' yet"),
    ],
)
def test_what_is_refused(tmp_path, args, word):
    out = CliRunner().invoke(app, ["train", "family", "--state", str(tmp_path), "--quiet", *args])
    assert out.exit_code != 0 and word in out.output + str(out.exception)


def test_words_of_the_large_world_are_one_token_each(trained):
    folder, small, _ = trained
    tok = T.load_tokenizer(folder / "models" / "tokenizer")
    words = T.family_words(small, tok)
    said = W.large_caption(W.sample_large_scene(3))
    theirs = tok(said, padding="max_length", max_length=small.tokens).input_ids
    assert words.row(said).tolist() == theirs


# --- what goes wrong


def fit(tmp_path, loss=1.0, **kw):
    "One step of a small network, whose loss is `loss` times what it should be."
    net = torch.nn.Linear(2, 2)
    said = []
    kw = dict(seconds=1e-3, say=said.append) | kw
    done = T.fit_within(
        "toy",
        dict(net=net),
        lambda step: (net(torch.ones(1, 2)).square().sum() * loss, {}),
        state=tmp_path,
        **kw,
    )
    return done, said


def test_weights_that_are_no_numbers_are_never_kept(tmp_path, monkeypatch):
    "Though no row is logged before the checkpoint is due."
    fit(tmp_path)
    before, about = T.read_shards(tmp_path / "checkpoints" / "toy")
    with monkeypatch.context() as m, pytest.raises(OptionError, match="stage toy: the weights"):
        m.setattr("fastedit.training.engine._Going.log", lambda *_: None)
        fit(tmp_path, float("nan"), every=-1.0)
    after, still = T.read_shards(tmp_path / "checkpoints" / "toy")
    assert still == about and all(torch.equal(after[k], v) for k, v in before.items())


def test_a_checkpoint_is_replaced_once_the_new_one_is_whole(tmp_path, monkeypatch):
    from fastedit.training import engine

    def files():
        return {p.name for p in tmp_path.glob("*.safetensors")}

    T.write_shards(dict(w=torch.zeros(2)), tmp_path, steps=1)
    first, write = files(), engine.atomic_write

    def broken(path, data):
        if path.name == "index.json":
            raise OSError("no space")
        write(path, data)

    with monkeypatch.context() as m, pytest.raises(OSError):
        m.setattr(engine, "atomic_write", broken)
        T.write_shards(dict(w=torch.ones(2)), tmp_path, steps=2)
    found, about = T.read_shards(tmp_path)
    assert about["steps"] == 1 and found["w"].tolist() == [0, 0]
    for steps in (3, 4):
        T.write_shards(dict(w=torch.ones(2)), tmp_path, steps=steps)
        assert T.read_shards(tmp_path)[1]["steps"] == steps and len(files()) == 1
    assert files() == first


@pytest.mark.parametrize("name", ["index.json", "a-00.safetensors"])
def test_a_damaged_checkpoint_is_said(tmp_path, name):
    fit(tmp_path)
    (tmp_path / "checkpoints" / "toy" / name).write_bytes(b"{")
    with pytest.raises(ModelError, match="toy is damaged .*: remove it to begin anew"):
        fit(tmp_path)


def test_a_checkpoint_of_another_shape_is_said_and_begun_anew(tmp_path):
    T.write_shards({"net.weight": torch.ones(3, 3)}, tmp_path / "checkpoints" / "toy", steps=9)
    done, said = fit(tmp_path)
    assert done.steps < 9 and "networks of another shape" in said[0]


@pytest.mark.parametrize("fault", [ValueError("bad\nmore"), KeyError("z"), OSError(28, "full")])
def test_a_stage_that_fails_costs_no_other_and_no_card(tmp_path, monkeypatch, fault):
    from fastedit.training import family

    def fails(*_):
        raise fault

    done = T.Trained("x", 1, 0.1, {})
    monkeypatch.setattr(
        family._Run, "learn", lambda self, name, s: fails() if name == "clip" else done
    )
    monkeypatch.setattr(family, "measure_family", fails)
    small = replace(T.TOY, scenes=8, edits=8, batch=8)
    report = T.train_family(tmp_path, "cpu", 0.001, small, cores=0, say=lambda *_: None)
    assert set(report.stages) == set(T.ORDER_OF_FAMILY) - {"clip"} and not report.figures
    kind = type(fault).__name__
    assert report.notes[0].startswith(f"clip: failed, {kind}: ") and len(report.notes) == 2
    assert f"not measured: {kind}: " in (tmp_path / "README.md").read_text()


def test_where_nothing_is_side_by_side_no_share_is_given():
    assert T.relation_right(None, None, [W.LargeScene((W.LargeThing("apple", "red"),))]) is None
    report = T.FamilyReport(
        dict(shape="x", device="d", minutes=1, scenes=1, edits=1, size=64, held=1),
        dict(lcm=dict(steps=1, seconds=1.0, relation=None, all=0.5)),
        dict(mini=dict(relation=None, all=0.5)),
    )
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False)) == report.to_dict()
    assert "| lcm | 1 | 1 | all 0.5 |" in str(report) and "relation" not in str(report)
