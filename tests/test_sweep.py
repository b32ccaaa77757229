"""Sweeps: the same bits as alone, as many network calls as planned, duplicates that are duplicates,
runs that go on; on small random models."""

import json, math, re
from dataclasses import replace
from types import SimpleNamespace
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from typer.testing import CliRunner
from fastedit import world as pb
from fastedit.core import Cancelled, DataError, FastEditError, NumericalError, OptionError
from fastedit.editor import EditRequest, FastEditor
from fastedit.models import load_model, random_model
from fastedit.sweep import (
    FINE,
    GRID,
    WIDE,
    Span,
    Subject,
    Sweep,
    change,
    combinations,
    race,
    subjects,
)
from fastedit.values import read_values
from shared import instruct_folder

KW = dict(channels=(16, 32, 32), width=16)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    d = tmp_path_factory.mktemp("models")
    return {k: load_model(random_model(d / k, w_embedding=k == "w", **KW)) for k in ("cfg", "w")}


@pytest.fixture
def ed(parts):
    return FastEditor(parts["cfg"])


EDITS = [pb.sample_edit(t, 7) for t in (1, 6, 6)]
EDITS[2] = pb.sample_edit(6, 8)
A = Image.fromarray(EDITS[0].source_image(64))


def checked(editor, pictures, prompt="a blue ball", alone_all=True, **kw):
    """Run a sweep, and every one of its settings alone on another editor: bits, calls and plan must
    agree."""
    s = Sweep(pictures, prompt, editor=editor, **kw)
    p = s.plan()
    other = FastEditor(editor.parts, keep_negative=editor.keep_negative)
    calls = dict(unet=0, controlnet=0)
    handles = [
        net.register_forward_hook(
            lambda m, a, k, o, n=n: calls.__setitem__(n, calls[n] + len(a[0])), with_kwargs=True
        )
        for n, net in (("unet", editor.parts.unet), ("controlnet", editor.parts.controlnet))
    ]
    try:
        found = dict(s.results())
    finally:
        for h in handles:
            h.remove()
    if not p.opaque:
        want = p.shared()
        assert calls == {k: want[k] for k in calls} == {k: s.ran[k] for k in calls}
        assert all(s.memo.ran[n] == want[n] for n in want)
    assert editor.memo is None and not any(
        isinstance(v, tuple) for v in s.memo.items.values() if v[1] > 1 << 16
    ), "large answers are let go once no one wants them"
    images = {}
    for k, (_, group) in enumerate(p.order):
        for j in group if alone_all else group[:1]:
            i, _, r = s.jobs[j]
            other.free()
            own = other(s.subjects[i].image, mask=s.subjects[i].mask, request=r)
            shared = found[k]
            assert (
                own.image.tobytes() == shared.image.tobytes()
                and (own.latents is None or torch.equal(own.latents, shared.latents))
                and (own.nfe, own.control_nfe) == (shared.nfe, shared.control_nfe)
            )
            images[k] = (
                own.latents.numpy().tobytes() if own.latents is not None else own.image.tobytes()
            )
    return s, p, images


# --- shared is what alone is


def test_a_method_that_cannot_work_with_a_model_is_refused_before_anything_is_loaded(
    tmp_path, monkeypatch
):
    other = instruct_folder(tmp_path)
    monkeypatch.setattr(
        "fastedit.models.load.load_network", lambda *a: pytest.fail("a network was loaded")
    )
    asked = dict(model=other, method=["instruct", "img2img"], source_prompt="a cup")
    with pytest.raises(OptionError, match="1 of 2 settings.*method=img2img.*4 input channels"):
        Sweep(A, "a ball", **asked)
    s = Sweep(A, "a ball", skip_bad=True, **asked)
    assert [v["method"] for _, v, _ in s.jobs] == ["instruct"] and len(s.left_out) == 1


