"The notebook editor without a browser: what it shows and exports is what ran."

import threading
import numpy as np
import pytest
from fastedit import FastEditor, world
from fastedit.editor import EditRequest
from fastedit.widgets import EditorWidget


@pytest.fixture(scope="module")
def editor():
    return FastEditor("mini")


@pytest.fixture
def widget(editor):
    scene = world.Scene(
        (world.Thing("ball", "red", "plain", "large", 0.0, 0.5, 0.5),), "meadow", "flat", 0.3
    )
    picture = world.render(scene, 64)
    return EditorWidget(
        editor, picture, "a drawing of a large blue ball on a meadow", world.caption(scene)
    )


def run(widget):
    widget.c["run"].click()
    assert widget.wait(120)
    return widget.result


def test_an_edit_of_the_widget_is_the_edit_of_its_request(widget, editor):
    done = run(widget)
    again = editor(widget.image, request=widget.asked)
    assert again.image.tobytes() == done.image.tobytes()


def test_the_json_that_it_exports_is_the_request(widget):
    done = run(widget)
    assert EditRequest.from_json(widget.c["json"].value) == done.request


def test_a_mask_keeps_the_rest(widget):
    widget.masks.c["kind"].value = "ellipse"
    widget.masks.c["draw"].click()
    done = run(widget)
    outside = widget.mask == 0
    assert outside.any()
    assert np.array_equal(np.asarray(done.image)[outside], np.asarray(done.source)[outside])


def test_a_step_back_restores_the_settings(widget):
    run(widget)
    assert widget.knobs.controls["strength"].value == 0.8
    widget.knobs.controls["strength"].value = 0.9
    assert widget.wait(120)
    widget.restore(widget.history[0])
    assert widget.knobs.controls["strength"].value == 0.8


def test_bytes_of_a_browser_are_a_mask(widget):
    from fastedit.pictures import pack_mask

    painted = np.zeros((64, 64), np.float32)
    painted[8:24, 8:24] = 1
    widget.masks.brush.set_state(dict(mask=memoryview(pack_mask(painted))))
    assert np.array_equal(widget.mask, painted)


@pytest.fixture
def slow(monkeypatch):
    "Models load only after `slow.set()`; `slow.names` are those that were asked for."
    import fastedit.widgets.editor_widget as page

    gate = threading.Event()
    gate.names = []

    def load(name):
        gate.names.append(name)
        assert gate.wait(60)
        return FastEditor(name)

    monkeypatch.setattr(page, "FastEditor", load)
    yield gate
    gate.set()


def test_a_knob_turned_while_a_model_loads_asks_the_new_model(widget, slow):
    run(widget)
    widget.c["model"].value = "mini-s"
    widget.knobs.controls["strength"].value = 0.9
    assert len(widget.history) == 1
    slow.set()
    assert widget.wait(120)
    asked = widget.result.request
    assert (asked.model, asked.strength) == ("mini-s", 0.9) and len(widget.history) == 2


def test_cancelling_a_load_keeps_the_model(widget, slow):
    widget.c["model"].value = "mini-s"
    widget.c["cancel"].click()
    slow.set()
    assert widget.wait(120)
    assert widget.c["model"].value == widget.editor.spec.key == "mini"


def test_a_step_back_brings_its_model(widget):
    run(widget)
    widget.c["model"].value = "mini-s"
    assert widget.wait(120) and widget.result.request.model == "mini-s"
    widget.restore(widget.history[0])
    assert widget.wait(120)
    assert (
        widget.editor.spec.key == widget.c["model"].value == widget.result.request.model == "mini"
    )
    assert len(widget.history) == 2


def test_an_empty_prompt_is_said_in_the_widget(widget):
    widget.c["prompt"].value = ""
    widget.c["run"].click()
    assert "the prompt is empty" in widget.c["words"].value


def test_a_missing_file_is_said_in_the_widget(widget):
    widget.open("nowhere.png")
    assert "nowhere.png" in widget.c["words"].value


def test_the_command_line_knows_every_flag_that_is_exported():
    import shlex
    import typer
    from fastedit.cli import app
    from fastedit.widgets.exports import as_cli

    known = {f for p in typer.main.get_command(app).commands["edit"].params for f in p.opts}
    full = EditRequest(
        "a blue ball",
        "a red ball",
        "grey",
        method="ddcm",
        steps=3,
        strength=0.5,
        guidance=2.0,
        source_guidance=1.5,
        control="canny",
        control_scale=0.5,
        schedule="continuous",
        size=(64, 64),
        precision="fp32",
        feather=1.0,
        seed=7,
        options=dict(uac=True),
    )
    flags = {w for w in shlex.split(as_cli(full, mask="mask.png")) if w.startswith("-")}
    assert "--source-guidance" in flags
    assert flags <= known


