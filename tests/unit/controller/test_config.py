"""The operator's environment."""

from __future__ import annotations

import pytest

from terrace.controller.config import BadConfigError, config_from_env

GOOD = {"POD_NAME": "o", "POD_NAMESPACE": "s", "TERRACE_RUNTIME_IMAGE": "i"}


def test_defaults_watch_all_namespaces_on_port_8080() -> None:
    config = config_from_env(GOOD)
    assert config.namespaces == (None,)
    assert config.metrics_port == 8080
    assert config.leader_election


def test_values_are_taken_from_the_environment() -> None:
    config = config_from_env(
        GOOD
        | {
            "TERRACE_WATCH_NAMESPACES": "a, b,",
            "TERRACE_LEADER_ELECTION": "false",
            "POD_IP": "127.0.0.9",
            "TERRACE_GATEWAY_URL": "",
            "TERRACE_SOMETHING_ELSE": "x",
        }
    )
    assert config.namespaces == ("a", "b")
    assert not config.leader_election
    assert config.metrics_host == "127.0.0.9"


def test_everything_wrong_is_named_at_once() -> None:
    with pytest.raises(BadConfigError) as error:
        config_from_env({"POD_NAME": "o", "POD_NAMESPACE": "s", "TERRACE_METRICS_PORT": "no"})
    assert "TERRACE_RUNTIME_IMAGE: Field required" in str(error.value)
    assert "TERRACE_METRICS_PORT" in str(error.value)