def test_an_editor_that_keeps_the_negative_sweeps_as_planned(parts):
    kept = FastEditor(parts["cfg"], keep_negative=True)
    kw = dict(method="img2img", control="canny", guidance=[1.5, 3.0], control_scale=[0.5, 1.0])
    checked(kept, A, ["a blue ball", "a cup", "a star"], **kw)
    plain, own = (
        Sweep(
            A,
            ["a blue ball", "a cup", "a star"],
            editor=FastEditor(parts["cfg"], keep_negative=k),
            **kw,
        )
        .plan()
        .shared()
        for k in (False, True)
    )
    assert own["unet"] < plain["unet"]


@pytest.mark.parametrize(
    "kind, schedule, apart",
    [
        ("cfg", "stock", True),
        ("cfg", "stock", False),
        ("cfg", "continuous", True),
        ("cfg", "continuous", False),
        ("w", "continuous", True),
    ],
)
def test_a_grid_gives_the_same_bits_with_the_calls_that_were_planned(parts, kind, schedule, apart):
    s, p, images = checked(
        FastEditor(parts[kind], keep_negative=apart),
        A,
        method="img2img",
        schedule=schedule,
        control="canny",
        strength=[0.5, 0.6, 0.8],
        guidance=[1.0, 1.5, 2.0],
        control_scale=[0.0, 0.5, 1.0],
        steps=4 if schedule == "stock" else 2,
    )
    assert len(s.jobs) == 27 and p.distinct == len(set(images.values())) == (
        18 if schedule == "stock" else 27
    )
    a, b, c = p.alone(), p.alone([i for i, _ in p.order]), p.shared()
    assert (
        all(c[n] <= b[n] <= a[n] for n in a)
        and c["controlnet"] < b["controlnet"]
        and c["encode"] == 1
    )
    if kind == "cfg" or schedule == "stock":
        two = 2 if schedule == "stock" else 3
        steps = 2 + 3 if schedule == "stock" else 3 * 2
        # of 1 + 2 + 2 samples in each first step, two need not run; three where the halves are
        # asked apart, for the prompt's is the answer without guidance
        assert b["unet"] == steps * 3 * 5
        assert c["unet"] == b["unet"] - two * 3 * (3 if apart else 2)
        # its first answer serves all scales, and all guidances, or all but 1
        assert c["controlnet"] == (steps - two) * 2 * 5 + two * (2 if apart else 3)
    assert c["unet"] == s.ran["unet"] and s.memo.peak < 3e6


@pytest.mark.parametrize(
    "method, kw",
    [
        ("ddcm", dict(guidance=[1.0, 2.0], control_scale=[0.0, 0.5], seed=[0, 1])),
        ("turbo", dict(seed=[0, 1], guidance=[1.0, 2.0])),
        ("chord", dict(guidance=[1.0, 1.5])),
        ("edit_friendly", dict(steps=4, guidance=[1.0, 2.0], strength=[1.0])),
        ("ddim", dict(steps=3, guidance=[1.0, 3.0], seed=[0, 1])),
        ("renoise", dict(steps=2, guidance=[1.0, 2.0])),
        (
            "img2img",
            dict(
                options=dict(sampler=["lcm", "ddim", "ddpm"]),
                steps=[2, 3],
                control="canny",
                control_scale=[(0.5, 1.0, 0.2, 0.1), (1.0, 1.0, 0.0, 0.0)],
            ),
        ),
        (
            "img2img",
            dict(
                guidance=["linear:3:1", 2.0, "interval:2:0:0.5"],
                control="canny",
                control_scale=["interval:1:0:0.5", 1.0],
            ),
        ),
        ("ddcm", dict(options=dict(region=["model"], threshold=[0.2, 0.4]), guidance=[1.0, 2.0])),
    ],
)
def test_every_method_shares_only_what_is_exact(ed, method, kw):
    s, p, images = checked(ed, A, method=method, source_prompt="a red ball", **kw)
    assert p.shared()["unet"] <= p.alone()["unet"] and p.alone()["unet"] == sum(
        p.acts[i].nfe[1] for i in range(len(s.jobs))
    )


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.5, 0.55, 0.75, 1.0]),
            st.sampled_from([1.0, 1.5, 3.0]),
            st.sampled_from([0.0, 0.4, 1.0]),
            st.integers(0, 1),
            st.sampled_from(["stock", "continuous"]),
            st.sampled_from(["a cup", "a ball"]),
        ),
        min_size=2,
        max_size=4,
    )
)
def test_any_set_of_settings(parts, drawn):
    e = FastEditor(parts["cfg"])
    s = Sweep(A, "x", editor=e, method="img2img", control="canny", steps=3)
    s.jobs = [
        (
            0,
            {},
            EditRequest(
                prompt=q,
                model=e.spec.key,
                method="img2img",
                steps=3,
                control="canny",
                strength=a,
                guidance=g,
                control_scale=c,
                seed=n,
                schedule=w,
            ),
        )
        for a, g, c, n, w, q in drawn
    ]
    p = s.plan()
    found = dict(s.results())
    assert s.ran["unet"] == p.shared()["unet"]
    for k, (_, group) in enumerate(p.order):
        for j in group:
            assert (
                FastEditor(e.parts)(A, request=s.jobs[j][2]).image.tobytes()
                == found[k].image.tobytes()
            )


