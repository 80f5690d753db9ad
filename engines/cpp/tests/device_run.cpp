// device_run ENGINES LIBRARY LOGITS captured|eager IDS: engines on a CPU whose values lie in what is treated as a device's memory, which the host
// reaches by copies alone. Writes the prompt's logits to a file; prints the tokens of short and of long requests,
// which have caches of their own, and of three rows at once.
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "moetrt/chain.hpp"
#include "moetrt/error.hpp"
#include "ort_session.hpp"

int main(int count, char** words) {
  try {
    if (count != 6) throw moetrt::Error("device_run ENGINES LIBRARY LOGITS captured|eager IDS");
    std::vector<std::int64_t> prompt;
    std::stringstream ids(words[5]);
    for (std::string id; std::getline(ids, id, ',');) prompt.push_back(std::stoll(id));
    moetrt::Runtime::open(words[2]);
    const auto copy = [](std::byte* to, const std::byte* from, std::size_t bytes) { std::memcpy(to, from, bytes); };
    const moetrt::Place place{"Cpu", 0, copy, copy, std::string(words[4]) == "captured"};
    moetrt::Chain chain = moetrt::Chain::load(words[1], moetrt::ort_opener_in(place, 2), false);
    const std::vector<float> logits = chain.logits(prompt);
    std::ofstream(words[3], std::ios::binary).write(reinterpret_cast<const char*>(logits.data()), static_cast<std::streamsize>(logits.size() * sizeof(float)));
    for (const std::int64_t tokens : {4, 80, 4}) {
      for (const std::int64_t token : chain.generate(prompt, {.max_tokens = tokens, .sampling = {}, .ignore_eos = true})) std::cout << token << " ";
      std::cout << "\n";
    }
    const std::vector<std::vector<std::int64_t>> prompts{prompt, {prompt.begin(), prompt.begin() + 3}, {prompt.rbegin(), prompt.rend()}};
    for (const auto& row : chain.generate_batch(prompts, {.max_tokens = 12, .sampling = {}, .ignore_eos = false})) {
      for (const std::int64_t token : row) std::cout << token << " ";
      std::cout << "\n";
    }
    return 0;
  } catch (const moetrt::Error& error) {
    std::cerr << error.what() << "\n" << error.hint() << "\n";
    return 1;
  }
}
