"""Loading a workload, built in or a user's own, and every sentence said when something is wrong with it."""

import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch

from laconic.errors import ConfigError, WorkloadError
from laconic.workloads import describe, load, names

torch.set_num_threads(1)

MINE = Path(__file__).parents[2] / "examples" / "mine.py"
GOOD = {
    "make_model": "def make_model():\n    return torch.nn.Linear(2, 1)\n",
    "batches": (
        "def batches(split, worker, workers, seed):\n"
        "    for _ in range(3) if split == 'eval' else itertools.count():\n"
        "        yield torch.ones(5, 2)\n"
    ),
    "loss": "def loss(model, batch):\n    return model(batch).mean()\n",
}


@pytest.fixture
def write(tmp_path):
    """A file of three good functions, with some of them replaced (or left out, if replaced by nothing)."""

    def write(extra="", **replaced):
        path = tmp_path / "mine.py"
        path.write_text("import itertools\nimport torch\n" + "".join((GOOD | replaced).values()) + extra)
        return str(path)

    return write


# What loads


def test_the_built_in_workloads_have_names():
    assert names() == ["adult", "fashion", "shakespeare"]


@pytest.mark.parametrize("name", names())
def test_a_built_in_workload_has_its_name_its_options_and_no_path(name):
    workload = load(name)
    assert (workload.name, workload.path) == (name, None)
    assert "batch_size" in workload.options


def test_importing_the_package_imports_no_workload():
    code = "import sys, laconic.workloads; print([m for m in sys.modules if m.startswith('laconic.workloads.')])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", names())
def test_a_description_is_a_line_and_a_line_for_each_option_with_its_default(name):
    first, *lines = describe(name).splitlines()
    assert first.endswith((".", "?"))
    assert [line.split()[0] for line in lines] == list(load(name).options)
    for line, default in zip(lines, load(name).options.values(), strict=True):
        assert line.endswith(f"(default: {default})")


def test_a_file_can_be_described_without_being_run(write):
    assert describe(write()) == "No description: mine.py has no docstring."
    assert "width " in describe(str(MINE))


def test_the_example_of_a_users_own_file_passes_its_check_and_learns():
    workload = load(str(MINE))
    workload.check()
    torch.manual_seed(0)
    model = workload.make_model()
    optimizer = workload.make_optimizer(model)
    for batch in islice(workload.batches("train", 0, 1, 0), 800):
        optimizer.zero_grad()
        workload.loss(model, batch).backward()
        optimizer.step()
    (held_out,) = workload.batches("eval", 0, 1, 0)
    assert workload.loss(model, held_out) < 0.1


def test_a_users_file_stands_on_an_equal_footing_with_a_built_in_one(write):
    path = write()
    workload = load(path)
    workload.check()
    assert (workload.name, str(workload.path), dict(workload.options)) == ("mine", path, {})


def test_two_files_of_one_name_do_not_meet(tmp_path):
    for folder, width in (("a", 3), ("b", 4)):
        (tmp_path / folder).mkdir()
        model = f"def make_model():\n    return torch.nn.Linear({width}, 1)\n"
        (tmp_path / folder / "mine.py").write_text("import torch\n" + model + GOOD["batches"] + GOOD["loss"])
    a, b = (load(str(tmp_path / folder / "mine.py")) for folder in "ab")
    assert (a.make_model().in_features, b.make_model().in_features) == (3, 4)


def test_loading_leaves_nothing_beside_the_users_file(write):
    path = Path(write())
    load(str(path))
    assert [p.name for p in path.parent.iterdir()] == ["mine.py"]


def test_a_users_file_can_import_what_lies_beside_it(write, tmp_path):
    (tmp_path / "beside_the_users_file.py").write_text("width = 7\n")
    assert load(write(extra="from beside_the_users_file import width\n")).name == "mine"


def test_a_users_file_can_define_dataclasses(write):
    load(write(extra="from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int' = 1\n")).check()


def test_without_an_optimizer_of_its_own_a_workload_gets_adamw(write):
    workload = load(write())
    optimizer = workload.make_optimizer(workload.make_model())
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["lr"] == 1e-3


@pytest.mark.parametrize(
    "batch", ["torch.ones(5, 2)", "(torch.ones(5, 2), 1)", "{'x': [torch.ones(5, 2), torch.ones(3)]}"]
)
def test_without_a_count_of_its_own_a_batch_counts_by_the_length_of_its_first_tensor(write, batch):
    batches = f"def batches(split, worker, workers, seed):\n    yield {batch}\n"
    workload = load(write(batches=batches))
    assert workload.tokens(next(workload.batches("eval", 0, 1, 0))) == 5