def test_what_controls_attention_shares_no_unet_call_and_stays_exact(ed):
    s, p, images = checked(
        ed,
        A,
        prompt="a blue ball",
        method="ddcm",
        source_prompt="a red ball",
        options=dict(uac=[False, True]),
        guidance=[1.0, 2.0],
        steps=2,
    )
    assert (
        p.opaque == 2
        and p.distinct == 4 == len(set(images.values()))
        and "share nothing" in repr(p)
    )


# --- duplicates


@pytest.mark.parametrize(
    "kw, distinct",
    [
        (
            dict(
                method="img2img",
                schedule="stock",
                strength=[0.5, 0.6, 0.74, 0.75, 0.9, 1.0],
                control="none",
            ),
            3,
        ),
        # a distilled grid has 50 times
        (
            dict(method="img2img", strength=[0.5, 0.501, 0.519, 0.52], control="none"),
            2,
        ),
        (
            dict(
                method="img2img",
                schedule="stock",
                steps=[4],
                strength=[0.5],
                control=["canny", "none", "soft"],
                control_scale=[0.0],
            ),
            1,
        ),
        (
            dict(
                method="img2img",
                strength=0.5,
                control="canny",
                control_scale=[0.5, "linear:0.5:0.5", 1.0],
            ),
            2,
        ),
        (dict(method="identity", guidance=[1.0, 2.0], seed=[0, 1], strength=[0.5, 1.0]), 1),
        (dict(method=["vae", "identity"], seed=[0, 1]), 2),
        # no noise; its inversion is never guided
        (
            dict(
                method="ddim",
                steps=2,
                seed=[0, 1, 2],
                source_guidance=[1.0, 2.0],
                source_prompt="a ball",
            ),
            1,
        ),
        (
            dict(
                method="img2img",
                source_prompt=[None, "a cup", "a ball"],
                source_guidance=[1.0, 2.0],
                feather=[1.0, 5.0],
            ),
            1,
        ),
        (dict(method="img2img", negative_prompt=["", "a cup"], guidance=[1.0]), 1),
        (dict(method="img2img", negative_prompt=["", "a cup"], guidance=[2.0]), 2),
    ],
)
def test_settings_that_run_the_same_run_once(ed, kw, distinct):
    s, p, images = checked(ed, A, **kw)
    assert p.distinct == distinct == len(set(images.values()))
    s.run(quiet=True)
    rows = s.rows
    assert sum(r["same_as"] is None for r in rows) == distinct and all(
        r["executed"] == 0 for r in rows if r["same_as"] is not None
    )
    assert all(
        s.picture_of(r["setting"]).tobytes() == s.picture_of(r["same_as"]).tobytes()
        for r in rows
        if r["same_as"] is not None
    )


