"""The files under deploy/ name things that there are."""

import configparser
import re
from pathlib import Path

import yaml

from drl_core.settings import load

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


def test_the_containers_copy_what_there_is_and_end_unprivileged() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    stages = text.split("\nFROM ")[1:]
    final = [stage for stage in stages if "\nCMD" in stage]
    assert len(final) == 2
    assert all("\nUSER drl\n" in stage for stage in final)


def test_every_variable_of_the_composition_is_a_setting(tmp_path: Path) -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    service = compose["services"]["service"]
    variables = {name: str(value) for name, value in service["environment"].items()}
    settings = load(ROOT / "config", variables)
    assert (settings.serving.host, settings.serving.workers) == ("0.0.0.0", 2)  # noqa: S104
    for name, part in compose["services"].items():
        assert set(part.get("depends_on", {})) <= set(compose["services"])
        for port in part.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} is published beyond this machine"


def test_the_unit_starts_the_service() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[method-assign,assignment]
    unit.read(DEPLOY / "systemd" / "drl-serving.service")
    assert unit["Service"]["ExecStart"].endswith("/drl serve")
    assert unit["Service"]["NoNewPrivileges"] == "true"
