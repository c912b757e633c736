// ralign.kernels._packing: checks what Python hands over, runs the algorithms without the GIL. Inputs are read where
// they lie, results go into the caller's arrays; what does not fit is refused by a ValueError that names it.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "materialise.h"
#include "plan.h"
#include "unpack.h"

namespace py = pybind11;

namespace {

template <typename T>
struct Kind;
template <>
struct Kind<int64_t> {
    static constexpr char kind = 'i';
    static constexpr const char* name = "int64";
};
template <>
struct Kind<int32_t> {
    static constexpr char kind = 'i';
    static constexpr const char* name = "int32";
};
template <>
struct Kind<float> {
    static constexpr char kind = 'f';
    static constexpr const char* name = "float32";
};
template <>
struct Kind<bool> {
    static constexpr char kind = 'b';
    static constexpr const char* name = "bool";
};

// What an array is called in messages: "response_ids", or "sample 7: response_ids".
struct Name {
    const char* what;
    py::handle sample = {};

    std::string str() const { return (sample ? "sample " + std::string(py::str(sample)) + ": " : "") + what; }
};

// The array's own memory, if it is a contiguous vector of T.
template <typename T>
T* vector_of(py::handle object, const Name& name) {
    auto refuse = [&](const std::string& why) { throw py::value_error(name.str() + " must " + why); };
    if (!py::isinstance<py::array>(object))
        refuse("be a numpy array, got " + std::string(py::str(py::type::of(object).attr("__name__"))));
    const auto* array = py::detail::array_proxy(object.ptr());
    if (array->nd != 1) refuse("have 1 dimension, got " + std::to_string(array->nd));
    const py::handle dtype = array->descr;
    const auto* type = py::detail::array_descriptor_proxy(dtype.ptr());
    if (type->kind != Kind<T>::kind || py::reinterpret_borrow<py::dtype>(dtype).itemsize() != sizeof(T) || type->byteorder == '>')
        refuse(std::string("be ") + Kind<T>::name + ", got " + std::string(py::str(dtype)));
    if (array->dimensions[0] > 1 && array->strides[0] != sizeof(T)) refuse("be contiguous");
    if (reinterpret_cast<uintptr_t>(array->data) % alignof(T) != 0) refuse("be aligned");
    return reinterpret_cast<T*>(array->data);
}

// Of an array with 1 dimension.
int64_t size_of(py::handle array) { return py::detail::array_proxy(array.ptr())->dimensions[0]; }

// Item s of a list of arrays. They lie scattered, thousands of them: asks for the memory of later ones.
py::handle item(const py::list& list, size_t s) {
    auto at = [&](size_t k) { return PyList_GET_ITEM(list.ptr(), static_cast<py::ssize_t>(k)); };
    constexpr size_t kFar = 24, kNear = 12, kLine = 64;
    if (s + kFar < list.size()) {
        __builtin_prefetch(at(s + kFar));
        __builtin_prefetch(reinterpret_cast<const char*>(at(s + kFar)) + kLine);
    }
    if (s + kNear < list.size() && py::isinstance<py::array>(at(s + kNear)))
        __builtin_prefetch(py::detail::array_proxy(at(s + kNear))->dimensions);
    return at(s);
}

// The caller's buffer, of exactly this size.
template <typename T>
T* buffer_of(const py::dict& buffers, const char* name, int64_t size) {
    const py::object array = buffers[name];
    T* data = vector_of<T>(array, {name});
    if (size_of(array) != size)
        throw py::value_error(std::string(name) + " must have " + std::to_string(size) + " elements, got " +
                              std::to_string(size_of(array)));
    if (!py::reinterpret_borrow<py::array>(array).writeable())
        throw py::value_error(std::string(name) + " is read-only");
    return data;
}

// A numpy array that owns the vector.
template <typename T>
py::array_t<T> to_numpy(std::vector<T>&& values) {
    auto owned = std::make_unique<std::vector<T>>(std::move(values));
    const std::vector<T>* data = owned.get();
    py::capsule owner(owned.release(), [](void* p) { delete static_cast<std::vector<T>*>(p); });
    return py::array_t<T>(static_cast<py::ssize_t>(data->size()), data->data(), owner);
}

py::tuple plan(const py::object& lengths, int64_t token_budget, int64_t pad_multiple, int64_t dp_size,
               int64_t multiple, double linear, double quadratic, bool balance, const py::object& groups) {
    const int64_t* data = vector_of<int64_t>(lengths, {"lengths"});
    const int64_t n = size_of(lengths);
    if (n == 0) throw py::value_error("lengths is empty");
    const int64_t* group_of = groups.is_none() ? nullptr : vector_of<int64_t>(groups, {"groups"});
    if (group_of && size_of(groups) != n)
        throw py::value_error("groups has " + std::to_string(size_of(groups)) + " entries for " + std::to_string(n) +
                              " samples");
    ralign::Plan result;
    {
        py::gil_scoped_release release;
        result = ralign::plan(data, n, {token_budget, pad_multiple, dp_size, multiple, {linear, quadratic}, balance, group_of});
    }
    return py::make_tuple(to_numpy(std::move(result.indices)), to_numpy(std::move(result.offsets)));
}

// The samples of some micro-batches, borrowed from Python. Holding the lists keeps their arrays alive.
class Ragged {
  public:
    Ragged(py::list indices, py::list prompt_ids, py::list response_ids, py::array sizes, int64_t pad_multiple)
        : indices_(std::move(indices)),
          prompt_ids_(std::move(prompt_ids)),
          response_ids_(std::move(response_ids)),
          sizes_(std::move(sizes)) {
        const int64_t* size = vector_of<int64_t>(sizes_, {"sizes"});
        if (pad_multiple < 1) throw py::value_error("pad_multiple must be at least 1, got " + std::to_string(pad_multiple));
        int64_t left = static_cast<int64_t>(indices_.size());
        for (int64_t m = 0; m < size_of(sizes_); ++m) {
            if (size[m] < 0 || size[m] > left) left = -1;
            if (left < 0) break;
            left -= size[m];
        }
        if (left != 0 || prompt_ids_.size() != indices_.size() || response_ids_.size() != indices_.size())
            throw py::value_error("sizes, indices, prompt_ids and response_ids do not fit together");
        sequences_.reserve(indices_.size());
        for (size_t s = 0; s < indices_.size(); ++s) {
            const py::handle prompt = item(prompt_ids_, s), response = item(response_ids_, s);
            sequences_.push_back({vector_of<int64_t>(prompt, {"prompt_ids", sample(s)}),
                                  vector_of<int64_t>(response, {"response_ids", sample(s)}), size_of(prompt),
                                  size_of(response)});
            if (sequences_.back().num_prompt == 0)
                throw py::value_error("sample " + std::string(py::str(indices_[s])) + " has an empty prompt");
        }
        layout_ = ralign::lay_out(sequences_, size, size_of(sizes_), pad_multiple);
    }

