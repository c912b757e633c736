"""GGUF: blocks of each type against their definition, and a Llama's folder against transformers."""

import struct
from pathlib import Path

import numpy as np
import pytest
from ralign.engine.runtime.errors import UserError
from ralign.recipes.real.gguf import read_gguf

KINDS = {"F32": 0, "Q4_1": 3, "Q8_0": 8}


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def value(item) -> bytes:
    """Type and content of a metadata value."""
    if isinstance(item, bool):
        return struct.pack("<I?", 7, item)
    if isinstance(item, int):
        return struct.pack("<II", 4, item)
    if isinstance(item, float):
        return struct.pack("<If", 6, item)
    if isinstance(item, str):
        return struct.pack("<I", 8) + string(item)
    parts = [value(one) for one in item]
    return (
        struct.pack("<I", 9) + parts[0][:4] + struct.pack("<Q", len(parts)) + b"".join(p[4:] for p in parts)
    )


def encoded(array: np.ndarray, kind: str) -> tuple[bytes, np.ndarray]:
    """Bytes of a tensor, and the weights that they stand for."""
    if kind == "F32":
        return array.astype("<f4").tobytes(), array.astype(np.float32)
    data, weights = b"", []
    for block in array.reshape(-1, 32):
        if kind == "Q8_0":
            d = np.float16(abs(block).max() / 127)
            q = np.round(block / d).astype(np.int8)
            data += d.tobytes() + q.tobytes()
            weights.append([float(d) * int(one) for one in q])
        else:
            d, m = np.float16((block.max() - block.min()) / 15), np.float16(block.min())
            q = [min(15, max(0, round(float((one - m) / d)))) for one in block]
            data += d.tobytes() + m.tobytes() + bytes(q[i] | q[i + 16] << 4 for i in range(16))
            weights.append([float(d) * one + float(m) for one in q])
    return data, np.array(weights, dtype=np.float32).reshape(array.shape)


def write_gguf(
    path: Path, metadata: dict, tensors: dict[str, tuple[np.ndarray, str]]
) -> dict[str, np.ndarray]:
    """Writes a file; returns the weights that it holds."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(string(key) + value(item) for key, item in metadata.items())
    body, weights = b"", {}
    for name, (array, kind) in tensors.items():
        data, weights[name] = encoded(array, kind)
        shape = array.shape[::-1]
        head += string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, KINDS[kind], len(body))
        body += data + bytes(-len(data) % 32)
    path.write_bytes(head + bytes(-len(head) % 32) + body)
    return weights


def test_tensors_and_metadata_are_those_that_were_written(tmp_path):
    rng = np.random.default_rng(0)
    metadata = {"a": 3, "b": "naïve", "c": [1.5, -2.0], "d": ["x", "yz"], "e": True}
    tensors = {kind: (rng.normal(size=(3, 64)), kind) for kind in KINDS}
    weights = write_gguf(tmp_path / "m.gguf", metadata, tensors)
    found, arrays = read_gguf(tmp_path / "m.gguf")
    assert found == metadata
    for kind, (array, _) in tensors.items():
        np.testing.assert_allclose(arrays[kind], weights[kind], rtol=1e-6)
        assert abs(arrays[kind] - array).max() < {"F32": 1e-6, "Q4_1": 0.3, "Q8_0": 0.03}[kind]


def test_other_files_are_refused(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack("<I", 2) + bytes(40))
    with pytest.raises(UserError, match="no GGUF file of version 3"):
        read_gguf(tmp_path / "m.gguf")
    (tmp_path / "n.gguf").write_bytes(b"PK")
    with pytest.raises(UserError, match="no GGUF file"):
        read_gguf(tmp_path / "n.gguf")
