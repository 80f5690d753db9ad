#include "ports.hpp"

#include <algorithm>

#include "moetrt/error.hpp"

namespace moetrt {

Ports::Ports(const Signature& signature, std::string place) : where(std::move(place)) {
  for (const State& state : signature.states) states[state.input] = state.output;
  const auto is_state_output = [&](const std::string& name) { return std::any_of(states.begin(), states.end(), [&](const auto& state) { return state.second == name; }); };
  for (const Tensor& input : signature.inputs)
    if (!states.count(input.name)) inputs.push_back(&input);
  for (const Tensor& output : signature.outputs)
    if (!is_state_output(output.name)) results.push_back(&output);
}

std::vector<std::int64_t> Ports::key(const Values& values) const {
  std::vector<std::int64_t> key;
  for (const Tensor* input : inputs) {
    const auto found = values.find(input->name);
    if (found == values.end()) throw Error(where + " reads " + input->name + ", which nothing before it makes.", "The schedule is damaged; build it again.");
    if (found->second.dtype() != input->dtype || found->second.shape().size() != input->shape.size())
      throw Error(where + " reads " + input->name + ", which is of another dtype or rank.", "The schedule is damaged; build it again.");
    key.insert(key.end(), found->second.shape().begin(), found->second.shape().end());
  }
  return key;
}

Sizes Ports::sizes(const Values& values) const {
  Sizes sizes;
  for (const Tensor* input : inputs) {
    const auto& shape = values.at(input->name).shape();
    for (std::size_t axis = 0; axis < shape.size() && axis < input->shape.size(); ++axis)
      if (const auto* name = std::get_if<std::string>(&input->shape[axis])) sizes[*name] = shape[axis];
  }
  return sizes;
}

std::vector<std::int64_t> Ports::shape(const Tensor& tensor, const Sizes& sizes) const {
  std::vector<std::int64_t> shape;
  for (const Dim& dim : tensor.shape) {
    const auto* name = std::get_if<std::string>(&dim);
    const auto size = name ? sizes.find(*name) : sizes.end();
    if (name && size == sizes.end()) throw Error(where + " makes " + tensor.name + ", whose dimension '" + *name + "' no input has.");
    shape.push_back(name ? size->second : std::get<std::int64_t>(dim));
  }
  return shape;
}

const Array& Ports::state(const std::string& input, const Values& states_by_name) const {
  const auto buffer = states_by_name.find(input);
  if (buffer == states_by_name.end()) throw Error(where + " reads the state '" + input + "', which the cache lacks.");
  return buffer->second;
}

bool Ports::is_one_token(const Sizes& sizes) {
  const auto is_one = [&](const char* name) {
    const auto size = sizes.find(name);
    return size == sizes.end() || size->second <= 1;
  };
  return is_one("tokens") && is_one("selected");
}

}  // namespace moetrt
