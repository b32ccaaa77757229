"Training: tokenizer, embeddings, the loop and its resumption, and the layout that is shipped."

import csv
import pytest, torch
from fastedit import training as tr
from fastedit.core import OptionError
from fastedit.denoise import guidance_embedding
from fastedit.denoise import boundary


@pytest.fixture(scope="module")
def tok(tmp_path_factory):
    return tr.load_tokenizer(
        tr.write_tokenizer(
            tmp_path_factory.mktemp("tok"), ["a", "red", "ball", "balloon", "watercolour"]
        )
    )


def test_every_trained_word_is_one_token(tok):
    for w in ("a", "red", "ball", "balloon", "watercolour"):
        assert len(tok(w).input_ids) == 3


@pytest.mark.parametrize(
    "prompt",
    ["", "bicycle", "naïve café", "猫 \U0001f600", "\x00\n\t", "x" * 5000, "[red] ball, (really)!"],
)
def test_no_prompt_fails(tok, prompt):
    ids = tr.tokens_of(tok, [prompt])
    assert (
        ids.shape == (1, tr.TOKENS)
        and int(ids.max()) < len(tok)
        and int(ids[0, 0]) == tok.bos_token_id
    )
    assert tok.eos_token_id in ids[0]


def test_different_words_differ(tok):
    assert not torch.equal(tr.tokens_of(tok, ["dog"]), tr.tokens_of(tok, ["cat"]))


def test_merges_are_minimal_and_deterministic():
    words = ["star", "start", "tart"]
    m = tr.learn_merges(words)
    assert m == tr.learn_merges(words[::-1]) and len(m) == len(set(m))


def test_w_embedding_equals_diffusers():
    from diffusers import LatentConsistencyModelPipeline as P

    w = torch.tensor([0.0, 1.5, 7.0])
    assert torch.allclose(
        guidance_embedding(w, 32), P.get_guidance_scale_embedding(None, w, 32), atol=1e-6
    )


def test_boundary_and_schedule_equal_the_scheduler():
    from diffusers import LCMScheduler

    s = LCMScheduler(**tr.NOISE)
    s.set_timesteps(4)
    for t in (19, 259, 999):
        skip, out = boundary(torch.tensor([t]))
        a, b = s.get_scalings_for_boundary_condition_discrete(t)
        assert float(skip) == pytest.approx(float(a), abs=1e-7) and float(out) == pytest.approx(
            float(b), abs=1e-7
        )
    assert torch.equal(tr.SCHEDULE.alphas_cumprod, s.alphas_cumprod)


def test_orthogonal_updates_have_unit_singular_values():
    for shape in ((16, 64), (64, 16), (20, 20)):
        s = torch.linalg.svdvals(
            tr.orthogonal(torch.randn(*shape, generator=torch.Generator().manual_seed(0)))
        )
        assert 0.4 < float(s.min()) and float(s.max()) < 1.4


def _toy(folder, steps, stop=None):
    torch.manual_seed(0)
    net = torch.nn.Linear(8, 8)

    def loss_fn(step, rng):
        if step == stop:
            raise KeyboardInterrupt
        x = torch.tensor(rng.standard_normal((16, 8))).float()
        return (net(x) - x.flip(1)).square().mean(), {}

    tr.fit("toy", dict(net=net), loss_fn, steps, folder, every=10, quiet=True)
    return net


def test_a_killed_run_ends_where_an_uninterrupted_one_does(tmp_path):
    whole = _toy(tmp_path / "a", 30)
    with pytest.raises(KeyboardInterrupt):
        _toy(tmp_path / "b", 30, stop=25)
    assert torch.equal(_toy(tmp_path / "b", 30).weight, whole.weight)
    assert [int(r["step"]) for r in csv.DictReader(open(tmp_path / "b" / "toy.csv"))] == [
        10,
        20,
        30,
    ]


def test_a_soup_is_the_mean_of_start_and_marks(tmp_path):
    def run(state, steps=8, soup=(0.5, 1.0), found=True, stop=None):
        torch.manual_seed(0)
        net = torch.nn.Linear(8, 8)
        seen = [net.weight.detach().clone()]

        def loss_fn(step, rng):
            if step == stop:
                raise KeyboardInterrupt
            if len(seen) == step:
                seen.append(net.weight.detach().clone())
            x = torch.tensor(rng.standard_normal((16, 8))).float()
            return (net(x) - x.flip(1)).square().mean(), {}

        tr.fit(
            "toy",
            dict(net=net),
            loss_fn,
            steps,
            state,
            every=2,
            ema=0.0,
            soup=soup,
            shipped=lambda: found,
            quiet=True,
        )
        return net.weight.detach(), seen

    last, seen = run(tmp_path / "plain", soup=())
    assert torch.allclose(run(tmp_path / "on")[0], (seen[0] + seen[4] + last) / 3, atol=1e-6)
    # random weights are no part of it
    assert torch.allclose(run(tmp_path / "fresh", found=False)[0], (seen[4] + last) / 2, atol=1e-6)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop=7)
    assert torch.equal(run(tmp_path / "cut")[0], run(tmp_path / "on")[0])