def test_masks_and_pictures_are_told_apart(ed):
    mask = np.zeros((64, 64), np.float32)
    mask[:, :32] = 1
    many = [
        Subject("half", A, mask=mask),
        Subject("whole", A),
        Subject("other", Image.fromarray(EDITS[1].source_image(64))),
    ]
    s, p, images = checked(ed, many, method="img2img", feather=[0.0, 4.0], strength=0.6)
    assert p.distinct == 4 and np.array_equal(
        np.asarray(s.run(quiet=True).picture_of(0))[:, 32:], np.asarray(A)[:, 32:]
    )


# --- plan


def test_a_plan_asks_no_network_and_leaves_the_editor_alone(ed):
    def stop(*a):
        raise AssertionError("a network ran")

    handles = [m.register_forward_pre_hook(stop) for m in ed.parts.modules().values()]
    try:
        p = Sweep(
            A,
            "a cup",
            editor=ed,
            method=["ddcm", "img2img", "turbo"],
            guidance=[1.0, 2.0],
            seed=range(2),
        ).plan()
    finally:
        for h in handles:
            h.remove()
    assert (
        not ed.cache.items
        and ed.parts.unet.dtype == torch.float32
        and json.loads(json.dumps(p.to_dict()))["settings"] == 12
        and "without duplicates" in p._repr_markdown_()
    )


def test_depth_first_needs_little_memory(ed):
    s = Sweep(
        A,
        "a cup",
        editor=ed,
        method="img2img",
        control="canny",
        steps=2,
        strength=[0.5, 0.9],
        guidance=[1.0, 1.5, 2.0],
        control_scale=[0.5, 1.0],
        seed=[0, 1],
    )
    most = 0
    for _ in s.results():
        most = max(most, sum(k > 1 << 15 for _, k in s.memo.items.values()))
    # the ControlNet's first answers, alone and for a pair
    assert 0 < most <= 2 and s.plan().distinct == 24
    tight = Sweep(
        A,
        "a cup",
        editor=ed,
        method="img2img",
        control="canny",
        guidance=[1.5, 2.0],
        control_scale=[0.5, 1.0],
        memo_bytes=1,
    )
    found = dict(tight.results())
    own = FastEditor(ed.parts)
    assert (
        all(
            found[k].image.tobytes() == own(A, request=tight.jobs[i][2]).image.tobytes()
            for k, (i, _) in enumerate(tight.plan().order)
        )
        and tight.ran["unet"] >= tight.plan().shared()["unet"]
    )


# --- settings


def test_combinations():
    names, found = combinations(
        dict(
            strength=[0.5, 0.6],
            seed=range(2),
            control_scale=(0.5, 1.0),
            options=dict(threshold=np.array([0.1, 0.2]), region="model"),
        )
    )
    assert (
        names == ("strength", "seed", "options.threshold")
        and len(found) == 8
        and found[1]
        == {
            "control_scale": (0.5, 1.0),
            "options.region": "model",
            "strength": 0.5,
            "seed": 0,
            "options.threshold": 0.2,
        }
    )
    kw = dict(strength=Span(0.3, 0.7), seed=Span(0, 9, True), guidance=[1.0, 2.0])
    (_, a), (_, b), (_, c) = (combinations(kw, 20, s) for s in (1, 1, 2))
    assert (
        a == b != c
        and len(a) == 20
        and all(
            0.3 <= d["strength"] <= 0.7
            and isinstance(d["seed"], int)
            and d["guidance"] in (1.0, 2.0)
            for d in a
        )
    )


