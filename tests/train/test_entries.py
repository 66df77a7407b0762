"""Entries of --models, their variants, and the reports' recipes."""

import re
import tomllib
from dataclasses import replace
from importlib import resources
from itertools import product

import pytest
import torch

from polychrome import models
from polychrome.engine import evaluation
from polychrome.engine.channels import masks
from polychrome.engine.errors import UserError
from polychrome.train import networks, recipes, systems
from polychrome.train.preparation import prepare
from polychrome.train.run import main
from polychrome.train.settings import variants
from polychrome.train.settings.config import OF_AN_ENTRY, RECIPES, Settings, read_toml, typed
from polychrome.train.settings.variants import TASKS, resolve
from tests.grids import usual


def effective(capsys, *arguments):
    assert main([*arguments, "--print-config"]) == 0
    return tomllib.loads(capsys.readouterr().out)


def resolved(task="task1", **settings):
    return resolve(Settings(data="anywhere", **settings), task)


def test_a_variant_changes_its_setting_of_its_entry_alone():
    settings = resolved(models=("dynamic_cnn_v1", "dynamic_cnn_v1+drop+smoothing"))
    plain, changed = (variants.of(settings, entry) for entry in settings.models)
    assert (plain.channel_sampling, plain.label_smoothing) == ("auto", 0.0)
    assert (changed.channel_sampling, changed.label_smoothing) == ("drop", 0.1)
    assert changed.image_size == plain.image_size


def test_the_run_the_model_the_variant_and_the_entry_win_in_this_order():
    tables = {"simple_cnn": {"epochs": 3, "label_smoothing": 0.4}, "simple_cnn+smoothing": {"epochs": 9}}
    settings = resolved(models=("simple_cnn", "simple_cnn+smoothing"), epochs=5, model=tables)
    found = [variants.of(settings, entry) for entry in ("resnet34", "simple_cnn", "simple_cnn+smoothing")]
    assert [(item.epochs, item.label_smoothing) for item in found] == [(5, 0.0), (3, 0.4), (9, 0.1)]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("simple_cnn+dorp", "no variant is named 'dorp'; did you mean drop?"),
        ("simple_cnn+frozen", "only task transfer starts from weights"),
        ("simple_cnn+drop,simple_cnn+drop", "names simple_cnn+drop 2 times"),
    ],
)
def test_wrong_entries(names, message):
    with pytest.raises(UserError, match=message.replace("+", r"\+").replace("?", r"\?")):
        resolved(models=tuple(names.split(",")))


@pytest.mark.parametrize("task", TASKS)
def test_all_stands_for_every_system_of_the_task(task):
    settings = resolved(task, models=("all",))
    assert settings.sweep
    found = tuple(dict.fromkeys(variants.model_name(entry) for entry in settings.models))
    assert found == systems.names(task)


def test_every_registered_model_but_our_own_is_a_system_of_some_task():
    reported = {name for task in TASKS for name in systems.names(task)}
    assert set(models.names()) - reported == {"prism4", "prism4_small"}
    assert reported <= set(models.names())


def test_transfer_trains_each_model_in_every_mode_unless_one_is_named():
    assert resolved("transfer").models == ("resnet50+frozen", "resnet50+finetuned", "resnet50+scratch")
    named = resolved("transfer", models=("attention_cnn+scratch", "resnet34"))
    assert named.models == ("attention_cnn+scratch", "resnet34+frozen", "resnet34+finetuned", "resnet34+scratch")


@pytest.mark.parametrize("name", RECIPES)
def test_every_table_of_a_recipe_is_usable_and_covers_its_report(name):
    tables = tomllib.loads((resources.files("polychrome.train.recipes") / f"{name}.toml").read_text())
    assert tables.keys() <= TASKS.keys()
    for task in tables:
        settings = resolve(Settings(**recipes.load(name, task)), task)
        for entry in settings.models:
            variants.of(settings, entry)
        of_the_report = {s.model for s in systems.SYSTEMS if s.report == name[-1].upper() and s.task == task}
        assert of_the_report <= set(settings.models)


