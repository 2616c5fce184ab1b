// Made-up safetensors models for the test hub (hub_content.h).

#include <algorithm>
#include <array>
#include <charconv>
#include <cinttypes>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "nlohmann/json.hpp"
#include "tests/support/hub_content.h"

namespace weightfs {
namespace {

std::optional<uint64_t> DtypeBits(const std::string& dtype) {
  static const std::map<std::string, uint64_t> kBits = {
      {"BOOL", 8}, {"U8", 8},   {"I8", 8},   {"F8_E4M3", 8}, {"F8_E5M2", 8},
      {"I16", 16}, {"U16", 16}, {"F16", 16}, {"BF16", 16},   {"I32", 32},
      {"U32", 32}, {"F32", 32}, {"I64", 64}, {"U64", 64},    {"F64", 64}};
  const auto found = kBits.find(dtype);
  if (found == kBits.end()) return std::nullopt;
  return found->second;
}

std::string TensorName(uint64_t index) {
  return "model.layers." + std::to_string(index) + ".weight";
}

std::string ShardName(uint64_t shard, uint64_t shards) {
  if (shards == 1) return "model.safetensors";
  std::array<char, 64> name{};
  std::snprintf(name.data(), name.size(),
                "model-%05" PRIu64 "-of-%05" PRIu64 ".safetensors", shard + 1,
                shards);
  return name.data();
}

// The length, the header padded with spaces to 8 bytes. By hand: a JSON tree
// of 20,000 tensors for each shard is slow to build and to print.
std::string Header(const TestHubModelSpec& spec, uint64_t bits, uint64_t first,
                   uint64_t count) {
  const std::string shape = std::to_string(spec.tensor_bytes * 8 / bits);
  std::string json = R"({"__metadata__":{"format":"pt"})";
  for (uint64_t i = 0; i < count; ++i) {
    json += ",\"" + TensorName(first + i) + "\":{\"dtype\":\"" + spec.dtype +
            "\",\"shape\":[" + shape + "],\"data_offsets\":[" +
            std::to_string(i * spec.tensor_bytes) + "," +
            std::to_string((i + 1) * spec.tensor_bytes) + "]}";
  }
  json += "}";
  json.resize((json.size() + 7) / 8 * 8, ' ');
  const uint64_t length = json.size();  // the host is little-endian
  std::string header(8, '\0');
  std::memcpy(header.data(), &length, 8);
  return header + json;
}

TestHubContentPtr Shard(std::string header, uint64_t data, uint64_t seed) {
  const uint64_t size = header.size() + data;
  return GeneratedContent(size, [header = std::move(header), seed](
                                    uint64_t offset, std::span<std::byte> out) {
    if (offset < header.size()) {
      const size_t take = std::min<size_t>(out.size(), header.size() - offset);
      std::memcpy(out.data(), header.data() + offset, take);
      out = out.subspan(take);
      offset += take;
    }
    if (!out.empty()) FillPattern(seed, offset - header.size(), out);
  });
}

// Differs where the spec does.
std::string MadeUpSha256(const TestHubModelSpec& spec,
                         const std::string& name) {
  return MemoryContent(name + " " + spec.dtype + " " +
                       std::to_string(spec.tensors) + " " +
                       std::to_string(spec.tensor_bytes) + " " +
                       std::to_string(spec.seed))
      ->Sha256();
}

std::optional<uint64_t> ParseSize(std::string_view text) {
  uint64_t value = 0;
  const auto end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc()) return std::nullopt;
  const std::string_view unit(rest, static_cast<size_t>(end - rest));
  if (unit.empty()) return value;
  if (unit == "K") return value << 10;
  if (unit == "M") return value << 20;
  if (unit == "G") return value << 30;
  return std::nullopt;
}

}  // namespace

Result<std::vector<TestHubFile>> MakeTestHubModel(
    const TestHubModelSpec& spec) {
  const auto bits = DtypeBits(spec.dtype);
  if (!bits || spec.tensor_bytes * 8 % *bits != 0) {
    return Error(Code::kInvalid,
                 "dtype " + spec.dtype + " does not suit tensors of " +
                     std::to_string(spec.tensor_bytes) + " bytes");
  }
  if (spec.shards == 0 || spec.tensors < spec.shards) {
    return Error(Code::kInvalid, "fewer tensors than shards");
  }
  std::vector<TestHubFile> files;
  nlohmann::json map = nlohmann::json::object();
  for (uint64_t shard = 0; shard < spec.shards; ++shard) {
    const uint64_t first = spec.tensors * shard / spec.shards;
    const uint64_t count = spec.tensors * (shard + 1) / spec.shards - first;
    const std::string name = ShardName(shard, spec.shards);
    files.push_back({name,
                     Shard(Header(spec, *bits, first, count),
                           count * spec.tensor_bytes, spec.seed + shard),
                     true});
    if (!spec.hashed) {
      files.back().content->ClaimSha256(MadeUpSha256(spec, name));
    }
    if (spec.shards == 1) continue;
    for (uint64_t i = 0; i < count; ++i) map[TensorName(first + i)] = name;
  }
  if (spec.shards > 1) {
    const nlohmann::json index = {
        {"metadata", {{"total_size", spec.tensors * spec.tensor_bytes}}},
        {"weight_map", std::move(map)}};
    files.push_back({"model.safetensors.index.json",
                     MemoryContent(index.dump(2)), std::nullopt});
  }
  files.push_back({"config.json",
                   MemoryContent("{\n  \"model_type\": \"generated\"\n}\n"),
                   std::nullopt});
  return files;
}

Result<TestHubModelSpec> ParseTestHubModelSpec(const std::string& text) {
  TestHubModelSpec spec;
  std::optional<uint64_t> whole;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find(',', at), text.size());
    const std::string item = text.substr(at, end - at);
    at = end + 1;
    const size_t equals = item.find('=');
    const std::string key = item.substr(0, equals);
    const std::string value =
        equals == std::string::npos ? "" : item.substr(equals + 1);
    if (key == "dtype" && !value.empty()) {
      spec.dtype = value;
      continue;
    }
    const auto number = ParseSize(value);
    if (!number) return Error(Code::kInvalid, "not a number: " + item);
    if (key == "tensors") {
      spec.tensors = *number;
    } else if (key == "shards") {
      spec.shards = *number;
    } else if (key == "tensor_bytes") {
      spec.tensor_bytes = *number;
    } else if (key == "size") {
      whole = *number;
    } else if (key == "seed") {
      spec.seed = *number;
    } else if (key == "hashed") {
      spec.hashed = *number != 0;
    } else {
      return Error(Code::kInvalid, "unknown: " + item);
    }
  }
  // Tensors of whole 8 bytes, so that every dtype divides them.
  if (whole && spec.tensors > 0) {
    spec.tensor_bytes = *whole / spec.tensors / 8 * 8;
  }
  return spec;
}

}  // namespace weightfs
