"One thread for a small network, all of them for a large one, only while an edit lasts, and everything put back."
import threading
from types import SimpleNamespace
import pytest, torch
from fastedit import FastEditor, world as pb
from fastedit.core import Cancelled
from fastedit.models import load_model
from fastedit.denoise.threads import SMALL, few_threads, threads_for

@pytest.fixture
def two():
    "torch told to use two threads, here and in threads to come."
    before = torch.get_num_threads(); torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)

def network(weights): return SimpleNamespace(unet=torch.nn.Embedding(weights, 1, device="meta"), device=torch.device("cpu"))
def in_new_thread(f):
    found = []; t = threading.Thread(target=lambda: found.append(f())); t.start(); t.join(); return found[0]

def test_the_size_of_the_network_decides(two):
    assert threads_for(network(SMALL-1)) == 1 and threads_for(network(SMALL)) == 2
    assert threads_for(SimpleNamespace(unet=torch.nn.Embedding(1, 1), device=torch.device("cuda"))) == 2   # the GPU's work is not divided among threads
    assert threads_for(SimpleNamespace(device=torch.device("cpu"))) == 2                                   # a flow model

def test_an_exchanged_unet_is_counted_anew(two):
    parts = network(SMALL-1); assert threads_for(parts) == 1
    parts.unet = network(SMALL).unet; assert threads_for(parts) == 2

def test_a_smaller_choice_of_the_users_wins(two):
    torch.set_num_threads(1)
    with few_threads(network(SMALL)) as n: assert n == torch.get_num_threads() == 1

@pytest.mark.parametrize("error", [False, True])
def test_put_back_afterwards_and_for_nobody_else(two, error):
    try:
        with few_threads(network(1)) as n:
            assert n == torch.get_num_threads() == 1 and in_new_thread(torch.get_num_threads) == 2
            if error: raise Cancelled("x")
    except Cancelled: pass
    assert torch.get_num_threads() == 2 == in_new_thread(torch.get_num_threads)

def test_two_threads_at_once_leave_each_other_alone(two):
    inside, leave, seen = threading.Event(), threading.Event(), {}
    def edits():
        seen["before"] = torch.get_num_threads()
        with few_threads(network(1)): inside.set(); leave.wait(10); seen["inside"] = torch.get_num_threads()
        seen["after"] = torch.get_num_threads()
    t = threading.Thread(target=edits); t.start(); inside.wait(10)
    torch.set_num_threads(3); assert torch.get_num_threads() == 3   # another part of the program, meanwhile
    leave.set(); t.join(10)
    assert seen == dict(before=2, inside=1, after=2) and torch.get_num_threads() == 3 == in_new_thread(torch.get_num_threads)

def test_an_edit_has_the_same_bytes_whatever_torch_was_told(two):
    editor, image = FastEditor(load_model("mini", device="cpu")), pb.render(pb.sample_scene(5), 64)
    seen, results = [], []
    for n in (2, 1):
        torch.set_num_threads(n); editor.cache.clear()
        r = editor(image, "a blue ball", method="img2img", steps=2, seed=1, on_step=lambda s: seen.append(torch.get_num_threads()))
        results.append((r.image.tobytes(), r.latents)); assert torch.get_num_threads() == n
    assert set(seen) == {1} and results[0][0] == results[1][0] and torch.equal(results[0][1], results[1][1])

def test_a_stopped_edit_puts_the_number_back(two):
    def stop(s): raise Cancelled("x")
    with pytest.raises(Cancelled): FastEditor(load_model("mini", device="cpu"))(pb.render(pb.sample_scene(5), 64), "a ball", method="img2img", steps=1, on_step=stop)
    assert torch.get_num_threads() == 2