def test_report_c_trains_each_network_as_the_report_says(capsys):
    found = effective(capsys, "task1", "--recipe", "report_c")
    assert found["models"] == ["naive_cnn", "adaptive_channel_cnn"]
    assert (found["image_size"], found["lr"], found["optimizer"]) == (128, 1e-3, "adam")
    assert found["model"]["naive_cnn"] == {"batch_size": 64, "epochs": 15, "weight_decay": 1e-5}
    assert found["model"]["adaptive_channel_cnn"] == {"batch_size": 128, "epochs": 10, "channel_sampling": "cycle"}


def test_a_variant_with_a_table_of_its_own_may_change_the_model(tmp_path, capsys):
    config = tmp_path / "ablation.toml"
    config.write_text("""
models = ["prism4", "prism4+parts", "prism4+parts+off"]
[model."prism4+parts"]
options = { experts = [4, 4, 4, 1], attention = true }
[model."prism4+parts+off"]
options = { expert = 1 }
""")
    settings = resolve(Settings(**read_toml(config), image_size=32), "task1")
    whole, parts, wrong = (variants.of(settings, entry) for entry in settings.models)
    assert (whole.options, parts.options) == ({}, {"experts": [4, 4, 4, 1], "attention": True})
    assert wrong.channel_sampling == "off"
    costs = [networks.measure(entry, variants.of(settings, entry), 50, 3) for entry in settings.models[:2]]
    assert (costs[0].params, costs[1].params) == (2_684_018, 4_271_996)
    given = "{'experts': [4, 4, 4, 1], 'attention': True, 'expert': 1}"
    with pytest.raises(
        UserError, match=re.escape(f"prism4+parts+off cannot be made with options {given}: ") + ".*'expert'"
    ):
        networks.measure(settings.models[2], wrong, 50, 3)
    for name, status in (("prism4+parts", 0), ("prism4+partz", 2)):
        assert main(["task1", "--config", str(config), "--models", name, "--print-config"]) == status
    assert "no variant is named 'partz'" in capsys.readouterr().err


FILLED = ("simple_cnn+any_channels", "simple_cnn+estimated")
WITH_OPTIONS = sorted(name for name, settings in variants.VARIANTS.items() if "options" in settings)


@pytest.mark.parametrize("places", list(product([False, True], repeat=3)))
@pytest.mark.parametrize("variant", WITH_OPTIONS)
def test_options_of_run_model_and_entry_add_up_whatever_the_variant(variant, places):
    """Each place has an option of its own and one that the next place has too."""
    entry, ((key, value),) = f"prism4_small+{variant}", variants.VARIANTS[variant]["options"].items()
    given = [{"a": 1, "b": 1}, {"b": 2, "c": 2, key: 2}, {"c": 3, "d": 3}]
    run, model, own = (options if there else {} for options, there in zip(given, places, strict=True))
    tables = {"prism4_small": {"options": model}, entry: {"options": own}}
    found = variants.of(resolved(models=(entry,), options=run, model=tables), entry)
    assert found.options == run | model | {key: value} | own


def test_options_of_a_config_win_over_those_of_a_recipe_one_by_one(capsys, tmp_path):
    recipe, config = tmp_path / "recipe.toml", tmp_path / "config.toml"
    recipe.write_text(
        '[task1]\nmodels = ["prism4_small"]\noptions = { a = 1, b = 1 }\n[task1.model.prism4_small]\n'
        "options = { b = 2, c = 2, d = 2 }\n"
    )
    config.write_text("options = { b = 3, e = 3 }\n[model.prism4_small]\noptions = { d = 4 }\n")
    settings = Settings(**typed(effective(capsys, "task1", "--recipe", str(recipe), "--config", str(config)), "x"))
    assert variants.of(settings, "prism4_small").options == {"a": 1, "b": 3, "c": 2, "d": 4, "e": 3}


