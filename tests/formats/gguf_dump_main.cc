// Writes what weightfs reads in a GGUF file into a folder, for
// check_gguf.py to compare with the real library:
//
//   gguf_dump FILE FOLDER
//
// FOLDER/manifest.json lists the metadata and the tensors in file order; N.raw
// holds the bytes of tensor N, N.F32, N.F16 and N.BF16 its values where they
// can be told.

#include <fmt/format.h>

#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "formats/base/byte_source.h"
#include "formats/gguf.h"
#include "formats/gguf_dequantise.h"
#include "formats/text.h"
#include "formats/view/virtual_file.h"
#include "formats/writer.h"

namespace weightfs {
namespace {

std::string Quoted(std::string_view text) {
  std::string quoted;
  AppendJsonString(text, quoted);
  return quoted;
}

// Writes the file that `segments` make.
Result<> Save(const std::string& path, std::vector<Segment> segments,
              ByteSource& source) {
  ASSIGN_OR_RETURN(const auto file, VirtualFile::Create(std::move(segments)));
  std::vector<std::byte> bytes(file.size());
  ByteSource* const objects[] = {&source};
  RETURN_IF_ERROR(ReadVirtual(file, objects, 0, bytes));
  std::ofstream stream(path, std::ios::binary);
  stream.write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
  if (!stream.flush()) return MakeError(Code::kIo, "cannot write {}", path);
  return {};
}

Result<> Dump(const std::string& path, const std::string& folder) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) return MakeError(Code::kNotFound, "cannot read {}", path);
  const std::string text((std::istreambuf_iterator<char>(stream)), {});
  const auto bytes = std::as_bytes(std::span(text));
  MemorySource source(path, {bytes.begin(), bytes.end()});
  ASSIGN_OR_RETURN(const auto index, ReadGguf(source));
  std::string manifest = "{\"metadata\":{";
  for (const auto& [key, value] : index.metadata()) {
    if (manifest.back() != '{') manifest += ',';
    manifest += Quoted(key) + ":" + Quoted(value);
  }
  manifest += "},\"tensors\":[";
  for (const uint32_t i : index.InFileOrder()) {
    const TensorInfo& tensor = index.tensors()[i];
    const std::string stem = fmt::format("{}/{}", folder, tensor.order);
    ASSIGN_OR_RETURN(auto raw, WriteTensor(Format::kRaw, tensor));
    RETURN_IF_ERROR(Save(stem + ".raw", std::move(raw), source));
    for (const DType to : {DType::kF32, DType::kF16, DType::kBF16}) {
      if (!CanDequantise(tensor.dtype)) continue;
      ASSIGN_OR_RETURN(auto values, DequantiseSegments(tensor, to));
      RETURN_IF_ERROR(Save(fmt::format("{}.{}", stem, DTypeName(to)),
                           std::move(values), source));
    }
    manifest +=
        fmt::format(R"({}{{"name":{},"dtype":"{}","shape":[{}],"values":{}}})",
                    tensor.order == 0 ? "" : ",", Quoted(tensor.name),
                    DTypeName(tensor.dtype), fmt::join(tensor.shape, ","),
                    CanDequantise(tensor.dtype));
  }
  std::ofstream out(folder + "/manifest.json");
  out << manifest << "]}\n";
  if (!out.flush()) return MakeError(Code::kIo, "cannot write the manifest");
  return {};
}

}  // namespace
}  // namespace weightfs

int main(int argc, char** argv) {
  const std::vector<std::string> args(argv + 1, argv + argc);
  if (args.size() != 2) {
    std::cerr << "usage: gguf_dump FILE FOLDER\n";
    return 2;
  }
  const auto done = weightfs::Dump(args[0], args[1]);
  if (done.has_value()) return 0;
  std::cerr << "gguf_dump: " << done.error().ToString() << "\n";
  return 1;
}