    py::tuple layout() const {
        auto copied = [](const std::vector<int64_t>& values) { return to_numpy(std::vector<int64_t>(values)); };
        return py::make_tuple(copied(layout_.token_offsets), copied(layout_.cu_offsets), copied(layout_.row_starts),
                              copied(layout_.row_offsets), copied(layout_.max_seqlens));
    }

    // columns: name -> list of [num_response] float32 arrays, or one [S] float32 or int64 array.
    void write(const py::dict& buffers, const py::dict& columns) const {
        const int64_t num_tokens = layout_.token_offsets.back();
        ralign::Flat flat{buffer_of<int64_t>(buffers, "input_ids", num_tokens),
                          buffer_of<int64_t>(buffers, "targets", num_tokens),
                          buffer_of<int64_t>(buffers, "position_ids", num_tokens),
                          buffer_of<bool>(buffers, "loss_mask", num_tokens),
                          buffer_of<int32_t>(buffers, "cu_seqlens", layout_.cu_offsets.back()),
                          buffer_of<int64_t>(buffers, "response_rows", layout_.row_offsets.back()),
                          {},
                          {}};
        for (const auto& [key, values] : columns) {
            const std::string name = py::str(key);
            const char* out = name.c_str();
            if (py::isinstance<py::list>(values))
                flat.floats.push_back({per_response(values, name), false, 0, buffer_of<float>(buffers, out, num_tokens)});
            else if (py::isinstance<py::array>(values) && py::reinterpret_borrow<py::array>(values).dtype().kind() == 'i')
                flat.ints.push_back({per_sample<int64_t>(values, name), true, -1, buffer_of<int64_t>(buffers, out, num_tokens)});
            else
                flat.floats.push_back({per_sample<float>(values, name), true, 0, buffer_of<float>(buffers, out, num_tokens)});
        }
        const int64_t* sizes = vector_of<int64_t>(sizes_, {"sizes"});
        py::gil_scoped_release release;
        ralign::materialise(sequences_, sizes, layout_, flat);
    }

  private:
    py::handle sample(size_t s) const { return PyList_GET_ITEM(indices_.ptr(), static_cast<py::ssize_t>(s)); }

