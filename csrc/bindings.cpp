// ralign.kernels._packing: checks what Python hands over, runs the algorithm without the GIL, returns numpy arrays.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "plan.h"

namespace py = pybind11;

namespace {

// The array's own memory: nothing is converted or copied, what does not fit is refused.
const int64_t* int64_vector(const py::array& array, const std::string& name) {
    const std::string dtype = py::str(array.dtype());
    if (array.ndim() != 1) throw py::value_error(name + " must have 1 dimension, got " + std::to_string(array.ndim()));
    if (array.size() == 0) throw py::value_error(name + " is empty");
    if (dtype != "int64") throw py::value_error(name + " must be int64, got " + dtype);
    if (!(array.flags() & py::array::c_style)) throw py::value_error(name + " must be contiguous");
    return static_cast<const int64_t*>(array.data());
}

py::array_t<int64_t> to_numpy(const std::vector<int64_t>& values) {
    return py::array_t<int64_t>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::tuple plan(const py::array& lengths, int64_t token_budget, int64_t dp_size, int64_t multiple, double linear,
               double quadratic) {
    const int64_t* data = int64_vector(lengths, "lengths");
    const int64_t n = static_cast<int64_t>(lengths.size());
    ralign::Plan result;
    {
        py::gil_scoped_release release;
        result = ralign::plan(data, n, token_budget, dp_size, multiple, {linear, quadratic});
    }
    return py::make_tuple(to_numpy(result.indices), to_numpy(result.offsets));
}

}  // namespace

PYBIND11_MODULE(_packing, m) {
    m.doc() = "The packing planner. ralign.engine.packing is its typed face.";
    m.def("plan", &plan, py::arg("lengths"), py::kw_only(), py::arg("token_budget"), py::arg("dp_size"),
          py::arg("multiple"), py::arg("linear"), py::arg("quadratic"),
          "lengths int64 [n] -> indices int64 [n], offsets int64 [num_bins + 1]; see csrc/plan.h. ValueError names "
          "what does not fit.");
}
