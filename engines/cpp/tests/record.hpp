// Records as small as they can be.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

// The record of one rank with one graph, as `moetrt build` writes it, less what running does not read.
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

// What engines' options say of the library of plugins that they were built with.
inline nlohmann::json plugins_record() { return {{"library", "libmoetrt-plugins.so"}, {"version", "1"}, {"sha256", std::string(64, 'a')}}; }

// A tokenizer.json with a token of each kind and two merges.
inline nlohmann::json tokenizer_record() {
  return nlohmann::json::parse(R"({
    "version": "1.0", "truncation": null, "padding": null, "normalizer": {"type": "Sequence", "normalizers": []},
    "added_tokens": [
      {"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
      {"id": 9, "content": "<think>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": true, "special": false}],
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
      {"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}"}, "behavior": "Isolated", "invert": false},
      {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]},
    "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [],
      "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
    "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
      "byte_fallback": false, "ignore_merges": false, "vocab": {"<s>": 0, "a": 1, "b": 2, "\u0120": 3, "\u00c3": 4, "\u00a9": 5, "ab": 6, "\u0120ab": 7, "\u00c3\u00a9": 8},
      "merges": [["a", "b"], ["\u0120", "ab"]]}})");
}