    std::vector<const float*> per_response(py::handle object, const std::string& name) const {
        const auto values = py::reinterpret_borrow<py::list>(object);
        if (values.size() != sequences_.size()) throw py::value_error(name + " must have a value for each sample");
        std::vector<const float*> pointers;
        pointers.reserve(values.size());
        for (size_t s = 0; s < sequences_.size(); ++s) {
            const py::handle array = item(values, s);
            const Name full_name{name.c_str(), sample(s)};
            pointers.push_back(vector_of<float>(array, full_name));
            if (size_of(array) != sequences_[s].num_response)
                throw py::value_error(full_name.str() + " has " + std::to_string(size_of(array)) + " values for " +
                                      std::to_string(sequences_[s].num_response) + " response tokens");
        }
        return pointers;
    }

    template <typename T>
    std::vector<const T*> per_sample(py::handle values, const std::string& name) const {
        const T* data = vector_of<T>(values, {name.c_str()});
        if (size_of(values) != static_cast<int64_t>(sequences_.size()))
            throw py::value_error(name + " must have a value for each sample");
        std::vector<const T*> pointers(sequences_.size());
        for (size_t s = 0; s < pointers.size(); ++s) pointers[s] = data + s;
        return pointers;
    }

    py::list indices_, prompt_ids_, response_ids_;
    py::array sizes_;
    std::vector<ralign::Sequence> sequences_;
    ralign::Layout layout_;
};

void unpack(const py::list& results, const py::object& sizes, const py::object& starts, const py::object& counts,
            const py::object& targets, const py::object& out) {
    const int64_t *size = vector_of<int64_t>(sizes, {"sizes"}), *start = vector_of<int64_t>(starts, {"starts"});
    const int64_t *count = vector_of<int64_t>(counts, {"counts"}), *target = vector_of<int64_t>(targets, {"targets"});
    float* to = vector_of<float>(out, {"out"});
    const int64_t num_samples = size_of(starts), num_out = size_of(out);
    if (size_of(counts) != num_samples || size_of(targets) != num_samples ||
        size_of(sizes) != static_cast<int64_t>(results.size()))
        throw py::value_error("results, sizes, starts, counts and targets do not fit together");
    std::vector<ralign::Rows> rows;
    for (int64_t m = 0, s = 0; m < size_of(sizes); ++m) {
        const std::string name = "results[" + std::to_string(m) + "]";
        const float* from = vector_of<float>(results[m], {name.c_str()});
        const int64_t num_tokens = size_of(results[m]);
        for (int64_t k = 0; k < size[m]; ++k, ++s) {
            if (s >= num_samples || count[s] < 0 || start[s] < 0 || start[s] > num_tokens - count[s] || target[s] < 0 ||
                target[s] > num_out - count[s])
                throw py::value_error(name + " has " + std::to_string(num_tokens) + " tokens, too few for its samples");
            rows.push_back({from + start[s], count[s], target[s]});
        }
    }
    py::gil_scoped_release release;
    ralign::unpack(rows, to);
}

}  // namespace

PYBIND11_MODULE(_packing, m) {
    m.doc() = "The packing planner. ralign.engine.packing is its typed face.";
    m.def("plan", &plan, py::arg("lengths"), py::kw_only(), py::arg("token_budget"), py::arg("pad_multiple"),
          py::arg("dp_size"), py::arg("multiple"), py::arg("linear"), py::arg("quadratic"), py::arg("balance"),
          py::arg("groups"), "lengths int64 [n] -> indices int64 [n], offsets int64 [num_bins + 1]; see csrc/plan.h.");
    py::class_<Ragged>(m, "Ragged", "The samples of some micro-batches; see csrc/materialise.h.")
        .def(py::init<py::list, py::list, py::list, py::array, int64_t>(), py::arg("indices"), py::arg("prompt_ids"),
             py::arg("response_ids"), py::arg("sizes"), py::arg("pad_multiple"))
        .def("layout", &Ragged::layout, "token_offsets, cu_offsets, row_starts, row_offsets, max_seqlens; all int64.")
        .def("write", &Ragged::write, py::arg("buffers"), py::arg("columns"),
             "Fill the arrays of `buffers`: input_ids, targets, ..., and one for each of `columns`.");
    m.def("unpack", &unpack, py::arg("results"), py::arg("sizes"), py::arg("starts"), py::arg("counts"),
          py::arg("targets"), py::arg("out"),
          "Copies counts[s] values from starts[s] of its micro-batch's results (float32) to targets[s] of out.");
}