# ---- a step back says the same again


def back(widget, result, asked, **given):
    "Show an edit, turn to another one, and come back."
    widget.show(result, asked, widget.image, given)
    widget.c["live"].value, widget.c["method"].value = False, "ddcm"
    widget.restore(widget.history[-1])
    return widget


EVERYTHING = dict(
    negative_prompt="",
    method="img2img",
    steps=2,
    strength=1.0,
    guidance=1.0,
    control="none",
    scheduler="euler",
    mask_crop=4,
    clip_skip=1,
    prompt_weights=True,
    long_prompts=True,
    size=(64, 64),
    feather=40.0,
    seed=2**60,
    repair=True,
)


@pytest.fixture(scope="module")
def made(editor):
    "An edit by a request whose fields are given, all of them, and its request."
    picture = world.render(world.sample_scene(3), 64)
    mask = np.zeros((64, 64), np.float32)
    mask[8:56, 8:56] = 1
    asked = EditRequest(" a (blue:1.2) ball", **EVERYTHING)
    return editor(picture, mask=mask, request=asked), asked, picture


def test_a_step_back_asks_for_all_of_its_request(widget, made):
    done, asked, picture = made
    widget.open(picture)
    assert back(widget, done, asked).request() == asked


def test_a_step_back_run_again_is_the_same_edit(widget, made):
    done, asked, picture = made
    widget.open(picture)
    again = run(back(widget, done, asked))
    assert again.request == done.request
    assert again.image.tobytes() == done.image.tobytes()


def test_a_step_back_says_what_it_holds(widget, made):
    words = back(widget, *made[:2]).c["words"].value
    assert "scheduler=&#x27;euler&#x27;" in words and "clip_skip=1" in words


@pytest.mark.parametrize("name,value", [("seed", 5), ("feather", 3.0), ("negative_prompt", "grey")])
def test_what_is_put_in_counts_over_what_was_held(widget, made, name, value):
    back(widget, *made[:2]).c[name].value = value
    assert getattr(widget.request(), name) == value


def test_a_knob_counts_over_what_was_held(widget, made):
    back(widget, *made[:2]).knobs.controls["strength"].value = 0.7
    assert widget.request().strength == 0.7


def test_another_method_drops_what_was_held(widget, made):
    back(widget, *made[:2]).c["method"].value = "ddcm"
    assert (widget.request().scheduler, widget.request().clip_skip) == (None, None)


def test_another_picture_drops_the_size(widget, made):
    back(widget, *made[:2]).open(world.render(world.sample_scene(4), 64))
    assert widget.request().size is None and widget.request().clip_skip == 1


def test_another_model_keeps_what_was_held(widget, made):
    back(widget, *made[:2]).c["model"].value = "mini-s"
    assert widget.wait(120)
    assert widget.request().scheduler == "euler" and widget.editor.spec.key == "mini-s"


def test_a_step_back_brings_what_its_request_names_by_a_hash(widget, editor):
    shape = world.render(world.sample_scene(9), 64)
    done = editor(widget.image, "a ball", control=shape, method="img2img", steps=1)
    again = run(back(widget, done, done.request, control=shape))
    assert again.request.control == done.request.control
    assert again.image.tobytes() == done.image.tobytes()


def test_a_reference_picture_comes_back(widget, made):
    done, asked, picture = made
    asked = EditRequest("a ball", reference="picture:0123456789abcdef")
    assert back(widget, done, asked, reference=picture)._wanted()[3] == dict(reference=picture)


def test_switches_are_flags_without_a_value_on_a_command_line():
    import shlex
    from fastedit.widgets.exports import as_cli

    words = shlex.split(as_cli(EditRequest("a ball", repair=True)))
    assert words[words.index("--repair") + 1] == "-o"


def test_a_flow_models_ways_stand_in_the_menu(tmp_path):
    from dataclasses import replace
    from fastedit import FastEditor, models as M
    from fastedit.editor import flow as F

    folder = F.random_flow(tmp_path / "klein", "flux2-klein")
    spec = replace(M.MODELS["flux2-klein"], base=M.Source(str(folder)), resolution=64)
    w = EditorWidget(editor=FastEditor(spec, device="cpu"), prompt="a blue ball")
    menu = w.c["method"]
    assert menu.options == ("flow", "flowedit") and not menu.disabled
    assert w.request().method == "flow" and set(w.knobs.controls) == {"steps"}
    menu.value = "flowedit"
    assert set(w.knobs.controls) == {"steps", "strength", "n_avg", "n_min"}
    w.knobs.controls["strength"].value = 0.5
    r = w.request()
    assert (r.method, r.strength) == ("flowedit", 0.5)
    w._offer(None)
    assert "ddcm" in menu.options and menu.value == "edit_friendly-4"
