"""What holds on the host node holds on real nodes: the same checks, through the Service."""

import pytest

from e2e.test_answers import (
    test_every_verified_answer_comes_word_for_word_streamed_to_16_clients as test_every_answer,
)
from e2e.test_answers import test_the_client_sees_all_models as test_models
from e2e.test_disk_tier import kept
from e2e.test_disk_tier import (
    test_a_deleted_pod_s_successor_finds_the_conversation_on_disk as test_a_deleted_pod,
)
from e2e.test_disk_tier import (
    test_a_model_scaled_to_zero_and_back_finds_it_too as test_scaled_to_zero_and_back,
)
from e2e.test_disk_tier import (
    test_the_disk_heavy_example_runs_as_it_is_written as test_the_disk_heavy_example,
)
from e2e.test_draft_and_adapters import (
    test_the_example_answers_by_draft_and_by_adapter as test_draft_and_adapter_example,
)
from e2e.test_failures import (
    test_a_killed_engine_child_ends_the_stream_with_an_error_and_comes_back as test_killed_engine,
)
from e2e.test_failures import (
    test_a_killed_gateway_closes_the_stream_and_the_next_request_works as test_killed_gateway,
)
from e2e.test_failures import (
    test_a_killed_runtime_ends_the_stream_with_an_error_and_comes_back as test_killed_runtime,
)
from e2e.test_failures import (
    test_after_a_killed_operator_the_next_one_does_what_was_asked_meanwhile as test_killed_operator,
)
from e2e.test_rollout import (
    test_a_change_of_replicas_restarts_nothing as test_change_of_replicas,
)

__all__ = [
    "kept",
    "test_a_deleted_pod",
    "test_change_of_replicas",
    "test_draft_and_adapter_example",
    "test_every_answer",
    "test_killed_engine",
    "test_killed_gateway",
    "test_killed_operator",
    "test_killed_runtime",
    "test_models",
    "test_scaled_to_zero_and_back",
    "test_the_disk_heavy_example",
]
pytestmark = pytest.mark.timeout(600)
