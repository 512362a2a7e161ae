"""What holds for each built-in workload, and what each of them learns."""

import math
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from laconic.errors import ConfigError
from laconic.workloads import load, names
from laconic.workloads.adult import rows
from laconic.workloads.fashion import images
from laconic.workloads.shakespeare import make_model, text

torch.set_num_threads(1)


def first(workload, split="train", *, worker=0, workers=1, seed=0, count=3):
    return list(islice(workload.batches(split, worker, workers, seed), count))


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(x, y) for one, two in zip(a, b, strict=True) for x, y in zip(one, two, strict=True)
    )


def train(workload, steps, seed=0):
    torch.manual_seed(seed)
    model = workload.make_model()
    optimizer = workload.make_optimizer(model)
    for batch in islice(workload.batches("train", 0, 1, seed), steps):
        optimizer.zero_grad()
        workload.loss(model, batch).backward()
        optimizer.step()
    return model


@torch.no_grad()
def accuracy(workload, model):
    hits = []
    for inputs, labels in workload.batches("eval", 0, 1, 0):
        scores = model(inputs)
        hits.append((scores.argmax(1) if scores.shape[1] > 1 else scores.squeeze(1) > 0) == labels)
    return torch.cat(hits).float().mean().item()


@pytest.mark.parametrize("name", names())
def test_it_passes_its_own_check(name):
    load(name).check()


@pytest.mark.parametrize("name", names())
def test_batches_are_the_same_for_the_same_seed_and_others_for_another(name):
    workload = load(name)
    assert same(first(workload, seed=3), first(workload, seed=3))
    assert not same(first(workload, seed=3), first(workload, seed=4))


@pytest.mark.parametrize("name", names())
def test_two_workers_get_different_batches(name):
    workload = load(name)
    assert not same(first(workload, worker=0, workers=2), first(workload, worker=1, workers=2))


@pytest.mark.parametrize("name", names())
def test_evaluation_is_the_same_for_every_worker_and_seed(name):
    workload = load(name)
    alone = first(workload, "eval", count=100)
    assert same(alone, first(workload, "eval", worker=2, workers=3, seed=9, count=100))
    assert same(alone, list(workload.batches("eval", 0, 1, 0)))


@pytest.mark.parametrize("name", names())
def test_a_batch_has_the_size_that_was_asked_for(name):
    assert {len(inputs) for inputs, _ in first(load(name, {"batch_size": "5"}))} == {5}


@pytest.mark.parametrize("name", names())
def test_a_batch_size_of_zero_is_refused(name):
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        load(name, {"batch_size": 0}).batches("train", 0, 1, 0)


@pytest.mark.parametrize("name", names())
def test_the_same_torch_seed_makes_the_same_model(name):
    workload = load(name)
    torch.manual_seed(1)
    a = workload.make_model().state_dict()
    torch.manual_seed(1)
    b = workload.make_model().state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_data_in_the_licence_page_are_the_data_in_the_package():
    import hashlib

    folder = Path(__file__).parents[2] / "laconic" / "workloads" / "data"
    page = (folder / "LICENSES.md").read_text()
    for path in [*folder.glob("*.gz"), *folder.glob("*.npz")]:
        assert f"| `{path.name}` |" in page
        assert hashlib.sha256(path.read_bytes()).hexdigest() in page


# Shakespeare


def test_shakespeare_is_split_nine_to_one_by_position():
    train_text, held_out, alphabet = text()
    assert (len(train_text), len(held_out), len(alphabet)) == (1_003_854, 111_540, 65)
    assert "".join(alphabet[i] for i in train_text[:14]) == "First Citizen:"


def test_the_workers_of_shakespeare_predict_every_character_of_the_text_once_in_a_pass():
    workers, context = 3, 500
    num_windows = (len(text()[0]) - 1) // context
    targets = []
    for worker in range(workers):
        share = len(range(worker, num_windows, workers))
        workload = load("shakespeare", {"context": context, "batch_size": share})
        targets.append(next(workload.batches("train", worker, workers, 0))[1])
    ours = torch.cat(targets)
    true = text()[0][1 : 1 + num_windows * context].view(num_windows, context)
    assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, true.tolist()))


def test_shakespeare_targets_are_the_inputs_one_character_on():
    for inputs, targets in first(load("shakespeare")) + first(load("shakespeare"), "eval"):
        assert torch.equal(inputs[:, 1:], targets[:, :-1])


@pytest.mark.parametrize("context", [16, 64, 100, 1024])
def test_shakespeare_evaluates_on_about_24_thousand_characters_from_end_to_end(context):
    workload = load("shakespeare", {"context": context})
    batches = list(workload.batches("eval", 0, 1, 0))
    assert 23_000 < sum(map(workload.tokens, batches)) <= 24_576
    held_out = text()[1]
    assert torch.equal(batches[0][0][0], held_out[:context])
    assert torch.equal(batches[-1][1][-1], held_out[-context:])


@pytest.mark.parametrize(
    ("size", "parameters"), [("nano", 111_040), ("micro", 812_416), ("small", 3_197_696), ("ten", 10_696_320)]
)
def test_the_sizes_of_shakespeare_have_the_parameters_they_claim(size, parameters):
    with torch.device("meta"):
        model = make_model(size)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert "blocks.1.attention.qkv.weight" in dict(model.named_parameters())


def test_an_unknown_size_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="'mirco'; did you mean 'micro'"):
        load("shakespeare", {"size": "mirco"}).make_model()


