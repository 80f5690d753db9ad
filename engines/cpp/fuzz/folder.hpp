// Inputs as the files that they stand for, in a folder of this process's own.
#pragma once

#include <filesystem>
#include <string>

// A set of engines as its records say that it is. `texts`: the manifests of its ranks, then joined.json, with a NUL between any two.
// Engines are holes of the sizes that the records name, so that reading goes on to what follows.
std::filesystem::path lay_out(const std::string& texts);

// A folder with this tokenizer.json.
std::filesystem::path lay_out_tokenizer(const std::string& text);
