// The attributes of a plugin's node: read once from TensorRT's fields, never changed, written into the engine as they were read.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace moetrt::plugins {

// What an attribute is called, and a value of its type: its default, or what it must have where `required`.
struct Attribute {
  std::string name;
  std::variant<std::int32_t, float, std::string> value;
  bool required = true;
};

class Fields {
 public:
  // Throws Error: one is not known, of another type, or missing.
  Fields(const std::string& op, std::vector<Attribute> known, const nvinfer1::PluginFieldCollection* given);

  [[nodiscard]] int integer(const std::string& name) const;
  [[nodiscard]] float number(const std::string& name) const;
  [[nodiscard]] const std::string& text(const std::string& name) const;

  // As TensorRT keeps them in the engine; the fields point into `attributes`.
  static std::vector<nvinfer1::PluginField> written(const std::vector<Attribute>& attributes);
  [[nodiscard]] const std::vector<Attribute>& all() const { return all_; }

 private:
  [[nodiscard]] const Attribute& find(const std::string& name) const;

  std::string op_;
  std::vector<Attribute> all_;
};

}  // namespace moetrt::plugins
