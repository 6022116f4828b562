"""The planner's benchmark: every id has its line, and llama.cpp's log is read as it is written."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from bench.allocation import Ask, read_log
from bench.estimates import Compared, compared, shape_of
from bench.planner import IDS, chosen
from bench.planner_report import render
from support.model_shapes import facts

LOG = """\
llama_context:        CPU  output buffer size =     1.96 MiB
llama_kv_cache_iswa: creating non-SWA KV cache, size = 4096 cells
llama_kv_cache:        CPU KV buffer size =     0.00 MiB
llama_kv_cache: size =  320.00 MiB (  4096 cells,   5 layers,  4/4 seqs), K (f16):  160.00 MiB, V
llama_kv_cache: size =  100.50 MiB (  1536 cells,  29 layers,  4/4 seqs), K (f16):   50.25 MiB, V
llama_memory_recurrent: size =   20.62 MiB (     1 cells,  32 layers,  1 seqs  0 rs_seq), R (f32)
sched_reserve:    Vulkan0 compute buffer size =   120.01 MiB
sched_reserve: Vulkan_Host compute buffer size =    12.00 MiB
sched_reserve:    Vulkan0 compute buffer size =   110.00 MiB
""".splitlines()


def test_every_id_has_a_module_of_its_own() -> None:
    for name in IDS:
        case = importlib.import_module(f"bench.planner_cases.{name.replace('-', '_')}")
        assert case.METRIC.id == name
    assert len(list(Path("tests/bench/planner_cases").glob("*.py"))) == len(IDS)


def test_patterns_choose_ids_and_unknown_ones_end_the_run() -> None:
    assert chosen("estimate-*,limit") == [
        "estimate-cpu",
        "estimate-device",
        "estimate-projector",
        "limit",
    ]
    with pytest.raises(SystemExit, match="no such case; there are estimate-cpu"):
        chosen("estimates")


def test_sizes_are_read_from_the_log_and_a_graph_laid_out_again_counts_once() -> None:
    answer = read_log(LOG, weights=7)
    mib = 2**20
    assert answer.cells == 420.5 * mib
    assert answer.states == round(20.62 * mib)
    assert answer.on("Vulkan0", "compute") == 110 * mib
    assert answer.total("compute") == 122 * mib
    assert (answer.weights, answer.total("output")) == (7, round(1.96 * mib))


def test_an_error_is_safe_only_within_the_margin() -> None:
    assert Compared(planned=95, reported=100, margin=5).is_safe
    assert not Compared(planned=94, reported=100, margin=5).is_safe
    assert Compared(planned=95, reported=100, margin=5).percent == -5


def test_what_llama_cpp_does_not_report_is_left_out_of_the_plan() -> None:
    known = facts("llama-3.1-8b")
    asked = Ask(4096, 4)
    mib = 2**20
    answer = read_log(
        [
            "llama_kv_cache: size = 2048.00 MiB (",
            "x: CPU compute buffer size = 120.01 MiB",
            "x: CPU output buffer size = 1.96 MiB",
        ],
        weights=sum(run.count * run.weight_bytes for run in known.layers)
        + known.token_embedding_bytes
        + known.output_bytes,
    )
    found = compared(known, asked, answer)
    assert abs(found.planned - found.reported) < 2 * mib
    assert shape_of(asked).parallel == 4


def test_a_report_has_a_table_and_notes_for_each_case() -> None:
    line = {
        "case": "limit",
        "ours": 9.5,
        "peer": None,
        "unit": "% unused",
        "rounds": 2,
        "target": 15.0,
        "less_is_better": True,
        "ok": True,
        "also": "2 replicas",
        "rows": [{"model": "mid", "n": 1}],
    }
    text = render([line], {"limit": "What it is."})
    assert "| limit | 9.5 |  | % unused | 2 | at most 15 | yes | 2 replicas |" in text
    assert "## limit\n\nWhat it is." in text
    assert "| mid | 1 |" in text
