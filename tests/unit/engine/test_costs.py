"""What steps cost, from measurements."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from support.engine_builders import Clock, runtime_config
from terrace_runtime.backend.fake import FakeBackend
from terrace_runtime.contract import Speculation
from terrace_runtime.engine.calibration import calibrate
from terrace_runtime.engine.costs import CHUNK_RATIO, MIN_CHUNK, StepCosts

if TYPE_CHECKING:
    from collections.abc import Callable


def measured(*points: tuple[int, float], prefill: float = 0.0) -> StepCosts:
    """Costs after one step of each (rows, seconds) and a chunk at ``prefill`` tokens/s."""
    costs = StepCosts(prefill_tokens=512)
    for rows, seconds in points:
        costs.record(rows, 0, seconds)
    if prefill:
        costs.record(0, 256, 256 / prefill)
    return costs


def test_nothing_is_known_before_the_first_step() -> None:
    costs = StepCosts(prefill_tokens=256)
    assert costs.decode_seconds(4) == 0
    assert costs.prefill_tokens_per_second == 0
    assert costs.prefill_room(4) == 256
    assert costs.table() == {}


def test_costs_between_two_points_are_interpolated() -> None:
    costs = measured((4, 0.010), (8, 0.014))
    assert costs.decode_seconds(6) == pytest.approx(0.012)
    assert costs.decode_seconds(5) == pytest.approx(0.011)


def test_fewer_rows_than_any_cost_what_the_fewest_cost() -> None:
    assert measured((4, 0.010), (8, 0.014)).decode_seconds(1) == 0.010


def test_more_rows_than_any_grow_as_the_last_points_do() -> None:
    assert measured((4, 0.010), (8, 0.014)).decode_seconds(12) == pytest.approx(0.018)
    assert measured((4, 0.010)).decode_seconds(8) == pytest.approx(0.020)
    assert measured((4, 0.010), (8, 0.009)).decode_seconds(16) == 0.009


def test_rows_are_added_where_a_step_is_measured_to_be_quicker_with_them() -> None:
    groups = measured(
        *[(3, 0.0061)] * 3, *[(4, 0.0049)] * 3, *[(7, 0.0101)] * 3, *[(8, 0.0087)] * 3
    )
    assert [groups.quickest_rows(rows) for rows in (3, 4, 7, 8)] == [4, 4, 8, 8]


def test_rows_are_not_added_for_little_on_a_guess_or_by_the_dozen() -> None:
    assert measured(*[(3, 0.0051)] * 3, *[(4, 0.0049)] * 3).quickest_rows(3) == 3
    assert measured(*[(3, 0.0061)] * 3, (4, 0.0049)).quickest_rows(3) == 3
    assert measured(*[(2, 0.0091)] * 3, *[(6, 0.0049)] * 3).quickest_rows(2) == 2
    assert StepCosts(prefill_tokens=512).quickest_rows(5) == 5


def test_rows_between_buckets_keep_their_own_place() -> None:
    costs = measured((5, 0.010), (8, 0.016))
    assert costs.decode_seconds(5) == 0.010
    assert costs.table() == {"5": 0.010, "8": 0.016}


def test_the_first_measurements_count_by_the_least() -> None:
    costs = measured((1, 0.5), (1, 0.010), (1, 0.012))
    assert costs.decode_seconds(1) == 0.010


def test_one_disturbed_step_hardly_moves_an_average() -> None:
    costs = measured(*[(4, 0.010)] * 10, (4, 5.0))
    assert costs.decode_seconds(4) < 0.0125


def test_a_lasting_change_is_followed() -> None:
    costs = measured(*[(4, 0.010)] * 10, *[(4, 0.020)] * 40)
    assert costs.decode_seconds(4) == pytest.approx(0.020, rel=0.05)


def test_a_step_that_took_no_time_is_not_a_measurement() -> None:
    costs = measured((4, 0.0))
    assert costs.measurements(4) == 0


def test_prompt_speed_leaves_out_the_decodes_of_the_step() -> None:
    costs = measured((4, 0.010))
    costs.record(4, 100, 0.110)
    assert costs.prefill_tokens_per_second == pytest.approx(1000)


def test_a_short_chunk_says_nothing_about_prompt_speed() -> None:
    costs = measured((4, 0.010))
    costs.record(0, MIN_CHUNK - 1, 1.0)
    assert costs.prefill_tokens_per_second == 0


def test_a_chunk_takes_eight_times_as_long_as_the_decodes_beside_it() -> None:
    costs = measured((4, 0.2), prefill=200)
    room = costs.prefill_room(4)
    assert room / 200 == pytest.approx(CHUNK_RATIO * 0.2, rel=0.01)


def test_a_chunk_beside_fast_decodes_is_still_long_enough_to_be_worth_a_step() -> None:
    assert measured((4, 0.001), prefill=250).prefill_room(4) == pytest.approx(250, abs=2)


def test_many_prompts_are_not_held_up_by_few_decodes() -> None:
    costs = measured((1, 0.001), (4, 0.001), prefill=100)
    assert costs.prefill_room(1, 3) == 3 * costs.prefill_room(1, 1)
    assert costs.prefill_room(4, 3) == costs.prefill_room(4, 1)


def test_a_chunk_stays_within_its_bounds() -> None:
    assert measured((4, 0.010), prefill=100_000).prefill_room(4) == 512
    assert measured((4, 0.0001), prefill=20).prefill_room(4) == MIN_CHUNK
    small = StepCosts(prefill_tokens=16)
    small.record(1, 0, 0.0001)
    small.record(0, 64, 1.0)
    assert small.prefill_room(1) == 16


def test_a_prompt_alone_gets_the_whole_chunk() -> None:
    assert measured((1, 0.001), prefill=1000).prefill_room(0) == 512


class SlowBackend(FakeBackend):
    """Calls ``wait`` in every decode, trials included."""

    def __init__(self, wait: Callable[[], None]) -> None:
        super().__init__()
        self._wait = wait

    @override
    def decode(self) -> int:
        self._wait()
        return super().decode()


def calibrated(step_seconds: float, **changes: object) -> tuple[StepCosts, FakeBackend, Clock]:
    """Costs of a backend whose every decode takes ``step_seconds``."""
    config = runtime_config(speculation=Speculation(mode="ngram", max_tokens=3), **changes)
    clock = Clock()

    def wait() -> None:
        clock.now += step_seconds

    backend = SlowBackend(wait)
    backend.load(config)
    costs = StepCosts(config.prefill_tokens)
    calibrate(backend, config, costs, clock)
    return costs, backend, clock


def test_calibration_measures_every_size_that_a_step_can_have() -> None:
    costs, backend, _ = calibrated(step_seconds=1e-4)
    assert set(costs.table()) == {"1", "2", "3", "4", "8", "12", "16"}
    assert costs.prefill_tokens_per_second > 0
    assert backend.num_cells == 0


def test_calibration_of_a_slow_model_stops_in_time() -> None:
    costs, backend, clock = calibrated(step_seconds=0.5)
    assert clock.now <= 2
    assert set(costs.table()) == {"1"}
    assert backend.num_cells == 0


@pytest.mark.parametrize("kv_cells", [0, 64])
def test_calibration_survives_a_small_kv_cache(kv_cells: int) -> None:
    costs, backend, _ = calibrated(step_seconds=1e-4, kv_unified=True, kv_cells=kv_cells)
    assert costs.decode_seconds(1) > 0
    assert backend.num_cells == 0
