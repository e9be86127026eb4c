import sys
from importlib import import_module

import pytest

from cbd_fast.cli.main import main
from cbd_fast.cli.plugins import load_plugin, load_plugins
from cbd_fast.config.schema import Config
from cbd_fast.errors import InputError
from cbd_fast.registry import BACKBONES, LOSSES, METRICS, SAMPLING, SOURCES

PLUGIN = '''
from pathlib import Path

from cbd_fast.registry import METRICS

with open(Path(__file__).with_suffix(".log"), "a") as log:
    log.write("run\\n")

@METRICS.register("always_half")
def always_half(predictions):
    """Half of everything."""
    return 50.0
'''


@pytest.fixture(autouse=True)
def _nothing_stays():
    """What a test registers is gone after it."""
    registries = (BACKBONES, LOSSES, METRICS, SAMPLING, SOURCES)
    names, modules = [set(registry) for registry in registries], set(sys.modules)
    yield
    for registry, before in zip(registries, names, strict=True):
        for name in set(registry) - before:
            del registry._entries[name]
    for name in set(sys.modules) - modules:
        if name.startswith("cbd_fast_plugin_"):
            del sys.modules[name]


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "my_code.py"
    path.write_text(PLUGIN)
    return path


def settings(**changed):
    data = {"shards": "shards", "num_classes": 10}
    return {"output": "run", "data": data, "optimization": {"steps": 1}} | changed


def test_a_registered_name_can_be_used(plugin):
    with pytest.raises(ValueError, match="always_half"):
        Config.model_validate(settings(metrics=["top1", "always_half"]))
    assert load_plugins(["--plugin", str(plugin), "--config", "x.yaml", "seed=1"]) == ["--config", "x.yaml", "seed=1"]
    assert Config.model_validate(settings(metrics=["top1", "always_half"])).metrics == ("top1", "always_half")
    assert METRICS["always_half"](None) == 50.0


def test_a_registered_name_is_in_the_help(plugin, capsys):
    def help_of_train(*arguments) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["train", *arguments, "--help"])
        assert ended.value.code == 0
        return capsys.readouterr().out

    before = help_of_train()
    assert "--plugin FILE" in before
    assert "always_half" not in before
    assert "always_half" in help_of_train(f"--plugin={plugin}")


def test_the_same_file_twice_is_harmless(plugin):
    for _ in range(2):
        assert load_plugins(["--plugin", str(plugin), "--plugin", str(plugin)]) == []
    load_plugin(plugin.parent / "." / plugin.name)
    assert plugin.with_suffix(".log").read_text() == "run\n"  # not run again


def test_two_files_of_the_same_name_are_two(plugin, tmp_path):
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / plugin.name
    other.write_text(PLUGIN.replace("always_half", "always_a_half"))
    load_plugins(["--plugin", str(plugin), "--plugin", str(other)])
    assert {"always_half", "always_a_half"} <= set(METRICS)


def test_names_of_others_are_refused(tmp_path):
    path = tmp_path / "thief.py"
    path.write_text(PLUGIN.replace("always_half", "top1"))
    with pytest.raises(InputError, match=r"--plugin .*thief\.py: cannot be run \(ValueError: metric 'top1' is"):
        load_plugin(path)
    assert METRICS["top1"].__module__ == "cbd_fast.training.metrics"


def test_files_that_are_none_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text(PLUGIN)
    (tmp_path / "folder.py").mkdir()
    for name in ("missing.py", "notes.txt", "folder.py"):
        with pytest.raises(InputError, match=rf"--plugin .*{name}: must be a Python file \(\.py\) that is there"):
            load_plugin(tmp_path / name)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def f(:", "SyntaxError: "),
        ("import no_such_thing", "Module"),
    ],
)
def test_a_file_that_fails_is_refused_each_time(tmp_path, code, error):
    path = tmp_path / "bad.py"
    path.write_text(code)
    for _ in range(2):  # a failed file must not count as loaded
        with pytest.raises(InputError, match=rf"--plugin .*bad\.py: cannot be run \({error}"):
            load_plugin(path)
    path.write_text(PLUGIN)
    load_plugin(path)
    assert "always_half" in METRICS


def test_commands_report_it_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--shards", str(tmp_path), "--plugin", f"{tmp_path}/missing.py"])
    assert ended.value.code == 2
    message = f"error: --plugin {tmp_path}/missing.py: must be a Python file (.py) that is there\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("command", ["train", "doctor", "predict", "shards"])
def test_a_shortened_option_is_refused_and_not_passed_over(command, capsys):
    """The file would not be run, without a word."""
    arguments = {
        "train": ["--config", "c.yaml"],
        "doctor": ["--shards", "s"],
        "predict": ["model", "image.png"],
        "shards": ["digits", "--out", "o"],
    }[command]
    with pytest.raises(SystemExit) as ended:
        import_module(f"cbd_fast.cli.{command}").main([*arguments, "--plug", "nowhere.py"])
    assert ended.value.code == 2
    assert "--plug" in capsys.readouterr().err