@pytest.mark.parametrize(
    "kw, why",
    [
        (dict(strenght=[1]), "strenght"),
        (dict(image=["x"]), "image"),
        (dict(seed=[]), "at least one value"),
        (dict(strength=Span(0.1, 0.2)), "draw"),
        (dict(options=3), "dict"),
        (dict(seed=[0], draw=0), "random"),
    ],
)
def test_combinations_that_cannot_be(kw, why):
    draw = kw.pop("draw", None)
    with pytest.raises(OptionError, match=why):
        combinations(kw, draw)


@pytest.mark.parametrize(
    "text, want",
    [
        ("0.3,0.5", [0.3, 0.5]),
        ("1", [1]),
        ("a red ball|a cup, blue", ["a red ball", "a cup, blue"]),
        ("0.3..0.7/5", [0.3, 0.4, 0.5, 0.6, 0.7]),
        ("linear:3:1,2", ["linear:3:1", 2]),
        ("true,false", [True, False]),
        ("0.3..0.7", Span(0.3, 0.7)),
        ("0..9", Span(0, 9, True)),
        ("[0.5,1,1,0]|1", [(0.5, 1, 1, 0), 1]),
        ("[.5,-.25, 1]|[.5", [(0.5, -0.25, 1), "[.5"]),
        ("null,canny", [None, "canny"]),
        (".5,2.", [0.5, 2.0]),
        (".3...7/3", [0.3, 0.5, 0.7]),
        (".3...7", Span(0.3, 0.7)),
    ],
)
def test_values_from_a_command_line(text, want):
    assert read_values(text) == want


@pytest.mark.parametrize(
    "text", ["", ",", "a..b", "0.1..", "..", "0.1..0.2/x", "1,,2", "true..false"]
)
def test_values_that_cannot_be_read(text):
    with pytest.raises(OptionError):
        read_values(text)


def test_settings_that_cannot_run_are_refused_before_anything_runs(ed):
    kw = dict(
        editor=ed, method="img2img", schedule="stock", strength=[0.1, 0.2, 0.5], control="none"
    )
    with pytest.raises(OptionError, match="2 of 3 settings cannot run; the first, strength=0.1"):
        Sweep(A, "a cup", **kw).run()
    s = Sweep(A, "a cup", skip_bad=True, **kw).run(quiet=True)
    assert len(s.rows) == 1 and len(s.left_out) == 2 and len(s.to_dict()["left_out"]) == 2
    for bad in (
        dict(strength=[2.0]),
        dict(method="ddcm", strength=[0.05]),
        dict(method=["nonsense"]),
        dict(guidance=[-1.0]),
    ):
        with pytest.raises(FastEditError):
            Sweep(A, "a cup", editor=ed, skip_bad=True, **bad).plan()
    with pytest.raises(OptionError, match="no prompt"):
        Sweep(A, editor=ed, seed=[1])
    with pytest.raises(DataError, match="called '0'"):
        subjects([Subject("0", A), A, Subject("0", A)])
    with pytest.raises(DataError, match="no picture"):
        subjects([])


# --- running


