// 16-bit floats (IEEE half, bfloat16) from and to float. Rounding is to
// nearest, ties to even; a NaN stays a NaN and is made quiet. Pure functions.

#ifndef WEIGHTFS_FORMATS_HALF_FLOAT_H_
#define WEIGHTFS_FORMATS_HALF_FLOAT_H_

#include <bit>
#include <cstdint>

namespace weightfs {

inline float HalfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000U) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fU;
  const uint32_t mantissa = half & 0x3ffU;
  uint32_t magnitude = 0;
  if (exponent == 0) {
    magnitude =
        std::bit_cast<uint32_t>(static_cast<float>(mantissa) * 0x1p-24F);
  } else if (exponent == 0x1f) {
    magnitude = 0x7f800000U | (mantissa << 13);
    if (mantissa != 0) magnitude |= 0x00400000U;
  } else {
    magnitude = ((exponent + 127 - 15) << 23) | (mantissa << 13);
  }
  return std::bit_cast<float>(sign | magnitude);
}

inline uint16_t FloatToHalf(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000U;
  const uint32_t magnitude = bits & 0x7fffffffU;
  uint32_t half = 0;
  if (magnitude > 0x7f800000U) {  // NaN
    half = 0x7e00U | ((magnitude >> 13) & 0x3ffU);
  } else if (magnitude >= 0x47800000U) {  // 65,536 and more
    half = 0x7c00U;
  } else if (magnitude < 0x38800000U) {  // less than 2^-14: subnormal
    // 0.5 has ulps of 2^-24, a half's smallest step: the sum rounds to them.
    const float sum = std::bit_cast<float>(magnitude) + 0.5F;
    half = std::bit_cast<uint32_t>(sum) - std::bit_cast<uint32_t>(0.5F);
  } else {
    // A carry runs on into the exponent, and from the largest into infinity.
    const uint32_t rounded = magnitude + 0xfffU + ((magnitude >> 13) & 1U);
    half = (rounded - ((127U - 15U) << 23)) >> 13;
  }
  return static_cast<uint16_t>(sign | half);
}

inline uint16_t FloatToBFloat16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) {
    return static_cast<uint16_t>((bits >> 16) | 0x40U);
  }
  return static_cast<uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_HALF_FLOAT_H_