def test_a_finite_list_will_do_for_evaluation(write):
    workload = load(write(batches="def batches(split, worker, workers, seed):\n    return [1, 2]\n"))
    assert list(workload.batches("eval", 0, 1, 0)) == [1, 2]


def test_a_check_leaves_the_global_random_state_as_it_was():
    workload = load("shakespeare", {"size": "nano"})
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    workload.check()
    assert torch.equal(before, torch.random.get_rng_state())


# Options


def test_options_given_as_text_become_what_their_defaults_are():
    workload = load("fashion", {"batch_size": "32", "skew": "1"})
    assert dict(workload.options) == {"batch_size": 32, "skew": 1.0}
    assert type(workload.options["skew"]) is float


def test_each_function_gets_only_the_options_in_its_signature():
    assert load("shakespeare", {"size": "nano", "context": 32, "batch_size": 2}).make_model().head.in_features == 64


def test_a_function_with_double_starred_options_gets_them_all(write):
    workload = load(
        write(
            make_model="def make_model(**options):\n    return torch.nn.Linear(2, options['width'])\n",
            extra="OPTIONS = {'width': (3, 'outputs')}\n",
        ),
        {"width": 4},
    )
    assert workload.make_model().out_features == 4


def test_without_a_table_the_parameters_with_defaults_are_the_options(write):
    path = write(make_model="def make_model(width=3, bias: bool = True):\n    return torch.nn.Linear(2, width, bias)\n")
    assert dict(load(path).options) == {"width": 3, "bias": True}
    model = load(path, {"width": "4", "bias": "no"}).make_model()
    assert (model.out_features, model.bias) == (4, None)


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("batchsize", 4, "unknown option of shakespeare 'batchsize'; did you mean 'batch_size'"),
        ("batch_size", "many", "option batch_size must be a whole number such as 16, got 'many'"),
        ("batch_size", 2.5, "option batch_size must be a whole number such as 16, got 2.5"),
    ],
)
def test_an_option_that_is_unknown_or_does_not_fit_is_refused(option, value, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load("shakespeare", {option: value})


def test_a_number_that_is_none_is_refused():
    with pytest.raises(ConfigError, match=r"option skew must be a number such as 0\.0, got 'half'"):
        load("fashion", {"skew": "half"})


def test_a_truth_that_is_none_is_refused(write):
    path = write(make_model="def make_model(bias=True):\n    return torch.nn.Linear(2, 1, bias)\n")
    with pytest.raises(ConfigError, match="option bias must be true or false, got 'maybe'"):
        load(path, {"bias": "maybe"})


def test_an_option_for_a_workload_without_options_is_refused(write):
    with pytest.raises(ConfigError, match="mine has no options, got width=4"):
        load(write(), {"width": 4})


def test_an_option_that_no_function_takes_is_refused(write):
    with pytest.raises(ConfigError, match="OPTIONS names 'widht', but no function has a parameter of that name"):
        load(write(extra="OPTIONS = {'widht': (3, 'outputs')}\n"))


def test_an_option_without_a_sentence_is_refused(write):
    with pytest.raises(ConfigError, match=r"OPTIONS\['width'\] must be a default .* and a sentence.* got 3"):
        load(write(extra="OPTIONS = {'width': 3}\n"))


# What does not load


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(
        ConfigError, match=r"'shakespear'; did you mean 'shakespeare'\?.*a file of your own is given by"
    ):
        load("shakespear")


@pytest.mark.parametrize("function", [load, describe])
def test_a_file_that_does_not_exist_is_refused(function, tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.py does not exist"):
        function(str(tmp_path / "nowhere.py"))


def test_a_folder_is_no_workload(tmp_path):
    with pytest.raises(ConfigError, match="is a folder, not a file"):
        load(str(tmp_path))


def test_a_file_of_another_kind_is_no_workload(tmp_path):
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(ConfigError, match=r"not a Python file; its name must end in \.py"):
        load(str(tmp_path / "mine.txt"))


def test_all_functions_that_are_missing_are_named_with_the_signature_wanted(write):
    with pytest.raises(ConfigError) as caught:
        load(write(batches="", loss=""))
    assert "lacks batches and loss" in str(caught.value)
    assert "batches(split, worker, workers, seed) -> iterator of batches" in str(caught.value)
    assert "loss(model, batch) -> scalar tensor" in str(caught.value)


def test_a_function_that_takes_too_few_arguments_is_refused(write):
    path = write(batches="def batches(split, worker):\n    yield 1\n")
    with pytest.raises(ConfigError, match=r"batches\(split, worker\) cannot be called as batches\(split, worker, work"):
        load(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x = 1\ny = undefined\n", r"at line 2 \(`y = undefined`\): NameError: name 'undefined' is not defined"),
        ("x = 1\n\nx = = 2\n", "at line 3: SyntaxError: invalid syntax"),
        ("import no_such_module_at_all\n", "at line 1 .*ModuleNotFoundError: No module named"),
        ("import sys\nsys.exit(3)\n", "at line 2 .*SystemExit: 3"),
    ],
)
def test_a_file_that_does_not_run_is_refused_with_its_own_error_and_line(tmp_path, text, sentence):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        load(str(path))


def test_a_file_that_does_not_parse_cannot_be_described(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("x = = 2\n")
    with pytest.raises(ConfigError, match="cannot be read at line 1: SyntaxError"):
        describe(str(path))


# What loads and cannot be trained


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("model(batch)", r"loss must return a single number, got a tensor of shape \[5, 1\]; take its mean"),
        ("model(batch).mean().item()", r"loss must return a tensor, got a float; \.item\(\) would cut the gradient"),
        ("None", "loss must return a tensor, got None"),
        ("(model(batch) > 0).sum()", "must return a floating-point number, got one of torch.int64"),
        ("model(batch).mean().detach()", "the loss does not depend on the model's parameters"),
        ("model(batch).mean() * float('nan')", "the loss of the very first batch is nan"),
        (
            "model(batch.T).mean()",
            r"loss failed at line \d+ \(`return model\(batch.T\).mean\(\)`\): RuntimeError: mat1",
        ),
    ],
)
def test_a_loss_that_cannot_be_trained_is_told_before_training(write, body, sentence):
    with pytest.raises(WorkloadError, match=sentence):
        load(write(loss=f"def loss(model, batch):\n    return {body}\n")).check()


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("yield from ()", r"batches\('eval', …\) yields nothing"),
        ("return None", r"batches\('eval', …\) must yield batches, or return something .* got None"),
        ("return [torch.ones(5, 2)] if split == 'eval' else []", r"batches\('train', …\) yields nothing"),
        ("raise OSError('no disk')", r"batches failed at line \d+ .*OSError: no disk"),
    ],
)
def test_batches_that_cannot_be_trained_on_are_told_before_training(write, body, sentence):
    with pytest.raises(WorkloadError, match=sentence):
        load(write(batches=f"def batches(split, worker, workers, seed):\n    {body}\n")).check()


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("torch.ones(3)", "make_model must return an nn.Module, got a Tensor"),
        ("torch.nn.ReLU()", "has no parameter that requires a gradient"),
        ("torch.nn.Linear(2)", r"make_model failed at line \d+ .*TypeError"),
    ],
)
def test_a_model_that_cannot_be_trained_is_told_before_training(write, body, sentence):
    with pytest.raises(WorkloadError, match=sentence):
        load(write(make_model=f"def make_model():\n    return {body}\n")).check()


