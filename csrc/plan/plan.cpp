// The Python module fusedtrain._plan. It needs no torch to load.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "plan/chunks.h"
#include "plan/collected.h"
#include "plan/snapshot.h"
#include "plan/table.h"

namespace py = pybind11;

namespace {

ft::StepLibrary step_library(uintptr_t unchanged, uintptr_t release, uintptr_t step, uintptr_t new_plan,
                             uintptr_t delete_plan, uintptr_t stands_aside) {
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
  return library;
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

  py::class_<ft::Snapshot>(m, "Snapshot", ft::collected<ft::Snapshot>(), "What each of a list of dicts holds now.")
      .def(py::init<const py::list&>(), py::arg("dicts"))
      .def("same", py::overload_cast<const py::list&>(&ft::Snapshot::same, py::const_), py::arg("dicts"),
           "Whether these dicts hold the very same objects in order.");

  py::class_<ft::StepLibrary>(m, "StepLibrary", "The C functions that a table calls, by address: see plan/library.h.")
      .def(py::init(&step_library), py::arg("unchanged"), py::arg("release"), py::arg("step"), py::arg("new_plan"),
           py::arg("delete_plan"), py::arg("stands_aside"));

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
      .def("has_double_gradient", &ft::StepTable::has_double_gradient)
      .def("written", &ft::StepTable::written)
      .def("__len__", &ft::StepTable::size);
}
