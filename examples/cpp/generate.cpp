// Sixteen tokens after a text, in a program of one's own: generate ENGINES LIBONNXRUNTIME LIBONIG TEXT
#include <iostream>
#include <moetrt/chain.hpp>
#include <moetrt/error.hpp>
#include <moetrt/tokenizer.hpp>

int main(int count, char** words) try {
  if (count != 5) {
    std::cerr << "Usage: generate ENGINES LIBONNXRUNTIME LIBONIG TEXT\n";
    return 2;
  }
  moetrt::Runtime::open(words[2]);
  moetrt::Tokenizer::open_patterns(words[3]);
  moetrt::Chain chain = moetrt::Chain::load(words[1]);
  const auto tokenizer = moetrt::Tokenizer::load(words[1], chain.manifest().bos);
  moetrt::Streamer streamer(tokenizer);
  moetrt::Generation options;
  options.max_tokens = 16;
  std::cout << words[4];
  chain.generate(tokenizer.encode(words[4]), options, [&](std::int64_t token) { std::cout << streamer.add(token) << std::flush; });
  std::cout << streamer.end() << "\n";
} catch (const moetrt::Error& error) {
  std::cerr << error.what() << "\n" << error.hint() << "\n";
  return 1;
}
