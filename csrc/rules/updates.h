// The update rules, and what happens to a gradient before its rule sees it. The specification, with the equation and
// source of each, is fusedtrain/rules.py.
//
// A rule has a Direction<T>, made from a row of its hyperparameters and the number t of this step, from 1: whatever
// does not depend on the element is computed there once, in double. Called with p, g and the states s[kStates], which
// it replaces, it returns the direction u; the caller applies p -= lr u. kDivides says whether it takes a root and a
// quotient, for which a GPU needs registers.
#pragma once
#include "platform.h"
#include "visit.h"

namespace ft {

// The columns that precede a rule's own in a row of hyperparameters.
enum LaunchHyper { kLr, kSign, kClipValue, kL1, kLaunchHyper };

// min(1, max_norm / (norm + 1e-6)); NaN stays NaN. An infinite or negative max_norm clips nothing.
FT_HD double clip_coefficient(double norm, double max_norm) {
  const double coef = max_norm / (norm + 1e-6);
  return max_norm < 0 || max_norm > 1.7976931348623157e308 || coef > 1 ? 1.0 : coef;
}

// clamp(scale g, -clip_value, clip_value) + l1 sign(p), scale = sign inv_scale clip_coef.
template <class T>
struct Preparation {
  T scale, clip_value, l1;

  FT_HD Preparation(const double* launch, double inv_scale, double clip_coef)
      : scale(T(inv_scale * clip_coef * launch[kSign])), clip_value(T(launch[kClipValue])), l1(T(launch[kL1])) {}

  FT_HD T operator()(T p, T g) const {
    const T scaled = g * scale;
    const T raised = scaled < -clip_value ? -clip_value : scaled;
    const T clamped = raised > clip_value ? clip_value : raised;
    return clamped + l1 * sign(p);
  }
};

// weight_decay p, but 0 for an infinite p, which stays what it is: inf - inf and 0 inf are NaN.
template <class T>
FT_HD T decay(T p, T weight_decay) {
  const T decayed = weight_decay * p;
  return p - p == T(0) ? decayed : T(0);
}

struct Sgd {
  static constexpr const char* kName = "sgd";
  static constexpr int kStates = 0, kHyper = 1;
  static constexpr bool kDivides = false;

  template <class T>
  struct Direction {
    T weight_decay;

    FT_HD Direction(const double* hyper, double) : weight_decay(T(hyper[0])) {}
    FT_HD T operator()(T p, T g, T*) const { return g + decay(p, weight_decay); }
  };
};

struct SgdMomentum {
  static constexpr const char* kName = "sgd_momentum";
  static constexpr int kStates = 1, kHyper = 4;
  static constexpr bool kDivides = false;

  template <class T>
  struct Direction {
    T weight_decay, momentum, one_minus_dampening;
    bool nesterov, first;

    FT_HD Direction(const double* hyper, double t)
        : weight_decay(T(hyper[0])),
          momentum(T(hyper[1])),
          one_minus_dampening(T(1 - hyper[2])),
          nesterov(hyper[3] != 0),
          first(t <= 1) {}

    FT_HD T operator()(T p, T g, T* s) const {
      g = g + decay(p, weight_decay);
      const T later = momentum * s[0] + one_minus_dampening * g;
      s[0] = first ? g : later;  // selected: what the buffer held before the first step does not count
      const T ahead = g + momentum * s[0];
      return nesterov ? ahead : s[0];
    }
  };
};

// Adam and its variants: weight decay in the gradient or decoupled, the denominator from v or from its maximum.
template <class T, bool kDecoupled, bool kAmsgrad>
struct AdamDirection {
  T one_minus_beta1, one_minus_beta2, inv_bias_correction1, inv_sqrt_bias_correction2, eps, weight_decay;

  FT_HD AdamDirection(const double* hyper, double t)
      : one_minus_beta1(T(1 - hyper[0])),
        one_minus_beta2(T(1 - hyper[1])),
        inv_bias_correction1(T(1 / (1 - ::pow(hyper[0], t)))),
        inv_sqrt_bias_correction2(T(1 / ::sqrt(1 - ::pow(hyper[1], t)))),
        eps(T(hyper[2])),
        weight_decay(T(hyper[3])) {}

  FT_HD T operator()(T p, T g, T* s) const {
    if (!kDecoupled) g = g + decay(p, weight_decay);
    s[0] = s[0] + one_minus_beta1 * (g - s[0]);
    s[1] = s[1] + one_minus_beta2 * (g * g - s[1]);
    if (kAmsgrad) s[2] = maximum(s[2], s[1]);
    const T v = kAmsgrad ? s[2] : s[1];
    const T u = s[0] * inv_bias_correction1 / (sqrt(v) * inv_sqrt_bias_correction2 + eps);
    return kDecoupled ? u + decay(p, weight_decay) : u;
  }
};

struct Adam {
  static constexpr const char* kName = "adam";
  static constexpr int kStates = 2, kHyper = 4;
  static constexpr bool kDivides = true;
  template <class T>
  using Direction = AdamDirection<T, false, false>;
};

struct AdamAmsgrad {
  static constexpr const char* kName = "adam_amsgrad";
  static constexpr int kStates = 3, kHyper = 4;
  static constexpr bool kDivides = true;
  template <class T>
  using Direction = AdamDirection<T, false, true>;
};

struct AdamW {
  static constexpr const char* kName = "adamw";
  static constexpr int kStates = 2, kHyper = 4;
  static constexpr bool kDivides = true;
  template <class T>
  using Direction = AdamDirection<T, true, false>;
};

struct AdamWAmsgrad {
  static constexpr const char* kName = "adamw_amsgrad";
  static constexpr int kStates = 3, kHyper = 4;
  static constexpr bool kDivides = true;
  template <class T>
  using Direction = AdamDirection<T, true, true>;
};

struct Lion {
  static constexpr const char* kName = "lion";
  static constexpr int kStates = 1, kHyper = 3;
  static constexpr bool kDivides = false;