def test_options_and_the_division_of_a_file_hold_for_the_run(tmp_path, capsys):
    config = tmp_path / "config.toml"
    config.write_text('models = ["prism4_small"]\nsplit_seed = 7\noptions = { widths = [8, 8, 8, 8] }\n')
    found = effective(capsys, "task1", "--config", str(config), "--seed", "3")
    assert (found["seed"], found["split_seed"], found["options"]) == (3, 7, {"widths": [8, 8, 8, 8]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nonsense": 1}, "cannot be made with options {'nonsense': 1}"),
        ({"experts": [1, 1, 1]}, "experts must be 4 numbers, got (1, 1, 1)"),
        ({"dropout": 2}, "dropout probability has to be between 0 and 1, but got 2"),
        ({"large_kernels": [8, 8, 8]}, "large_kernels must be odd, or 0 for none, got (8, 8, 8)"),
    ],
)
def test_wrong_options_of_a_model_are_not_blamed_on_the_size_of_images(options, message):
    settings = resolved(models=("prism4_small",), options=options, image_size=64)
    with pytest.raises(UserError) as caught:
        networks.measure("prism4_small", settings, 5, 3)
    assert message in str(caught.value)
    assert "px" not in str(caught.value)


def test_a_network_for_one_combination_is_shown_what_its_options_make_it_take():
    tables = {"prism4_small+plain+alone": {"options": {"plain_stem": True}}}
    settings = resolved(models=("prism4_small+alone", "prism4_small+plain+alone"), model=tables)
    whole, plain = (
        networks.for_one_combination(entry, variants.of(settings, entry), 3, (0, 1)) for entry in settings.models
    )
    assert whole == (3, networks.ONE_PER_COMBINATION)
    assert plain == (3, networks.PADDED_ONE_PER_COMBINATION)


@pytest.mark.parametrize(
    "entry",
    usual(
        [*models.names(), "prism4+places", "prism4_small+places", "prism4_small+estimated", *FILLED],
        # of each protocol
        *("naive_cnn", "pool_attention_cnn", "prism4_small", "prism4_small+places", "simple_cnn"),
        *FILLED,
    ),
)
def test_every_network_for_one_combination_takes_what_it_is_shown(entry):
    """Whatever it knows of its channels: places of three would be another network's where two are shown."""
    settings = variants.of(resolved(models=(f"{entry}+alone",), image_size=96), f"{entry}+alone")
    for chosen in ((0, 1, 2), (0, 2), (1,)):
        count, protocol = networks.for_one_combination(f"{entry}+alone", settings, 3, chosen)
        how = "zero-pad" if protocol == networks.PADDED_ONE_PER_COMBINATION else "subset"
        with torch.device("meta"):
            network = networks.create(entry, settings, 5, count).eval()
            logits = network(masks.select(torch.empty(2, 3, 96, 96), chosen, how))
        assert logits.shape == (2, 5), chosen
        on_gpu = evaluation.protocol_on(torch.device("cuda"), network, how, chosen)
        with torch.device("meta"):
            logits = network(*masks.shown(torch.empty(2, 3, 96, 96), chosen, on_gpu))
        assert logits.shape == (2, 5), (chosen, on_gpu)


@pytest.mark.parametrize(("task", "models"), [("task1", 5), ("task2", 5)])
def test_the_strong_recipe_is_the_same_for_every_contender(task, models):
    settings = resolve(Settings(**recipes.load("strong", task)), task)
    assert len(settings.models) == models
    own = {"image_size": 84, "label_smoothing": 0.1, "optimizer": "muon", "flip_test": True, "holdout": 2500}
    alike = sorted(OF_AN_ENTRY - {"channel_sampling", "subset_bias", "progressive", "options"})
    each = [variants.of(settings, entry) for entry in settings.models]
    for found in each:
        assert {name: getattr(found, name) for name in own} == own
        assert [getattr(found, name) for name in alike] == [getattr(each[0], name) for name in alike]
    options = {entry: found.options for entry, found in zip(settings.models, each, strict=True) if found.options}
    assert options == ({"resnet34+small_stem": {"small_stem": True}} if task == "task2" else {})
    assert {found.progressive for found in each} == ({0.6, 1.0} if task == "task1" else {0.6})
    biases = {entry: found.subset_bias for entry, found in zip(settings.models, each, strict=True) if found.subset_bias}
    assert biases == ({"prism4+few": 1.0} if task == "task1" else {})


