// The activation rules: fwd(x), grad(x) and, where the output a = fwd(x) determines it, grad_from_output(a). Some also
// have fwd(x, f), which is f fwd(x) for a factor of an arithmetic that can take it into its constants.
// The specification, with the equation and source of each, is fusedtrain/rules.py.
#pragma once
#include <type_traits>

#include "platform.h"
#include "visit.h"

namespace ft {

// What the backward needs besides the dropout mask.
enum class Saves { kNothing, kOutput, kInput };

struct Identity {
  static constexpr const char* kName = "identity";
  static constexpr Saves kSaves = Saves::kNothing;
  template <class T> static FT_HD T fwd(T x) { return x; }
  template <class T> static FT_HD T grad(T) { return T(1); }
  template <class T> static FT_HD T grad_from_output(T) { return T(1); }
};

struct Relu {
  static constexpr const char* kName = "relu";
  static constexpr Saves kSaves = Saves::kOutput;
  template <class T> static FT_HD T fwd(T x) { return x <= T(0) ? T(0) : x; }
  template <class T> static FT_HD T grad(T x) { return x <= T(0) ? T(0) : T(1); }
  template <class T> static FT_HD T grad_from_output(T a) { return grad(a); }
};

struct LeakyRelu {
  static constexpr const char* kName = "leaky_relu";
  static constexpr Saves kSaves = Saves::kOutput;
  template <class T> static FT_HD T fwd(T x) {
    const T leaked = T(0.01) * x;
    return x > T(0) ? x : leaked;
  }
  template <class T> static FT_HD T grad(T x) { return x > T(0) ? T(1) : T(0.01); }
  template <class T> static FT_HD T grad_from_output(T a) { return grad(a); }
};

struct SquaredRelu {
  static constexpr const char* kName = "squared_relu";
  static constexpr Saves kSaves = Saves::kOutput;
  template <class T> static FT_HD T fwd(T x) { return Relu::fwd(x) * Relu::fwd(x); }
  template <class T> static FT_HD T grad(T x) { return T(2) * Relu::fwd(x); }
  template <class T> static FT_HD T grad_from_output(T a) {
    const T root = T(2) * sqrt(a);
    return a == T(0) ? T(0) : root;
  }
};

struct Elu {
  static constexpr const char* kName = "elu";
  static constexpr Saves kSaves = Saves::kOutput;
  template <class T> static FT_HD T fwd(T x) {
    const T below = expm1(x > T(0) ? T(0) : x);
    return x > T(0) ? x : below;
  }
  template <class T> static FT_HD T grad(T x) { return exp(x > T(0) ? T(0) : x); }
  template <class T> static FT_HD T grad_from_output(T a) {
    const T below = a + T(1);
    return a > T(0) ? T(1) : below;
  }
};

struct Gelu {
  static constexpr const char* kName = "gelu";
  static constexpr Saves kSaves = Saves::kInput;
  template <class T, class... F> static FT_HD T fwd(T x, F... f) { return x * normal_cdf(x, f...); }
  template <class T> static FT_HD T grad(T x) { return normal_cdf(x) + x * normal_pdf(x); }
};

// x up to where a sigmoid of it has long been 0 or 1: no power or multiple of this overflows.
template <class T>
FT_HD T where_it_matters(T x) {
  const T raised = x < T(-1e3) ? T(-1e3) : x;
  return raised > T(1e3) ? T(1e3) : raised;
}

struct GeluTanh {
  static constexpr const char* kName = "gelu_tanh";
  static constexpr Saves kSaves = Saves::kInput;
  static constexpr double kScale = 0.79788456080286535588;  // sqrt(2 / pi)
  static constexpr double kCubic = 0.044715;
  template <class T> static FT_HD T twice_z(T x) { return T(2 * kScale) * (x + T(kCubic) * x * x * x); }
  template <class T, class... F> static FT_HD T fwd(T x, F... f) { return x * sigmoid(twice_z(x), f...); }
  template <class T> static FT_HD T grad(T x) {
    const T c = where_it_matters(x);
    const T z = twice_z(c);
    const T twice_dz = T(2 * kScale) * (T(1) + T(3 * kCubic) * c * c);
    const Sigmoids<T> s = sigmoids(z);
    return s.of_x + c * twice_dz * (s.of_x * s.of_minus_x);
  }
};

struct QuickGelu {
  static constexpr const char* kName = "quick_gelu";
  static constexpr Saves kSaves = Saves::kInput;
  template <class T, class... F> static FT_HD T fwd(T x, F... f) { return x * sigmoid(T(1.702) * x, f...); }
  template <class T> static FT_HD T grad(T x) {
    const T z = T(1.702) * where_it_matters(x);
    const Sigmoids<T> s = sigmoids(z);
    return s.of_x * (T(1) + z * s.of_minus_x);
  }
};

struct Silu {
  static constexpr const char* kName = "silu";
  static constexpr Saves kSaves = Saves::kInput;
  template <class T, class... F> static FT_HD T fwd(T x, F... f) { return x * sigmoid(x, f...); }
  template <class T> static FT_HD T grad(T x) {
    const Sigmoids<T> s = sigmoids(x);
    return s.of_x * (T(1) + x * s.of_minus_x);
  }
};

// tanh(softplus(x)) = n / (n + 2), n = e (e + 2), e = exp(x): here over u = exp(-|x|), which cannot overflow.
struct Mish {
  static constexpr const char* kName = "mish";
  static constexpr Saves kSaves = Saves::kInput;
  template <class T> static FT_HD T fwd(T x) {
    const T u = exp(-abs(x));
    const T positive = T(1) + T(2) * u, negative = u * (u + T(2));
    const T n = x < T(0) ? negative : positive;
    const T d = n + (x < T(0) ? T(2) : T(2) * u * u);
    return x * (n / d);
  }
  // w + x (1 - w^2) sigmoid(x) with 1 - w^2 = 4 (n + 1) / (n + 2)^2, n + 1 = (1 + e)^2, sigmoid = e / (1 + e).
  template <class T> static FT_HD T grad(T x) {
    const T u = exp(-abs(x));
    const T positive = T(1) + T(2) * u, negative = u * (u + T(2));
    const T n = x < T(0) ? negative : positive;
    const T d = n + (x < T(0) ? T(2) : T(2) * u * u);
    const T slope = T(4) * u * (T(1) + u) * (x < T(0) ? T(1) : u);
    return n / d + x * (slope / (d * d));
  }
};

struct Hardswish {
  static constexpr const char* kName = "hardswish";
  static constexpr Saves kSaves = Saves::kInput;
  template <class T> static FT_HD T fwd(T x) {
    const T middle = x * (x + T(3)) / T(6);
    const T above = x < T(3) ? middle : x;
    return x <= T(-3) ? T(0) : above;
  }
  template <class T> static FT_HD T grad(T x) {
    const T middle = (x + T(1.5)) / T(3);  // exact where it is zero, also if the division is a product
    const T above = x < T(3) ? middle : T(1);
    return x <= T(-3) ? T(0) : above;
  }
};

struct Sigmoid {
  static constexpr const char* kName = "sigmoid";
  static constexpr Saves kSaves = Saves::kOutput;
  template <class T, class... F> static FT_HD T fwd(T x, F... f) { return sigmoid(x, f...); }
  template <class T> static FT_HD T grad(T x) { return sigmoid(x) * sigmoid(-x); }
  template <class T> static FT_HD T grad_from_output(T a) { return maximum(a * (T(1) - a), T(0)); }
};

struct Tanh {
  static constexpr const char* kName = "tanh";
  static constexpr Saves kSaves = Saves::kOutput;
  template <class T> static FT_HD T fwd(T x) { return tanh(x); }
  template <class T> static FT_HD T grad(T x) {  // 4 e / (1 + e)^2: 1 - tanh^2 without its cancellation
    const T e = exp(T(-2) * abs(x));
    return T(4) * e / ((T(1) + e) * (T(1) + e));
  }
  template <class T> static FT_HD T grad_from_output(T a) { return maximum(T(1) - a * a, T(0)); }
};

struct Softplus {
  static constexpr const char* kName = "softplus";
  static constexpr Saves kSaves = Saves::kOutput;
  template <class T> static FT_HD T fwd(T x) { return (x > T(0) ? x : T(0)) + log1p_unit(exp(-abs(x))); }
  template <class T> static FT_HD T grad(T x) { return sigmoid(x); }
  template <class T> static FT_HD T grad_from_output(T a) { return -expm1(-a); }
};

// Whether a rule can take a factor into its constants.
template <class Rule, class = void>
constexpr bool kTakesFactor = false;
template <class Rule>
constexpr bool kTakesFactor<Rule, std::void_t<decltype(Rule::fwd(0.0f, 0))>> = true;

using Activations = TypeList<Identity, Relu, LeakyRelu, SquaredRelu, Elu, Gelu, GeluTanh, QuickGelu, Silu, Mish,
                             Hardswish, Sigmoid, Tanh, Softplus>;

}  // namespace ft