def test_a_stopped_run_goes_on(ed, tmp_path):
    kw = dict(editor=ed, method="img2img", control="none", strength=[0.5, 0.8], seed=[0, 1, 2])
    clear = lambda s: [
        {k: v for k, v in r.items() if k not in ("seconds", "executed")} for r in s.rows
    ]
    whole = Sweep(A, "a cup", **kw).run(quiet=True)

    def stop(done, total):
        if done == 3:
            raise Cancelled("enough")

    part = Sweep(A, "a cup", out=tmp_path, **kw)
    with pytest.raises(Cancelled):
        part.run(True, stop)
    assert (
        len(part.rows) == 3 == len(list((tmp_path / "images").iterdir()))
        and not (tmp_path / "index.html").exists()
    )
    rows = sorted((tmp_path / "rows").iterdir())
    rows[0].write_text("{")
    rows[1].unlink()
    again = Sweep(A, "a cup", out=tmp_path, **kw)
    seen = []
    again.run(True, lambda d, n: seen.append(d))
    assert seen == [2, 3, 4, 5, 6] and clear(again) == clear(whole) == clear(part.run(quiet=True))
    assert (
        all(again.picture_of(j).tobytes() == whole.picture_of(j).tobytes() for j in range(6))
        and (tmp_path / "index.html").exists()
        and len((tmp_path / "sweep.csv").read_text().splitlines()) == 7
    )
    name = next((tmp_path / "images").iterdir())
    assert EditRequest.from_png(name).method == "img2img" and not list(tmp_path.rglob("*.tmp"))
    third = Sweep(A, "a cup", out=tmp_path, **kw)
    third.run(True, lambda *a: pytest.fail("nothing was left to do"))
    assert third.ran["unet"] == 0


def test_a_failing_setting_is_a_row(ed, monkeypatch):
    real = FastEditor.run

    def sometimes(self, draft):
        if draft.request.seed == 1:
            raise NumericalError("bad weather")
        return real(self, draft)

    monkeypatch.setattr(FastEditor, "run", sometimes)
    s = Sweep(A, "a cup", editor=ed, method="img2img", control="none", seed=[0, 1, 2]).run(
        quiet=True
    )
    assert (
        [r.get("error") for r in s.rows] == [None, "bad weather", None]
        and "failed" in s.html()
        and s.picture().width > 0
    )
    with pytest.raises(DataError, match="bad weather"):
        s.picture_of(1)


# --- what came out


class Judge:
    "A scorer that likes strong edits of odd types and weak ones of the others."

    names, metrics = ("odd/liked",), (SimpleNamespace(up=True, name="odd/liked"),)

    def name(self, m):
        return m.name

    def __call__(self, pairs):
        return [
            {"odd/liked": change(p.source, p.edited) * (1 if p.raw_target == "up" else -1)}
            for p in pairs
        ]


@pytest.fixture(scope="module")
def shown(parts):
    many = [
        replace(
            s,
            type="up" if i % 2 else "down",
            truth=dict(s.truth, raw_target="up" if i % 2 else "down"),
            id=f"p{i}",
        )
        for i, s in enumerate(subjects([pb.sample_edit(t, n) for t in (1, 6) for n in (1, 2, 3)]))
    ]
    return Sweep(
        many,
        editor=FastEditor(parts["cfg"]),
        metrics=Judge(),
        method="img2img",
        control="none",
        schedule="stock",
        strength=[0.3, 0.6, 1.0],
        guidance=[1.0, 2.0],
    ).run(quiet=True)


def test_best_setting_per_type(shown):
    t = shown.best("liked")
    got = dict(zip(t["edit type"], t["best setting"]))
    mean = {(r["type"], r["strength"], r["guidance"]): [] for r in shown.rows}
    for r in shown.rows:
        mean[(r["type"], r["strength"], r["guidance"])].append(r["odd/liked"])
    for kind in ("up", "down"):
        _, a, g = max((k for k in mean if k[0] == kind), key=lambda k: np.mean(mean[k]))
        assert got[kind] == f"strength {a:g}, guidance {g:g}"
    assert (
        got["up"] != got["down"]
        and t["low"][-1] <= t["mean odd/liked"][-1] <= t["high"][-1]
        and t["n"][-1] == 6
    )
    assert np.isnan(t["low"][:-1]).all()  # three pictures of a kind have no interval
    with pytest.raises(OptionError, match="neither better nor worse"):
        shown.best("change")
    with pytest.raises(OptionError, match="is unknown"):
        shown.best("nonsense")


