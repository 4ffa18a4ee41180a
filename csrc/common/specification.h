// SPDX-License-Identifier: Apache-2.0
// What an operator takes and returns, declared once, in csrc/<op>/<op>.h, and read by C++ and
// Python: the schema, the checks of both languages, the fakes and the autograd glue come from it.
//
//   matmul(
//     Tensor x: floating [...rows, C]
//     Tensor weight: as(x) [D, C]
//     Tensor? bias: sums(x) [D]
//     float scale
//   ) ->
//     Tensor product: as(x) [...rows, D]
//
// An argument is a line: its type as in torch's schemas, its name and, for a tensor, its dtype and
// shape.
//   dtype   floating (float16, bfloat16, float32, float64), bool, int64 or masks (bool, uint8 and
//           floating); as(y) is the dtype of y, sums(y) that in which it is summed: float64 for
//           float64, float32 for everything else.
//   shape   numbers; names, bound where they first occur, an int argument's own name included;
//           products such as N*C; "...name" for any number of dimensions in front or alone, or one
//           or more at the end; "(T)" for a dimension that all tensors have or none, as the first
//           of them tells.
//   results like(y) has the shape, dtype and strides of y; a result "if y" is [0] unless the
//           argument y is there, or true.
// "anywhere" after the shape leaves a tensor out of the check that all are on one device.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace avskernels {

struct Dimension {
  std::string text;                  // as declared, without the marks of its kind
  std::vector<std::string> factors;  // numbers and names
  bool open = false;                 // "...name"
  bool optional = false;             // "(name)"
};

enum class Dtype { floating, boolean, int64, masks, as, sums, like };

struct Argument {
  std::string type;
  std::string name;
  Dtype dtype = Dtype::floating;
  std::string other;  // the argument in as(), sums() and like()
  int position = -1;  // and its place among the arguments
  std::vector<Dimension> shape;
  std::string condition;
  bool anywhere = false;

  bool is_tensor() const { return type.starts_with("Tensor"); }
};

struct Specification {
  std::string name;
  std::vector<Argument> arguments;
  std::vector<Argument> results;

  // As torch's library wants it: "name(Tensor x, ...) -> (Tensor y, ...)".
  std::string schema() const;
};

// Reads a declaration; fails with the line that is none.
Specification parse_specification(std::string_view text);

// Those of all operators of this library, in the order of their definition.
std::vector<Specification>& specifications();

}  // namespace avskernels
