// The record of one rank with one graph, as `moetrt build` writes it, less what running does not read.
#pragma once

#include <nlohmann/json.hpp>

inline nlohmann::json record() {
  return nlohmann::json::parse(R"({
    "backend": "ort", "rank": 0, "plan": {"tensor": 1, "pipeline": 1}, "plan_hash": "p", "config": {"vocab": 32, "eos": [1]}, "shard": {},
    "source": {"name": "m", "fingerprint": "f", "tensors": 1, "bytes": 1}, "precision": "fp32", "attention": "absorbed", "graphs": "g",
    "max_context": 64, "max_batch": 4,
    "assembly": {"steps": [{"kind": "launch", "graph": "rank"}], "graphs": {"rank": "rank.onnx"}, "signatures": {"rank": {
      "inputs": [{"name": "token_ids", "dtype": "int64", "shape": ["batch", "tokens"]}, {"name": "a.cache", "dtype": "float32", "shape": ["batch", "context", 8]}],
      "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", "selected", 32]}, {"name": "a.cache.out", "dtype": "float32", "shape": ["batch", "context", 8]}],
      "states": [{"input": "a.cache", "output": "a.cache.out"}]}}},
    "options": {"providers": ["CPUExecutionProvider"], "config": {"session.x": "1"}}, "lowerings": [], "refusals": {},
    "files": {"rank.onnx": {"bytes": 3, "sha256": "s"}}, "request": "r", "tools": {}, "quantization": null, "kind": "engine-rank", "version": 1})");
}