def test_response_curves(shown):
    c = shown.response("change", "strength", by="guidance")
    assert set(c.lines) == {"guidance 1", "guidance 2"}
    for name, pts in c.lines.items():
        for x, y in pts:
            assert (
                math.isclose(
                    y.mean,
                    np.mean(
                        [
                            r["change"]
                            for r in shown.rows
                            if r["strength"] == x and f"guidance {r['guidance']:g}" == name
                        ]
                    ),
                )
                and y.low <= y.mean <= y.high
                and y.n == 6
            )
    assert len(c.table) == 6 and c.plot().get_xlabel() == "strength"
    import matplotlib.pyplot as plt

    plt.close("all")
    with pytest.raises(OptionError, match="does not vary"):
        shown.response("change", "seed")


def test_grid_picture_and_page(shown):
    g = shown.picture("strength", "guidance", side=32, image="p3")
    assert 2 * 36 < g.width and 3 * 36 < g.height < 6 * 36
    assert (
        shown.picture(image="p1").tobytes() != shown.picture(image="p2").tobytes()
        and shown.picture(strength=0.3).height < shown.picture().height
    )
    page = shown.html()
    assert (
        not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//|@import|url\(""", page)
        and page.count("data:image/png;base64,") == shown.plan().distinct == 36
    )
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.S)[1])
    assert len(data["at"]) == 36 and [f["name"] for f in data["fields"]] == [
        "image",
        "strength",
        "guidance",
    ]
    with pytest.raises(OptionError, match="no picture is called"):
        shown.picture(image="x")
    with pytest.raises(DataError):
        shown.picture(strength=0.123)
    assert (
        "36 settings" in repr(shown) and "<script" in shown._repr_html_() and len(shown.table) == 36
    )


def test_a_sweep_shows_a_picture_where_scripts_do_not_run(shown):
    from io import BytesIO
    from PIL import Image

    assert Image.open(BytesIO(shown._repr_png_())).size == shown.picture().size
    assert 'img class="still" src="data:image/' in shown._repr_html_()
    assert 'class="still" src' not in shown.html()  # a page of its own runs its script
    assert Sweep(A, "a cup", model="mini", strength=[0.3])._repr_png_() is None


def test_an_explorer_knows_every_setting_and_each_picture_once(shown):
    from fastedit.widgets import SweepExplorer

    x = SweepExplorer(shown)
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', x.html, re.S)[1])
    assert len(data["settings"]) == 36 == shown.plan().distinct
    assert len(data["images"]) == 36 + len(shown.subjects) == len(data["sizes"])
    assert [(f["name"], f["number"]) for f in data["fields"]] == [
        ("image", False),
        ("strength", True),
        ("guidance", True),
    ]
    first = data["settings"]["0,0,0"]
    assert {first["source"], first["edit"]} <= set(range(len(data["images"])))
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//|@import|url\(""", x.html)


def test_an_explorer_wants_a_sweep_that_has_run():
    from fastedit.widgets import SweepExplorer

    with pytest.raises(OptionError, match="wants a Sweep, got list"):
        SweepExplorer([])
    with pytest.raises(DataError, match="call .run"):
        SweepExplorer(Sweep(A, "a cup", model="mini", strength=[0.3]))


def test_a_page_does_not_let_words_out_of_their_place(ed):
    s = Sweep(
        A,
        ["</script><b>x", "a cup"],
        editor=ed,
        method="img2img",
        control="none",
        strength=0.3,
        schedule="stock",
    ).run(quiet=True)
    assert s.html().count("</script>") == 2 and "<b>x" not in s.html()
    from fastedit.widgets import SweepExplorer

    html = SweepExplorer(s).html
    assert html.count("</script>") == 2 and "<b>x" not in html


# --- the race