  template <class T>
  struct Direction {
    T one_minus_beta1, one_minus_beta2, weight_decay;

    FT_HD Direction(const double* hyper, double)
        : one_minus_beta1(T(1 - hyper[0])), one_minus_beta2(T(1 - hyper[1])), weight_decay(T(hyper[2])) {}

    FT_HD T operator()(T p, T g, T* s) const {
      const T c = s[0] + one_minus_beta1 * (g - s[0]);
      s[0] = s[0] + one_minus_beta2 * (g - s[0]);
      return sign(c) + decay(p, weight_decay);
    }
  };
};

struct Adagrad {
  static constexpr const char* kName = "adagrad";
  static constexpr int kStates = 1, kHyper = 3;
  static constexpr bool kDivides = true;

  template <class T>
  struct Direction {
    T inv_slowdown, eps, weight_decay;

    FT_HD Direction(const double* hyper, double t)
        : inv_slowdown(T(1 / (1 + (t - 1) * hyper[0]))), eps(T(hyper[1])), weight_decay(T(hyper[2])) {}

    FT_HD T operator()(T p, T g, T* s) const {
      g = g + decay(p, weight_decay);
      s[0] = s[0] + g * g;
      return g * inv_slowdown / (sqrt(s[0]) + eps);
    }
  };
};

// RMSprop and its variants: the denominator from v or from the variance, the direction alone or with momentum.
template <class T, bool kCentered, bool kMomentum>
struct RmspropDirection {
  static constexpr int kBuffer = 1, kAverage = kMomentum ? 2 : 1;  // states
  static constexpr T kRounding = T(sizeof(T) == sizeof(float) ? 0x1p-23 : 0x1p-52);

  T one_minus_alpha, eps, weight_decay, momentum;

  FT_HD RmspropDirection(const double* hyper, double)
      : one_minus_alpha(T(1 - hyper[0])),
        eps(T(hyper[1])),
        weight_decay(T(hyper[2])),
        momentum(kMomentum ? T(hyper[3]) : T(0)) {}

  FT_HD T operator()(T p, T g, T* s) const {
    g = g + decay(p, weight_decay);
    s[0] = average(s[0], one_minus_alpha * g * g);  // squared last: so it reaches as far as torch's
    T v = s[0];
    if (kCentered) {
      s[kAverage] = average(s[kAverage], one_minus_alpha * g);
      const T variance = v - s[kAverage] * s[kAverage], least = kRounding * v;
      v = variance < least ? least : variance;
    }
    const T u = g / (sqrt(v) + eps);
    if (!kMomentum) return u;
    s[kBuffer] = momentum * s[kBuffer] + u;
    return s[kBuffer];
  }

 private:
  // alpha old + scaled, without alpha: by what two rounded constants miss of 1, averages would be off.
  FT_HD T average(T old, T scaled) const {
    const T lost = one_minus_alpha * old, soon = (old - lost) + scaled, late = old + (scaled - lost);
    return one_minus_alpha > T(0.5) ? soon : late;
  }
};

struct Rmsprop {
  static constexpr const char* kName = "rmsprop";
  static constexpr int kStates = 1, kHyper = 3;
  static constexpr bool kDivides = true;
  template <class T>
  using Direction = RmspropDirection<T, false, false>;
};

struct RmspropMomentum {
  static constexpr const char* kName = "rmsprop_momentum";
  static constexpr int kStates = 2, kHyper = 4;
  static constexpr bool kDivides = true;
  template <class T>
  using Direction = RmspropDirection<T, false, true>;
};

struct RmspropCentered {
  static constexpr const char* kName = "rmsprop_centered";
  static constexpr int kStates = 2, kHyper = 3;
  static constexpr bool kDivides = true;
  template <class T>
  using Direction = RmspropDirection<T, true, false>;
};

struct RmspropCenteredMomentum {
  static constexpr const char* kName = "rmsprop_centered_momentum";
  static constexpr int kStates = 3, kHyper = 4;
  static constexpr bool kDivides = true;
  template <class T>
  using Direction = RmspropDirection<T, true, true>;
};

using Updates = TypeList<Sgd, SgdMomentum, Adam, AdamAmsgrad, AdamW, AdamWAmsgrad, Lion, Adagrad, Rmsprop,
                         RmspropMomentum, RmspropCentered, RmspropCenteredMomentum>;

// All that a rule needs to know beside the elements, for tensors of one group and step count. Called with p, g as it
// was computed, and the states, it replaces these and returns p - lr u.
template <class Rule, class C>
struct Prepared {
  Preparation<C> prepare;
  C lr;
  typename Rule::template Direction<C> direction;

  FT_HD Prepared(const double* hyper, double t, double inv_scale, double clip_coef)
      : prepare(hyper, inv_scale, clip_coef), lr(C(hyper[kLr])), direction(hyper + kLaunchHyper, t) {}
  FT_HD C operator()(C p, C g, C* s) const { return p - lr * direction(p, prepare(p, g), s); }
};

}  // namespace ft
