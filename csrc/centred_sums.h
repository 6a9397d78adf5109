// Sums of a part of a channel, the squares about the part's own mean: parts merge without cancellation (Chan, Golub and
// LeVeque 1979). The sum stays a plain one, so that an infinity makes the mean infinite and the variance NaN.
#pragma once

#include "affine.h"

namespace synq {
namespace {

template <typename Real>
struct CentredSums {
  Real count;
  Real sum;
  Real deviation;  // of the squared distances from the mean
};

template <typename Real>
SYNQ_HOST_DEVICE CentredSums<Real> merge(const CentredSums<Real>& a, const CentredSums<Real>& b) {
  if (a.count == 0) return b;
  if (b.count == 0) return a;
  const Real count = a.count + b.count;
  const Real delta = b.sum / b.count - a.sum / a.count;
  return {count, a.sum + b.sum, a.deviation + b.deviation + delta * delta * (a.count / count) * b.count};
}

// Where products of sums cannot overflow, one division does: each costs a GPU a call and its registers.
SYNQ_HOST_DEVICE CentredSums<double> merge(const CentredSums<double>& a, const CentredSums<double>& b) {
  if (a.count == 0) return b;
  if (b.count == 0) return a;
  const double count = a.count + b.count;
  const double delta = b.sum * a.count - a.sum * b.count;
  return {count, a.sum + b.sum, a.deviation + b.deviation + delta / (a.count * b.count * count) * delta};
}

// The sums of `count` values that were shifted by a finite `centre`, from those of the differences and their squares.
template <typename Real>
SYNQ_HOST_DEVICE CentredSums<Real> unshifted(Real count, Real centre, Real sum, Real squares) {
  const Real deviation = squares - sum * sum / count;
  return {count, centre * count + sum, deviation < 0 ? 0 : deviation};
}

// Something near the values to subtract from them; an infinity or a NaN would hide the others.
SYNQ_HOST_DEVICE float usable_centre(float value) { return fabsf(value) < HUGE_VALF ? value : 0.0f; }

}  // namespace
}  // namespace synq
