from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import torch
from torch import Tensor

from workers.segment import Segment
from workers.weights import Entry, Manifest, Rendezvous, describe, remove_orphans, segment_path

WEIGHTS: dict[str, Tensor] = {
    "embed": torch.arange(6, dtype=torch.float32).view(2, 3),
    "norm": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "scale": torch.tensor(0.25),
    "head": torch.arange(40, dtype=torch.float32).view(4, 10),
}


def manifest_of(weights: dict[str, Tensor]) -> Manifest:
    return describe((name, w.dtype, tuple(w.shape)) for name, w in weights.items())


def test_weights_lie_one_after_the_other_on_64_byte_boundaries() -> None:
    # 24, 4, 4 and 160 bytes, each followed by a checksum of 4 bytes.
    manifest = manifest_of(WEIGHTS)
    assert manifest.entries == (
        Entry(name="embed", dtype="float32", shape=(2, 3), offset=0),
        Entry(name="norm", dtype="bfloat16", shape=(2,), offset=64),
        Entry(name="scale", dtype="float32", shape=(), offset=128),
        Entry(name="head", dtype="float32", shape=(4, 10), offset=192),
    )
    assert manifest.num_bytes == 192 + 160 + 4


def test_a_full_line_is_not_padded() -> None:
    described = [("a", torch.float32, (15,)), ("b", torch.float32, (16,)), ("c", torch.float32, (1,))]
    assert [e.offset for e in describe(described).entries] == [0, 64, 64 + 128]


def test_the_manifest_names_the_transport() -> None:
    rendezvous = Rendezvous(address="10.0.0.7", port=29500, world_size=3)
    assert describe([], segment="/dev/shm/x").segment == "/dev/shm/x"
    assert describe([], rendezvous=rendezvous).rendezvous == rendezvous


def test_every_process_that_maps_the_segment_reads_the_weights(tmp_path: Path) -> None:
    manifest = manifest_of(WEIGHTS)
    writer = Segment(str(tmp_path / "segment"), manifest.num_bytes)
    reader = Segment(str(tmp_path / "segment"))
    for version in (1.0, 2.0):
        sent = {name: w * version for name, w in WEIGHTS.items()}
        writer.write(manifest.entries, sent.items())
        received = dict(reader.read(manifest.entries))
        assert list(received) == list(sent)
        for name, weight in sent.items():
            assert received[name].dtype == weight.dtype
            assert torch.equal(received[name], weight), name
    assert (tmp_path / "segment").stat().st_mode & 0o777 == 0o600
    writer.remove()
    writer.remove()  # no error if it is already removed
    assert not (tmp_path / "segment").exists()


@pytest.mark.parametrize("at", [0, 25, 64 + 3, 128, 192 + 159, 192 + 162])
def test_a_flipped_bit_is_found(tmp_path: Path, at: int) -> None:
    """Flip a bit in a weight or in its checksum."""
    path, manifest = tmp_path / "segment", manifest_of(WEIGHTS)
    Segment(str(path), manifest.num_bytes).write(manifest.entries, WEIGHTS.items())
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1 << (at % 8)
    path.write_bytes(raw)
    weight = next(entry.name for entry in reversed(manifest.entries) if entry.offset <= at)
    with pytest.raises(ValueError, match=f"weight {weight} is corrupt"):
        list(Segment(str(path)).read(manifest.entries))


@pytest.mark.parametrize(
    ("name", "weight", "message"),
    [
        ("norm2", WEIGHTS["norm"], "expected weight norm bfloat16 .2,., got norm2 bfloat16 .2,."),
        ("norm", torch.zeros(3, dtype=torch.bfloat16), "expected weight norm bfloat16 .2,., got norm .* .3,."),
        ("norm", torch.zeros(2), "expected weight norm bfloat16 .2,., got norm float32 .2,."),
    ],
    ids=["name", "shape", "dtype"],
)
def test_other_weights_than_the_manifest_s_are_refused(tmp_path: Path, name: str, weight: Tensor, message: str) -> None:
    manifest = manifest_of(WEIGHTS)
    segment = Segment(str(tmp_path / "segment"), manifest.num_bytes)
    given = [(name, weight) if n == "norm" else (n, w) for n, w in WEIGHTS.items()]
    with pytest.raises(ValueError, match=message):
        segment.write(manifest.entries, given)


def test_a_weight_too_many_or_too_few_is_refused(tmp_path: Path) -> None:
    manifest = manifest_of(WEIGHTS)
    segment = Segment(str(tmp_path / "segment"), manifest.num_bytes)
    with pytest.raises(ValueError, match="is shorter"):
        segment.write(manifest.entries, list(WEIGHTS.items())[:-1])
    with pytest.raises(ValueError, match="is longer"):
        segment.write(manifest.entries, [*WEIGHTS.items(), ("more", torch.zeros(1))])


def test_a_reader_needs_a_segment_that_is_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Segment(str(tmp_path / "nothing"))


def test_the_next_attempt_removes_the_segments_of_a_killed_driver() -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    run = uuid.uuid4().hex
    own_segment = Path(segment_path(run))
    orphan, another = (own_segment.with_name(f"rlhf-{name}-{dead.pid}-weights") for name in (run, f"{run}-2"))
    try:
        for path in (own_segment, orphan, another):
            path.touch()
        remove_orphans(run)
        assert [path.exists() for path in (own_segment, orphan, another)] == [True, False, True]
    finally:
        for path in (own_segment, orphan, another):
            path.unlink(missing_ok=True)
