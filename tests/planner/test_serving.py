"""Serving plans: costs by formula, cuts for a whole round, the search, and the plan that ranks follow."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import PlanError
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.plan import Plan, read_plan
from hybrid_runtime.planner.given import resolved
from hybrid_runtime.planner.serving_costs import rank_weights, unit_flops
from hybrid_runtime.planner.serving_evaluate import Asked, evaluate_serving
from hybrid_runtime.planner.serving_items import decode_size, prefill_size, size_of
from hybrid_runtime.planner.serving_layout import ServingLayout
from hybrid_runtime.planner.serving_plan import PlannedServing, asked_of_serving, plan_serving
from hybrid_runtime.planner.serving_search import search_serving
from hybrid_runtime.serving.batcher import batcher_of
from hybrid_runtime.serving.load import traffic_of
from hybrid_runtime.serving.requests import GREEDY, Item, Row
from hybrid_runtime.shapes import PRESETS
from tests.commands import command
from tests.deployment_files import write
from tests.serving.deployments import serving

SEARCH = {"devices": 2, "teraflops_per_device": 1, "memory_bandwidth": "10 GB/s", "latency_us": 1, "unit_us": 5}
TINY = PRESETS["tiny"]


def deployment(**tables: Any) -> Deployment:
    return serving(**{"search": SEARCH | tables.pop("search", {}), **tables})


def planned(**tables: Any) -> PlannedServing:
    return plan_serving(deployment(**tables), None)


def layout(asked: Asked, mesh: Mesh, size: int, **more: Any) -> ServingLayout:
    stages = (asked.setting.shape.unit_names(),) if mesh.pp_degree == 1 else more.pop("stages")
    return ServingLayout(mesh, size, asked.slots // size, more.pop("chunk", None), None, "whole", stages)


def test_sizes_of_items() -> None:
    rows = (Row(0, 5, 1, 1, 2), Row(1, 9, 1, 2, 0))
    assert size_of(Item("decode", 0, rows, (1, 2), (GREEDY,) * 2)) == ("decode", 2, 2, 6 + 10, 16, 2)
    chunk = Item("prefill", 0, (Row(0, 4, 3, 1, -1),), (1, 2, 3), (GREEDY,))
    assert size_of(chunk) == prefill_size(1, 4, 3, 0) == ("prefill", 1, 3, 5 + 6 + 7, 7, 0)
    assert decode_size(3, 10) == ("decode", 3, 3, 30, 30, 3)


def test_flops_of_a_whole_prompt_are_those_of_a_forward_pass() -> None:
    """With the head for one token only, and causal attention counted token by token."""
    tokens = 64
    size = prefill_size(1, 0, tokens, 1)
    weights = TINY.hidden_size * (TINY.q_size + 2 * TINY.kv_size) + TINY.q_size * TINY.hidden_size
    assert unit_flops(TINY, "attn", size) == 2 * tokens * weights + 2 * TINY.q_size * tokens * (tokens + 1)
    assert unit_flops(TINY, "head", size) == 2 * TINY.hidden_size * TINY.vocab_size
    assert unit_flops(TINY, "head", size._replace(wanted=0)) == unit_flops(TINY, "embedding", size) == 0


def test_weights_of_a_rank_add_up_to_the_models() -> None:
    biased = PRESETS["qwen2.5-0.5b"]
    assert 2 * rank_weights(biased, "attn", 2) == rank_weights(biased, "attn", 1)
    assert 4 * rank_weights(biased, "attn", 4) > rank_weights(biased, "attn", 1)  # two key/value heads for four ranks
    assert 3 * rank_weights(TINY, "head", 3) == 258 * 96  # padded


def test_a_decode_waits_for_memory_and_a_prefill_for_products() -> None:
    """The roofline: reading every weight once, or multiplying with it for every token."""
    asked = asked_of_serving(deployment(search={"unit_us": "0.001"}), None)
    weights = rank_weights(TINY, "mlp", 1)
    decode, prefill = (asked.costs.unit("mlp", 1, size) for size in (decode_size(1, 9), prefill_size(1, 0, 1000, 1)))
    assert decode.divisible_ns == weights * 4 * 10**9 // (10 * 10**9)
    assert prefill.divisible_ns == 2 * 1000 * weights * 10**9 // 10**12
    assert asked.costs.unit("mlp", 2, decode_size(1, 9)).divisible_ns == pytest.approx(decode.divisible_ns / 2, abs=1)


def test_busy_time_and_flops_of_a_round_do_not_depend_on_the_mesh() -> None:
    asked = asked_of_serving(deployment(), None)
    units = TINY.unit_names()
    alone = evaluate_serving(asked, layout(asked, Mesh(tp_degree=1, pp_degree=1, dp_degree=1), 2))
    two = evaluate_serving(
        asked, layout(asked, Mesh(tp_degree=1, pp_degree=2, dp_degree=1), 2, stages=(units[:7], units[7:]))
    )
    for phase in ("prefill_ns", "decode_ns"):
        busy = [sum(getattr(rank, phase) for rank in found.served.ranks) for found in (alone, two)]
        assert busy[0] == pytest.approx(busy[1], rel=0.3)  # items are other ones, but tokens are the same
    assert alone.stages.flops(0) == two.stages.flops(0) + two.stages.flops(1)
    assert alone.tokens == two.tokens == 6 * 4
    kept = [[memory.kv_cache for memory in found.memory] for found in (alone, two)]
    assert sum(kept[0]) == sum(kept[1]) == 2 * 4 * 64 * 96 * 4 * 6
    assert sum(memory.parameters for memory in two.memory) == alone.memory[0].parameters


def test_pieces_of_a_unit_cost_what_it_does_and_pass_twice_as_much() -> None:
    asked = asked_of_serving(deployment(), None)
    units = TINY.unit_names()
    first = (*units[:6], "2.mlp[0:128]"), ("2.mlp[128:256]", *units[7:])
    whole = evaluate_serving(
        asked, layout(asked, Mesh(tp_degree=1, pp_degree=2, dp_degree=1), 2, stages=(units[:7], units[7:]))
    )
    cut = evaluate_serving(asked, layout(asked, Mesh(tp_degree=1, pp_degree=2, dp_degree=1), 2, stages=first))
    item = Item("decode", 0, (Row(0, 9, 1, 0, 1),), (1,), (GREEDY,))
    one, other = whole.stages.times_of(item), cut.stages.times_of(item)
    sums = [sum(stage.compute_ns for stage in times.stages) for times in (one, other)]
    assert sums[1] - sums[0] == pytest.approx(5000, abs=2)  # launched twice
    assert other.hops_ns[0] - one.hops_ns[0] == pytest.approx(96 * 4 / 100, abs=2)
    assert sum(memory.parameters for memory in cut.memory) == sum(memory.parameters for memory in whole.memory)


def test_lowest_latency_and_most_throughput_are_other_plans_for_the_same_load() -> None:
    slow_links = {"link_bandwidth": "0.01 GB/s", "latency_us": 20}
    quick = planned(search={"objective": "latency"}, load={"concurrency": 1})
    most = planned(search={"objective": "throughput"} | slow_links, load={"requests": 16, "concurrency": 4})
    assert quick.plan.tp_degree == 2  # one request at a time: only tensor parallelism makes it faster
    assert most.plan.pp_degree == 2  # dear messages, and enough requests to fill a pipeline
    assert most.plan.num_microbatches >= 2


def test_the_chosen_plan_is_the_best_of_all_that_were_simulated() -> None:
    for objective in ("latency", "throughput"):
        asked = asked_of_serving(deployment(search={"objective": objective}), None)
        found = search_serving(asked).evaluated
        chosen = found[0]
        if objective == "latency":
            assert chosen.latency_ns == min(one.latency_ns for one in found)
        else:
            assert chosen.tokens_per_s == max(one.tokens_per_s for one in found)
        for one in found:
            assert one.round_ns >= max(rank.total_ns for rank in one.served.ranks)


def test_prefill_and_decode_would_be_cut_elsewhere() -> None:
    """The head costs a prefill next to nothing."""
    made = planned(model={"vocab_size": 4096}, search={"vary": ["cuts"]}, parallel={"pp_degree": 2})
    words = [sentence for sentence in made.sentences if "alone would be cut" in sentence]
    assert [sentence.split()[0] for sentence in words] == ["prefill", "decode"]
    assert "the slowest rank does" in made.sentences[0]


def test_the_plan_is_followed_by_the_deployment_it_was_made_for(tmp_path: Path) -> None:
    vary = ["microbatch_size", "prefill_chunk_tokens"]
    of = deployment(load={"prompt_tokens": 40}, search={"vary": vary}, parallel={"pp_degree": 2})
    made = plan_serving(of, None).plan
    (tmp_path / "plan.json").write_text(made.to_json())
    plan = read_plan(tmp_path / "plan.json")
    assert plan == made
    follows = resolved(of, plan, "plan.json")
    assert follows.batch is not None
    assert follows.batch.prefill_chunk_tokens == plan.prefill_chunk_tokens
    assert follows.num_microbatches == plan.num_microbatches
    assert batcher_of(follows).is_idle
    assert plan_serving(of, None).plan.fingerprint == plan.fingerprint
    assert plan.predicted is not None
    assert plan.predicted.asked == traffic_of(of).fingerprint


def test_what_a_plan_predicts() -> None:
    plan = planned().plan
    predicted = plan.predicted
    assert predicted is not None
    served = predicted.serving
    assert served is not None
    assert served.output_token is not None
    assert served.first_token.median_ns <= served.request.median_ns <= served.request.p99_ns
    assert served.tokens == 24
    for rank, of_rank in zip(predicted.ranks, served.ranks, strict=True):
        assert rank.time.total_ns == predicted.step_time.p50_ns == predicted.pipeline_ns
        assert rank.time.compute_ns == of_rank.prefill_ns + of_rank.decode_ns
        assert rank.memory.kv_cache == of_rank.kv_cache_bytes
    meshes = {(one.tp_degree, one.pp_degree) for one in served.trade_offs}
    assert meshes == {(1, 2), (2, 1)}
    first = served.trade_offs[0]
    assert (first.tp_degree, first.microbatch_size) == (plan.tp_degree, plan.microbatch_size)
    assert Fraction(first.tokens_per_s) == pytest.approx(served.tokens * 10**9 / predicted.step_time.p50_ns, rel=1e-4)


def test_a_cache_that_does_not_fit_says_what_would() -> None:
    batch = {"sequence_length": 4096}
    with pytest.raises(PlanError) as found:
        planned(batch=batch, hardware={"memory_per_device": "10 MB"})
    assert "no layout fits 10 MB less 5 %" in str(found.value)
    assert "of cache" in str(found.value)
    assert "serve fewer sequences at once" in str(found.value)
    room = planned(hardware={"memory_per_device": "1 GB"})
    assert "would fit beside the weights" in " ".join(room.sentences)


def test_a_latency_that_nothing_keeps_says_by_how_much() -> None:
    with pytest.raises(PlanError) as found:
        planned(targets={"request_latency_s": {"p90": "0.0001"}})
    assert "p90 of request latency" in str(found.value)
    assert "limit 0.0001 s" in str(found.value)


def test_most_throughput_under_a_latency() -> None:
    """A limit between the quickest layout and the one with the most throughput is kept, and costs throughput."""
    free = {"search": {"objective": "throughput"}, "load": {"requests": 16, "concurrency": 4}}
    most, quick = planned(**free), planned(search={"objective": "latency"}, load=free["load"])
    limits = [made.best[0].latency("request") for made in (quick, most)]
    assert limits[0] is not None
    limit_s = str(Fraction(limits[0].p90_ns + 1000, 10**9).limit_denominator(10**9).__float__())[:11]
    bound = planned(**free, targets={"request_latency_s": {"p90": limit_s}})
    times = bound.best[0].latency("request")
    assert times is not None
    assert times.p90_ns <= Fraction(limit_s) * 10**9
    assert quick.best[0].tokens_per_s <= bound.best[0].tokens_per_s <= most.best[0].tokens_per_s


FILE = """
name = "served"
model = { preset = "tiny" }
batch = { global_batch_size = 4, microbatch_size = 2, sequence_length = 64 }
workload = { kind = "generate" }
load = { requests = 6, prompt_tokens = 8, output_tokens = 4 }
search = { devices = 2 }
"""


def test_command(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    done = command("plan", write(tmp_path, FILE), "--analytic", "--out", out, "-q")
    assert (done.code, done.err) == (0, "")
    for words in (
        "chosen: tp ",
        "first token",
        "TP against PP, request latency",
        "a tp 1 x pp 2",
        "why not the others",
    ):
        assert words in done.out
    assert isinstance(read_plan(out), Plan)
    refused = command("plan", write(tmp_path, FILE), "--analytic", "--try", "2", "--out", out, "-q")
    assert refused.code == 2
    assert "a serving plan is chosen by latencies" in refused.err