def test_rollouts_follow_the_samplers_grids():
    import numpy as np
    from fastedit.denoise import lcm_grid

    r, rng, told, walks = (
        tr.Rollouts(5),
        np.random.default_rng(0),
        iter(range(10**6)),
        [[] for _ in range(5)],
    )
    torch.manual_seed(0)
    for step in range(40):
        before = r.z.clone()
        x, t = r.draw(lambda: str(next(told)), rng)
        noise = x.clone()
        for i, n in enumerate(t.tolist()):
            if n == 999:
                walks[i].append([])
            walks[i][-1].append((n, r.captions[i]))
            if n < 999:
                noise[i] = (
                    (
                        x[i : i + 1]
                        - tr.SCHEDULE.noised(
                            before[i : i + 1], torch.zeros(1, 4, 16, 16), torch.tensor([n])
                        )
                    )
                    / tr.SCHEDULE.levels(torch.tensor([n]))[1]
                )[0]  # its own picture, renoised
        assert 0.8 < float(noise.std()) < 1.2 and abs(float(noise.mean())) < 0.1
        r.z = torch.full_like(r.z, step + 1.0)
    grids = {lcm_grid(n) for n in range(2, 9)}
    for w in walks:
        assert len(w) > 3 and all(
            tuple(t for t, _ in chain) in grids and len({c for _, c in chain}) == 1
            for chain in w[:-1]
        )
    assert len({c for w in walks for chain in w for _, c in chain}) == sum(map(len, walks))


def test_a_broken_loss_is_an_error_in_words(tmp_path):
    net = torch.nn.Linear(2, 2)
    with pytest.raises(OptionError, match="became nan"):
        tr.fit(
            "x",
            dict(net=net),
            lambda s, r: (net.weight.sum() * float("nan"), {}),
            3,
            tmp_path,
            quiet=True,
        )
    with pytest.raises(OptionError, match="at least one"):
        tr.fit("x", dict(net=net), None, 0, tmp_path)


