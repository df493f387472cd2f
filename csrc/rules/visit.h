// Lists of rule types, picked by name at run time.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>

namespace ft {

template <class... Rules>
struct TypeList {};

template <class Rule>
struct Tag {
  using type = Rule;
};

// "relu, gelu, ...": for messages.
template <class... Rules>
std::string names(TypeList<Rules...>) {
  std::string list;
  ((list += (list.empty() ? "" : ", ") + std::string(Rules::kName)), ...);
  return list;
}

// The position of the rule of this name, -1 if there is none.
template <class... Rules>
int32_t index_of(const std::string& name, TypeList<Rules...>) {
  int32_t index = 0, found = -1;
  ((found = name == Rules::kName ? index : found, ++index), ...);
  return found;
}

// Calls f(Tag<Rule>{}) for the rule of this name; throws std::invalid_argument, listing the names, if there is none.
template <class F, class... Rules>
void visit(const std::string& name, TypeList<Rules...> rules, F&& f) {
  const bool found = ((name == Rules::kName && (f(Tag<Rules>{}), true)) || ...);
  if (!found) throw std::invalid_argument("unknown rule '" + name + "'; there are: " + names(rules));
}

}  // namespace ft
