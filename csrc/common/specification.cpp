// SPDX-License-Identifier: Apache-2.0
#include "common/specification.h"

#include <algorithm>
#include <iterator>
#include <set>
#include <stdexcept>
#include <utility>

namespace avskernels {
namespace {

std::string_view trim(std::string_view text) {
  const size_t first = text.find_first_not_of(" \n");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \n") - first + 1);
}

// Takes the text up to the separator off the front; all of it where there is none.
std::string take(std::string_view& text, std::string_view separator) {
  const size_t at = text.find(separator);
  const std::string_view head = trim(text.substr(0, at));
  text = at == std::string_view::npos ? std::string_view() : text.substr(at + separator.size());
  return std::string(head);
}

Dimension parse_dimension(std::string_view text) {
  Dimension dimension;
  if (text.starts_with("...")) {
    dimension.open = true;
    text.remove_prefix(3);
  } else if (text.starts_with("(") && text.ends_with(")")) {
    dimension.optional = true;
    text = text.substr(1, text.size() - 2);
  }
  dimension.text = text;
  while (!text.empty()) dimension.factors.push_back(take(text, "*"));
  return dimension;
}

constexpr std::pair<std::string_view, Dtype> kDtypes[] = {
    {"floating", Dtype::floating}, {"bool", Dtype::boolean}, {"int64", Dtype::int64},
    {"masks", Dtype::masks},       {"as", Dtype::as},        {"sums", Dtype::sums},
    {"like", Dtype::like},
};

Argument parse_argument(std::string_view line) {
  const std::string whole(line);
  Argument argument;
  argument.type = take(line, " ");
  argument.name = take(line, ":");
  if (argument.name.empty() || argument.is_tensor() == trim(line).empty()) {
    throw std::runtime_error(
        "expected a type, a name, and for a tensor dtype and "
        "shape, got '" +
        whole + "'");
  }
  line = trim(line);
  if (line.ends_with(" anywhere")) {
    argument.anywhere = true;
    line.remove_suffix(9);
  }
  if (const size_t at = line.find(" if "); at != std::string_view::npos) {
    argument.condition = trim(line.substr(at + 4));
    line = line.substr(0, at);
  }
  std::string_view dtype = line, shape;
  if (const size_t open = line.find('['); open != std::string_view::npos) {
    dtype = line.substr(0, open);
    shape = line.substr(open + 1, line.find(']') - open - 1);
  }
  const std::string kind = take(dtype, "(");
  const auto* found = std::find_if(std::begin(kDtypes), std::end(kDtypes),
                                   [&](const auto& each) { return each.first == kind; });
  if (argument.is_tensor() && found == std::end(kDtypes)) {
    throw std::runtime_error("expected a dtype, got '" + whole + "'");
  }
  if (argument.is_tensor()) argument.dtype = found->second;
  argument.other = take(dtype, ")");
  while (!trim(shape).empty()) argument.shape.push_back(parse_dimension(take(shape, ",")));
  return argument;
}

std::string joined(const std::vector<Argument>& arguments) {
  std::string text;
  for (const Argument& argument : arguments) {
    if (!text.empty()) text += ", ";
    text += argument.type + " " + argument.name;
  }
  return text;
}

void parse_body(std::string_view text, Specification& specification) {
  bool returned = false;
  while (!text.empty()) {
    const std::string line = take(text, "\n");
    if (line == ") ->") {
      returned = true;
    } else if (!line.empty()) {
      (returned ? specification.results : specification.arguments).push_back(parse_argument(line));
    }
  }
  // A product says nothing of a shape unless its factors stand for sizes before it; nor can a
  // result have a size that no argument has.
  std::set<std::string> known;
  for (const Argument& argument : specification.arguments) {
    if (!argument.is_tensor()) known.insert(argument.name);
  }
  for (auto* list : {&specification.arguments, &specification.results}) {
    for (Argument& argument : *list) {
      for (const Dimension& dimension : argument.shape) {
        for (const std::string& factor : dimension.factors) {
          const bool number = factor[0] >= '0' && factor[0] <= '9';
          const bool must_be_known = dimension.factors.size() > 1 || list == &specification.results;
          if (must_be_known && !number && known.count(factor) == 0) {
            throw std::runtime_error("expected the sizes in " + dimension.text +
                                     " in a shape before it, got '" + factor + "'");
          }
        }
      }
      for (const Dimension& dimension : argument.shape) known.insert(dimension.text);
      const auto& all = specification.arguments;
      const auto found = std::find_if(all.begin(), all.end(), [&](const Argument& each) {
        return each.name == argument.other;
      });
      if (found != all.end()) argument.position = static_cast<int>(found - all.begin());
      if (argument.position < 0 && !argument.other.empty()) {
        throw std::runtime_error("expected an argument, got '" + argument.other + "'");
      }
    }
  }
}

}  // namespace

std::string Specification::schema() const {
  const bool several = results.size() != 1;
  return name + "(" + joined(arguments) + ") -> " + (several ? "(" : "") + joined(results) +
         (several ? ")" : "");
}

Specification parse_specification(std::string_view text) {
  text = trim(text);
  Specification specification;
  specification.name = take(text, "(");
  try {
    parse_body(text, specification);
  } catch (const std::runtime_error& error) {
    throw std::runtime_error("specification of " + specification.name + ": " + error.what());
  }
  return specification;
}

std::vector<Specification>& specifications() {
  static std::vector<Specification> all;
  return all;
}

}  // namespace avskernels
