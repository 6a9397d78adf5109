// A kernel source that shared_code.cmake must refuse.
namespace synq {

// Its address is taken, so that it cannot be inlined away.
inline float half_of(float value) { return value * 0.5f; }

using Function = float (*)(float);
Function shared_code();
Function shared_code() { return half_of; }

}  // namespace synq