def test_stages_say_what_they_need(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTEDIT_WEIGHTS", str(tmp_path / "none"))
    with pytest.raises(OptionError, match="has not been run"):
        tr.find_part(tmp_path, "vae")
    with pytest.raises(OptionError, match="unknown"):
        tr.train("magic", tmp_path)


def test_the_student_is_the_teacher_without_layers():
    t, s = tr.new_unet(), tr.new_unet(True)
    own, theirs = s.state_dict(), t.state_dict()
    assert (
        set(own) < set(theirs)
        and all(own[k].shape == theirs[k].shape for k in own)
        and "attentions" not in str([k for k in own if k.startswith("mid")])
    )
    w = tr.new_unet(True, True)
    assert set(w.state_dict()) - set(own) == {"time_embedding.cond_proj.weight"}


def test_control_residuals_fit_both_unets():
    c = tr.new_controlnet(tr.new_unet())
    x, t = torch.randn(1, 4, 16, 16), torch.tensor([499])
    text = torch.randn(1, 32, 160), torch.randn(1, 96)
    kw = tr.control_residuals(c, x, t, text, torch.rand(1, 3, 64, 64))
    for pruned in (False, True):
        u = tr.new_unet(pruned)
        # its last layers start at zero
        assert torch.equal(tr.predict(u, x, t, text, **kw), tr.predict(u, x, t, text))


def test_a_new_machine_starts_from_the_packages_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTEDIT_WEIGHTS", str(tmp_path))
    a, b = tr.new_vae(), tr.new_vae()
    (tmp_path / "vae").mkdir()
    a.half().save_pretrained(tmp_path / "vae")
    assert tr.start_from_package(dict(b=b), dict(b="vae")) and all(
        torch.equal(p.float(), q) for p, q in zip(a.parameters(), b.parameters())
    )


def test_lcm_grid_is_the_schedulers():
    from diffusers import LCMScheduler

    s = LCMScheduler()
    s.set_timesteps(50)
    assert tuple(s.timesteps.tolist()) == tr.LCM_GRID[::-1]


def test_a_wider_unet_starts_as_the_old_one():
    torch.manual_seed(0)
    unet = tr.new_unet(True).eval()
    x, t = torch.randn(2, 4, 16, 16), torch.tensor([10, 900])
    text = torch.randn(2, tr.TOKENS, sum(tr.TEXT)), torch.randn(2, tr.TEXT[1])
    with torch.no_grad():
        old = tr.predict(unet, x, t, text)
        wide = tr.widen(unet)
        assert (
            torch.allclose(
                old,
                tr.predict(wide, torch.cat([x, torch.randn(2, 4, 16, 16)], 1), t, text),
                atol=1e-5,
            )
            and wide.config.in_channels == 8
        )


def test_logs_go_on_from_the_package_and_take_new_columns(tmp_path, monkeypatch):
    weights = tmp_path / "weights"
    (weights / "logs").mkdir(parents=True)
    monkeypatch.setenv("FASTEDIT_WEIGHTS", str(weights))
    net = torch.nn.Linear(2, 1)
    (weights / "logs" / "toy.csv").write_text("step,seconds,loss\n70,33,0.5\n")
    monkeypatch.setitem(tr.PLACES, "toy", "toy")
    run = lambda steps: tr.fit(
        "toy",
        dict(net=net),
        lambda s, r: (net(torch.ones(3, 2)).square().mean(), dict(extra=1.0)),
        steps,
        tmp_path / "state",
        every=2,
        shipped=dict(net="toy"),
        quiet=True,
    )
    run(2)
    run(4)
    rows = list(csv.DictReader(open(tmp_path / "state" / "toy.csv")))
    assert (
        [int(r["step"]) for r in rows] == [70, 72, 74]
        and [r["extra"] for r in rows] == ["", "1", "1"]
        and [float(r["seconds"]) >= 33 for r in rows] == [True] * 3
    )


def test_noise_times_are_spread_evenly_and_half_of_them_in_the_middle():
    import numpy as np

    for n in (2, 64):
        t = tr.noise_times(n, np.random.default_rng(0))
        assert (
            t.shape == (n,)
            and t.dtype == torch.int64
            and torch.equal(t, tr.noise_times(n, np.random.default_rng(0)))
        )
    t = tr.noise_times(64_000, np.random.default_rng(1))
    assert 0 <= int(t.min()) and int(t.max()) <= 999
    middle = ((t >= 350) & (t < 850)).float().mean().item()
    assert middle == pytest.approx(0.75, abs=0.001)  # its own half, and half of the other
    assert (t < 350).float().mean().item() == pytest.approx(0.175, abs=0.001)


def test_a_distillation_goes_on_from_the_packages_lora_if_it_fits():
    from safetensors.torch import load_file

    (unet,) = tr.frozen_parts("nowhere", "unet")
    unet.add_adapter(tr.lora_config())
    before = {n: p.detach().clone() for n, p in unet.named_parameters() if "lora_" in n}
    assert tr.start_lora_from_package(unet, "lcm-lora")
    kept = {
        k.removeprefix("unet."): v.float()
        for k, v in load_file(
            tr.shipped_part("lcm-lora") / "pytorch_lora_weights.safetensors"
        ).items()
    }
    for n, p in unet.named_parameters():
        if "lora_" in n:
            assert torch.equal(p, kept[n.replace(".default.", ".")]) and not torch.equal(
                p, before[n]
            )
    (other,) = tr.frozen_parts("nowhere", "unet")
    other.add_adapter(tr.lora_config(3))
    assert not tr.start_lora_from_package(other, "lcm-lora")  # another rank: starts afresh


def test_a_resumed_distillation_starts_its_target_from_the_checkpoint(tmp_path, monkeypatch):
    import numpy as np
    from fastedit import world as pb
    from fastedit.training import distillation, teacher

    drawn = np.stack([pb.render(pb.sample_scene(i), 64) for i in range(64)])
    monkeypatch.setattr(teacher, "pictures", lambda state, quiet=False: drawn)
    monkeypatch.setattr(distillation, "Judge", lambda state: tr.Judge(state, 2))
    for steps in (1, 2):
        tr.train_lcm(tmp_path, steps=steps, batch=32, quiet=True)
    log = [float(r["loss"]) for r in csv.DictReader(open(tmp_path / "lcm.csv"))][-2:]
    assert log[1] < 1.5 * log[0]  # a target of random weights is several times as far away


def test_a_log_goes_on_only_where_the_weights_do(tmp_path, monkeypatch):
    from fastedit.training import parts

    monkeypatch.setattr(parts, "weights_dir", lambda: tmp_path / "package")
    (tmp_path / "package" / "logs").mkdir(parents=True)
    (tmp_path / "package" / "logs" / "toy.csv").write_text("step,seconds,loss\n70,33,1\n")
    for found, want in ((True, 72), (False, 2)):
        net = torch.nn.Linear(2, 2)
        state = tmp_path / str(found)
        tr.fit(
            "toy",
            dict(net=net),
            lambda s, r: (net(torch.ones(3, 2)).square().mean(), {}),
            2,
            state,
            shipped=lambda: found,
            quiet=True,
        )
        assert int(list(csv.DictReader(open(state / "toy.csv")))[-1]["step"]) == want
