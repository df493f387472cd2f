// The Python module fusedtrain._plan. It needs no torch to load.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "plan/chunks.h"
#include "plan/collected.h"
#include "plan/integer_rows.h"
#include "plan/snapshot.h"
#include "plan/table.h"
#include "plan/tensor_offset.h"

namespace py = pybind11;

namespace {

ft::StepLibrary step_library(uintptr_t unchanged, uintptr_t release, uintptr_t look, uintptr_t step, uintptr_t new_plan,
                             uintptr_t delete_plan, uintptr_t stands_aside, std::optional<size_t> tensor_offset) {
  ft::StepLibrary library;
  const auto set = [](auto& function, uintptr_t address) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(address);
  };
  set(library.unchanged, unchanged);
  set(library.release, release);
  set(library.step, step);
  set(library.new_plan, new_plan);
  set(library.delete_plan, delete_plan);
  set(library.stands_aside, stands_aside);
  if (tensor_offset) {
    set(library.look.look, look);
    library.look.offset = *tensor_offset;
  }
  return library;
}

// Writes rows of a table into a writable buffer of int64, between begin() and end() of a step.
py::tuple write_rows(const ft::StepTable& table, ft::IntegerRows& rows, const py::buffer& to) {
  const py::buffer_info buffer = to.request(/*writable=*/true);
  if (!buffer.item_type_is_equivalent_to<int64_t>() || buffer.ndim != 1 || buffer.strides[0] != sizeof(int64_t) ||
      buffer.size != rows.size() * rows.width()) {
    throw std::invalid_argument("StepTable.write: takes a buffer of " + std::to_string(rows.size() * rows.width()) +
                                " int64, one for each field of each row");
  }
  if (!table.stepping()) throw std::runtime_error("StepTable.write: call begin() before, and end() after");
  const ft::IntegerRows::Span changed = rows.write(table.rows(), static_cast<int64_t*>(buffer.ptr));
  return py::make_tuple(changed.begin, changed.end);
}

}  // namespace

PYBIND11_MODULE(_plan, m) {
  m.doc() = "Host side of a multi-tensor step: the planner, and the table of a step that is repeated.";
  m.attr("CHUNK") = ft::kChunk;
  m.attr("STEP_ABI") = ft::kStepAbi;

  m.def(
      "plan",
      [](const std::vector<int64_t>& sizes) {
        for (const int64_t size : sizes) {
          if (size < 0) throw std::invalid_argument("plan: sizes must be >= 0, not " + std::to_string(size));
        }
        ft::Chunker chunker;
        for (size_t row = 0; row < sizes.size(); ++row) chunker.add(int64_t(row), sizes[row]);
        const ft::ChunkList work = chunker.finish();
        py::list chunks;
        for (int64_t i = 0; i < work.chunk_count; ++i) {
          const ft::Chunk& chunk = work.chunks[i];
          chunks.append(py::make_tuple(chunk.row, chunk.begin, chunk.size));
        }
        return py::make_tuple(chunks, std::vector<int64_t>(work.tasks, work.tasks + work.task_count + 1));
      },
      py::arg("sizes"),
      "(chunks, tasks) for tensors of these numbers of elements: chunks as (tensor, begin, size), and the first chunk "
      "of "
      "each task, followed by the number of chunks.");

  m.def(
      "reads_tensors",
      [](const py::object& tensor_type) {
        try {
          const ft::TensorReader reader(tensor_type);
          return true;
        } catch (const std::invalid_argument&) {
          return false;
        }
      },
      py::arg("tensor_type"), "Whether this torch.Tensor offers what a table reads tensors with.");

  m.def("tensor_offset", &ft::tensor_offset, py::arg("examples"),
        "Of the at::Tensor within these Python tensors, in bytes; None if it is not found: see plan/tensor_offset.h.");

  py::class_<ft::Snapshot>(m, "Snapshot", ft::collected<ft::Snapshot>(), "What each of a list of dicts holds now.")
      .def(py::init<const py::list&>(), py::arg("dicts"))
      .def("same", py::overload_cast<const py::list&>(&ft::Snapshot::same, py::const_), py::arg("dicts"),
           "Whether these dicts hold the very same objects in order.");

  py::class_<ft::StepLibrary>(m, "StepLibrary",
                              "The C functions that a table calls, by address, and what they need: see plan/library.h.")
      .def(py::init(&step_library), py::arg("unchanged"), py::arg("release"), py::arg("look"), py::arg("step"),
           py::arg("new_plan"), py::arg("delete_plan"), py::arg("stands_aside"), py::arg("tensor_offset"));

  py::class_<ft::IntegerRows>(m, "IntegerRows", "Rows of a table as integers: see plan/integer_rows.h.")
      .def(py::init([](const ft::StepTable& table, std::vector<size_t> chosen, const std::vector<std::string>& fields,
                       int64_t chunk, int64_t alignment) {
             return ft::IntegerRows(table.rows(), std::move(chosen), fields, chunk, alignment);
           }),
           py::arg("table"), py::arg("chosen"), py::arg("fields"), py::arg("chunk"), py::arg("alignment"))
      .def_property_readonly("chunks", &ft::IntegerRows::chunks)
      .def_property_readonly("width", &ft::IntegerRows::width)
      .def("__len__", &ft::IntegerRows::size);

  py::class_<ft::StepTable>(m, "StepTable", ft::collected<ft::StepTable>())
      .def(py::init<const py::object&, const py::object&, py::list, const std::vector<int64_t>&, py::dict,
                    const py::tuple&, const py::list&, const py::list&, const py::object&, const ft::StepLibrary&,
                    bool>(),
           py::arg("tensor_type"), py::arg("parameter_type"), py::arg("groups"), py::arg("rows"), py::arg("state"),
           py::arg("keys"), py::arg("entries"), py::arg("steps"), py::arg("hold"), py::arg("library"),
           py::arg("on_host"))
      .def("holds", &ft::StepTable::holds, py::arg("groups"), py::arg("state"))
      .def("refresh", &ft::StepTable::refresh, py::arg("groups"), py::arg("state"))
      .def("stands_aside", &ft::StepTable::stands_aside)
      .def("step", &ft::StepTable::step, py::arg("rule"), py::arg("hyper"), py::arg("norm_type"), py::arg("inv_scale"),
           py::arg("found_inf"), py::arg("max_norm"), py::arg("skip_nonfinite"), py::arg("outputs"),
           py::arg("skipped_steps"))
      .def("begin", &ft::StepTable::begin)
      .def("end", &ft::StepTable::end)
      .def("write", &write_rows, py::arg("rows"), py::arg("to"),
           "Writes rows as integers, between begin() and end(); (begin, end) of the integers that are new.")
      .def(
          "types",
          [](const ft::StepTable& table) {
            std::vector<std::vector<std::string>> names;
            for (const ft::StepRow& row : table.rows()) names.push_back(ft::type_names(row, table.states()));
            return names;
          },
          "For each row the names of the dtypes of p, g and the states.")
      .def_property_readonly("elements", &ft::StepTable::elements)
      .def("has_double_gradient", &ft::StepTable::has_double_gradient)
      .def("written", &ft::StepTable::written)
      .def("__len__", &ft::StepTable::size);
}