def test_a_fresh_shakespeare_model_guesses_evenly():
    workload = load("shakespeare", {"size": "nano"})
    torch.manual_seed(0)
    value = workload.loss(workload.make_model(), first(workload)[0])
    assert abs(value.item() - math.log(65)) < 0.1


def test_a_shakespeare_model_does_not_see_the_characters_to_come():
    torch.manual_seed(0)
    model = make_model("nano")
    inputs = torch.randint(65, (2, 64))
    changed = inputs.clone()
    changed[:, 40:] = 0
    torch.testing.assert_close(model(inputs)[:, :40], model(changed)[:, :40])


def test_weights_into_the_residual_path_start_smaller_by_the_root_of_twice_the_layers():
    torch.manual_seed(0)
    weights = dict(make_model("micro").named_parameters())
    assert abs(weights["blocks.0.mlp.up.weight"].std().item() / 0.02 - 1) < 0.02
    assert abs(weights["blocks.0.mlp.down.weight"].std().item() * math.sqrt(8) / 0.02 - 1) < 0.02


def test_weight_decay_is_on_matrices_only():
    workload = load("shakespeare", {"size": "nano"})
    model = workload.make_model()
    groups = workload.make_optimizer(model).param_groups
    assert [(g["weight_decay"], {p.dim() for p in g["params"]}) for g in groups] == [(0.1, {2}), (0.0, {1})]
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))


def test_shakespeare_may_step_by_sgd_with_momentum_and_by_no_other():
    workload = load("shakespeare", {"size": "nano", "optimizer": "sgd"})
    optimizer = workload.make_optimizer(workload.make_model())
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["momentum"] == 0.9
    other = load("shakespeare", {"optimizer": "sdg"})
    with pytest.raises(ConfigError, match="did you mean 'sgd'"):
        other.make_optimizer(other.make_model())


def test_nano_shakespeare_learns_far_below_an_even_guess_in_sixty_steps():
    workload = load("shakespeare", {"size": "nano"})
    model = train(workload, 60)
    with torch.no_grad():
        value = next(workload.loss(model, batch) for batch in workload.batches("eval", 0, 1, 0))
    assert value.item() < math.log(65) - 1.3


# Fashion


@pytest.mark.parametrize(("split", "each"), [("train", 1200), ("eval", 200)])
def test_fashion_has_as_many_images_of_each_class(split, each):
    pixels, labels = images(split)
    assert pixels.shape == (10 * each, 1, 28, 28)
    assert pixels.dtype == torch.float32
    assert torch.bincount(labels).tolist() == [each] * 10


def test_fashion_pixels_are_normalised():
    pixels, _ = images("train")
    assert abs(pixels.mean()) < 0.02
    assert abs(pixels.std() - 1) < 0.02


def test_the_workers_of_fashion_see_every_image_once_in_a_pass():
    workload = load("fashion", {"batch_size": 4000, "skew": 0.5})
    pixels = torch.cat([next(workload.batches("train", worker, 3, 0))[0] for worker in range(3)])
    ours, true = (np.sort(p.double().flatten(1).mul(torch.arange(784)).sum(1)) for p in (pixels, images("train")[0]))
    np.testing.assert_allclose(ours, true, rtol=1e-9)


def test_full_skew_gives_each_of_five_workers_two_kinds_of_clothing():
    workload = load("fashion", {"skew": "1", "batch_size": 2400})
    seen = [set(next(workload.batches("train", worker, 5, 0))[1].tolist()) for worker in range(5)]
    assert seen == [{0, 1}, {2, 3}, {4, 5}, {6, 7}, {8, 9}]


def test_fashion_recognises_seven_of_ten_after_120_steps():
    workload = load("fashion")
    assert accuracy(workload, train(workload, 120)) > 0.7


# Adult


@pytest.mark.parametrize(("split", "count", "positive"), [("train", 32_561, 7_841), ("eval", 16_281, 3_846)])
def test_adult_has_the_rows_and_labels_of_a9a(split, count, positive):
    features, labels = rows(split)
    assert features.shape == (count, 123)
    assert labels.sum() == positive
    assert set(features.unique().tolist()) == {0.0, 1.0}


def test_adult_has_all_the_entries_of_a9a():
    assert (rows("train")[0].sum().item(), rows("eval")[0].sum().item()) == (451_592, 225_731)


def test_the_first_row_of_adult_is_the_first_row_of_a9a():
    features, labels = rows("train")
    assert (features[0].nonzero().flatten() + 1).tolist() == [3, 11, 14, 19, 39, 42, 55, 64, 67, 73, 75, 76, 80, 83]
    assert labels[0] == 0


def test_adult_evaluation_batches_weigh_the_same():
    workload = load("adult")
    assert {workload.tokens(batch) for batch in workload.batches("eval", 0, 1, 0)} == {1809}


def test_adult_loss_holds_the_penalty_on_weights_and_not_on_the_bias():
    workload = load("adult")
    model = workload.make_model()
    nothing = torch.zeros(1, 123), torch.zeros(1)
    with torch.no_grad():
        before = workload.loss(model, nothing)
        model.weight.fill_(10.0)
        assert abs(workload.loss(model, nothing) - before - 0.5e-4 * 123 * 100).item() < 1e-5


def test_adult_is_right_more_than_83_times_in_a_hundred_after_one_pass():
    workload = load("adult")
    assert accuracy(workload, train(workload, 255)) > 0.83
