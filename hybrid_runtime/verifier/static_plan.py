"""Static checks of the plan itself: sizes that must divide, stages that hold the model, a schedule that ends."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import PlanError
from hybrid_runtime.exact import decimal_text
from hybrid_runtime.pieces import read_piece
from hybrid_runtime.planner.make import demand_linear, make_plan
from hybrid_runtime.schedule.choose import accept, is_searched, place
from hybrid_runtime.shapes import LlamaShape
from hybrid_runtime.verdict import StaticCheck
from hybrid_runtime.verifier.static_rows import Facts, amount, row, tp_problems, undecided, valid_tp_degrees

# Above this many computing actions the proof is left to the run, so that `check` answers within a second.
MAX_ACTIONS = 10_000


def plan_rows(facts: Facts) -> Iterator[StaticCheck]:
    """Rows about the model on its mesh; nothing where the file describes neither model, parts nor cuts."""
    deployment = facts.deployment
    if facts.shape is not None:
        yield model_shape(facts.shape)
        yield from tp_rows(facts, facts.shape)
    if deployment.batch is not None:
        yield batch_divisible(facts)
    described = (deployment.model, deployment.declared.num_parts)
    if any(part is not None for part in described) or not isinstance(deployment.pipeline.cuts, str):
        yield stage_cover(facts)
    if any(map(read_piece, chain.from_iterable(facts.stages or ()))):
        yield pieces_divisible(facts)
    if deployment.pipeline.embedding_rows is not None:
        yield embedding_rows(facts)
    if deployment.model is not None or deployment.pipeline.schedule != "1f1b":
        yield schedule(facts)


def model_shape(shape: LlamaShape) -> StaticCheck:
    """Sizes agree with each other, whatever the mesh."""
    problems = []
    if shape.num_heads % shape.num_kv_heads:
        problems.append(f"{shape.num_heads} heads do not share {shape.num_kv_heads} key/value heads evenly")
    if shape.head_dim % 2:
        problems.append(f"head_dim {shape.head_dim} is odd, but rotary positions turn pairs; set an even head_dim")
    if shape.head_dim == 0:
        problems.append(f"hidden_size {shape.hidden_size} is below num_heads {shape.num_heads}; head_dim would be 0")
    text = (
        f"{shape.num_layers} layers, {shape.num_heads} heads of {shape.head_dim}, {shape.num_kv_heads} key/value heads"
    )
    return row("model_shape", "sizes of the model agree", problems, text)


def tp_rows(facts: Facts, shape: LlamaShape) -> Iterator[StaticCheck]:
    """What tensor parallelism divides; nothing at degree 1."""
    tp_degree, batch = facts.deployment.mesh.tp_degree, facts.deployment.batch
    if tp_degree == 1:
        return
    problems = tp_problems(tp_degree, shape)
    advice = f"valid tp degrees are {', '.join(map(str, valid_tp_degrees(shape)))}" if problems else ""
    for name, size, words in (
        ("heads_divisible", shape.num_heads, "heads"),
        ("kv_heads_divisible", shape.num_kv_heads, "key/value heads"),
        ("ffn_divisible", shape.ffn_size, "MLP columns"),
    ):
        found = [f"{problems[name]}; {advice}"] if name in problems else []
        copied = name == "kv_heads_divisible" and size < tp_degree
        detail = f"each head on {tp_degree // size} ranks" if copied else f"{size // tp_degree} per rank"
        yield row(name, f"{size} {words} over tp {tp_degree}", found, detail)
    if facts.deployment.parallel.sequence_parallel and batch is not None:
        rest = batch.sequence_length % tp_degree
        below = batch.sequence_length - rest
        sizes = f"{below} or {below + tp_degree}" if below else f"{tp_degree}"
        found = [f"{batch.sequence_length} tokens do not divide by tp {tp_degree}; use {sizes}"] if rest else []
        detail = f"{batch.sequence_length // tp_degree} tokens per rank"
        yield row("sequence_divisible", f"sequence parallel over tp {tp_degree}", found, detail)


def batch_divisible(facts: Facts) -> StaticCheck:
    """global batch = microbatch size * microbatches * replicas."""
    batch, replicas = facts.deployment.batch, facts.deployment.mesh.dp_degree
    assert batch is not None
    at_once = batch.microbatch_size * replicas
    rest = batch.global_batch_size % at_once
    below = batch.global_batch_size - rest
    valid = " or ".join(str(size) for size in (below, below + at_once) if size)
    problem = f"{batch.global_batch_size} sequences leave {rest} over; use global_batch_size {valid}"
    parts = f"microbatches of {batch.microbatch_size} on {amount(replicas, 'replica')}"
    requirement = f"global batch {batch.global_batch_size} in {parts}"
    detail = f"{_microbatches(facts.num_microbatches)} per replica and step"
    return row("batch_divisible", requirement, [problem] if rest else [], detail)


def stage_cover(facts: Facts) -> StaticCheck:
    """Every unit on exactly one stage, in order, no stage empty; as many parts as stages."""
    deployment, cuts = facts.deployment, facts.deployment.pipeline.cuts
    parts = deployment.declared.num_parts
    requirement = f"{amount(parts or len(facts.stage_to_rank), 'part')} with every unit once"
    problems = [*_parts_problems(facts), *facts.cover_problems]
    if problems:
        return row("stage_cover", requirement, problems, "")
    if facts.stages is not None:
        shown = " | ".join(f"{stage[0]}..{stage[-1]}" if len(stage) > 1 else stage[0] for stage in facts.stages[:8])
        more = f" | ... ({len(facts.stages)} stages)" if len(facts.stages) > 8 else ""
        return row("stage_cover", requirement, [], f"{len(facts.costs)} units: {shown}{more}")
    if deployment.model is None and isinstance(cuts, str):
        return row(
            "stage_cover", requirement, [], f"{parts} parts are {len(facts.stage_to_rank)} stages; no model is given"
        )
    source = "no [model] is given" if deployment.model is None else f"the units of {deployment.model.units} are"
    detail = source if deployment.model is None else f"{source} known once the function is called"
    return undecided("stage_cover", requirement, "not_given", detail)


def pieces_divisible(facts: Facts) -> StaticCheck:
    """Every cut inside a unit falls where each tensor-parallel rank can cut its own shard."""
    tp_degree = facts.deployment.mesh.tp_degree
    pieces = [piece for piece in map(read_piece, chain.from_iterable(facts.stages or ())) if piece is not None]
    cuts = [f"{piece.unit} at {piece.start}" for piece in pieces if piece.start]
    shown = ", ".join(cuts[:8]) + (", ..." if len(cuts) > 8 else "")
    requirement = f"{amount(len(cuts), 'cut')} inside units over tp {tp_degree}"
    return row("pieces_divisible", requirement, facts.piece_problems, shown)


def embedding_rows(facts: Facts) -> StaticCheck:
    """Every row of a sharded embedding on exactly one pipeline rank, the same share of it on each tensor rank."""
    rows, mesh = facts.deployment.pipeline.embedding_rows, facts.deployment.mesh
    shown = "in equal parts" if isinstance(rows, str) else "as given"
    requirement = f"embedding rows {shown} over {amount(mesh.pp_degree, 'pipeline rank')}"
    if not facts.costs:
        return undecided("embedding_rows", requirement, "not_given", "the model's first unit is not known here")
    pieces = [read_piece(name) for name in facts.embedding_pieces]
    counts = "/".join(str(piece.parts if piece else 0) for piece in pieces[:16])
    tied = facts.shape is not None and facts.shape.tie_embeddings
    note = "; tied: the head's rank holds the whole weight, rows on other ranks are second copies" if tied else ""
    return row("embedding_rows", requirement, facts.rows_problems, f"{counts} rows{note}")


def _parts_problems(facts: Facts) -> Iterator[str]:
    """A declared number of parts against the stages, and against the devices that each part needs."""
    deployment, mesh = facts.deployment, facts.deployment.mesh
    parts, devices = deployment.declared.num_parts, deployment.hardware.devices
    if parts is None:
        return
    stages = len(facts.stage_to_rank)
    if parts != stages:
        each = "" if stages == mesh.pp_degree else f" with {stages // mesh.pp_degree} stages on each rank"
        yield f"{parts} parts are declared, but pp_degree {mesh.pp_degree}{each} makes {stages} stages"
    per_part = mesh.tp_degree * mesh.dp_degree
    one_each = stages == mesh.pp_degree
    if devices is not None and one_each and parts * per_part != devices and not deployment.hardware.oversubscribe:
        yield (
            f"{parts} parts for {devices} devices contradict {mesh}: tp {mesh.tp_degree} x dp {mesh.dp_degree} puts "
            f"each part on {per_part} devices, {parts * per_part} in all"
        )


def items_under_way(deployment: Deployment) -> int:
    """Items that may be under way where requests are served."""
    assert deployment.batch is not None
    return deployment.batch.items_in_flight or deployment.num_microbatches


def schedule(facts: Facts) -> StaticCheck:
    """The schedule is known; its lists for this plan cover all work, finish, and keep messages in order."""
    deployment, num_microbatches = facts.deployment, facts.num_microbatches
    name, ranks = deployment.pipeline.schedule, deployment.mesh.pp_degree
    requirement = f"schedule {name} on {amount(ranks, 'pipeline rank')}"
    try:
        place(name, ranks, deployment.pipeline.virtual_stages)
        if num_microbatches:
            accept(name, ranks, num_microbatches, deployment.workload.passes, deployment.pipeline.virtual_stages)
        if deployment.serves:
            demand_linear(name, place(name, ranks, deployment.pipeline.virtual_stages))
            detail = (
                f"one stage on each rank, in order; at most {amount(items_under_way(deployment), 'item')} under way"
            )
            return row("schedule", f"requests pass {amount(ranks, 'pipeline rank')}", [], detail)
        if is_searched(name):
            return row("schedule", requirement, [], "searched, and proved free of deadlock, when a run plans")
        actions = 2 * len(facts.stage_to_rank) * num_microbatches
        if not facts.stages or facts.piece_problems or not num_microbatches or actions > MAX_ACTIONS:
            return _unproven(facts, requirement, actions)
        plan = make_plan(_with_sound_rows(facts), facts.costs)
    except PlanError as problem:
        return row("schedule", requirement, [str(problem)], "")
    in_flight = "/".join(decimal_text(peak, 2) for peak in plan.peak_microbatches[:16])
    detail = f"{_microbatches(num_microbatches)}: complete, free of deadlock; microbatches held at once {in_flight}"
    return row("schedule", requirement, [], detail)


def _with_sound_rows(facts: Facts) -> Deployment:
    """Rows that do not hold the embedding have a row of their own and are no fault of the schedule."""
    if not facts.rows_problems:
        return facts.deployment
    pipeline = facts.deployment.pipeline.model_copy(update={"embedding_rows": None})
    return facts.deployment.model_copy(update={"pipeline": pipeline})


def _microbatches(number: int) -> str:
    return amount(number, "microbatch", "microbatches")


def _unproven(facts: Facts, requirement: str, actions: int) -> StaticCheck:
    """A known schedule whose lists are not made here; building the plan of a run proves them before any rank starts."""
    missing = "cuts that the ranks can make" if facts.piece_problems else "stages"
    missing = missing if facts.num_microbatches else "a batch that divides"
    why = f"its {actions} actions are" if actions > MAX_ACTIONS else f"they need {missing}; they are"
    detail = f"a known schedule; its lists are not made here: {why} proved when a run plans, before any rank starts"
    return row("schedule", requirement, [], detail)