def test_both_tasks_of_the_strong_recipe_train_alike():
    first, second = (recipes.load("strong", task) for task in ("task1", "task2"))
    apart = ("models", "channels", "channel_sampling", "model")
    assert {k: v for k, v in first.items() if k not in apart} == {k: v for k, v in second.items() if k not in apart}


def test_flags_win_over_a_config_which_wins_over_a_recipe(capsys, tmp_path):
    config = tmp_path / "config.toml"
    config.write_text("batch_size = 20\n[model.naive_cnn]\nweight_decay = 0.5\n")
    found = effective(capsys, "task1", "--epochs", "1", "--recipe", "report_c", "--config", str(config))
    assert (found["epochs"], found["batch_size"]) == (1, 20)
    assert found["model"] == {
        "naive_cnn": {"weight_decay": 0.5},
        "adaptive_channel_cnn": {"channel_sampling": "cycle"},
    }


def test_all_with_a_recipe_stands_for_the_recipes_models(capsys):
    found = effective(capsys, "task1", "--recipe", "report_d", "--models", "all")
    assert found["models"][:2] == ["dynamic_cnn_v1", "dynamic_cnn_v1+drop"]
    assert len(found["models"]) == 6
    assert found["sweep"]


def test_a_recipe_of_ones_own(capsys, tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text('[task1]\nmodels = ["simple_cnn", "simple_cnn+noaug"]\nepochs = 4\n')
    found = effective(capsys, "task1", "--recipe", str(recipe))
    assert (found["epochs"], found["models"]) == (4, ["simple_cnn", "simple_cnn+noaug"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such recipe; there are report_a, report_b"),
        ("[task2]\nepochs = 3\n", "has nothing for task1; it has task2"),
        ("epochs = 3\n[task1]\n", "'epochs' is no task, and settings stand in tables of tasks, here [task1]"),
        (
            "[task1]\n[taks2]\nepochs = 3\n",
            "'taks2' is no task, and settings stand in tables of tasks, did you mean [task2]?",
        ),
        ("[model.simple_cnn]\nlr = 1\n[task1]\n", "'model' is no task"),
        ("[task1]\nepoch = 3\n", "no setting is named 'epoch', did you mean 'epochs'?"),
        ("[task1]\nepochs = 0\n", "0 is not in the range x>=1"),
        ('[task1]\n[task1.model.simple_cnn]\nout = "x"\n', "out holds for a whole run, not for one model"),
        ("[task1]\n[task1.model.simple_cnn]\nepochs = 0\n", "0 is not in the range x>=1"),
        ("[task1]\n[task1.model.simple_cn]\nepochs = 3\n", "[model.simple_cn]: no model has this name; did"),
        ('[task1]\n[task1.model.simple_cnn]\ntransfer = "frozen"\n', "no setting is named 'transfer'"),
        ("[task1]\n[task1.model]\nsimple_cnn = 3\n", "[model.simple_cnn] must be a table"),
        ("task1", "mine.toml"),
    ],
)
def test_wrong_recipes(capsys, tmp_path, text, message):
    recipe = tmp_path / "mine.toml"
    if text is not None:
        recipe.write_text(text)
    assert main(["task1", "--recipe", str(recipe)]) == 2
    assert message in capsys.readouterr().err


ENTRIES = [f"simple_cnn{plus}" for plus in ("", "+drop", "+drop+smoothing", "+drop+smoothing+mine", "+smoothing+drop")]


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("chosen", list(product([False, True], repeat=len(ENTRIES))))
def test_the_tables_of_every_step_to_an_entry_hold_and_no_other(entry, chosen):
    tables = {name: {"gain": 0.1 + number / 10} for number, name in enumerate(ENTRIES) if chosen[number]}
    settings = Settings(models=(entry,), model=tables)
    steps = [name for name in tables if f"{entry}+".startswith(f"{name}+")]
    assert variants.of(settings, entry).gain == (tables[steps[-1]]["gain"] if steps else 0.0)
    assert variants.unused_tables(settings) == [name for name in tables if name not in steps]


def test_a_later_variant_wins_over_the_table_of_a_step_before_and_loses_against_its_own():
    tables = {
        "simple_cnn+he": {"label_smoothing": 0.3, "schedule": "linear"},
        "simple_cnn+he+cosine": {"schedule": "plateau"},
    }
    settings = Settings(model=tables)
    found = [
        variants.of(settings, f"simple_cnn+he{more}") for more in ("", "+smoothing", "+smoothing+cosine", "+cosine")
    ]
    assert [each.label_smoothing for each in found] == [0.3, 0.1, 0.1, 0.3]
    assert [each.schedule for each in found] == ["linear", "linear", "cosine", "plateau"]
    assert {each.init for each in found} == {"he"}


def test_a_variant_of_ones_own_goes_on_to_the_next():
    tables = {"simple_cnn+mine": {"epochs": 3}}
    assert resolved(models=("simple_cnn+mine+drop",), model=tables).models == ("simple_cnn+mine+drop",)
    with pytest.raises(UserError, match="no variant is named 'mine'"):
        resolved(models=("simple_cnn+drop+mine",), model=tables)


MISSPELT = [
    (name, name[:at] + name[at + 1 :]) for name in variants.VARIANTS if len(name) > 4 for at in range(1, len(name))
]


@pytest.mark.parametrize(("name", "misspelt"), MISSPELT)
def test_a_table_with_a_misspelt_variant_is_refused_unless_it_is_trained(name, misspelt):
    entry = f"simple_cnn+{misspelt}"
    with pytest.raises(UserError, match=rf"no variant is named '{misspelt}'; did you mean {name}\?"):
        resolved(models=("simple_cnn",), model={entry: {"epochs": 3}})
    assert resolved(models=(entry,), model={entry: {"epochs": 3}}).models == (entry,)


@pytest.mark.parametrize("name", ["few", "static", "parts", "plain", "mine", "lr2", "widest", "ablation", "x"])
def test_an_unused_table_with_a_name_of_its_own_is_none_that_is_misspelt(name):
    settings = resolved(models=("simple_cnn",), model={f"simple_cnn+{name}": {"epochs": 3}})
    assert variants.unused_tables(settings) == [f"simple_cnn+{name}"]


def test_unused_tables_are_told_in_a_line(stripes, capsys):
    tables = {"simple_cnn": {"epochs": 3}, "naive_cnn": {"epochs": 3}, "simple_cnn+few": {"epochs": 3}}
    settings = resolve(Settings(data=str(stripes), models=("simple_cnn",), model=tables, image_size=32), "task1")
    prepare("task1", settings)
    said = " ".join(capsys.readouterr().out.split())
    assert "tables of settings for models that are not trained: [model.naive_cnn], [model.simple_cnn+few]" in said


@pytest.mark.parametrize(("epochs", "told"), [(2, True), (3, False)])
def test_augmentations_that_no_epoch_uses_are_told_in_a_line(stripes, capsys, epochs, told):
    own = {"augmentations": ["crop", "flip", "vflip"], "one_at_a_time": True, "epochs": epochs}
    settings = resolved(models=("simple_cnn", "simple_cnn+noaug"), model={"simple_cnn": own}, image_size=32)
    prepare("task1", replace(settings, data=str(stripes)))
    line = "simple_cnn: --one-at-a-time has too few epochs (2) to use vflip"
    assert (line in " ".join(capsys.readouterr().out.split())) == told


def test_augmentations_by_name():
    assert variants.augmentations(("none",)) == ()
    assert variants.augmentations(("flip", "crop")) == ("flip", "crop")
    assert "rotation" in variants.augmentations(("all",))
    with pytest.raises(UserError, match="no augmentation is named 'flop'"):
        variants.augmentations(("flop",))


def test_settings_of_entries_survive_a_round_trip_through_toml(tmp_path):
    settings = Settings(augmentations=(), sweep=True, model={"simple_cnn+drop": {"epochs": 2, "lr": 0.5}})
    path = tmp_path / "config.toml"
    path.write_text(settings.to_toml())
    again = Settings.from_toml(path)
    assert again.model == settings.model
    assert again.sweep
    assert variants.augmentations(again.augmentations) == ()
