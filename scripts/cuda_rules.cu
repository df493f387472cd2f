// One kernel for each rule and each type that it computes in: what check_cuda_rules.py compiles. It is never run.
#include "rules/activations.h"
#include "rules/philox.h"
#include "rules/updates.h"

namespace ft {

template <class Rule, class T>
__global__ void activation_kernel(T* x, T* dx, int64_t n, int64_t seed) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const T y = Rule::fwd(x[i]);
  const bool kept = lanes(seed, 0, i >> 3)[int(i & 7)] >= 32768;
  if constexpr (Rule::kSaves == Saves::kInput) {
    dx[i] = kept ? Rule::grad(x[i]) : T(0);
  } else {
    dx[i] = kept ? Rule::grad(x[i]) + Rule::grad_from_output(y) : T(0);
  }
  x[i] = kept ? y : T(0);
}

template <class Rule, class T>
__global__ void update_kernel(T* p, const T* g, T* states, const double* hyper, double norm, double t, int64_t n) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const Preparation<T> prepare(hyper, 1.0, clip_coefficient(norm, 1.0));
  const typename Rule::template Direction<T> direction(hyper + kLaunchHyper, t);
  T s[Rule::kStates + 1];
  for (int k = 0; k < Rule::kStates; ++k) s[k] = states[k * n + i];
  p[i] -= T(hyper[kLr]) * direction(p[i], prepare(p[i], g[i]), s);
  for (int k = 0; k < Rule::kStates; ++k) states[k * n + i] = s[k];
}

template <class T, class... Rules>
void launch_activations(TypeList<Rules...>, T* x, int64_t n) {
  (activation_kernel<Rules, T><<<1, 256>>>(x, x, n, int64_t{0}), ...);
}

template <class T, class... Rules>
void launch_updates(TypeList<Rules...>, T* p, const double* hyper, int64_t n) {
  (update_kernel<Rules, T><<<1, 256>>>(p, p, p, hyper, 1.0, 1.0, n), ...);
}

void launch_all(float* x, double* y, const double* hyper, int64_t n) {
  launch_activations(Activations{}, x, n);
  launch_activations(Activations{}, y, n);
  launch_updates(Updates{}, x, hyper, n);
  launch_updates(Updates{}, y, hyper, n);
}

}  // namespace ft
