// Sixteen tokens from engines, in a program of one's own: generate ENGINES LIBONNXRUNTIME ID...
#include <cstdlib>
#include <iostream>
#include <moetrt/chain.hpp>
#include <moetrt/error.hpp>
#include <vector>

int main(int count, char** words) try {
  if (count < 4) {
    std::cerr << "Usage: generate ENGINES LIBONNXRUNTIME ID...\n";
    return 2;
  }
  std::vector<std::int64_t> prompt;
  for (int place = 3; place < count; ++place) prompt.push_back(std::atoll(words[place]));
  moetrt::Runtime::open(words[2]);
  moetrt::Chain chain = moetrt::Chain::load(words[1]);
  moetrt::Generation options;
  options.max_tokens = 16;
  chain.generate(prompt, options, [](std::int64_t token) { std::cout << token << " " << std::flush; });
  std::cout << "\n";
} catch (const moetrt::Error& error) {
  std::cerr << error.what() << "\n" << error.hint() << "\n";
  return 1;
}
