#include <doctest/doctest.h>

#include <string>

#include "moetrt.h"

TEST_CASE("what goes wrong is a code and a text, never an exception") {
  moetrt_chain* chain = nullptr;
  CHECK(moetrt_load("/nowhere", 1, &chain) == 1);
  CHECK(chain == nullptr);
  CHECK(std::string(moetrt_error()) == "/nowhere is not a folder.\nHint: Give the folder that `moetrt build` wrote.");
  CHECK(moetrt_load(nullptr, 1, &chain) == 1);
  CHECK(moetrt_load_with_plugins("/nowhere", 1, "lib.so", &chain) == 1);
  CHECK(std::string(moetrt_error()).rfind("/nowhere is not a folder.", 0) == 0);
  CHECK(moetrt_open_runtime("/nowhere/lib.so") == 1);
  CHECK(std::string(moetrt_error()).find("/nowhere/lib.so") != std::string::npos);
  CHECK(moetrt_logits(nullptr, nullptr, 0, nullptr) == 1);
  CHECK(moetrt_generate(nullptr, nullptr, 0, 1, 0, nullptr, nullptr) == 1);
  CHECK(moetrt_vocab(nullptr) == 0);
  moetrt_close(nullptr);
  moetrt_tokenizer* tokenizer = nullptr;
  CHECK(moetrt_open_patterns("/nowhere/libonig.so") == 1);
  CHECK(std::string(moetrt_error()).find("/nowhere/libonig.so") != std::string::npos);
  CHECK(moetrt_load_tokenizer("/nowhere", 0, &tokenizer) == 1);
  CHECK(tokenizer == nullptr);
  CHECK(moetrt_encode(nullptr, "", 0, nullptr, 0, nullptr) == 1);
  CHECK(moetrt_decode(nullptr, nullptr, 0, nullptr, 0, nullptr) == 1);
  CHECK(moetrt_bos(nullptr) == -1);
  moetrt_close_tokenizer(nullptr);
}
