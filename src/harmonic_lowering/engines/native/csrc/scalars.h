// Half types: storage and conversion, rounded to nearest even. Nothing computes in them.
#pragma once
#include <cstdint>
#include <cstring>

namespace {

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// Without branches, so that compilers vectorise loops of them; without subnormal floats, which a program may
// have told the processor to flush.
struct Half {
  uint16_t bits;
  Half() = default;
  explicit Half(float x) {
    const uint32_t all = bits_as<uint32_t>(x), sign = all & 0x80000000u, size = all ^ sign;
    const uint32_t odd = size >> 13 & 1;
    const uint32_t normal = (size - (112u << 23) + 0xfff + odd) >> 13;
    // Adding 0.5 leaves multiples of 2^-24, the smallest half, in the lowest bits of the sum.
    const uint32_t subnormal = bits_as<uint32_t>(bits_as<float>(size) + 0.5f) - bits_as<uint32_t>(0.5f);
    const uint32_t special = size > 0x7f800000u ? 0x7e00 : 0x7c00;
    const uint32_t finite = size < 113u << 23 ? subnormal : normal;
    bits = static_cast<uint16_t>((size >= 143u << 23 ? special : finite) | sign >> 16);
  }
  explicit operator float() const {
    const uint32_t sign = uint32_t(bits & 0x8000) << 16, size = uint32_t(bits & 0x7fff) << 13;
    const uint32_t exponent = size & 0x0f800000u;
    const uint32_t normal = size + (112u << 23), special = normal + (112u << 23);
    // A subnormal half has no hidden bit: give it one, and subtract it as a number.
    const uint32_t subnormal =
        bits_as<uint32_t>(bits_as<float>(size + (113u << 23)) - bits_as<float>(113u << 23));
    const uint32_t finite = exponent ? normal : subnormal;
    return bits_as<float>((exponent == 0x0f800000u ? special : finite) | sign);
  }
};

struct BFloat16 {
  uint16_t bits;
  BFloat16() = default;
  explicit BFloat16(float x) {
    const uint32_t all = bits_as<uint32_t>(x), odd = all >> 16 & 1;
    bits = static_cast<uint16_t>((all & 0x7fffffffu) > 0x7f800000u ? 0x7fc0 : (all + 0x7fff + odd) >> 16);
  }
  explicit operator float() const { return bits_as<float>(uint32_t(bits) << 16); }
};

}  // namespace
