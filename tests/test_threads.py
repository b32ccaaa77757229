"""One thread for a small network, all of them for a large one, only while an edit lasts, and
everything put back."""

import os, signal, threading
from types import SimpleNamespace
import pytest, torch
from fastedit import FastEditor, world as pb
from fastedit.core import Cancelled, OptionError
from fastedit.denoise import is_exchanged, turn_of
from fastedit.models import load_model
from fastedit.denoise.threads import SMALL, few_threads, threads_for


@pytest.fixture
def two():
    "torch told to use two threads, here and in threads to come."
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def network(weights):
    return SimpleNamespace(
        unet=torch.nn.Embedding(weights, 1, device="meta"), device=torch.device("cpu")
    )


def in_new_thread(f):
    found = []
    t = threading.Thread(target=lambda: found.append(f()))
    t.start()
    t.join()
    return found[0]


def test_the_size_of_the_network_decides(two):
    assert threads_for(network(SMALL - 1)) == 1 and threads_for(network(SMALL)) == 2
    # the GPU's work is not divided among threads
    assert (
        threads_for(SimpleNamespace(unet=torch.nn.Embedding(1, 1), device=torch.device("cuda")))
        == 2
    )
    assert threads_for(SimpleNamespace(device=torch.device("cpu"))) == 2  # a flow model


def test_an_exchanged_unet_is_counted_anew(two):
    parts = network(SMALL - 1)
    assert threads_for(parts) == 1
    parts.unet = network(SMALL).unet
    assert threads_for(parts) == 2


def test_a_smaller_choice_of_the_users_wins(two):
    torch.set_num_threads(1)
    with few_threads(network(SMALL)) as n:
        assert n == torch.get_num_threads() == 1


@pytest.mark.parametrize("error", [False, True])
def test_put_back_afterwards_and_for_nobody_else(two, error):
    try:
        with few_threads(network(1)) as n:
            assert n == torch.get_num_threads() == 1 and in_new_thread(torch.get_num_threads) == 2
            if error:
                raise Cancelled("x")
    except Cancelled:
        pass
    assert torch.get_num_threads() == 2 == in_new_thread(torch.get_num_threads)


def test_two_threads_at_once_leave_each_other_alone(two):
    inside, leave, seen = threading.Event(), threading.Event(), {}

    def edits():
        seen["before"] = torch.get_num_threads()
        with few_threads(network(1)):
            inside.set()
            leave.wait(10)
            seen["inside"] = torch.get_num_threads()
        seen["after"] = torch.get_num_threads()

    t = threading.Thread(target=edits)
    t.start()
    inside.wait(10)
    torch.set_num_threads(3)
    assert torch.get_num_threads() == 3  # another part of the program, meanwhile
    leave.set()
    t.join(10)
    assert seen == dict(
        before=2, inside=1, after=2
    ) and torch.get_num_threads() == 3 == in_new_thread(torch.get_num_threads)


def test_an_edit_has_the_same_bytes_whatever_torch_was_told(two):
    editor, image = FastEditor(load_model("mini", device="cpu")), pb.render(pb.sample_scene(5), 64)
    seen, results = [], []
    for n in (2, 1):
        torch.set_num_threads(n)
        editor.cache.clear()
        r = editor(
            image,
            "a blue ball",
            method="img2img",
            steps=2,
            seed=1,
            on_step=lambda s: seen.append(torch.get_num_threads()),
        )
        results.append((r.image.tobytes(), r.latents))
        assert torch.get_num_threads() == n
    assert (
        set(seen) == {1}
        and results[0][0] == results[1][0]
        and torch.equal(results[0][1], results[1][1])
    )


def test_a_stopped_edit_puts_the_number_back(two):
    def stop(s):
        raise Cancelled("x")

    with pytest.raises(Cancelled):
        FastEditor(load_model("mini", device="cpu"))(
            pb.render(pb.sample_scene(5), 64), "a ball", method="img2img", steps=1, on_step=stop
        )
    assert torch.get_num_threads() == 2


# --- one loaded model, several callers


@pytest.fixture(scope="module")
def model():
    return load_model("mini", device="cpu")


PICTURE = pb.render(pb.sample_scene(5), 64)
EDITS = dict(
    control=dict(method="img2img", control="canny", control_scale=0.5, steps=2),
    words=dict(method="ddcm", steps=2, options=dict(region="words")),
)


def made(editor, kind, seed=1, **kw):
    asked = dict(EDITS[kind], source_prompt="a red ball", seed=seed)
    return editor(PICTURE, "a blue ball", **asked, **kw).image.tobytes()