@pytest.mark.parametrize("schedule, sample", [("stock", None), ("continuous", 4)])
def test_race(parts, schedule, sample):
    d = race(
        FastEditor(parts["cfg"]),
        subjects(EDITS[1])[0],
        schedule,
        (0.5, 0.6, 0.75),
        dict(guidance=[1.0, 1.5, 2.0], control_scale=[0.0, 0.5], seed=[0]),
        sample,
        quiet=True,
    )
    assert (
        d["identical"]
        and d["as_planned"]
        and d["settings"] == 18
        and d["distinct"] == (12 if schedule == "stock" else 18)
        and d["compared"] == (sample or 18)
    )
    assert (
        math.isclose(d["bound"], d["dedupe_bound"] * d["sharing_bound"])
        and math.isclose(d["speedup_vs_unshared"], d["dedupe_gain"] * d["sharing_gain"])
        and d["sharing_bound"] > 1
        and (d["dedupe_bound"] > 1.2 if schedule == "stock" else math.isclose(d["dedupe_bound"], 1))
    )
    assert json.loads(json.dumps(d))["nfe"]["ran"]["unet"] == d["nfe"]["shared"]["unet"]
    if schedule == "stock":
        assert d["stock_difference"] <= 1


def test_the_raced_grids_have_675_settings():
    for strengths in (FINE, WIDE):
        assert len(set(strengths)) * math.prod(map(len, GRID.values())) == 675


# --- the command


def test_command(tmp_path):
    from fastedit.cli import app

    pic = tmp_path / "a.png"
    A.save(pic)
    run = CliRunner().invoke
    base = [
        "sweep",
        str(pic),
        "a blue ball",
        "--vary",
        "strength=0.25,0.3,0.5",
        "--set",
        "method=img2img",
        "--set",
        "schedule=stock",
        "--set",
        "control=none",
        "--seeds",
        "0,1",
        "--out",
        str(tmp_path / "o"),
        "-q",
    ]
    r = run(app, [*base, "--plan", "--json"])
    assert r.exit_code == 0, r.output
    d = json.loads(r.stdout)
    assert (d["settings"], d["distinct"]) == (6, 4) and not (tmp_path / "o").exists()
    r = run(app, [*base, "--json"])
    assert (
        r.exit_code == 0
        and len(json.loads(r.stdout)["rows"]) == 6
        and (tmp_path / "o" / "index.html").exists()
    )
    r = run(app, base)
    assert r.exit_code == 0 and "index.html" in r.stdout
    for bad in (
        base[:2],
        [*base, "--dataset", str(tmp_path)],
        [*base, "--vary", "nonsense=1"],
        [*base, "--vary", "guidance="],
        [*base, "--vary", "strength=0.1"],
        ["bench-sweep", "--sample", "0"],
    ):
        assert run(app, bad).exit_code == 2, bad


def test_what_was_changed_in_a_folder_runs_again(ed, tmp_path):
    kw = dict(editor=ed, method="img2img", control="none", strength=[0.5, 0.8], seed=[0, 1])
    Sweep(A, "a cup", out=tmp_path, **kw).run(quiet=True)
    rows = sorted((tmp_path / "rows").iterdir())
    kept = json.loads(rows[0].read_text())
    rows[0].write_text(json.dumps(kept | dict(row=kept["row"] | dict(nfe=1))))  # a row
    rows[1].write_text("[" * 100_000)
    picture = tmp_path / "images" / f"{rows[2].stem}.png"
    Image.new("RGB", (64, 64)).save(picture)  # a picture
    left = tmp_path / "rows" / ".fastedit-0123456789ab.tmp"
    left.write_bytes(b"half")  # of a killed run
    again, seen = Sweep(A, "a cup", out=tmp_path, **kw), []
    again.run(True, lambda done, n: seen.append(done))
    assert seen == [2, 3, 4] and not left.exists()


def test_what_the_words_decide_is_told_what_the_picture_shows(ed):
    s = Sweep(EDITS[:1], editor=ed, method="img2img-4", strength=["auto", 0.8])
    source = pb.sample_edit(1, 7).source_prompt.replace("[", "").replace("]", "")
    assert [r.source_prompt for _, _, r in s.jobs] == [source, None]
