// The tensors that the library of operators holds for a table. Reading one by Python costs 90 ns, by the library 20.
#pragma once
#include <cstdint>
#include <utility>

namespace ft {

class Held {
 public:
  using Unchanged = int (*)(const void* held);
  using Release = void (*)(void* held);

  Held() = default;
  // Takes over what the operator hold_tensors returned.
  Held(uintptr_t held, uintptr_t unchanged, uintptr_t release)
      : held_(reinterpret_cast<void*>(held)),
        unchanged_(reinterpret_cast<Unchanged>(unchanged)),
        release_(reinterpret_cast<Release>(release)) {}
  ~Held() {
    if (held_ != nullptr) release_(held_);
  }
  Held(const Held&) = delete;
  Held& operator=(Held&& other) noexcept {
    std::swap(held_, other.held_);
    std::swap(unchanged_, other.unchanged_);
    std::swap(release_, other.release_);
    return *this;
  }

  // Whether memory, shape, strides, type and device of every tensor are what they were.
  bool unchanged() const { return unchanged_(held_) != 0; }

 private:
  void* held_ = nullptr;
  Unchanged unchanged_ = nullptr;
  Release release_ = nullptr;
};

}  // namespace ft