def in_threads(*functions):
    "Run functions at once; what they gave, or their error."
    found = [None] * len(functions)

    def run(i, f):
        try:
            found[i] = f()
        except Exception as e:
            found[i] = e

    threads = [threading.Thread(target=run, args=x, daemon=True) for x in enumerate(functions)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert not any(t.is_alive() for t in threads), "a thread waits for ever"
    return found


def test_two_editors_on_one_model_give_the_bytes_of_one(model):
    alone = {k: [made(FastEditor(model), k, s) for s in (1, 2)] for k in EDITS}

    def several(kind):
        editor = FastEditor(model)
        return lambda: [made(editor, kind, s) for s in (1, 2)]

    assert in_threads(*map(several, EDITS)) == list(alone.values())


@pytest.mark.parametrize("kind", EDITS)
def test_a_question_in_the_middle_of_another_threads_call_is_its_own(model, kind):
    "Half of one call has run when the other thread asks."
    editor, d = FastEditor(model), FastEditor(model).denoiser(edges=torch.zeros(1, 3, 64, 64))
    x, text = (
        torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)),
        d.text("a ball"),
    )

    def asks():
        return d.output(x, 499, text, 1.0, 0.5)

    want, inside, seen = asks(), [], []

    def halfway(*_):
        if inside or threading.current_thread() is not threading.main_thread():
            return
        inside.append(1)
        seen.extend(in_threads(asks))

    nets = model.unet, model.controlnet
    hooks = [net.down_blocks[0].register_forward_hook(halfway) for net in nets]
    try:
        made(editor, kind)
    finally:
        for h in hooks:
            h.remove()
    assert len(seen) == 1 and torch.equal(seen[0], want)


def test_between_two_steps_the_networks_are_untouched(model):
    before, stem, seen = model.unet.attn_processors, model.controlnet.controlnet_cond_embedding, []

    def look(_):
        now = model.unet.attn_processors
        hooks = any(m._forward_hooks for m in model.unet.modules())
        seen.append(all(now[k] is p for k, p in before.items()) and not hooks)
        assert model.controlnet.controlnet_cond_embedding is stem

    made(FastEditor(model), "words", on_step=look, control="canny", control_scale=0.5)
    assert seen == [True] * 2


@pytest.mark.parametrize("other", [False, True])
def test_an_edit_from_its_own_on_step_is_refused(model, other):
    editor = FastEditor(model)
    inner = FastEditor(model) if other else editor

    def again(_):
        made(inner, "control")

    [error] = in_threads(lambda: made(editor, "words", on_step=again))
    assert isinstance(error, OptionError) and "'mini'" in str(error) and "on_step" in str(error)
    assert not editor._lock.locked() and isinstance(made(editor, "control"), bytes)


def test_an_edit_with_another_model_from_on_step_works(model):
    inner, found = FastEditor(load_model("mini-s", device="cpu")), []
    made(FastEditor(model), "control", on_step=lambda _: found.append(made(inner, "control")))
    assert found == [made(inner, "control")] * 2


def test_two_edits_that_want_each_others_model_do_not_wait_for_ever():
    a, b, met = torch.nn.Identity(), torch.nn.Identity(), threading.Barrier(2, timeout=30)

    def first_then(own, other):
        with turn_of(own):
            met.wait()
            with turn_of(other):
                return True

    found = in_threads(lambda: first_then(a, b), lambda: first_then(b, a))
    assert sorted(map(type, found), key=str) == sorted((bool, OptionError), key=str)
    assert not turn_of(a).locked() and not turn_of(b).locked()


def test_an_edit_is_cancelled_from_another_thread(model):
    stop, begun = threading.Event(), threading.Event()

    def watch(_):
        begun.set()
        stop.wait(30)
        if stop.is_set():
            raise Cancelled("stopped")

    def stops():
        begun.wait(30)
        stop.set()

    editor = FastEditor(model)
    error, _ = in_threads(lambda: made(editor, "words", on_step=watch), stops)
    assert isinstance(error, Cancelled) and not editor._lock.locked()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_while_another_thread_edits_goes_on(model):
    editor, begun, go_on = FastEditor(model), threading.Event(), threading.Event()
    want = made(editor, "words")

    def halfway(*_):  # inside the network, with everything put in
        begun.set()
        go_on.wait(60)

    hook = model.unet.down_blocks[0].register_forward_hook(halfway)
    thread = threading.Thread(target=lambda: made(editor, "words"), daemon=True)
    thread.start()
    begun.wait(30)
    child = os.fork()
    if not child:
        signal.alarm(60)
        try:
            hook.remove()
            clean = not is_exchanged(model.unet, "attention")
            os._exit(0 if clean and made(editor, "words") == want else 1)
        finally:
            os._exit(2)
    go_on.set()
    thread.join(60)
    hook.remove()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert made(editor, "words") == want
