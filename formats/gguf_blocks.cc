// Products and sums here are rounded one by one (-ffp-contract=off, see
// CMakeLists.txt), so that the values do not depend on the machine.

#include "formats/gguf_blocks.h"

#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "formats/gguf_grids.h"
#include "formats/half_float.h"

namespace weightfs {
namespace {

template <class T>
T Load(const uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof(value));
  return value;
}

float LoadHalf(const uint8_t* at) { return HalfToFloat(Load<uint16_t>(at)); }

float ToFloat(int value) { return static_cast<float>(value); }

int LowNibble(uint8_t byte) { return byte & 15; }
int HighNibble(uint8_t byte) { return byte >> 4; }
// Four bits of `bytes`, counted from the low ones of the first byte.
int Nibble(const uint8_t* bytes, int i) {
  return (bytes[i / 2] >> (4 * (i % 2))) & 15;
}
// Two bits, as Nibble.
int Pair(const uint8_t* bytes, int i) {
  return (bytes[i / 4] >> (2 * (i % 4))) & 3;
}
int Bit(const uint8_t* bytes, int i) { return (bytes[i / 8] >> (i % 8)) & 1; }

// Blocks of 32 with a scale (and a least value, "m").

void DecodeQ40(const uint8_t* block, float* values) {
  const float d = LoadHalf(block);
  for (int i = 0; i < 16; ++i) {
    values[i] = d * ToFloat(LowNibble(block[2 + i]) - 8);
    values[16 + i] = d * ToFloat(HighNibble(block[2 + i]) - 8);
  }
}

void DecodeQ41(const uint8_t* block, float* values) {
  const float d = LoadHalf(block);
  const float m = LoadHalf(block + 2);
  for (int i = 0; i < 16; ++i) {
    values[i] = d * ToFloat(LowNibble(block[4 + i])) + m;
    values[16 + i] = d * ToFloat(HighNibble(block[4 + i])) + m;
  }
}

void DecodeQ50(const uint8_t* block, float* values) {
  const float d = LoadHalf(block);
  const uint8_t* high = block + 2;
  const uint8_t* low = block + 6;
  for (int i = 0; i < 16; ++i) {
    values[i] = d * ToFloat((LowNibble(low[i]) | Bit(high, i) << 4) - 16);
    values[16 + i] =
        d * ToFloat((HighNibble(low[i]) | Bit(high, 16 + i) << 4) - 16);
  }
}

void DecodeQ51(const uint8_t* block, float* values) {
  const float d = LoadHalf(block);
  const float m = LoadHalf(block + 2);
  const uint8_t* high = block + 4;
  const uint8_t* low = block + 8;
  for (int i = 0; i < 16; ++i) {
    values[i] = d * ToFloat(LowNibble(low[i]) | Bit(high, i) << 4) + m;
    values[16 + i] =
        d * ToFloat(HighNibble(low[i]) | Bit(high, 16 + i) << 4) + m;
  }
}

void DecodeQ80(const uint8_t* block, float* values) {
  const float d = LoadHalf(block);
  for (int i = 0; i < 32; ++i) {
    values[i] = d * ToFloat(static_cast<int8_t>(block[2 + i]));
  }
}

// Blocks of 256, in parts with small scales of their own.

// The two bits of value i where 32 bytes hold 128 values: the first 32 in the
// lowest bits, and so on.
int PlanarPair(const uint8_t* bytes, int i) {
  return (bytes[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2)) & 3;
}
// The bit of value i where 32 bytes hold 256 values likewise.
int PlanarBit(const uint8_t* bytes, int i) {
  return (bytes[i % 32] >> (i / 32)) & 1;
}
// The four bits of value i where 32 bytes hold 64 values likewise.
int PlanarNibble(const uint8_t* bytes, int i) {
  return (bytes[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4)) & 15;
}

void DecodeQ2K(const uint8_t* block, float* values) {
  const uint8_t* scales = block;
  const uint8_t* quants = block + 16;
  const float d = LoadHalf(block + 80);
  const float m = LoadHalf(block + 82);
  for (int part = 0; part < 16; ++part) {
    const float scale = d * ToFloat(LowNibble(scales[part]));
    const float least = m * ToFloat(HighNibble(scales[part]));
    for (int i = part * 16; i < part * 16 + 16; ++i) {
      values[i] = scale * ToFloat(PlanarPair(quants, i)) - least;
    }
  }
}

void DecodeQ3K(const uint8_t* block, float* values) {
  const uint8_t* mask = block;
  const uint8_t* quants = block + 32;
  const uint8_t* scales = block + 96;
  const float d = LoadHalf(block + 108);
  for (int part = 0; part < 16; ++part) {
    const int low = (scales[part % 8] >> (part / 8 * 4)) & 15;
    const int high = (scales[8 + part % 4] >> (part / 4 * 2)) & 3;
    const float scale = d * ToFloat((low | high << 4) - 32);
    for (int i = part * 16; i < part * 16 + 16; ++i) {
      // The offset is there where the bit is not.
      const int offset = PlanarBit(mask, i) != 0 ? 0 : 4;
      values[i] = scale * ToFloat(PlanarPair(quants, i) - offset);
    }
  }
}

// Scale and least value of a part of Q4_K and Q5_K: six bits each, twelve bytes
// for eight parts.
struct ScaleMin {
  int scale;
  int least;
};
ScaleMin ScaleMinOf(const uint8_t* scales, int part) {
  if (part < 4) return {scales[part] & 63, scales[part + 4] & 63};
  const uint8_t low = scales[part + 4];
  return {LowNibble(low) | (scales[part - 4] >> 6) << 4,
          HighNibble(low) | (scales[part] >> 6) << 4};
}

void DecodeQ4K(const uint8_t* block, float* values) {
  const float d = LoadHalf(block);
  const float m = LoadHalf(block + 2);
  const uint8_t* quants = block + 16;
  for (int part = 0; part < 8; ++part) {
    const ScaleMin scales = ScaleMinOf(block + 4, part);
    const float scale = d * ToFloat(scales.scale);
    const float least = m * ToFloat(scales.least);
    for (int i = part * 32; i < part * 32 + 32; ++i) {
      values[i] = scale * ToFloat(PlanarNibble(quants, i)) - least;
    }
  }
}

void DecodeQ5K(const uint8_t* block, float* values) {
  const float d = LoadHalf(block);
  const float m = LoadHalf(block + 2);
  const uint8_t* high = block + 16;
  const uint8_t* low = block + 48;
  for (int part = 0; part < 8; ++part) {
    const ScaleMin scales = ScaleMinOf(block + 4, part);
    const float scale = d * ToFloat(scales.scale);
    const float least = m * ToFloat(scales.least);
    for (int i = part * 32; i < part * 32 + 32; ++i) {
      const int quant = PlanarNibble(low, i) | PlanarBit(high, i) << 4;
      values[i] = scale * ToFloat(quant) - least;
    }
  }
}

void DecodeQ6K(const uint8_t* block, float* values) {
  const uint8_t* low = block;
  const uint8_t* high = block + 128;
  const uint8_t* scales = block + 192;
  const float d = LoadHalf(block + 208);
  for (int part = 0; part < 16; ++part) {
    const float scale = d * ToFloat(static_cast<int8_t>(scales[part]));
    for (int i = part * 16; i < part * 16 + 16; ++i) {
      const int nibble = (low[i / 128 * 64 + i % 64] >> (i / 64 % 2 * 4)) & 15;
      const int quant = nibble | PlanarPair(high, i) << 4;
      values[i] = scale * ToFloat(quant - 32);
    }
  }
}

// Ternary: -1, 0 and 1 times a scale.

// A byte holds five digits of base 3, the first most significant, as a fraction
// of 256.
int Trit(uint8_t byte, int digit) {
  constexpr std::array<int, 5> kPowers = {1, 3, 9, 27, 81};
  const int shifted = (byte * kPowers[static_cast<size_t>(digit)]) & 255;
  return ((shifted * 3) >> 8) - 1;
}

void DecodeTq10(const uint8_t* block, float* values) {
  const float d = LoadHalf(block + 52);
  for (int i = 0; i < 160; ++i)
    values[i] = d * ToFloat(Trit(block[i % 32], i / 32));
  for (int i = 0; i < 80; ++i) {
    values[160 + i] = d * ToFloat(Trit(block[32 + i % 16], i / 16));
  }
  for (int i = 0; i < 16; ++i) {
    values[240 + i] = d * ToFloat(Trit(block[48 + i % 4], i / 4));
  }
}

void DecodeTq20(const uint8_t* block, float* values) {
  const float d = LoadHalf(block + 64);
  for (int i = 0; i < 256; ++i)
    values[i] = d * ToFloat(PlanarPair(block, i) - 1);
}

// Four bits name one of sixteen levels.

constexpr std::array<int8_t, 16> kIq4Levels = {
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
// The floats of E2M1, doubled.
constexpr std::array<int8_t, 16> kE2m1Levels = {0, 1,  2,  3,  4,  6,  8,  12,
                                                0, -1, -2, -3, -4, -6, -8, -12};

float Level(const std::array<int8_t, 16>& levels, int i) {
  return ToFloat(levels[static_cast<size_t>(i)]);
}

void DecodeIq4Nl(const uint8_t* block, float* values) {
  const float d = LoadHalf(block);
  for (int i = 0; i < 16; ++i) {
    values[i] = d * Level(kIq4Levels, LowNibble(block[2 + i]));
    values[16 + i] = d * Level(kIq4Levels, HighNibble(block[2 + i]));
  }
}

void DecodeIq4Xs(const uint8_t* block, float* values) {
  const float d = LoadHalf(block);
  for (int part = 0; part < 8; ++part) {
    const int scale = Nibble(block + 4, part) | Pair(block + 2, part) << 4;
    const float part_scale = d * ToFloat(scale - 32);
    const uint8_t* quants = block + 8 + part * 16;
    float* out = values + part * 32;
    for (int i = 0; i < 16; ++i) {
      out[i] = part_scale * Level(kIq4Levels, LowNibble(quants[i]));
      out[16 + i] = part_scale * Level(kIq4Levels, HighNibble(quants[i]));
    }
  }
}

void DecodeMxfp4(const uint8_t* block, float* values) {
  // Half of 2^(e - 127), since the levels are doubled; 0 and 1 are subnormal.
  const uint32_t e = block[0];
  const float d =
      std::bit_cast<float>(e < 2 ? 0x00200000U << e : (e - 1) << 23);
  for (int i = 0; i < 16; ++i) {
    values[i] = d * Level(kE2m1Levels, LowNibble(block[1 + i]));
    values[16 + i] = d * Level(kE2m1Levels, HighNibble(block[1 + i]));
  }
}

// An unsigned E4M3 float, halved since the levels are doubled. Its top bit is
// not looked at but for the NaN, which is 0 here.
float HalfOfE4m3(uint8_t byte) {
  if (byte == 0 || byte == 0x7f) return 0;
  const int exponent = (byte >> 3) & 15;
  const float mantissa = ToFloat(byte & 7);
  if (exponent == 0) return mantissa * 0x1p-9F * 0.5F;
  return std::ldexp(1 + mantissa / 8, exponent - 7) * 0.5F;
}

void DecodeNvfp4(const uint8_t* block, float* values) {
  for (int part = 0; part < 4; ++part) {
    const float d = HalfOfE4m3(block[part]);
    const uint8_t* quants = block + 4 + part * 8;
    float* out = values + part * 16;
    for (int i = 0; i < 8; ++i) {
      out[i] = d * Level(kE2m1Levels, LowNibble(quants[i]));
      out[8 + i] = d * Level(kE2m1Levels, HighNibble(quants[i]));
    }
  }
}

// Codebooks: a number names a point of a grid, and bits the signs.

// Coordinates times a scale; bit i of `signs` turns the i-th.
template <size_t kSize>
void StorePoint(float scale, const std::array<int8_t, kSize>& point,
                unsigned signs, float* out) {
  for (size_t i = 0; i < kSize; ++i) {
    const float sign = ((signs >> i) & 1) != 0 ? -1.0F : 1.0F;
    out[i] = scale * ToFloat(point[i]) * sign;
  }
}

// Seven bits of signs stand for eight: the number of minus signs is even.
unsigned EvenSigns(unsigned seven) {
  return seven | (static_cast<unsigned>(std::popcount(seven)) & 1U) << 7;
}

void DecodeIq2Xxs(const uint8_t* block, float* values) {
  const GridOf8& grid = Iq2XxsGrid();
  const float d = LoadHalf(block);
  for (int part = 0; part < 8; ++part) {
    const uint8_t* numbers = block + 2 + part * 8;
    const auto rest = Load<uint32_t>(numbers + 4);
    const float scale = d * (0.5F + static_cast<float>(rest >> 28)) * 0.25F;
    for (int i = 0; i < 4; ++i) {
      StorePoint(scale, grid[numbers[i]], EvenSigns((rest >> (7 * i)) & 127),
                 values + part * 32 + i * 8);
    }
  }
}

void DecodeIq2Xs(const uint8_t* block, float* values) {
  const GridOf8& grid = Iq2XsGrid();
  const float d = LoadHalf(block);
  for (int i = 0; i < 32; ++i) {
    const float scale = d * (0.5F + ToFloat(Nibble(block + 66, i / 2))) * 0.25F;
    const auto code = Load<uint16_t>(block + 2 + i * 2);
    StorePoint(scale, grid[code & 511U], EvenSigns(code >> 9), values + i * 8);
  }
}

void DecodeIq2S(const uint8_t* block, float* values) {
  const GridOf8& grid = Iq2SGrid();
  const float d = LoadHalf(block);
  const uint8_t* numbers = block + 2;
  const uint8_t* signs = block + 34;
  for (int i = 0; i < 32; ++i) {
    const float scale = d * (0.5F + ToFloat(Nibble(block + 74, i / 2))) * 0.25F;
    const int number = numbers[i] | Pair(block + 66, i) << 8;
    StorePoint(scale, grid[static_cast<size_t>(number)], signs[i],
               values + i * 8);
  }
}

void DecodeIq3Xxs(const uint8_t* block, float* values) {
  const GridOf4& grid = Iq3XxsGrid();
  const float d = LoadHalf(block);
  for (int part = 0; part < 8; ++part) {
    const auto rest = Load<uint32_t>(block + 66 + part * 4);
    const float scale = d * (0.5F + static_cast<float>(rest >> 28)) * 0.5F;
    for (int i = 0; i < 8; ++i) {
      const unsigned signs = EvenSigns((rest >> (i / 2 * 7)) & 127);
      StorePoint(scale, grid[block[2 + part * 8 + i]], signs >> (i % 2 * 4),
                 values + part * 32 + i * 4);
    }
  }
}

void DecodeIq3S(const uint8_t* block, float* values) {
  const GridOf4& grid = Iq3SGrid();
  const float d = LoadHalf(block);
  for (int i = 0; i < 64; ++i) {
    const float scale = d * ToFloat(1 + 2 * Nibble(block + 106, i / 8));
    const int number = block[2 + i] | Bit(block + 66, i) << 8;
    const int signs = Nibble(block + 74, i);
    StorePoint(scale, grid[static_cast<size_t>(number)],
               static_cast<unsigned>(signs), values + i * 4);
  }
}

// Coordinates of -1, 0 and 1 and a shift, times a scale.
void StoreShifted(float scale, const std::array<int8_t, 8>& point, bool down,
                  float* out) {
  const float shift = down ? -0.125F : 0.125F;
  for (size_t i = 0; i < point.size(); ++i) {
    out[i] = scale * (ToFloat(point[i]) + shift);
  }
}

void DecodeIq1S(const uint8_t* block, float* values) {
  const GridOf8& grid = Iq1SGrid();
  const float d = LoadHalf(block);
  for (int part = 0; part < 8; ++part) {
    const int high = Load<uint16_t>(block + 34 + part * 2);
    const float scale = d * ToFloat(2 * ((high >> 12) & 7) + 1);
    for (int i = 0; i < 4; ++i) {
      const int number = block[2 + part * 4 + i] | ((high >> (3 * i)) & 7) << 8;
      StoreShifted(scale, grid[static_cast<size_t>(number)],
                   (high & 0x8000) != 0, values + part * 32 + i * 8);
    }
  }
}

void DecodeIq1M(const uint8_t* block, float* values) {
  const GridOf8& grid = Iq1SGrid();
  // Each of four numbers holds four scales of three bits, and above them four
  // bits of the block's own.
  std::array<int, 4> scales{};
  int half = 0;
  for (int i = 0; i < 4; ++i) {
    const int packed = Load<uint16_t>(block + 48 + i * 2);
    scales[static_cast<size_t>(i)] = packed;
    half |= (packed >> 12) << (4 * i);
  }
  const float d = HalfToFloat(static_cast<uint16_t>(half));
  for (int i = 0; i < 32; ++i) {
    const int part = i / 2;
    const int packed = scales[static_cast<size_t>(part / 4)];
    const float scale = d * ToFloat(2 * ((packed >> (part % 4 * 3)) & 7) + 1);
    const int high = Nibble(block + 32, i);
    const int number = block[i] | (high & 7) << 8;
    StoreShifted(scale, grid[static_cast<size_t>(number)], (high & 8) != 0,
                 values + i * 8);
  }
}

}  // namespace

BlockDecoder BlockDecoderOf(DType dtype) {
  switch (dtype) {
    case DType::kQ40:
      return DecodeQ40;
    case DType::kQ41:
      return DecodeQ41;
    case DType::kQ50:
      return DecodeQ50;
    case DType::kQ51:
      return DecodeQ51;
    case DType::kQ80:
      return DecodeQ80;
    case DType::kQ2K:
      return DecodeQ2K;
    case DType::kQ3K:
      return DecodeQ3K;
    case DType::kQ4K:
      return DecodeQ4K;
    case DType::kQ5K:
      return DecodeQ5K;
    case DType::kQ6K:
      return DecodeQ6K;
    case DType::kIq2Xxs:
      return DecodeIq2Xxs;
    case DType::kIq2Xs:
      return DecodeIq2Xs;
    case DType::kIq3Xxs:
      return DecodeIq3Xxs;
    case DType::kIq1S:
      return DecodeIq1S;
    case DType::kIq4Nl:
      return DecodeIq4Nl;
    case DType::kIq3S:
      return DecodeIq3S;
    case DType::kIq2S:
      return DecodeIq2S;
    case DType::kIq4Xs:
      return DecodeIq4Xs;
    case DType::kIq1M:
      return DecodeIq1M;
    case DType::kTq10:
      return DecodeTq10;
    case DType::kTq20:
      return DecodeTq20;
    case DType::kMxfp4:
      return DecodeMxfp4;
    case DType::kNvfp4:
      return DecodeNvfp4;
    default:  // plain types, and those without a reference
      return nullptr;
  }
}

}  // namespace weightfs
