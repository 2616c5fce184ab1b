// Writes tensors of every dtype, shape and format into a folder, for real
// clients to load (check_clients.py):
//
//   formats_dump FOLDER          every combination, and FOLDER/manifest.json
//   formats_dump --huge FILE     a sparse .pt of more than 4 GiB
//
// The data of tensor i is made by Fill, which check_clients.py repeats.

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <numeric>
#include <string>
#include <variant>
#include <vector>

#include "formats/base/byte_source.h"
#include "formats/base/unique_fd.h"
#include "formats/view/virtual_file.h"
#include "formats/writer.h"

namespace weightfs {
namespace {

// Byte i of a tensor's data; 0 or 1 for BOOL.
std::byte Fill(DType dtype, uint64_t i) {
  const uint64_t value = (i * 37 + 11) % 251;
  return static_cast<std::byte>(dtype == DType::kBool ? value & 1 : value);
}

struct Case {
  std::string shape_name;
  std::vector<uint64_t> shape;
  bool transposed;  // stored column-major
};

const std::vector<Case>& Cases() {
  static const std::vector<Case> cases = {
      {"scalar", {}, false},       {"one", {1}, false},
      {"empty", {0}, false},       {"empty3", {2, 0, 4}, false},
      {"line", {24}, false},       {"box", {3, 5, 8}, false},
      {"strided", {3, 5, 8}, true}};
  return cases;
}

TensorInfo MakeTensor(DType dtype, const Case& c, uint64_t size) {
  TensorInfo tensor;
  tensor.name = "a/b \"é\" %";
  tensor.dtype = dtype;
  tensor.shape = c.shape;
  if (size > 0) tensor.data = {{0, 0, size}};
  if (c.transposed) {
    uint64_t step = 1;
    for (const uint64_t dim : c.shape) {
      tensor.strides.push_back(step);
      step *= dim;
    }
  }
  return tensor;
}

int Fail(const std::string& what) {
  std::cerr << "formats_dump: " << what << "\n";
  return 1;
}

int DumpOne(const std::string& folder, DType dtype, const Case& c,
            std::string& manifest) {
  const auto size = DenseSize(dtype, c.shape);
  if (!size.has_value()) return 0;  // no whole number of bytes
  std::vector<std::byte> bytes(*size);
  for (uint64_t i = 0; i < bytes.size(); ++i) bytes[i] = Fill(dtype, i);
  MemorySource source("source", bytes);
  ByteSource* const objects[] = {&source};
  const TensorInfo tensor = MakeTensor(dtype, c, *size);
  for (const Format format : AllFormats()) {
    const std::string name = fmt::format("{}-{}{}", DTypeName(dtype),
                                         c.shape_name, FormatExtension(format));
    auto segments = WriteTensor(format, tensor);
    bool unsupported = false;
    if (segments.has_value()) {
      auto file = VirtualFile::Create(*segments);
      if (!file.has_value()) return Fail(file.error().ToString());
      std::vector<std::byte> out(file->size());
      auto read = ReadVirtual(*file, objects, 0, out);
      if (!read.has_value()) return Fail(read.error().ToString());
      std::ofstream stream(std::filesystem::path(folder) / name,
                           std::ios::binary);
      stream.write(reinterpret_cast<const char*>(out.data()),
                   static_cast<std::streamsize>(out.size()));
      if (!stream.flush()) return Fail("cannot write " + name);
    } else if (segments.error().code() == Code::kUnsupported) {
      unsupported = true;
    } else {
      return Fail(segments.error().ToString());
    }
    manifest += fmt::format(
        R"({}{{"file":"{}","format":"{}","dtype":"{}","shape":[{}],)"
        R"("transposed":{},"size":{},"unsupported":{}}})",
        manifest.empty() ? "" : ",\n", name, FormatName(format),
        DTypeName(dtype), fmt::join(c.shape, ","), c.transposed, *size,
        unsupported);
  }
  return 0;
}

int DumpAll(const std::string& folder) {
  std::filesystem::create_directories(folder);
  std::string manifest;
  for (const DType dtype : AllDTypes()) {
    for (const Case& c : Cases()) {
      const int rc = DumpOne(folder, dtype, c, manifest);
      if (rc != 0) return rc;
    }
  }
  std::ofstream stream(folder + "/manifest.json");
  stream << "[" << manifest << "]\n";
  return stream.flush() ? 0 : Fail("cannot write the manifest");
}

// Literals in their places; of the data only the first and last bytes.
int DumpHuge(const std::string& path) {
  TensorInfo tensor;
  tensor.name = "huge";
  tensor.dtype = DType::kU8;
  tensor.shape = {(uint64_t{4} << 30) + 5};
  tensor.data = {{0, 0, tensor.shape[0]}};
  auto segments = WriteTensor(Format::kPt, tensor);
  if (!segments.has_value()) return Fail(segments.error().ToString());
  const UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600));
  if (!fd.valid()) return Fail("cannot open " + path);
  uint64_t at = 0;
  const auto put = [&](const std::string& bytes, uint64_t offset) {
    return ::pwrite(fd.get(), bytes.data(), bytes.size(),
                    static_cast<off_t>(offset)) ==
           static_cast<ssize_t>(bytes.size());
  };
  for (const Segment& segment : *segments) {
    bool done = true;
    if (const auto* literal = std::get_if<LiteralSegment>(&segment)) {
      done = put(*literal->bytes, at);
    } else {
      done = put("first", at) && put("last!", at + SegmentSize(segment) - 5);
    }
    if (!done) return Fail("cannot write " + path);
    at += SegmentSize(segment);
  }
  return 0;
}

}  // namespace
}  // namespace weightfs

int main(int argc, char** argv) {
  const std::vector<std::string> args(argv + 1, argv + argc);
  if (args.size() == 2 && args[0] == "--huge") {
    return weightfs::DumpHuge(args[1]);
  }
  if (args.size() == 1) return weightfs::DumpAll(args[0]);
  return weightfs::Fail("usage: formats_dump FOLDER | --huge FILE");
}
