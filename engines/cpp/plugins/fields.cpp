#include "fields.hpp"

#include <algorithm>
#include <span>

#include "moetrt/error.hpp"

namespace moetrt::plugins {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

template <typename Number>
Number first(const PluginField& field) {
  return *static_cast<const Number*>(field.data);
}

// The parser gives integers of one or two widths, texts with or without a zero at the end.
struct Read {
  const PluginField& field;
  const std::string& where;

  [[noreturn]] void refuse(const char* expected) const { throw Error(where + " is no " + expected + ".", "The graph was lowered by another version; build it again."); }

  void operator()(std::int32_t& into) const {
    if (field.type == PluginFieldType::kINT32)
      into = first<std::int32_t>(field);
    else if (field.type == PluginFieldType::kINT64)
      into = static_cast<std::int32_t>(first<std::int64_t>(field));
    else
      refuse("integer");
  }
  void operator()(float& into) const {
    if (field.type != PluginFieldType::kFLOAT32) refuse("number");
    into = first<float>(field);
  }
  void operator()(std::string& into) const {
    if (field.type != PluginFieldType::kCHAR) refuse("text");
    const auto* text = static_cast<const char*>(field.data);
    into.assign(text, std::find(text, text + field.length, '\0'));
  }
};

struct Write {
  const std::string& name;

  PluginField operator()(const std::int32_t& value) const { return {name.c_str(), &value, PluginFieldType::kINT32, 1}; }
  PluginField operator()(const float& value) const { return {name.c_str(), &value, PluginFieldType::kFLOAT32, 1}; }
  PluginField operator()(const std::string& value) const { return {name.c_str(), value.data(), PluginFieldType::kCHAR, static_cast<std::int32_t>(value.size())}; }
};

}  // namespace

Fields::Fields(const std::string& op, std::vector<Attribute> known, const nvinfer1::PluginFieldCollection* given) : op_(op), all_(std::move(known)) {
  for (const PluginField& field : std::span(given->fields, static_cast<std::size_t>(given->nbFields))) {
    const auto found = std::find_if(all_.begin(), all_.end(), [&](const Attribute& one) { return one.name == field.name; });
    if (found == all_.end()) throw Error(op + " has no attribute '" + field.name + "'.", "The graph was lowered by another version; build it again.");
    if (!field.data || field.length < 1) continue;
    const std::string where = op + "'s attribute '" + found->name + "'";
    std::visit(Read{field, where}, found->value);
    found->required = false;
  }
  for (const Attribute& one : all_)
    if (one.required) throw Error(op + " lacks its attribute '" + one.name + "'.", "The graph was lowered by another version; build it again.");
}

const Attribute& Fields::find(const std::string& name) const {
  const auto found = std::find_if(all_.begin(), all_.end(), [&](const Attribute& one) { return one.name == name; });
  if (found == all_.end()) throw Error(op_ + " has no attribute '" + name + "'.");
  return *found;
}

int Fields::integer(const std::string& name) const { return std::get<std::int32_t>(find(name).value); }
float Fields::number(const std::string& name) const { return std::get<float>(find(name).value); }
const std::string& Fields::text(const std::string& name) const { return std::get<std::string>(find(name).value); }

std::vector<PluginField> Fields::written(const std::vector<Attribute>& attributes) {
  std::vector<PluginField> made;
  made.reserve(attributes.size());
  for (const Attribute& one : attributes) made.push_back(std::visit(Write{one.name}, one.value));
  return made;
}

}  // namespace moetrt::plugins
