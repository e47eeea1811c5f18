"""Time by stage: by hand, and of a real round."""

import re
import time
from pathlib import Path

import jax
import optax
import pytest
from jax.profiler import ProfileData

import fedprune as fp
from fedprune import profile

PROGRAM = """HloModule jit_f

FileNames
1 "/home/somebody/script.py"
2 "/x/fedprune/rounds/flat.py"
3 "/x/fedprune/prune/threshold.py"
4 "/x/fedprune/local/sgd.py"
5 "/x/flax/linen/linear.py"
6 "/x/fedprune/run/evaluate.py"

FunctionNames
1 "main"
2 "evaluation.<locals>.evaluate"

FileLocations
1 {file_name_id=1 function_name_id=1 line=1}
2 {file_name_id=2 function_name_id=1 line=1}
3 {file_name_id=3 function_name_id=1 line=1}
4 {file_name_id=4 function_name_id=1 line=1}
5 {file_name_id=5 function_name_id=1 line=1}
6 {file_name_id=6 function_name_id=2 line=1}

StackFrames
1 {file_location_id=1 parent_frame_id=SHIFT0}
2 {file_location_id=2 parent_frame_id=SHIFT1}
3 {file_location_id=3 parent_frame_id=SHIFT2}
4 {file_location_id=4 parent_frame_id=SHIFT2}
5 {file_location_id=5 parent_frame_id=SHIFT4}
6 {file_location_id=6 parent_frame_id=SHIFT1}

ENTRY %main () -> f32[] {
  %select.1 = f32[] add(%a, %b), metadata={op_name="x" stack_frame_id=3}
  %dense = f32[] dot(%a, %b), metadata={op_name="x" stack_frame_id=5}
  %script = f32[] add(%a, %b), metadata={op_name="x" stack_frame_id=1}
  %nothing = f32[] add(%a, %b)
  ROOT %test = f32[] add(%a, %b), metadata={op_name="x" stack_frame_id=6}
}
"""


def program(shift: int = 0) -> str:
    """Versions differ in how they number parents."""
    return re.sub(r"SHIFT(\d)", lambda match: str(int(match[1]) + shift), PROGRAM)


def test_stages_are_named_by_rooms_that_exist():
    there = {path.stem for path in Path(fp.__file__).parent.iterdir()}
    assert profile.STAGES.keys() <= there


@pytest.mark.parametrize("shift", [0, 1])
def test_stages_by_hand(shift):
    assert profile.stages(program(shift)) == {
        "select.1": "pruning",
        "dense": "local training",
        "script": "not attributed",
        "test": "evaluation",
    }


def test_own_times_by_hand(tmp_path):
    """An operation's time is without those inside it; threads are apart; other events are left."""

    names = ["test", "dense", "select.1", "unknown"]

    def event(name, start, duration):
        stat = f'stats {{ metadata_id: 1 str_value: "{name}" }}' if name in names else ""
        number = 1 + names.index(name) if name in names else 9
        times = f"offset_ps: {1000 * start} duration_ps: {1000 * duration}"
        return f"events {{ metadata_id: {number} {times} {stat} }}"

    threads = [
        [
            event("test", 0, 100),
            event("dense", 10, 30),
            event("select.1", 12, 5),
            event("dense", 50, 20),
            event("unknown", 200, 9),
            event("no operation", 1, 98),
        ],
        [event("dense", 0, 7)],
    ]
    lines = "".join(f"lines {{ id: {i} {' '.join(t)} }}" for i, t in enumerate(threads))
    told = "".join(
        f'event_metadata {{ key: {i} value {{ id: {i} name: "{name}" }} }}'
        for i, name in [*enumerate(names, 1), (9, "no operation")]
    )
    stat = 'stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }'
    space = ProfileData.text_proto_to_serialized_xspace(f"planes {{ {lines} {told} {stat} }}")
    (tmp_path / "a.xplane.pb").write_bytes(space)
    got = profile.by_stage(tmp_path, program())
    want = {"evaluation": 50, "local training": 52, "pruning": 5, "not attributed": 9}
    assert got == pytest.approx({k: 1e-9 * v for k, v in want.items()})


def test_a_real_round(dataset, tmp_path):
    """Every stage that the round has shows, and no more time than all devices together had."""
    layout = fp.mesh.make(clients=2)
    train, test = fp.data.federate(dataset, fp.data.iid(4)(dataset.y_train, dataset.y_test, 0))
    model = fp.models.mlp(hidden=(8,))
    algorithm = fp.rounds.build(
        local=fp.local.sgd(model, optax.sgd(0.1), batch=8, steps=3),
        uplink=fp.link.over_the_air(snr_db=10.0, normalisation="receiver"),
        server=fp.server.average(),
        participation=fp.server.full(4),
        pruner=fp.prune.scheduled(fp.prune.constant(0.5)),
        layout=layout,
    )
    key = jax.random.key(0)[None]
    state = fp.run.start(lambda _: algorithm, model.init, (), key)
    arms = fp.run.Arms((), key, state, train.rows[None], train.size[None])
    evaluate = fp.run.evaluation(model, layout)
    run = fp.run.program(lambda _: algorithm, layout, 1, evaluate)
    jax.block_until_ready(run(arms, train, test))
    began = time.perf_counter()
    profile.measure(lambda: run(arms, train, test), tmp_path)
    wall = time.perf_counter() - began
    text = run.lower(arms, train, test).compile().as_text()
    seconds = profile.by_stage(tmp_path, text)
    assert {"local training", "pruning", "uplink", "evaluation"} <= set(seconds)
    assert all(s >= 0 for s in seconds.values())
    assert sum(seconds.values()) <= 2 * wall


def test_without_a_trace(tmp_path):
    with pytest.raises(FileNotFoundError, match="no trace in"):
        profile.by_stage(tmp_path, "")
