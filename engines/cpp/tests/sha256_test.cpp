#include "sha256.hpp"

#include <doctest/doctest.h>
#include <unistd.h>

#include <fstream>

#include "moetrt/error.hpp"

using namespace moetrt;

namespace {

std::string hash(std::string_view bytes) {
  Sha256 made;
  made.add(bytes);
  return made.hex();
}

}  // namespace

TEST_CASE("the standard's own messages have the standard's hashes") {
  CHECK(hash("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(hash("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(hash("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") == "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  CHECK(hash("abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu") ==
        "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1");
  CHECK(hash(std::string(1000000, 'a')) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST_CASE("the padding has a block of its own where it does not fit") {
  CHECK(hash(std::string(55, 'a')) == "9f4390f8d30c2dd92ec9f095b65e2b9ae9b0a925a5258e241c9f1e910f734318");
  CHECK(hash(std::string(56, 'a')) == "b35439a4ac6f0948b6d6f9e3c6af0f5f590ce20f1bde7090ef7970686ec6738a");
  CHECK(hash(std::string(63, 'a')) == "7d3e74a05d7db15bce4ad9ec0658ea98e3f06eeecf16b4c6fff2da457ddc2f34");
  CHECK(hash(std::string(64, 'a')) == "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb");
}

TEST_CASE("in whatever pieces a message comes, it is the same") {
  std::string text;
  for (int place = 0; place < 1000; ++place) text += static_cast<char>(place * 7);
  for (const std::size_t piece : {1u, 3u, 63u, 64u, 65u, 500u}) {
    Sha256 made;
    for (std::size_t at = 0; at < text.size(); at += piece) made.add(std::string_view(text).substr(at, piece));
    CHECK(made.hex() == hash(text));
  }
}

TEST_CASE("a file is read in pieces, to its end") {
  const auto path = std::filesystem::temp_directory_path() / ("moetrt-sha256-" + std::to_string(getpid()));
  for (const std::size_t size : {0u, 1u, 65535u, 65536u, 65537u, 200000u}) {
    const std::string text(size, 'x');
    std::ofstream(path, std::ios::binary) << text;
    CHECK(sha256_file(path) == hash(text));
  }
  std::filesystem::remove(path);
  CHECK_THROWS_WITH_AS(sha256_file(path), ("cannot read " + path.string() + ".").c_str(), Error);
  CHECK_THROWS_AS(sha256_file(std::filesystem::temp_directory_path()), Error);
}