def test_an_optimizer_that_is_none_is_told_before_training(write):
    with pytest.raises(WorkloadError, match="make_optimizer must return a torch optimizer, got None"):
        load(write(extra="def make_optimizer(model): pass\n")).check()


def test_a_count_of_tokens_that_is_none_is_told_before_training(write):
    with pytest.raises(WorkloadError, match="tokens must return a whole number from 1 on, got 0"):
        load(write(extra="def tokens(batch): return 0\n")).check()


def test_a_batch_without_a_tensor_needs_a_count_of_its_own(write):
    path = write(
        batches="def batches(split, worker, workers, seed):\n    yield 'text'\n",
        loss="def loss(model, batch):\n    return model.weight.sum()\n",
    )
    with pytest.raises(WorkloadError, match=r"no tensor to take its length from; write tokens\(batch\) -> int"):
        load(path).check()


def test_training_batches_that_end_are_told_when_they_end(write):
    batches = load(write(batches="def batches(split, worker, workers, seed):\n    yield 1\n")).batches("train", 0, 1, 0)
    assert next(batches) == 1
    with pytest.raises(WorkloadError, match=r"batches\('train', …\) ended after 1 batches, and it must be endless"):
        next(batches)


def test_a_split_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="unknown split 'test'"):
        load("adult").batches("test", 0, 1, 0)


def test_a_worker_outside_the_group_is_refused():
    with pytest.raises(ConfigError, match="worker must be from 0 to workers - 1 = 1, got 2"):
        load("adult").batches("train", 2, 2, 0)
