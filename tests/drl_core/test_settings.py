"""Configuration: files, then the environment over them; a wrong value names its field."""

import json
from pathlib import Path

import pytest

from drl_core import settings
from drl_core.settings import Settings, SettingsError
from drl_serving.reload import Watcher


def write(folder: Path, name: str, content: object) -> Path:
    path = folder / f"{name}.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_without_files_there_are_defaults(tmp_path: Path) -> None:
    assert settings.load(tmp_path, {}) == Settings()


def test_the_environments_file_lies_over_the_default_one(tmp_path: Path) -> None:
    write(tmp_path, "default", {"learning": {"seed": 1, "episodes": 7}, "home": "a"})
    write(tmp_path, "production", {"learning": {"seed": 2}})
    loaded = settings.load(tmp_path, {"DRL_ENV": "production"})
    assert (loaded.environment, loaded.home) == ("production", "a")
    assert (loaded.learning.seed, loaded.learning.episodes) == (2, 7)


def test_variables_lie_over_files(tmp_path: Path) -> None:
    write(tmp_path, "default", {"learning": {"seed": 1}, "serving": {"port": 9000}})
    loaded = settings.load(
        tmp_path,
        {
            "DRL_LEARNING__SEED": "5",
            "DRL_LEARNING__HIDDEN_LAYERS": "[8, 8]",
            "DRL_COSTS__DAMAGE_EXTRA": '{"x": 2}',
            "DRL_HOME": "/somewhere",
            "DRL_ELSEWHERE": "of another program",
        },
    )
    assert (loaded.learning.seed, loaded.learning.hidden_layers) == (5, [8, 8])
    assert (loaded.costs.damage_extra, loaded.home) == ({"x": 2.0}, "/somewhere")
    assert loaded.serving.port == 9000


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"learning": {"replay_capacity": 5}}, "learning.replay_capacity"),
        ({"learning": {"preset": "The best!"}}, "learning.preset"),
        ({"serving": {"port": 0}}, "serving.port"),
        ({"costs": {"review": -1}}, "costs.review"),
        ({"costs": {"isolation_effectiveness": [0, 1]}}, "costs.isolation_effectiveness"),
        ({"serving": {"prt": 1}}, "prt"),
        ({"colour": 1}, "colour"),
        ([1], "JSON object"),
        ('{"home": ', "default.json"),
    ],
)
def test_a_wrong_value_in_a_file_names_its_field(
    tmp_path: Path, content: object, words: str
) -> None:
    write(tmp_path, "default", content)
    with pytest.raises(SettingsError) as error:
        settings.load(tmp_path, {})
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("variable", "text", "words"),
    [
        ("DRL_LEARNING__SEED", "many", "learning.seed"),
        ("DRL_LEARNING__SEDE", "1", "sede"),
        ("DRL_SERVING__PORT", "70000", "serving.port"),
        ("DRL_LEARNING__HIDDEN_LAYERS", "[8, 0]", "learning.hidden_layers"),
        ("DRL_SERVING__MODE", "obey", "serving.mode"),
        ("DRL_UI_PORT", "x", "ui_port"),
    ],
)
def test_a_wrong_variable_names_itself_and_the_field(
    tmp_path: Path, variable: str, text: str, words: str
) -> None:
    with pytest.raises(SettingsError) as error:
        settings.load(tmp_path, {variable: text})
    assert str(error.value).startswith(variable)
    assert words in str(error.value)


def test_a_named_environment_without_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="nowhere"):
        settings.load(tmp_path, {"DRL_ENV": "nowhere"})


def test_a_watcher_takes_a_good_change_and_keeps_the_old_one_over_a_bad(tmp_path: Path) -> None:
    path = write(tmp_path, "default", {"retraining": {"min_new_experiences": 1}})
    watcher = Watcher(tmp_path, {})
    assert not watcher.poll()
    path.write_text(json.dumps({"retraining": {"min_new_experiences": 22}}))
    assert watcher.poll()
    assert watcher.current.retraining.min_new_experiences == 22
    path.write_text(json.dumps({"retraining": {"min_new_experiences": "several"}}))
    with pytest.raises(SettingsError, match="min_new_experiences"):
        watcher.poll()
    assert watcher.current.retraining.min_new_experiences == 22
    assert not watcher.poll()
