// SPDX-License-Identifier: Apache-2.0
// The Python module avskernels._C: what this build is, and the switch for the instruction set.
// Free of torch headers; the operators register themselves when the module is loaded.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <iterator>
#include <string>

#include "common/isa.h"
#include "common/specification.h"

#define AVSKERNELS_STRING(x) #x
#define AVSKERNELS_VALUE(x) AVSKERNELS_STRING(x)

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["compiler"] = __VERSION__;
  info["torch_target"] = AVSKERNELS_VALUE(PYTORCH_TARGET);
  info["cuda"] = AVSKERNELS_CUDA;
  info["cpu_detected"] = avskernels::kIsaNames[static_cast<int>(avskernels::detected_isa())];
  info["cpu_active"] = avskernels::kIsaNames[static_cast<int>(avskernels::active_isa())];
  return info;
}

void set_cpu_capability(const std::string& name) {
  const auto* found =
      std::find(std::begin(avskernels::kIsaNames), std::end(avskernels::kIsaNames), name);
  if (found == std::end(avskernels::kIsaNames)) {
    throw py::value_error(
        "set_cpu_capability: expected portable, avx2, avx512, avx512_vnni or "
        "avx512_bf16, got " +
        name);
  }
  avskernels::set_active_isa(
      static_cast<avskernels::Isa>(std::distance(std::begin(avskernels::kIsaNames), found)));
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  using avskernels::Argument;
  using avskernels::Dimension;
  using avskernels::Dtype;
  using avskernels::Specification;
  py::enum_<Dtype>(module, "Dtype")
      .value("floating", Dtype::floating)
      .value("boolean", Dtype::boolean)
      .value("int64", Dtype::int64)
      .value("masks", Dtype::masks)
      .value("as_", Dtype::as)
      .value("sums", Dtype::sums)
      .value("like", Dtype::like);
  py::class_<Dimension>(module, "Dimension")
      .def_readonly("text", &Dimension::text)
      .def_readonly("factors", &Dimension::factors)
      .def_readonly("open", &Dimension::open)
      .def_readonly("optional", &Dimension::optional);
  py::class_<Argument>(module, "Argument")
      .def_readonly("type", &Argument::type)
      .def_readonly("name", &Argument::name)
      .def_readonly("dtype", &Argument::dtype)
      .def_readonly("position", &Argument::position)
      .def_readonly("shape", &Argument::shape)
      .def_readonly("condition", &Argument::condition)
      .def_readonly("anywhere", &Argument::anywhere);
  py::class_<Specification>(module, "Specification")
      .def_readonly("name", &Specification::name)
      .def_readonly("arguments", &Specification::arguments)
      .def_readonly("results", &Specification::results)
      .def_property_readonly("schema", &Specification::schema);
  module.def("specifications", &avskernels::specifications);
  module.def("parse_specification", &avskernels::parse_specification);
  module.def("build_info", &build_info);
  module.def("set_cpu_capability", &set_cpu_capability);
}
